"""The tokenizers of the VQGAN line (LlamaGen's, taming's, VAR's): names, sizes and options."""

import re
from dataclasses import dataclass
from typing import Any

from vqgen.importing.layout import Row, Shapes

ROOT = "vqgen.tokenizers"


@dataclass(frozen=True)
class Naming:
    """How a peer calls the parts of encoder and decoder; `{i}` counts our levels in the order they
    run, `{up}` against it."""

    down: str  # a level of the encoder
    up: str  # a level of the decoder, which runs coarsest first
    block: str
    attention: str
    middle: tuple[str, str, str]
    fused: bool  # one convolution for queries, keys and values
    coarsest: bool  # attention at the coarsest level alone; otherwise its levels are a setting


LLAMAGEN = Naming(
    down="encoder.conv_blocks.{i}",
    up="decoder.conv_blocks.{i}",
    block="res",
    attention="attn",
    middle=("mid.0", "mid.1", "mid.2"),
    fused=False,
    coarsest=True,
)
TAMING = Naming(
    down="encoder.down.{i}",
    up="decoder.up.{up}",
    block="block",
    attention="attn",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    fused=False,
    coarsest=False,
)
VAR = Naming(**{**vars(TAMING), "fused": True, "coarsest": True})


def rows(names: Naming) -> list[Row]:
    """The table of everything but the bottleneck."""
    table = [
        Row(f"{conv}.{{leaf}}", f"{conv}.{{leaf}}") for conv in ("quant_conv", "post_quant_conv")
    ]
    for side, level, resample in (
        ("encoder", names.down, "downsample"),
        ("decoder", names.up, "upsample"),
    ):
        for part in ("conv_in", "norm_out", "conv_out"):
            table.append(Row(f"{side}.{part}.{{leaf}}", f"{side}.{part}.{{leaf}}"))
        ours = f"{side}.levels.{{i}}"
        table.append(Row(f"{ours}.resample.conv.{{leaf}}", f"{level}.{resample}.conv.{{leaf}}"))
        table += _block(f"{ours}.blocks.{{j}}", f"{level}.{names.block}.{{j}}")
        table += _attention(
            f"{ours}.attentions.{{j}}", f"{level}.{names.attention}.{{j}}", names.fused
        )
        first, between, last = (f"{side}.{part}" for part in names.middle)
        table += _block(f"{side}.middle.0", first) + _block(f"{side}.middle.2", last)
        table += _attention(f"{side}.middle.1", between, names.fused)
    return table


def _block(ours: str, theirs: str) -> list[Row]:
    same = ("norm1", "conv1", "norm2", "conv2")
    return [
        Row(f"{ours}.skip.{{leaf}}", f"{theirs}.nin_shortcut.{{leaf}}"),
        *(Row(f"{ours}.{part}.{{leaf}}", f"{theirs}.{part}.{{leaf}}") for part in same),
    ]


def _attention(ours: str, theirs: str, fused: bool) -> list[Row]:
    words = (("query", "q"), ("key", "k"), ("value", "v"))
    table = [
        Row(f"{ours}.norm.{{leaf}}", f"{theirs}.norm.{{leaf}}"),
        Row(f"{ours}.out.{{leaf}}", f"{theirs}.proj_out.{{leaf}}"),
    ]
    if fused:
        stacked = " ".join(f"{ours}.{part}.{{leaf}}" for part, _ in words)
        return [*table, Row(stacked, f"{theirs}.qkv.{{leaf}}")]
    return table + [Row(f"{ours}.{a}.{{leaf}}", f"{theirs}.{b}.{{leaf}}") for a, b in words]


def levels(shapes: Shapes, names: Naming) -> int:
    """How many levels the encoder has; the size is halved between them."""
    return _count(shapes, names.down.format(i=r"(\d+)"))


