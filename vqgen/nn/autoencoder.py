"""Encoder and decoder of the VQGAN line: images to hidden maps smaller by `factor`, and back.

The layout is the published one (Esser et al. 2021; Sun et al. 2024), so released weights map onto
it one to one. One option is ours: `patch` > 1 replaces the finest levels by a patchify stem and a
pixel shuffle, for cheap small models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.nn.convolutional import AttentionBlock, Downsample, ResidualBlock, Upsample, group_norm


class Encoder(nn.Module):
    """images [batch, in_channels, H, W] -> [batch, out_channels, H / factor, W / factor].

    Level i, finest first, is channels * multipliers[i] wide; the size is halved between levels.

    out_channels       of the hidden map (z_channels in the papers)
    blocks             residual blocks per level: one number, or one per level, finest first
    attention_levels   levels with attention after every residual block; -1 is the coarsest
    middle             the two residual blocks at the end, with attention between them if
                       middle_attention; without, and with blocks=0, a patchify stem stands alone
    patch              side of the pixel squares that the first convolution turns into vectors;
                       1 is the published 3x3 convolution at full resolution
    kernel             side of the convolutions of blocks and output, 3 as published. With 1 and one
                       level a token sees its own pixel square and, through GroupNorm, the image's
                       statistics: such tokens are cheap, and far easier for a prior to predict

    forward raises ValueError unless `factor` divides height and width.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        in_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int | Sequence[int] = 2,
        attention_levels: Sequence[int] = (-1,),
        middle: bool = True,
        middle_attention: bool = True,
        dropout: float = 0.0,
        patch: int = 1,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        plan = _plan(channels, multipliers, blocks, attention_levels)
        self.factor = patch * 2 ** (len(plan) - 1)
        width = plan[0].width
        self.conv_in = (
            nn.Conv2d(in_channels, width, 3, padding=1)
            if patch == 1
            else nn.Conv2d(in_channels, width, patch, stride=patch)
        )
        self.levels = nn.ModuleList()  # in the order they run: finest first
        for entry in plan:
            coarsest = entry.index == len(plan) - 1
            resample = nn.Identity() if coarsest else Downsample(entry.width)
            self.levels.append(Level(width, entry, dropout, resample, kernel))
            width = entry.width
        self.middle = _middle(width, middle_attention, dropout, kernel) if middle else nn.Identity()
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, out_channels, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"this encoder needs height and width that are multiples of {self.factor}, "
                f"got {height} x {width}; resize or crop the images"
            )
        x = self.conv_in(images)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """[batch, in_channels, h, w] -> images [batch, out_channels, factor h, factor w], not clamped.

    Options as for `Encoder`, levels counted finest first in both. Published decoders have one
    residual block per level more than their encoders, hence the default of 3.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int | Sequence[int] = 3,
        attention_levels: Sequence[int] = (-1,),
        middle: bool = True,
        middle_attention: bool = True,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        plan = _plan(channels, multipliers, blocks, attention_levels)
        self.factor = patch * 2 ** (len(plan) - 1)
        width = plan[-1].width
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.middle = _middle(width, middle_attention, dropout) if middle else nn.Identity()
        self.levels = nn.ModuleList()  # in the order they run: coarsest first
        for entry in reversed(plan):
            resample = nn.Identity() if entry.index == 0 else Upsample(entry.width)
            self.levels.append(Level(width, entry, dropout, resample))
            width = entry.width
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, out_channels * patch**2, 3, padding=1)
        self.to_pixels = nn.PixelShuffle(patch)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.middle(self.conv_in(hidden))
        for level in self.levels:
            x = level(x)
        return self.to_pixels(self.conv_out(F.silu(self.norm_out(x))))


@dataclass(frozen=True)
class LevelPlan:
    """What one level holds: its width, its residual blocks, and whether attention follows each."""

    index: int  # 0 is the finest
    width: int
    blocks: int
    attention: bool


class Level(nn.Module):
    """Residual blocks at one size, each with attention if planned, then a change of size."""

    def __init__(
        self,
        in_channels: int,
        plan: LevelPlan,
        dropout: float,
        resample: nn.Module,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [plan.width] * plan.blocks
        self.blocks = nn.ModuleList(
            ResidualBlock(a, b, dropout, kernel) for a, b in pairwise(widths)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(plan.width) if plan.attention else nn.Identity() for _ in self.blocks
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


def _plan(
    channels: int,
    multipliers: Sequence[int],
    blocks: int | Sequence[int],
    attention_levels: Sequence[int],
) -> list[LevelPlan]:
    """The levels, finest first. Raises ValueError where counts or level numbers do not fit."""
    levels = len(multipliers)
    if not levels:
        raise ValueError(
            "multipliers must hold one number per level, got none; type "
            "tokenizer.encoder.multipliers=[1,2] and the same for tokenizer.decoder"
        )
    counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    least = 0 if len(set(multipliers)) == 1 else 1  # blocks change the width
    if len(counts) != levels or min(counts) < least:
        raise ValueError(
            f"blocks must be one number, or {levels} numbers, one per entry of "
            f"multipliers={list(multipliers)}, each at least {least}; got {counts}"
        )
    outside = [level for level in attention_levels if not -levels <= level < levels]
    if outside:
        raise ValueError(
            f"attention_levels must lie in 0 (finest) .. {levels - 1} (coarsest, also -1), "
            f"got {outside}"
        )
    attentive = {level % levels for level in attention_levels}
    return [
        LevelPlan(i, channels * multipliers[i], counts[i], i in attentive) for i in range(levels)
    ]


def _middle(width: int, attention: bool, dropout: float, kernel: int = 3) -> nn.Sequential:
    """The part at the coarsest size between the levels and the code."""
    return nn.Sequential(
        ResidualBlock(width, width, dropout, kernel),
        AttentionBlock(width) if attention else nn.Identity(),
        ResidualBlock(width, width, dropout, kernel),
    )
