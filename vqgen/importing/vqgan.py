"""LlamaGen's and taming's VQ tokenizers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.importing import autoencoders
from vqgen.importing.autoencoders import LLAMAGEN, TAMING, Naming
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.layout import Row, Shapes, axes

CODES = "quantize.embedding.weight"
USAGE_WINDOW = 65536  # indices in LlamaGen's record of used codes


def _llamagen(shapes: Shapes, hints: Hints) -> Description:
    config = hints.config
    bottleneck = _bottleneck(
        shapes,
        normalize=config.get("codebook_l2_norm", True),
        commitment_weight=config.get("commit_loss_beta", 0.25),
        codebook_weight=1.0,
        entropy_weight=config.get("entropy_loss_ratio", 0.0),
    )
    dropout = config.get("dropout_p", 0.0)
    side = _published_size(hints.name)
    size = hints.size or (side, side)
    return _description(
        shapes,
        LLAMAGEN,
        bottleneck,
        size,
        dropout,
        peers_own=_fresh_window,
        loose=LOOSE,
        untold=("codebook_l2_norm", "commit_loss_beta", "entropy_loss_ratio", "dropout_p"),
    )


def _taming(shapes: Shapes, hints: Hints) -> Description:
    config = hints.config
    bottleneck = _bottleneck(
        shapes,
        normalize=False,
        commitment_weight=1.0,  # the legacy loss: beta stands on the codebook's side
        codebook_weight=config.get("beta", 0.25),
        entropy_weight=0.0,
    )
    side = config.get("resolution", 256)
    size = hints.size or (side, side)
    untold = ("beta", "dropout") if hints.size else ("resolution", "beta", "dropout")
    described = _description(
        shapes, TAMING, bottleneck, size, config.get("dropout", 0.0), untold=untold
    )
    _check_attention(described.architecture["encoder"], config, side)
    return described


def _check_attention(encoder: dict[str, Any], config: Any, resolution: int) -> None:
    """Raise a ValueError if the file has attention elsewhere than attn_resolutions say."""
    reached = [resolution // 2**level for level in range(len(encoder["multipliers"]))]
    given = sorted(set(config.get("attn_resolutions", ())) & set(reached))
    found = sorted(reached[level] for level in encoder["attention_levels"])
    if "attn_resolutions" in config and given != found:
        raise ValueError(
            f"attn_resolutions is {config['attn_resolutions']} in --config, but the file has "
            f"attention at {found} for resolution {resolution}; correct one of them there"
        )


def _description(
    shapes: Shapes,
    names: Naming,
    bottleneck: dict[str, Any],
    size: Size,
    dropout: float,
    **more: Any,
) -> Description:
    node = autoencoders.architecture(shapes, names, image_size=size, dropout=dropout)
    codebook = "bottleneck.codebook"
    return Description(
        architecture={**node, "bottleneck": bottleneck},
        levels=autoencoders.levels(shapes, names),
        own={
            f"{codebook}.usage": torch.ones(shapes[CODES][0]),
            f"{codebook}.started": torch.tensor(True),
        },
        **more,
    )


def _bottleneck(shapes: Shapes, *, normalize: bool, **weights: float) -> dict[str, Any]:
    size, dim = axes(shapes, CODES, 2)
    return {
        "_target_": "vqgen.tokenizers.vq.VectorQuantizer",
        "codebook": {
            "_target_": "vqgen.tokenizers.codebook.Codebook",
            "size": size,
            "dim": dim,
            "normalize": normalize,
            "start": "random",  # the codes are there: no training batch may replace them
        },
        **weights,
    }


def _published_size(name: str) -> int:
    return next((size for size in (256, 384, 512) if str(size) in name), 256)


def _rows(names: Naming) -> Callable[[dict[str, Any]], list[Row]]:
    return lambda node: [*autoencoders.rows(names), Row("bottleneck.codebook.weight", CODES)]


def _llamagen_settings(node: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    bottleneck = node["bottleneck"]
    return {
        "codebook_size": spec.vocab_size,
        "codebook_embed_dim": bottleneck["codebook"]["dim"],
        "codebook_l2_norm": bottleneck["codebook"]["normalize"],
        "commit_loss_beta": bottleneck["commitment_weight"],
        "entropy_loss_ratio": bottleneck["entropy_weight"],
        "encoder_ch_mult": node["encoder"]["multipliers"],
        "decoder_ch_mult": node["decoder"]["multipliers"],
        "z_channels": node["z_channels"],
        "dropout_p": node["encoder"]["dropout"],
    }


def _taming_settings(node: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    encoder, resolution = node["encoder"], node["image_size"][0]
    net = {
        "double_z": False,
        "z_channels": node["z_channels"],
        "resolution": resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": encoder["channels"],
        "ch_mult": encoder["multipliers"],
        "num_res_blocks": encoder["blocks"][0],
        "attn_resolutions": [resolution // 2**level for level in encoder["attention_levels"]],
        "dropout": encoder["dropout"],
    }
    beta = node["bottleneck"]["codebook_weight"]
    width = node["bottleneck"]["codebook"]["dim"]
    return {"embed_dim": width, "n_embed": spec.vocab_size, "beta": beta, "ddconfig": net}


USED = "quantize.codebook_used"
LOOSE = {USED: "zeros, as before a training: the peer's record of the codes it saw is not kept"}


def _fresh_window(spec: LatentSpec | None) -> dict[str, Tensor]:
    """The peer counts used codes in a window of indices that starts as zeros."""
    return {USED: torch.zeros(USAGE_WINDOW)}


LLAMAGEN_VQ = Family(
    name="llamagen-vq",
    kind="tokenizer",
    mark="encoder.conv_blocks.0.res.0.conv1.weight",
    holds="vqgen.tokenizers.vq.VectorQuantizer",
    codes=CODES,
    places=("model", "state_dict", ""),
    averaged=True,
    describe=_llamagen,
    rows=_rows(LLAMAGEN),
    settings=_llamagen_settings,
    unbuilt=partial(autoencoders.unbuildable, names=LLAMAGEN),
    fixed={"ch": 128, "num_res_blocks": 2},
)
TAMING_VQGAN = Family(
    name="taming-vqgan",
    kind="tokenizer",
    mark="encoder.mid.attn_1.q.weight",
    holds="vqgen.tokenizers.vq.VectorQuantizer",
    codes=CODES,
    places=("state_dict", "model", ""),
    describe=_taming,
    rows=_rows(TAMING),
    settings=_taming_settings,
    unbuilt=partial(autoencoders.unbuildable, names=TAMING),
    ignored=((r"loss\..*", "the networks of its training loss"),),
)