def architecture(
    shapes: Shapes, names: Naming, *, image_size: tuple[int, int], dropout: float
) -> dict[str, Any]:
    """The node of an Autoencoder with these weights, all but its bottleneck.

    Raises ValueError for widths that are no multiples of the first."""
    count = levels(shapes, names)
    downs = [names.down.format(i=i) for i in range(count)]
    ups = [names.up.format(i=count - 1 - i, up=i) for i in range(count)]
    channels = shapes["encoder.conv_in.weight"][0]
    kernel = shapes["quant_conv.weight"][2]
    return {
        "_target_": f"{ROOT}.autoencoder.Autoencoder",
        "image_size": list(image_size),
        "z_channels": shapes["quant_conv.weight"][1],
        "quant_kernel": kernel,
        "encoder": _side("Encoder", shapes, names, downs, channels, dropout),
        "decoder": _side("Decoder", shapes, names, ups, channels, dropout),
    }


def _side(
    kind: str, shapes: Shapes, names: Naming, levels: list[str], channels: int, dropout: float
) -> dict[str, Any]:
    """The node of one half; `levels` are the peer's prefixes, finest first."""
    widths = [shapes[f"{level}.{names.block}.0.conv2.weight"][0] for level in levels]
    if any(width % channels for width in widths):
        raise ValueError(
            f"wanted levels whose widths are multiples of the first, {channels}, got {widths}; "
            "this is not a published autoencoder's layout"
        )
    attentive = [
        index
        for index, level in enumerate(levels)
        if f"{level}.{names.attention}.0.norm.weight" in shapes
    ]
    return {
        "_target_": f"vqgen.nn.autoencoder.{kind}",
        "_partial_": True,
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "blocks": [_count(shapes, rf"{level}.{names.block}.(\d+)") for level in levels],
        "attention_levels": attentive,
        "dropout": dropout,
    }


def unbuildable(node: dict[str, Any], names: Naming) -> list[str]:
    """What the peer's own code would build otherwise than this Autoencoder (canonical), in words
    with a cure: keys tell where attention is, but its code decides where it looks for them."""
    encoder, decoder = node["encoder"], node["decoder"]
    attentive, count = encoder["attention_levels"], len(encoder["multipliers"])
    reasons = []
    for side in ("encoder", "decoder"):
        levels = node[side]["attention_levels"]
        if names.coarsest and levels != [count - 1]:
            reasons.append(
                f"the {side} has attention at {_levels(levels)} (0 is the finest), there it is at "
                f"the coarsest alone, level {count - 1}; train with attention_levels=[-1]"
            )
    if not names.coarsest and decoder["attention_levels"] != attentive:
        reasons.append(
            f"the encoder has attention at {_levels(attentive)} and the decoder at "
            f"{_levels(decoder['attention_levels'])}, there both have the same; train with one "
            "attention_levels for both"
        )
    if names is not LLAMAGEN and encoder["multipliers"] != decoder["multipliers"]:
        reasons.append(
            f"the widths are {encoder['multipliers']} times the first in the encoder and "
            f"{decoder['multipliers']} in the decoder, there both have the same; train with one "
            "multipliers for both"
        )
    counts = set(encoder["blocks"]), {blocks - 1 for blocks in decoder["blocks"]}
    if len(counts[0] | counts[1]) > 1:
        reasons.append(
            f"the levels have {encoder['blocks']} residual blocks in the encoder and "
            f"{decoder['blocks']} in the decoder, there all have the same number, and one more in "
            "the decoder; train with encoder.blocks=2 and decoder.blocks=3"
        )
    return reasons


def numbers(node: dict[str, Any]) -> dict[str, Any]:
    """Width, widths of the levels and blocks of this Autoencoder (canonical) by the peers' names;
    some of them write these numbers into their code."""
    encoder = node["encoder"]
    return {
        "ch": encoder["channels"],
        "ch_mult": encoder["multipliers"],
        "num_res_blocks": encoder["blocks"][0],
    }


def _levels(levels: list[int]) -> str:
    return f"level {', '.join(map(str, levels))}" if levels else "no level"


def _count(shapes: Shapes, prefix: str) -> int:
    found = (re.match(prefix.replace(".", r"\."), name) for name in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
