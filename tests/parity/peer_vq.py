"""Build our tokenizer from a peer's config and weights: LlamaGen VQ and taming VQGAN."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.vq import VectorQuantizer

BOOKKEEPING = {"bottleneck.codebook.usage", "bottleneck.codebook.started"}  # ours alone
IGNORED = {"quantize.codebook_used"}  # the peer's usage window, never read by its model

Rename = Callable[[str], str]


def llamagen(config: dict[str, Any], variant: dict[str, Any], size: tuple[int, int]) -> Autoencoder:
    """`config` is the fixture's `model`, `variant` one of its `variants`."""
    shape = {"channels": config["ch"], "dropout": config["dropout_p"], "attention_levels": (-1,)}
    blocks = config["num_res_blocks"]
    quantizer = VectorQuantizer(
        codebook=Codebook(
            size=config["codebook_size"],
            dim=config["codebook_embed_dim"],
            normalize=variant["codebook_l2_norm"],
            start="random",
        ),
        commitment_weight=variant["commit_loss_beta"],
        entropy_weight=variant["entropy_loss_ratio"],
    )
    return Autoencoder(
        image_size=size,
        encoder=partial(
            Encoder,
            in_channels=config.get("in_channels", 3),
            multipliers=config["encoder_ch_mult"],
            blocks=blocks,
            **shape,
        ),
        decoder=partial(
            Decoder,
            out_channels=config.get("out_channels", 3),
            multipliers=config["decoder_ch_mult"],
            blocks=blocks + 1,
            **shape,
        ),
        bottleneck=quantizer,
        z_channels=config["z_channels"],
    )


def taming(config: dict[str, Any], size: tuple[int, int]) -> Autoencoder:
    """`config` is the fixture's whole config."""
    net = config["ddconfig"]
    levels = range(len(net["ch_mult"]))
    shape = {
        "channels": net["ch"],
        "multipliers": net["ch_mult"],
        "dropout": net["dropout"],
        "attention_levels": [
            level for level in levels if net["resolution"] // 2**level in net["attn_resolutions"]
        ],
    }
    blocks = net["num_res_blocks"]
    quantizer = VectorQuantizer(
        codebook=Codebook(size=config["n_embed"], dim=config["embed_dim"], start="random"),
        commitment_weight=1.0,  # the legacy loss: beta stands on the codebook's side
        codebook_weight=config["beta"],
    )
    return Autoencoder(
        image_size=size,
        encoder=partial(Encoder, in_channels=net["in_channels"], blocks=blocks, **shape),
        decoder=partial(Decoder, out_channels=net["out_ch"], blocks=blocks + 1, **shape),
        bottleneck=quantizer,
        z_channels=net["z_channels"],
    )


def llamagen_name(name: str) -> str:
    """The peer's parameter name -> ours."""
    name = re.sub(r"conv_blocks\.(\d+)\.res\.", r"levels.\1.blocks.", name)
    name = re.sub(r"conv_blocks\.(\d+)\.attn\.", r"levels.\1.attentions.", name)
    name = re.sub(r"conv_blocks\.(\d+)\.(?:down|up)sample\.", r"levels.\1.resample.", name)
    return _inside(re.sub(r"\.mid\.", ".middle.", name))


def taming_name(levels: int) -> Rename:
    """The peer's parameter name -> ours; its decoder counts `levels` levels from the finest."""

    def rename(name: str) -> str:
        name = re.sub(r"\.down\.(\d+)\.", r".levels.\1.", name)
        name = re.sub(
            r"\.up\.(\d+)\.", lambda found: f".levels.{levels - 1 - int(found[1])}.", name
        )
        name = name.replace(".block.", ".blocks.").replace(".attn.", ".attentions.")
        name = re.sub(r"\.(?:down|up)sample\.", ".resample.", name)
        for number, part in enumerate(("block_1", "attn_1", "block_2")):
            name = name.replace(f".mid.{part}.", f".middle.{number}.")
        return _inside(name)

    return rename


def load(model: Autoencoder, weights: dict[str, Tensor], rename: Rename) -> None:
    """Load the peer's state dict strictly: one to one, but for each side's usage bookkeeping."""
    renamed = {rename(name): value for name, value in weights.items() if name not in IGNORED}
    own = model.state_dict()
    assert set(renamed) | BOOKKEEPING == set(own)
    model.load_state_dict({**own, **renamed}, strict=True)


def _inside(name: str) -> str:
    """The parts that both peers name alike."""
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")):
        name = re.sub(rf"(attentions\.\d+|middle\.1)\.{theirs}\.", rf"\1.{ours}.", name)
    name = name.replace(".nin_shortcut.", ".skip.")
    return name.replace("quantize.embedding.weight", "bottleneck.codebook.weight")
