"""The published LlamaGen's names and switches in ours, for the parity tests."""

import torch
from torch import Tensor

from vqgen.contracts import Condition, Guidance, TokenSpec
from vqgen.priors.llamagen import LlamaGen

RENAMED = {
    "cls_embedding.embedding_table.weight": "condition.embedding.weight",
    "cls_embedding.cap_proj.fc1.weight": "condition.project_in.weight",
    "cls_embedding.cap_proj.fc2.weight": "condition.project_out.weight",
    "cls_embedding.uncond_embedding": "condition.null_caption",
    "tok_embeddings.weight": "embedding.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
RENAMED_IN_BLOCK = {
    "attention.wqkv.weight": "attention.qkv.weight",
    "attention.wo.weight": "attention.out.weight",
    "feed_forward.w2.weight": "ffn.down.weight",
    "attention_norm.weight": "attention_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
}
GATE, UP = "feed_forward.w1.weight", "feed_forward.w3.weight"  # one matrix with us, gate first


def state_of(peer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The peer's state dict under our names."""
    ours = {ours: peer[name] for name, ours in RENAMED.items() if name in peer}
    blocks = {name.split(".")[1] for name in peer if name.startswith("layers.")}
    for block in blocks:
        before = f"layers.{block}."
        for name, renamed in RENAMED_IN_BLOCK.items():
            ours[f"blocks.{block}.{renamed}"] = peer[before + name]
        ours[f"blocks.{block}.ffn.gate_up.weight"] = torch.cat(
            (peer[before + GATE], peer[before + UP])
        )
    return ours


def gradient_of(model: LlamaGen, name: str) -> Tensor:
    """The gradient of the parameter that the peer calls `name`."""
    parameters = dict(model.named_parameters())
    if name in RENAMED:
        return _gradient(parameters[RENAMED[name]])
    _, block, rest = name.split(".", 2)
    if rest in (GATE, UP):
        gate, up = _gradient(parameters[f"blocks.{block}.ffn.gate_up.weight"]).chunk(2)
        return gate if rest == GATE else up
    return _gradient(parameters[f"blocks.{block}.{RENAMED_IN_BLOCK[rest]}"])


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def build(config: dict, weights: dict[str, Tensor]) -> LlamaGen:
    """Our model of the peer's configuration with the peer's weights, in eval mode."""
    side = round(config["block_size"] ** 0.5)
    is_text = config["model_type"] == "t2i"
    model = LlamaGen(
        TokenSpec(config["vocab_size"], ((side, side),)),
        width=config["dim"],
        depth=config["n_layer"],
        heads=config["n_head"],
        kv_heads=config["n_kv_head"],
        num_classes=0 if is_text else config["num_classes"],
        text_length=config["cls_token_num"] if is_text else 0,
        text_dim=config["caption_dim"] if is_text else 0,
        multiple_of=config["multiple_of"],
        ffn_multiplier=config["ffn_dim_multiplier"],
        norm_eps=config["norm_eps"],
        rope_base=config["rope_base"],
        zero_condition_rope=True,
        token_dropout=config["token_dropout_p"],
        attention_dropout=config["attn_dropout_p"],
        residual_dropout=config["resid_dropout_p"],
        ffn_dropout=config["ffn_dropout_p"],
        drop_path=config["drop_path_rate"],
    )
    model.load_state_dict(state_of(weights))
    return model.eval()


def condition(inputs: dict[str, Tensor], labels: str = "labels", masked: bool = True) -> Condition:
    """The condition of a fixture: its caption and mask, or its labels (num_classes is no class)."""
    if "caption" in inputs:
        return Condition.of_text(inputs["caption"], inputs["emb_masks"] if masked else None)
    return Condition.of_labels(inputs[labels])


def dropped(given: Condition, inputs: dict[str, Tensor]) -> Condition:
    """`given` withheld where the fixture says so."""
    return Condition(
        batch=given.batch,
        labels=given.labels,
        text=given.text,
        mask=given.mask,
        dropped=inputs["force_drop_ids"].bool(),
    )


def guidance(scale: float, last: int, steps: int) -> Guidance:
    """The peer's scale and interval: -1 always, else tokens 0 ... last + 1; off up to scale 1."""

    def schedule(progress: float) -> float:
        step = round(progress * (steps - 1))
        return scale if scale > 1 and (last == -1 or step <= last + 1) else 1.0

    return schedule
