"""The constructor arguments of the published systems: which there are, and what each may be."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What a setting may be: `wish` says it, `example` shows it as JSON, `fits` checks it."""

    wish: str
    example: str
    fits: Callable[[Any], bool]


def is_count(value: Any) -> bool:
    """A whole number above 0; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    """Finite, and within what a float holds."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_count, value))


COUNT = Kind("a whole number above 0", "16", is_count)
OPTIONAL_COUNT = Kind("a whole number above 0, or null", "null", lambda v: v is None or is_count(v))
PHIS = Kind("a whole number of at least 0", "4", lambda v: v == 0 or is_count(v))
NUMBER = Kind("a number", "0.25", _is_number)
WEIGHT = Kind("a number of at least 0", "0.25", lambda v: _is_number(v) and v >= 0)
POSITIVE = Kind("a number above 0", "0.25", lambda v: _is_number(v) and v > 0)
OPTIONAL = Kind(
    "a number above 0, or null", "null", lambda v: v is None or (_is_number(v) and v > 0)
)
SHARE = Kind("a number from 0 to 1, 1 left out", "0.1", lambda v: _is_number(v) and 0 <= v < 1)
SWITCH = Kind("true or false", "true", lambda v: isinstance(v, bool))
COUNTS = Kind("a list of whole numbers above 0", "[1, 2, 4]", lambda v: _are_counts(v) and bool(v))
ANY_COUNTS = Kind("a list of whole numbers above 0, or an empty one", "[16]", _are_counts)
SIDES = Kind(
    "a list of at least two whole numbers above 0, smallest first",
    "[1, 2, 4]",
    lambda v: _are_counts(v) and len(v) > 1 and v == sorted(v),
)
SQUARE = Kind(
    "a square number, the tokens of a square image",
    "256",
    lambda v: is_count(v) and math.isqrt(v) ** 2 == v,
)
WORD = Kind("a word", '"c2i"', lambda v: isinstance(v, str))

LLAMAGEN_VQ = {
    **dict.fromkeys(("codebook_size", "codebook_embed_dim", "z_channels"), COUNT),
    **dict.fromkeys(("ch", "num_res_blocks", "in_channels", "out_channels"), COUNT),
    **dict.fromkeys(("encoder_ch_mult", "decoder_ch_mult"), COUNTS),
    **dict.fromkeys(("codebook_l2_norm", "codebook_show_usage"), SWITCH),
    **dict.fromkeys(("commit_loss_beta", "entropy_loss_ratio"), WEIGHT),
    "dropout_p": SHARE,
}
LLAMAGEN_GPT = {
    **dict.fromkeys(("dim", "n_layer", "n_head", "multiple_of", "num_classes"), COUNT),
    **dict.fromkeys(("caption_dim", "vocab_size", "cls_token_num", "max_batch_size"), COUNT),
    **dict.fromkeys(("rope_base", "norm_eps", "initializer_range"), POSITIVE),
    **dict.fromkeys(("class_dropout_prob", "token_dropout_p", "attn_dropout_p"), SHARE),
    **dict.fromkeys(("resid_dropout_p", "ffn_dropout_p", "drop_path_rate"), SHARE),
    "n_kv_head": OPTIONAL_COUNT,
    "ffn_dim_multiplier": OPTIONAL,
    "block_size": SQUARE,
    "max_seq_len": COUNT,
    "model_type": WORD,
}
VAR_VAE = {
    **dict.fromkeys(("vocab_size", "z_channels", "ch", "Cvae", "quant_conv_ks"), COUNT),
    "beta": WEIGHT,
    "quant_resi": NUMBER,
    "share_quant_resi": PHIS,
    "default_qresi_counts": PHIS,
    "dropout": SHARE,
    "using_znorm": SWITCH,
    "v_patch_nums": SIDES,
}
VAR = {
    **dict.fromkeys(("num_classes", "depth", "embed_dim", "num_heads"), COUNT),
    **dict.fromkeys(("mlp_ratio", "norm_eps"), POSITIVE),
    **dict.fromkeys(("drop_rate", "attn_drop_rate", "drop_path_rate", "cond_drop_rate"), SHARE),
    **dict.fromkeys(("attn_l2_norm", "shared_aln"), SWITCH),
    "patch_nums": SIDES,
}
TAMING_VQGAN = {
    **dict.fromkeys(("n_embed", "embed_dim", "z_channels", "resolution", "ch"), COUNT),
    **dict.fromkeys(("in_channels", "out_ch", "num_res_blocks"), COUNT),
    "ch_mult": COUNTS,
    "attn_resolutions": ANY_COUNTS,
    "beta": WEIGHT,
    "dropout": SHARE,
    "double_z": SWITCH,
}
OF_FAMILY = {
    "llamagen-vq": LLAMAGEN_VQ,
    "llamagen-gpt": LLAMAGEN_GPT,
    "var-vae": VAR_VAE,
    "var": VAR,
    "taming-vqgan": TAMING_VQGAN,
}
# No name means two things, so that one dictionary may hold the settings of a pair.
ARGUMENTS: dict[str, Kind] = LLAMAGEN_VQ | LLAMAGEN_GPT | VAR_VAE | VAR | TAMING_VQGAN
