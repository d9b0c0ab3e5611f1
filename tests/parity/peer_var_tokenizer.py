"""Build our multi-scale tokenizer from the VAR fixtures' config and weights."""

import re
from functools import partial
from typing import Any

from torch import Tensor

from tests.parity import golden, peer_vq
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.multiscale import MultiScaleQuantizer

LEVELS = (1, 1, 2, 2, 4)
BOOKKEEPING = {"codebooks.0.usage", "codebooks.0.started"}  # of the bottleneck; ours alone
IGNORED = "ema_vocab_hit_SV"  # the peer's running hit counts, never read by its model


def bottleneck(config: dict[str, Any]) -> MultiScaleQuantizer:
    """`config` is the fixture's `model`, of either kind."""
    width = config["Cvae"] if "Cvae" in config else config["z_channels"]
    return MultiScaleQuantizer(
        codebook=Codebook(size=config["vocab_size"], dim=width, start="random"),
        scales=config["v_patch_nums"],
        distance="cosine" if config["using_znorm"] else "l2",
        phi_count=config["share_quant_resi"],
        phi_strength=config["quant_resi"],
        commitment_weight=config["beta"],
    )


def tokenizer(config: dict[str, Any], size: tuple[int, int]) -> Autoencoder:
    """`config` is the fixture's `model`."""
    shape = {"channels": config["ch"], "multipliers": LEVELS}
    return Autoencoder(
        image_size=size,
        encoder=partial(Encoder, **shape),
        decoder=partial(Decoder, **shape),
        bottleneck=bottleneck(config),
        z_channels=config["z_channels"],
        quant_kernel=config["quant_conv_ks"],
    )


def ours(name: str) -> str:
    """The peer's parameter name -> ours; of its fused qkv, the name of the query."""
    name = peer_vq.taming_name(len(LEVELS))(name).replace(".qkv.", ".query.")
    name = re.sub(
        r"quantize\.quant_resi\.(qresi_ls\.)?(\d+)", r"bottleneck.phi.convolutions.\2", name
    )
    name = name.replace("quantize.quant_resi.qresi.", "bottleneck.phi.convolutions.0.")
    return name.replace("bottleneck.codebook.", "bottleneck.codebooks.0.")


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The peer's state dict under our names, in float32, its fused qkv split."""
    result = {}
    for name, value in weights.items():
        if name.endswith(IGNORED):
            continue
        own = ours(name)
        if ".qkv." in name:
            for part, some in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[own.replace(".query.", f".{part}.")] = some.float()
        else:
            result[own] = value.float()
    return result


def load(model: Autoencoder, weights: dict[str, Tensor]) -> Autoencoder:
    """Load the peer's state dict strictly: one to one, but for each side's usage bookkeeping."""
    _load(model, renamed(weights), prefix="bottleneck.")
    return model


def loaded_bottleneck(fixture: golden.Fixture) -> MultiScaleQuantizer:
    """The quantizer of a fixture of kind `quantizer`."""
    weights = {f"quantize.{name}": value for name, value in fixture.tensors("weights").items()}
    model = bottleneck(fixture.config["model"])
    stripped = {name.removeprefix("bottleneck."): v for name, v in renamed(weights).items()}
    _load(model, stripped, prefix="")
    return model


def _load(model: Any, weights: dict[str, Tensor], prefix: str) -> None:
    own = model.state_dict()
    assert set(weights) | {prefix + name for name in BOOKKEEPING} == set(own)
    model.load_state_dict({**own, **weights}, strict=True)
