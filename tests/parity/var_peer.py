"""The published VAR transformer's names and switches in ours, for the parity tests."""

import re
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import Guidance, Pyramid, TokenSpec
from vqgen.priors.var import VAR
from vqgen.sampling.guidance import linear

RENAMED = {
    "pos_start": "transformer.inputs.start.weight",
    "pos_1LC": "transformer.inputs.position.weight",
    "lvl_embed.weight": "transformer.inputs.level.weight",
    "word_embed": "transformer.inputs.word",
    "class_emb.weight": "condition.embedding.weight",
    "shared_ada_lin.1": "transformer.modulation.1",
    "head_nm.ada_lin.1": "transformer.head.modulation",
    "head": "transformer.head.out",
}
RENAMED_IN_BLOCK = {
    "attn.scale_mul_1H11": "attention.log_scale",
    "attn.q_bias": "attention.q_bias",
    "attn.v_bias": "attention.v_bias",
    "attn.mat_qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "ffn.fc1": "ffn.up",
    "ffn.fc2": "ffn.down",
    "ada_lin.1": "modulation",
    "ada_gss": "offset.weight",
}
DERIVED = re.compile(r"lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")
OURS_ALONE = re.compile(r"pyramid\..*|calls")


def name_of(peer: str) -> str:
    """The peer's parameter name -> ours."""
    block, renamed = "", RENAMED
    if peer.startswith("blocks."):
        _, number, peer = peer.split(".", 2)
        block, renamed = f"transformer.blocks.{number}.", RENAMED_IN_BLOCK
    known = next(name for name in renamed if peer == name or peer.startswith(name + "."))
    return block + renamed[known] + peer.removeprefix(known)


def state_of(peer: dict[str, Tensor], model: VAR) -> dict[str, Tensor]:
    """The peer's state dict under our names, without its broadcast axes; what both hold must match
    one to one. Raises KeyError for a name that we lack."""
    own = model.state_dict()
    ours = {name: value for name, value in own.items() if OURS_ALONE.fullmatch(name)}
    for name, value in peer.items():
        if not DERIVED.fullmatch(name):
            place = own[name_of(name)]
            assert [n for n in value.shape if n > 1] == [n for n in place.shape if n > 1], name
            ours[name_of(name)] = value.reshape(place.shape).to(place.dtype)
    return ours


def gradient_of(model: VAR, name: str) -> Tensor:
    """The gradient of the parameter that the peer calls `name`."""
    gradient = dict(model.named_parameters())[name_of(name)].grad
    assert gradient is not None
    return gradient


def build(config: dict[str, Any], pyramid: Pyramid, vocab_size: int) -> VAR:
    """Our model of the peer's configuration, in eval mode, new weights."""
    head_width = config["embed_dim"] // config["num_heads"]
    return VAR(
        TokenSpec(vocab_size, tuple((side, side) for side in config["patch_nums"])),
        pyramid=pyramid,
        depth=config["depth"],
        width=config["embed_dim"],
        heads=config["num_heads"],
        num_classes=config["num_classes"],
        mlp_ratio=config["mlp_ratio"],
        shared_modulation=config["shared_aln"],
        unit_qk=config["attn_l2_norm"],
        attention_scale=None if config["attn_l2_norm"] else 0.25 * head_width**-0.5,
        norm_eps=config["norm_eps"],
        label_dropout=config["cond_drop_rate"],
        drop_path=config["drop_path_rate"],
    ).eval()


def load(model: VAR, weights: dict[str, Tensor]) -> VAR:
    """The peer's weights into ours, strictly."""
    model.load_state_dict(state_of(weights, model), strict=True)
    return model


def guidance(cfg: float) -> Guidance:
    """The peer's t = cfg k / (K - 1) with (1 + t) c - t u is a ramp from 1 to 1 + cfg."""
    return linear(1 + cfg)


def by_scale(outputs: dict[str, Tensor], run: str, what: str) -> Tensor:
    """The outputs RUN/WHAT_0, _1, ... joined along the tokens."""
    pattern = re.compile(rf"out/{re.escape(run)}/{what}_(\d+)")
    found = {int(m[1]): outputs[name] for name in outputs if (m := pattern.fullmatch(name))}
    return torch.cat([found[scale] for scale in sorted(found)], dim=1)
