"""LlamaGen's transformers, by class and by text."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.layout import Row, Shapes, axes
from vqgen.nn.rope import grid_positions, rotary_table
from vqgen.nn.transformer import swiglu_width

ROWS = [
    Row("condition.embedding.weight", "cls_embedding.embedding_table.weight"),
    Row("condition.project_in.weight", "cls_embedding.cap_proj.fc1.weight"),
    Row("condition.project_out.weight", "cls_embedding.cap_proj.fc2.weight"),
    Row("condition.null_caption", "cls_embedding.uncond_embedding"),
    Row("embedding.weight", "tok_embeddings.weight"),
    Row("norm.weight", "norm.weight"),
    Row("head.weight", "output.weight"),
    Row("blocks.{n}.attention.qkv.weight", "layers.{n}.attention.wqkv.weight"),
    Row("blocks.{n}.attention.out.weight", "layers.{n}.attention.wo.weight"),
    Row(
        "blocks.{n}.ffn.gate_up.weight",
        "layers.{n}.feed_forward.w1.weight layers.{n}.feed_forward.w3.weight",
    ),
    Row("blocks.{n}.ffn.down.weight", "layers.{n}.feed_forward.w2.weight"),
    Row("blocks.{n}.attention_norm.weight", "layers.{n}.attention_norm.weight"),
    Row("blocks.{n}.ffn_norm.weight", "layers.{n}.ffn_norm.weight"),
]
PIXELS = (256, 384, 512)  # of published models
FACTOR = 16  # pixels per side of a token, of the tokenizer all of them were trained on


def _describe(shapes: Shapes, hints: Hints) -> Description:
    vocab, width = axes(shapes, "tok_embeddings.weight", 2)
    layers = {name.split(".")[1] for name in shapes if name.startswith("layers.")}
    config = hints.config
    published = PUBLISHED.get((width, len(layers), TEXT in shapes))
    heads = config.get("n_head") or (published or {}).get("heads")
    if not heads:
        raise ValueError(
            f"{hints.name} has width {width} and {len(layers)} layers, which is no published size, "
            "and the number of heads is not stored in it; give the peer's settings as JSON: "
            '--config gpt.json with {"n_head": 12, "n_kv_head": null, "block_size": 256}'
        )
    condition, facts = _condition(shapes, config)
    num_classes = facts["num_classes"]
    architecture = {
        "_target_": "vqgen.priors.llamagen.LlamaGen",
        "width": width,
        "depth": len(layers),
        "heads": heads,
        "kv_heads": _kv_heads(shapes["layers.0.attention.wqkv.weight"][0], width, heads),
        **_ffn(shapes["layers.0.feed_forward.w1.weight"][0], width, config),
        **condition,
        "norm_eps": config.get("norm_eps", 1e-5),
        "rope_base": float(config.get("rope_base", 10000)),
        "zero_condition_rope": True,  # the published models were trained so
        "label_dropout": config.get("class_dropout_prob", 0.1),
        "token_dropout": config.get("token_dropout_p", 0.1),
        "attention_dropout": config.get("attn_dropout_p", 0.0),
        "residual_dropout": config.get("resid_dropout_p", 0.1),
        "ffn_dropout": config.get("ffn_dropout_p", 0.1),
        "drop_path": config.get("drop_path_rate", 0.0),
    }
    if published:
        facts |= _settings(published)
    return Description(
        architecture=architecture,
        spec=TokenSpec(vocab, (_grid(shapes, hints, published),)),
        num_classes=num_classes,
        factor=FACTOR if published else None,
        peers_own=partial(
            _rotary,
            condition=condition.get("text_length", 1),
            head_width=width // heads,
            base=architecture["rope_base"],
        ),
        unsaved=(ROTARY,),
        untold=UNTOLD if ROTARY in shapes else ("block_size", *UNTOLD),
        facts=facts,
    )


UNTOLD = ("n_head", "rope_base", "norm_eps", "class_dropout_prob", "token_dropout_p")
UNTOLD += ("attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate")
TEXT = "cls_embedding.uncond_embedding"


def _condition(shapes: Shapes, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of the prior, facts) of its condition."""
    if TEXT in shapes:
        length, dim = axes(shapes, TEXT, 2)
        return {"text_length": length, "text_dim": dim}, {"num_classes": 0, "text": TEXT_FEATURES}
    rows = shapes["cls_embedding.embedding_table.weight"][0]
    if rows == config.get("num_classes") and not config.get("class_dropout_prob"):
        raise ValueError(
            f"wanted a class table with one more row than the {rows} classes, for no class; this "
            "model was trained without (class_dropout_prob=0), which vqgen's prior cannot hold"
        )
    return {}, {"num_classes": rows - 1}


TEXT_FEATURES = "last hidden state of google/flan-t5-xl, 120 tokens, padded on the left"


