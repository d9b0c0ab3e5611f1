"""The patch discriminator: a convolutional net that judges every patch of an image."""

from math import gcd

import torch
from torch import Tensor, nn

from vqgen.losses.choices import choose
from vqgen.losses.ranks import mean_over_ranks, rank_count


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): images [batch, 3, H, W] -> logits [batch, 1, h, w], high: real.

    width      channels of the first convolution; they double per layer, up to 8 times
    layers     convolutions of stride 2: more layers, larger patches
    norm       "batch" (as published), "group" (independent of the batch), "act" (ActNorm)

    Raises ValueError for an unknown norm or for layers or width below 1."""

    def __init__(
        self, *, width: int = 64, layers: int = 3, norm: str = "batch", in_channels: int = 3
    ) -> None:
        super().__init__()
        make_norm = choose(NORMS, norm, "loss.gan.norm")
        if layers < 1 or width < 1:
            raise ValueError(
                f"the discriminator needs at least one layer and one channel; got layers={layers}, "
                f"width={width}. Try loss.gan.layers=3 loss.gan.width=64"
            )
        self.layers = layers
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1)]
        blocks.append(nn.LeakyReLU(0.2))
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            # a bias right before BatchNorm would be subtracted again
            has_bias = norm != "batch"
            sizes = widths[level - 1], widths[level]
            blocks.append(nn.Conv2d(*sizes, 4, stride=stride, padding=1, bias=has_bias))
            blocks += [make_norm(widths[level]), nn.LeakyReLU(0.2)]
        blocks.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*blocks)
        self._initialize()

    @property
    def smallest_size(self) -> int:
        """Fewest pixels per side: stride-2 layers halve, the last two layers take one each."""
        return 3 * 2**self.layers

    def check_size(self, size: tuple[int, int]) -> None:
        """size (height, width). Raises ValueError if the discriminator cannot take such images."""
        if min(size) >= self.smallest_size:
            return
        fitting = max((n for n in range(1, self.layers) if 3 * 2**n <= min(size)), default=0)
        cure = f"loss.gan.layers={fitting}, " if fitting else ""
        raise ValueError(
            f"the discriminator with {self.layers} layers needs images of at least "
            f"{self.smallest_size} pixels per side; got {size[0]}x{size[1]}. "
            f"Try {cure}a larger data.size or loss.gan=none"
        )

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, 3, H, W] in [-1, 1] -> logits [batch, 1, h, w]."""
        return self.main(images)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Convolutions N(0, 0.02), BatchNorm scales N(1, 0.02), as in the published nets."""
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


class ActNorm(nn.Module):
    """Scale and shift per channel that start by normalizing the first training batch.

    y = scale * (x + loc), x [batch, channels, h, w] (Kingma and Dhariwal 2018). Like BatchNorm it
    reads the training flag; unlike it, it knows only its own parameters after the first batch."""

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, h, w] -> the same shape."""
        if self.training and not self.initialized:
            self._start_from(x)
        return self.scale * (x + self.loc)

    @torch.no_grad()
    def _start_from(self, x: Tensor) -> None:
        """Take the statistics of all ranks' batches, so that the parameters are equal on them."""
        count = rank_count() * x.numel() // x.shape[1]
        mean = mean_over_ranks(x.mean(dim=(0, 2, 3), keepdim=True))
        variance = mean_over_ranks((x - mean).square().mean(dim=(0, 2, 3), keepdim=True))
        self.loc.copy_(-mean)
        unbiased = variance * count / (count - 1)
        self.scale.copy_(1 / (unbiased.sqrt() + 1e-6))
        self.initialized.fill_(1)


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups of at least 4 channels."""
    return nn.GroupNorm(gcd(32, max(channels // 4, 1)), channels)


NORMS = {"batch": nn.BatchNorm2d, "group": group_norm, "act": ActNorm}
