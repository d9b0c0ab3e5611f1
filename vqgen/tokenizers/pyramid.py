"""A pyramid of token maps over one codebook: how the scales of VAR's tokenizer add up.

After Tian et al., "Visual Autoregressive Modeling" (2024), algorithms 1 and 2. `advance` is the one
step that training, encoding, decoding, a prior's inputs and its sampling all take.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqgen.contracts import Pyramid, Size
from vqgen.tokenizers.lookup import nearest_code

FIRST_OF_FOUR = 1 / 3 / 4  # the place of the first of four phi on [0, 1]; as published


class FrozenPyramid(Pyramid):
    """A pyramid as a trained tokenizer left it; tensors of its own, none of them learns.

    scales  (height, width) per scale, coarse to fine
    codes   [books, vocab_size, channels]: one book for all scales, or one per scale
    phi     the convolutions after the enlargement
    """

    codes: Tensor

    def __init__(self, *, scales: Sequence[Size], codes: Tensor, phi: "Phi") -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.channels = codes.shape[-1]
        self.register_buffer("codes", codes.detach().clone())
        self.phi = copy.deepcopy(phi).requires_grad_(False)

    def blank(self, batch: int) -> Tensor:
        return self.codes.new_zeros(batch, self.channels, *self.scales[-1])

    def advance(self, canvas: Tensor, tokens: Tensor, scale: int) -> Tensor:
        return advance(canvas, tokens, scale, scales=self.scales, codes=self.codes, phi=self.phi)

    def next_input(self, canvas: Tensor, scale: int) -> Tensor:
        return rearrange(reduce(canvas, self.scales[scale]), "b c h w -> b (h w) c")

    def refit(self, canvas: Tensor, tokens: Tensor, before: Tensor, scale: int) -> Tensor:
        rows = self.codes[scale % len(self.codes)]
        missing = self.next_input(before - canvas, scale)
        found = nearest_code((F.embedding(tokens, rows) + missing).flatten(0, 1), rows)
        differs = (missing != 0).any(dim=-1)  # of two equal codes the given one stays
        return found.view_as(tokens).where(differs, tokens)


class Phi(nn.Module):
    """phi(x) = (1 - strength) x + strength conv(x): a 3x3 convolution after the enlargement.

    channels   of the canvas
    count      of convolutions, shared by the scales: each takes the one nearest to it (`pick`)
    strength   share of the convolution; 0: phi is the identity and has no weights
    """

    def __init__(self, channels: int, *, count: int, strength: float = 0.5) -> None:
        super().__init__()
        self.strength = abs(strength)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count if strength else 0)
        )

    def forward(self, x: Tensor, scale: int, scales: int) -> Tensor:
        """x [batch, channels, h, w] of scale number `scale` out of `scales` -> the same shape."""
        if not self.strength:
            return x
        convolution = self.convolutions[pick(scale, scales, len(self.convolutions))]
        return (1 - self.strength) * x + self.strength * convolution(x)


def pick(scale: int, scales: int, count: int) -> int:
    """The convolution, of `count` spread evenly over the `scales`, that scale number `scale` takes.

    Of two equally near ones the first. In the published setting (4 for 10 scales) the scales 2 and
    7 lie exactly between two; there the rounding of float64 decides, which this arithmetic
    repeats: 0 0 1 1 1 2 2 3 3 3."""
    first = FIRST_OF_FOUR if count == 4 else 1 / 2 / count
    step = (1 - first - first) / max(count - 1, 1)
    place = scale / max(scales - 1, 1)
    return min(range(count), key=lambda i: abs(first + i * step - place))


def advance(
    canvas: Tensor,
    tokens: Tensor,
    scale: int,
    *,
    scales: Sequence[Size],
    codes: Tensor,
    phi: Phi,
) -> Tensor:
    """canvas [batch, channels, h, w] with one more scale: tokens Long [batch, h_k w_k], -1 adds
    nothing; codes [1 or one per scale, vocab_size, channels]. Differentiable in canvas, codes and
    phi; in float32 whatever the autocast."""
    with torch.autocast(canvas.device.type, enabled=False):
        height, width = scales[scale]
        rows = codes[scale % len(codes)]
        maps = rearrange(
            F.embedding(tokens.clamp_min(0), rows), "b (h w) c -> b c h w", h=height, w=width
        )
        decided = rearrange(tokens >= 0, "b (h w) -> b 1 h w", h=height).to(maps.dtype)
        step = phi(enlarge(maps * decided, scales[-1]), scale, len(scales))
        # once more after phi, whose bias would speak for the tokens that are not there
        return canvas + step * F.interpolate(decided, scales[-1], mode="nearest")


def reduce(canvas: Tensor, size: Size) -> Tensor:
    """[batch, channels, h, w] -> the means over areas, [batch, channels, *size]."""
    return F.adaptive_avg_pool2d(canvas, size)


def enlarge(maps: Tensor, size: Size) -> Tensor:
    """[batch, channels, h_k, w_k] -> [batch, channels, *size], bicubic; as it is at that size."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bicubic")
