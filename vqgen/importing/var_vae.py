"""VAR's multi-scale tokenizer."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.importing import autoencoders
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.layout import Row, Shapes, axes

CODES = "quantize.embedding.weight"
HITS = "quantize.ema_vocab_hit_SV"
LOOSE = {HITS: "zeros, as before a training: the peer's count of the codes it saw is not kept"}
FACTOR = 16  # pixels per side of a published token
SIDES = {  # of the published scales, by the latent grid
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}


def _describe_tokenizer(shapes: Shapes, hints: Hints) -> Description:
    config, levels = hints.config, autoencoders.levels(shapes, autoencoders.VAR)
    factor = 2 ** (levels - 1)
    grids = [side[-1] for side in (config.get("v_patch_nums"),) if side]
    grid = (hints.scales or [(side, side) for side in grids or [16]])[-1]
    size = hints.size or (grid[0] * factor, grid[1] * factor)
    bottleneck = quantizer(shapes, config, _scales_of(hints, size, factor))
    node = autoencoders.architecture(shapes, autoencoders.VAR, image_size=size, dropout=0.0)
    return Description(
        architecture={**node, "bottleneck": bottleneck},
        levels=levels,
        own=quantizer_state(shapes),
        peers_own=partial(_no_hits, vocab_size=shapes[CODES][0]),
        loose=LOOSE,
        untold=("using_znorm", "quant_resi", "beta", *(() if hints.scales else ("v_patch_nums",))),
    )


def quantizer(shapes: Shapes, config: Any, scales: Sequence[Size]) -> dict[str, Any]:
    """The node of the bottleneck with these weights."""
    size, dim = axes(shapes, CODES, 2)
    names = [name for name in shapes if name.startswith("quantize.quant_resi.")]
    per_scale = any(re.match(r"quantize\.quant_resi\.\d", name) for name in names)
    if per_scale and 2 * len(scales) != len(names):  # a weight and a bias each
        raise ValueError(
            f"wanted v_patch_nums with one side for each of the {len(names) // 2} scales of this "
            f"file, got {len(scales)}; correct it in --config"
        )
    phi_count = 0 if per_scale else max(1, len(names) // 2)
    shared = config.get("share_quant_resi", phi_count)
    if names and shared != phi_count:
        raise ValueError(
            f"share_quant_resi is {shared} in --config, but the file has "
            f"{'one convolution per scale, 0' if per_scale else phi_count}; correct it there"
        )
    if bool(config.get("quant_resi", names)) != bool(names):
        raise ValueError(
            f"quant_resi is {config['quant_resi']} in --config, but the file has "
            f"{len(names) // 2} of its convolutions; correct it there"
        )
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
        "phi_count": phi_count,
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


def _scales_of(hints: Hints, size: Size, factor: int) -> Sequence[Size]:
    if hints.scales:
        return hints.scales
    sides = hints.config.get("v_patch_nums") or SIDES.get(size[0] // factor)
    if sides is None or size[0] != size[1]:
        raise ValueError(
            f"VAR's tokenizer was published for 256 and 512 pixels; for {size[0]} x {size[1]} give "
            'the sides of its scales: --config vae.json with {"v_patch_nums": [1, 2, 4, 8]}'
        )
    return [(side, side) for side in sides]


def _no_hits(spec: LatentSpec | None, *, vocab_size: int) -> dict[str, Tensor]:
    assert isinstance(spec, TokenSpec)
    return {HITS: torch.zeros(len(spec.scales), vocab_size)}


VAR_VAE = Family(
    name="var-vae",
    kind="tokenizer",
    mark="encoder.mid.attn_1.qkv.weight",
    holds="vqgen.tokenizers.multiscale.MultiScaleQuantizer",
    codes=CODES,
    places=("", "trainer.vae_local", "state_dict", "model"),
    describe=_describe_tokenizer,
    rows=_tokenizer_rows,
    settings=_tokenizer_settings,
    unbuilt=partial(autoencoders.unbuildable, names=autoencoders.VAR),
    fixed={"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2},
)