def _kv_heads(rows: int, width: int, heads: int) -> int | None:
    """Key-value heads out of the rows of the matrix of queries, keys and values; None: as many as
    heads."""
    kv_heads, rest = divmod(rows - width, 2 * (width // heads))
    if width % heads or rest or kv_heads < 1:
        raise ValueError(
            f"{heads} heads do not fit a model of width {width} with {rows} rows of queries, keys "
            "and values; correct n_head in --config"
        )
    return None if kv_heads == heads else kv_heads


def _ffn(hidden: int, width: int, config: Any) -> dict[str, Any]:
    """The arguments that make `swiglu_width` give this hidden width."""
    given = config.get("multiple_of", 256), config.get("ffn_dim_multiplier")
    made = swiglu_width(width, multiple_of=given[0], multiplier=given[1])
    if made != hidden and ("multiple_of" in config or given[1] is not None):
        raise ValueError(
            f"multiple_of {given[0]} and ffn_dim_multiplier {given[1]} make a feed-forward part of "
            f"{made} at width {width}, the file has {hidden}; correct both in --config, or leave "
            "both out"
        )
    for multiple_of, multiplier in (given, (1, (hidden + 0.5) / int(8 * width / 3))):
        if swiglu_width(width, multiple_of=multiple_of, multiplier=multiplier) == hidden:
            return {"multiple_of": multiple_of, "ffn_multiplier": multiplier}
    raise ValueError(f"found no rule that makes a feed-forward part of {hidden} at width {width}")


def _grid(shapes: Shapes, hints: Hints, published: dict[str, Any] | None) -> Size:
    """(height, width) in tokens: what the settings, the file or its released name say, else as
    typed, else as published."""
    by_name = next((size for size in PIXELS if str(size) in hints.name), None)
    side = None
    if "block_size" in hints.config:
        side = math.isqrt(hints.config["block_size"])
    elif ROTARY in shapes:
        first = shapes[TEXT][0] if TEXT in shapes else 1
        side = math.isqrt(shapes[ROTARY][0] - first)
    elif published and by_name:
        side = by_name // FACTOR
    elif hints.size:
        return hints.size[0] // hints.factor, hints.size[1] // hints.factor
    side = side or (by_name or (published or {}).get("size", 256)) // FACTOR
    return side, side


ROTARY = "freqs_cis"


def _rotary(
    spec: LatentSpec | None, *, condition: int, head_width: int, base: float
) -> dict[str, Tensor]:
    """The table of `condition` tokens, zeros, and of the image's tokens."""
    assert isinstance(spec, TokenSpec)
    image = rotary_table(grid_positions(*spec.scales[0]), head_width=head_width, base=base)
    return {ROTARY: torch.cat((torch.zeros(condition, *image.shape[1:]), image))}


def _peers_settings(node: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    is_text = bool(node["text_length"])
    return {
        "dim": node["width"],
        "n_layer": node["depth"],
        "n_head": node["heads"],
        "n_kv_head": node["kv_heads"],
        "multiple_of": node["multiple_of"],
        "ffn_dim_multiplier": node["ffn_multiplier"],
        "rope_base": node["rope_base"],
        "norm_eps": node["norm_eps"],
        "class_dropout_prob": node["label_dropout"],
        "token_dropout_p": node["token_dropout"],
        "attn_dropout_p": node["attention_dropout"],
        "resid_dropout_p": node["residual_dropout"],
        "ffn_dropout_p": node["ffn_dropout"],
        "drop_path_rate": node["drop_path"],
        "model_type": "t2i" if is_text else "c2i",
        "cls_token_num": node["text_length"] or 1,
        **({"caption_dim": node["text_dim"]} if is_text else {}),
        "vocab_size": spec.vocab_size,
        "block_size": spec.length,
    }


def _settings(published: dict[str, Any]) -> dict[str, Any]:
    """The peer's settings for sampling: those of its demo are the defaults."""
    top_k = published["top_k"]
    return {
        "published": published["name"],
        "guidance": published["guidance"],
        "knobs": {"temperature": 1.0, "top_k": top_k, "top_p": None},
        "knobs_source": "the demo of FoundationVision/LlamaGen (commit ce98ec4)",
        "knobs_for_fid": published["fid"],
    }


def _class(name: str, heads: int, size: int, fid: str) -> dict[str, Any]:
    more = {"guidance": "4.0", "top_k": 2000}
    return {
        "name": name,
        "heads": heads,
        "size": size,
        "fid": {"guidance": fid, "top_k": None},
        **more,
    }


# (width, layers, by text) -> what the sizes do not tell, and the settings of FACTS sections 4
PUBLISHED: dict[tuple[int, int, bool], dict[str, Any]] = {
    (768, 12, False): _class("c2i_B", 12, 256, "2.0"),
    (1024, 24, False): _class("c2i_L", 16, 256, "2.0"),
    (1280, 36, False): _class("c2i_XL", 20, 384, "1.75"),
    (1536, 48, False): _class("c2i_XXL", 24, 384, "1.75"),
    (3200, 24, False): _class("c2i_3B", 32, 384, "1.65"),
    (1280, 36, True): {
        "name": "t2i_XL",
        "heads": 20,
        "size": 256,
        "guidance": "7.5",
        "top_k": 1000,
        "fid": {},
    },
}

LLAMAGEN_GPT = Family(
    name="llamagen-gpt",
    kind="prior",
    mark="tok_embeddings.weight",
    holds="vqgen.priors.llamagen.LlamaGen",
    codes="tok_embeddings.weight",
    places=("model", "module", "state_dict", ""),
    describe=_describe,
    rows=lambda node: ROWS,
    settings=_peers_settings,
    ignored=((r"layers\.\d+\.attention\.kv_cache\..*", "left over from a generation"),),
    partner="llamagen-vq",
)
