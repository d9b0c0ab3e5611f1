"""A linear layer for sampling: a row's bits do not depend on the batch, and a CPU computes it with
the widest vectors it has."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A CPU's matrix product gives a row the same bits among any rows whose number is a multiple of this
# (measured with AVX2 and AVX-512, 1 to 16 threads; other numbers can differ in the last bits).
ROW_TILE = 4
ONEDNN_TILE = 2  # the same of oneDNN in float32, where one row alone is the only exception
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(nn.Linear):
    """nn.Linear, the way samplers need it: without gradients on a CPU the rows are filled up to
    whole tiles, so that an image is the same to the last bit in any batch (if widths are multiples
    of 32, else the vectors of elementwise functions end otherwise in another batch), and float32
    is multiplied by oneDNN.

    torch leaves float32 products to MKL, which has AVX2 alone for processors that are not Intel's:
    there oneDNN is twice as fast, at many rows and at few (`benchmarks/linear.py`)."""

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in x's precision if the weight has less."""
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(input, self.weight.to(dtype), bias)


class WideLinear(Linear):
    """A `Linear` whose weights stay float32 where a model is turned to half precision: of a head.
    Rounding them alone moves the likeliest of thousands of nearly even logits as often as all
    other rounding together (`benchmarks/published_sizes.py`, VAR-d16)."""

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in the wider precision of x and weight."""
        return super().forward(input.to(torch.promote_types(input.dtype, self.weight.dtype)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WideLinear":
        def widely(values: Tensor) -> Tensor:
            made = fn(values)
            half = made.dtype in (torch.bfloat16, torch.float16)
            return values.to(made.device, torch.float32) if half else made

        return super()._apply(widely, recurse)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] weight^T [in, out] + bias [out] -> [..., out], as `Linear` says."""
    if torch.is_grad_enabled() or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = math.prod(x.shape[:-1])
    by_onednn = HAS_ONEDNN and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    missing = -rows % (ONEDNN_TILE if by_onednn else ROW_TILE)
    if missing:
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, missing))
        return linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)
    if by_onednn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def padded(rows: int) -> int:
    """The next multiple of ROW_TILE."""
    return rows + -rows % ROW_TILE
