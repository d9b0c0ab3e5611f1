"""VAR's multi-scale tokenizer and its transformers."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.importing import autoencoders
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.layout import Row, Shapes

CODES = "quantize.embedding.weight"
HITS = "quantize.ema_vocab_hit_SV"
FACTOR = 16  # pixels per side of a token
SIDES = {  # of the published scales, by the latent grid
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}


def _describe_tokenizer(shapes: Shapes, hints: Hints) -> Description:
    config = hints.config
    grids = [side[-1] for side in (config.get("v_patch_nums"),) if side]
    grid = (hints.scales or [(side, side) for side in grids or [16]])[-1]
    size = hints.size or (grid[0] * FACTOR, grid[1] * FACTOR)
    bottleneck = quantizer(shapes, config, _scales_of(hints, size))
    node = autoencoders.architecture(shapes, autoencoders.VAR, image_size=size, dropout=0.0)
    return Description(
        architecture={**node, "bottleneck": bottleneck},
        levels=autoencoders.levels(shapes, autoencoders.VAR),
        own=quantizer_state(shapes),
        peers_own=partial(_no_hits, vocab_size=shapes[CODES][0]),
        loose=(HITS,),
    )


def quantizer(shapes: Shapes, config: Any, scales: Sequence[Size]) -> dict[str, Any]:
    """The node of the bottleneck with these weights."""
    size, dim = shapes[CODES]
    names = [name for name in shapes if name.startswith("quantize.quant_resi.")]
    per_scale = any(re.match(r"quantize\.quant_resi\.\d", name) for name in names)
    strength = abs(config.get("quant_resi", 0.5)) if names else 0.0
    return {
        "_target_": "vqgen.tokenizers.multiscale.MultiScaleQuantizer",
        "codebook": {
            "_target_": "vqgen.tokenizers.codebook.Codebook",
            "size": size,
            "dim": dim,
            "start": "random",  # the codes are there: no training batch may replace them
        },
        "scales": [list(scale) for scale in scales],
        "distance": "cosine" if config.get("using_znorm", False) else "l2",
        "phi_count": 0 if per_scale else max(1, len(names) // 2),  # a weight and a bias each
        "phi_strength": strength,
        "commitment_weight": config.get("beta", 0.25),
    }


def quantizer_rows(phi_count: int) -> list[Row]:
    """The table of the bottleneck; the peer names its phi in three ways."""
    number, name = {0: ("{n}", "{n}"), 1: ("0", "qresi")}.get(phi_count, ("{n}", "qresi_ls.{n}"))
    ours, theirs = f"bottleneck.phi.convolutions.{number}", f"quantize.quant_resi.{name}"
    return [
        Row("bottleneck.codebooks.0.weight", CODES),
        Row(f"{ours}.{{leaf}}", f"{theirs}.{{leaf}}"),
    ]


def _tokenizer_rows(node: dict[str, Any]) -> list[Row]:
    phi_count = node["bottleneck"]["phi_count"]
    return [*autoencoders.rows(autoencoders.VAR), *quantizer_rows(phi_count)]


def _tokenizer_settings(node: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    bottleneck = node["bottleneck"]
    return {
        "vocab_size": spec.vocab_size,
        "z_channels": node["z_channels"],
        "ch": node["encoder"]["channels"],
        "share_quant_resi": bottleneck["phi_count"],
        "quant_resi": bottleneck["phi_strength"],
        "quant_conv_ks": node["quant_kernel"],
        "using_znorm": bottleneck["distance"] == "cosine",
        "beta": bottleneck["commitment_weight"],
        "v_patch_nums": [side for side, _ in spec.scales],
    }


def quantizer_state(shapes: Shapes) -> dict[str, Tensor]:
    """What training keeps about the codes, and the peer does not."""
    return {
        "bottleneck.codebooks.0.usage": torch.ones(shapes[CODES][0]),
        "bottleneck.codebooks.0.started": torch.tensor(True),
    }


def _scales_of(hints: Hints, size: Size) -> Sequence[Size]:
    if hints.scales:
        return hints.scales
    sides = hints.config.get("v_patch_nums") or SIDES.get(size[0] // FACTOR)
    if sides is None or size[0] != size[1]:
        raise ValueError(
            f"VAR's tokenizer was published for 256 and 512 pixels; for {size[0]} x {size[1]} give "
            'the sides of its scales: --config vae.json with {"v_patch_nums": [1, 2, 4, 8]}'
        )
    return [(side, side) for side in sides]


def _no_hits(spec: LatentSpec | None, *, vocab_size: int) -> dict[str, Tensor]:
    assert isinstance(spec, TokenSpec)
    return {HITS: torch.zeros(len(spec.scales), vocab_size)}


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
    config, (_, length, width) = hints.config, shapes["pos_1LC"]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    unit_qk = SCALES in shapes
    heads = shapes[SCALES][1] if unit_qk else config.get("num_heads", width // 64)
    num_classes = shapes["class_emb.weight"][0] - 1
    sides = config.get("patch_nums") or _published_sides(length, hints.name)
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
        facts=_settings(depth) if published else {},
    )


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
        "patch_nums": [side for side, _ in spec.scales],
    }


def _published_sides(length: int, name: str) -> Sequence[int]:
    for sides in SIDES.values():
        if sum(side * side for side in sides) == length:
            return sides
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


VAR_VAE = Family(
    name="var-vae",
    kind="tokenizer",
    mark="encoder.mid.attn_1.qkv.weight",
    places=("", "trainer.vae_local", "state_dict", "model"),
    describe=_describe_tokenizer,
    rows=_tokenizer_rows,
    settings=_tokenizer_settings,
)
VAR = Family(
    name="var",
    kind="prior",
    mark="pos_1LC",
    places=("", "trainer.var_wo_ddp", "state_dict", "model"),
    describe=_describe_prior,
    rows=lambda node: ROWS,
    settings=_prior_settings,
    partner="var-vae",
)
