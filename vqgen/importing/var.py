"""VAR's transformers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import LatentSpec, TokenSpec
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.layout import Row, Shapes, axes
from vqgen.importing.var_vae import FACTOR, SIDES

BLOCK = "transformer.blocks.{n}"
ROWS = [
    Row("condition.embedding.weight", "class_emb.weight"),
    Row("transformer.inputs.start.weight", "pos_start", shape=(1, -1, 0)),
    Row("transformer.inputs.position.weight", "pos_1LC", shape=(1, -1, 0)),
    Row("transformer.inputs.level.weight", "lvl_embed.weight"),
    Row("transformer.inputs.word.{leaf}", "word_embed.{leaf}"),
    Row("transformer.modulation.1.{leaf}", "shared_ada_lin.1.{leaf}"),
    Row("transformer.head.modulation.{leaf}", "head_nm.ada_lin.1.{leaf}"),
    Row("transformer.head.out.{leaf}", "head.{leaf}"),
    Row(f"{BLOCK}.attention.log_scale", "blocks.{n}.attn.scale_mul_1H11", shape=(1, -1, 1, 1)),
    Row(f"{BLOCK}.attention.q_bias", "blocks.{n}.attn.q_bias"),
    Row(f"{BLOCK}.attention.v_bias", "blocks.{n}.attn.v_bias"),
    Row(f"{BLOCK}.attention.qkv.weight", "blocks.{n}.attn.mat_qkv.weight"),
    Row(f"{BLOCK}.attention.out.{{leaf}}", "blocks.{n}.attn.proj.{leaf}"),
    Row(f"{BLOCK}.ffn.up.{{leaf}}", "blocks.{n}.ffn.fc1.{leaf}"),
    Row(f"{BLOCK}.ffn.down.{{leaf}}", "blocks.{n}.ffn.fc2.{leaf}"),
    Row(f"{BLOCK}.modulation.{{leaf}}", "blocks.{n}.ada_lin.1.{leaf}"),
    Row(f"{BLOCK}.offset.weight", "blocks.{n}.ada_gss", shape=(1, 1, 6, -1)),
]


def _describe_prior(shapes: Shapes, hints: Hints) -> Description:
    config, (_, length, width) = hints.config, axes(shapes, "pos_1LC", 3)
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    unit_qk = SCALES in shapes
    heads = shapes[SCALES][1] if unit_qk else config.get("num_heads")
    if heads is None:
        if width % 64:  # of each published head
            raise ValueError(
                f"{hints.name} has width {width}, which is no multiple of 64 as the published ones "
                "are, and the number of heads is not stored in it; give the peer's: --config "
                'var.json with {"num_heads": 2}'
            )
        heads = width // 64
    if width % heads:
        raise ValueError(
            f"wanted num_heads that divide the width {width} of {hints.name}, got {heads}; write "
            'them in --config as {"num_heads": 2}'
        )
    num_classes = shapes["class_emb.weight"][0] - 1
    sides = _sides(length, config.get("patch_nums"), hints.name)
    published = width == 64 * depth and num_classes == 1000
    architecture = {
        "_target_": "vqgen.priors.var.VAR",
        "depth": depth,
        "width": width,
        "heads": heads,
        "mlp_ratio": shapes["blocks.0.ffn.fc1.weight"][0] / width,
        "shared_modulation": "shared_ada_lin.1.weight" in shapes,
        "unit_qk": unit_qk,
        "attention_scale": None if unit_qk else 0.25 * (width // heads) ** -0.5,
        "norm_eps": config.get("norm_eps", 1e-6),
        "label_dropout": config.get("cond_drop_rate", 0.1),
        "drop_path": config.get("drop_path_rate", 0.1 * depth / 24),
    }
    return Description(
        architecture=architecture,
        spec=TokenSpec(shapes["head.weight"][0], tuple((side, side) for side in sides)),
        num_classes=num_classes,
        factor=FACTOR if published else None,
        own={"calls": torch.zeros((), dtype=torch.long)},
        peers_own=partial(_tables, width=width, depth=depth),
        untold=UNTOLD if unit_qk else ("num_heads", *UNTOLD),
        facts=_settings(depth) if published else {},
    )


UNTOLD = ("patch_nums", "norm_eps", "cond_drop_rate", "drop_path_rate")
SCALES = "blocks.0.attn.scale_mul_1H11"


def _prior_settings(node: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    return {
        "depth": node["depth"],
        "embed_dim": node["width"],
        "num_heads": node["heads"],
        "mlp_ratio": node["mlp_ratio"],
        "shared_aln": node["shared_modulation"],
        "attn_l2_norm": node["unit_qk"],
        "norm_eps": node["norm_eps"],
        "cond_drop_rate": node["label_dropout"],
        "drop_path_rate": node["drop_path"],
        "patch_nums": [side for side, _ in spec.scales],
    }


def _sides(length: int, given: Sequence[int] | None, name: str) -> Sequence[int]:
    for sides in (given,) if given else SIDES.values():
        if sum(side * side for side in sides) == length:
            return sides
    if given:
        tokens = sum(side * side for side in given)
        raise ValueError(
            f"wanted patch_nums for the {length} tokens of {name}, got {list(given)}, which make "
            f"{tokens}; correct it in --config"
        )
    raise ValueError(
        f"{name} has {length} tokens, which is no published list of scales; give the peer's: "
        '--config var.json with {"patch_nums": [1, 2, 4, 8]}'
    )


def _tables(spec: LatentSpec | None, *, width: int, depth: int) -> dict[str, Tensor]:
    """The level of each position, the mask of its attention (0, or -inf where a position may not
    look), and the bias of the keys."""
    assert isinstance(spec, TokenSpec)
    counts = torch.tensor([height * w for height, w in spec.scales])
    level = torch.arange(len(counts)).repeat_interleave(counts)[None]
    seen = level.unsqueeze(2) >= level.unsqueeze(1)
    mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    keys = {f"blocks.{n}.attn.zero_k_bias": torch.zeros(width) for n in range(depth)}
    return {"lvl_1L": level, "attn_bias_for_masking": mask[None], **keys}


def _settings(depth: int) -> dict[str, Any]:
    """The peer's guidance is w k / (K - 1) at scale k of K in (1 + t) c - t u: ours from 1 to
    1 + w."""
    return {
        "published": f"var_d{depth}",
        "guidance": "linear:5.0",
        "knobs": {"temperature": 1.0, "top_k": 900, "top_p": 0.95},
        "knobs_source": "the notebook of FoundationVision/VAR (commit 78b9539)",
        "knobs_for_fid": {"guidance": "linear:2.5", "top_k": 900, "top_p": 0.96},
    }


VAR = Family(
    name="var",
    kind="prior",
    mark="pos_1LC",
    holds="vqgen.priors.var.VAR",
    codes="head.weight",
    places=("", "trainer.var_wo_ddp", "state_dict", "model"),
    describe=_describe_prior,
    rows=lambda node: ROWS,
    settings=_prior_settings,
    partner="var-vae",
)
