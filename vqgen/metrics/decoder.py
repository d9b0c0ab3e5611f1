"""What the decoder leaves to be said about an image: -log2 p(image | latents) under one fixed
likelihood, so that tokenizers can be compared by their full bound, rate plus this term."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

LEVELS = 256
WIDTHS = torch.logspace(-1, 2, 61, dtype=torch.float64)  # in gray levels: 0.1 to 100


@dataclass(frozen=True)
class DiscreteLaplace:
    """Every number of an image is an integer 0..255, Laplace-distributed around the decoded value.

    p(v) is the mass of [v - 1/2, v + 1/2] under a Laplace density of scale `width` gray levels
    around the decoder's value; the end levels own their tails, so the 256 masses sum to 1."""

    width: float

    @classmethod
    def fit(cls, decoded: Tensor, images: Tensor) -> "DiscreteLaplace":
        """The width of a grid that gives these images the shortest code; fit it on training images
        only. decoded float [n, 3, H, W] in [-1, 1], images uint8 [n, 3, H, W]."""
        bits = [cls(width).bits(decoded, images).mean() for width in WIDTHS.tolist()]
        return cls(WIDTHS[int(torch.stack(bits).argmin())].item())

    def bits(self, decoded: Tensor, images: Tensor) -> Tensor:
        """-> Double [n]: code length of each image in bits; arguments as for `fit`."""
        center = (decoded.double().clamp(-1, 1) + 1) * (LEVELS - 1) / 2
        value = images.double()
        log_mass = _log_interval((value - center - 0.5) / self.width, 1 / self.width)
        lowest = _log_below((value - center + 0.5) / self.width)
        highest = _log_below((center - value + 0.5) / self.width)
        log_mass = torch.where(value == 0, lowest, log_mass)
        log_mass = torch.where(value == LEVELS - 1, highest, log_mass)
        return -log_mass.sum(dim=(1, 2, 3)) / log(2)


def _log_below(x: Tensor) -> Tensor:
    """log of the standard Laplace distribution function."""
    return torch.where(x < 0, x - log(2), torch.log1p(-0.5 * torch.exp(-x.abs())))


def _log_interval(low: Tensor, length: float) -> Tensor:
    """log mass of [low, low + length] under the standard Laplace density; no cancellation in the
    tails."""
    high = low + length
    near = torch.minimum(low.abs(), high.abs())  # of an interval on one side of 0
    one_side = -near - log(2) + torch.log(-torch.expm1(torch.tensor(-length, dtype=near.dtype)))
    around = torch.log1p(-0.5 * (torch.exp(-low.abs()) + torch.exp(-high.abs())))
    return torch.where((low < 0) & (high > 0), around, one_side)
