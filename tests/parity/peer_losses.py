"""The published loss settings in vqgen's words, and what the fixtures put around a loss."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.parity.golden import Fixture
from vqgen.losses.gan import PatchGAN
from vqgen.losses.stage1 import Stage1Loss

GROUPS, EPSILON = 32, 1e-6  # of the peers' GroupNorm


class CubicDistance(nn.Module):
    """The fixtures' stand-in for LPIPS: mean |x - y|^3 per image."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return (reconstruction - images).abs().pow(3).mean(dim=(1, 2, 3))


def llamagen_loss(settings: dict, steps: int) -> Stage1Loss:
    """LlamaGen's settings -> the same loss of a run of `steps` steps."""
    games = {("hinge", "hinge"): "hinge", ("vanilla", "hinge"): "vanilla"}
    sides = settings["disc_loss"], settings["gen_adv_loss"]
    if "non-saturating" in sides:
        pytest.skip("the peer's non-saturating loss swaps logits and labels; ours is the right one")
    gan = PatchGAN(
        loss=games[sides],
        weight=settings["disc_weight"],
        adaptive=settings.get("disc_adaptive_weight", False),
        adaptive_max=1e4,
        start=settings["disc_start"] / steps,
        warmup=0,
        ramp=0,
        width=settings["disc_dim"],
        layers=settings["disc_num_layers"],
    )
    return Stage1Loss(
        pixel=settings["reconstruction_loss"],
        pixel_weight=settings.get("reconstruction_weight", 1.0),
        perceptual=CubicDistance(),
        perceptual_weight=settings.get("perceptual_weight", 1.0),
        gan=gan,
    )


def taming_loss(settings: dict, steps: int, discriminator: dict) -> Stage1Loss:
    """Taming's settings (its defaults where absent) -> the same loss of a run of `steps` steps.

    Its factor multiplies the weight in the generator's total, and the discriminator's total."""
    weight = settings.get("disc_weight", 1.0) * settings.get("disc_factor", 1.0)
    perceptual_weight = settings.get("perceptual_weight", 1.0)
    gan = PatchGAN(
        loss=settings.get("disc_loss", "hinge"),
        weight=weight,
        adaptive_max=1e4,
        start=settings["disc_start"] / steps,
        warmup=0,
        ramp=0,
        width=discriminator["ndf"],
        layers=discriminator["n_layers"],
    )
    return Stage1Loss(
        pixel="l1",
        perceptual=CubicDistance() if perceptual_weight > 0 else None,
        perceptual_weight=perceptual_weight,
        gan=gan,
    )


def neighbor(fixture: Fixture, reference: str) -> tuple[Fixture, str]:
    """ "../folder (variant name, ...)" -> that fixture and the name of its tensors' file."""
    folder, variant = re.match(r"(\S+)(?: \(variant (\w+))?", reference).groups()
    config = (fixture.folder / folder / "config.json").resolve()
    return Fixture(config), f"outputs_{variant}" if variant else "outputs"


class LastLayer:
    """A published decoder cut before its last convolution: all that the adaptive weight needs."""

    def __init__(self, fixture: Fixture, outputs: str) -> None:
        weights = fixture.tensors("weights")
        with torch.no_grad():
            self.features = _features(weights, fixture.tensors(outputs)["quant"])
        self.weight = nn.Parameter(weights["decoder.conv_out.weight"])
        self.bias = weights["decoder.conv_out.bias"]

    def __call__(self) -> Tensor:
        return F.conv2d(self.features, self.weight, self.bias, padding=1)


def _features(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """The decoder of FACTS section 1, as its state dict describes it, without the last layer."""
    x = _conv(w, "decoder.conv_in", _conv(w, "post_quant_conv", x))
    if "decoder.up.0.block.0.conv1.weight" in w:
        levels = [f"decoder.up.{i}" for i in reversed(_numbers(w, "decoder.up"))]
        middle, block = ["block_1", "attn_1", "block_2"], "block"
    else:
        levels = [f"decoder.conv_blocks.{i}" for i in _numbers(w, "decoder.conv_blocks")]
        middle, block = ["0", "1", "2"], "res"
    x = _residual(w, f"decoder.mid.{middle[0]}", x)
    x = _attention(w, f"decoder.mid.{middle[1]}", x)
    x = _residual(w, f"decoder.mid.{middle[2]}", x)
    for level in levels:
        for i in _numbers(w, f"{level}.{block}"):
            x = _residual(w, f"{level}.{block}.{i}", x)
            if f"{level}.attn.{i}.q.weight" in w:
                x = _attention(w, f"{level}.attn.{i}", x)
        if f"{level}.upsample.conv.weight" in w:
            x = _conv(w, f"{level}.upsample.conv", F.interpolate(x, scale_factor=2.0))
    return F.silu(_norm(w, "decoder.norm_out", x))


def _numbers(w: dict[str, Tensor], prefix: str) -> list[int]:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", key) for key in w)
    return sorted({int(match[1]) for match in found if match})


def _conv(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def _norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, GROUPS, w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)


def _residual(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = _conv(w, f"{name}.conv1", F.silu(_norm(w, f"{name}.norm1", x)))
    hidden = _conv(w, f"{name}.conv2", F.silu(_norm(w, f"{name}.norm2", hidden)))
    skip = f"{name}.nin_shortcut"
    return hidden + (_conv(w, skip, x) if f"{skip}.weight" in w else x)


def _attention(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = _norm(w, f"{name}.norm", x)
    q, k, v = (_conv(w, f"{name}.{part}", hidden).flatten(2).mT for part in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v)
    return x + _conv(w, f"{name}.proj_out", mixed.mT.reshape(x.shape))
