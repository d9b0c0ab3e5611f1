"""A linear layer for sampling: a row's bits do not depend on the batch, and few rows are fast."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A CPU's matrix product gives a row the same bits among any rows whose number is a multiple of this
# (measured with AVX2 and AVX-512, 1 to 16 threads; other numbers differ in the last bits).
ROW_TILE = 4
FEW_ROWS = 16
LARGE = 2**18  # numbers in a weight from which it matters who reads them
TILE = 64  # rows of a part: a kernel rounds otherwise at a ragged edge


class Linear(nn.Linear):
    """nn.Linear, the way samplers need it: without gradients on a CPU the rows are filled up to
    whole tiles, so that an image is the same to the last bit in any batch (if widths are multiples
    of 32, else the vectors of elementwise functions end otherwise in another batch).

    A CPU's matrix product with few rows runs on one thread, though it does little else than read
    the weight. As a batch of products with parts of the weight, every thread reads its own: the
    same bits, if there is no bias."""

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features], in x's precision if the weight has less."""
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(dtype)
        return tiled_linear(input, self.weight.to(dtype), bias)


def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] weight^T [in, out] + bias -> [..., out], as `Linear` says."""
    if torch.is_grad_enabled() or weight.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = math.prod(x.shape[:-1])
    if rows % ROW_TILE:
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, padded(rows) - rows))
        return tiled_linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)
    if rows > FEW_ROWS or bias is not None or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    return linear_in_parts(x, weight, parts(len(weight)) if weight.numel() >= LARGE else 1)


def padded(rows: int) -> int:
    """The next multiple of ROW_TILE."""
    return -(-rows // ROW_TILE) * ROW_TILE


def parts(rows: int) -> int:
    """Into how many parts of whole tiles a weight of so many rows is cut, at most one a thread."""
    return math.gcd(rows // TILE, torch.get_num_threads()) if rows % TILE == 0 else 1


def linear_in_parts(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """x [..., in] weight^T [in, out] -> [..., out], `count` parts of the weight side by side."""
    if count < 2:
        return F.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    split = weight.unflatten(0, (count, -1)).transpose(1, 2)
    made = torch.bmm(rows.expand(count, *rows.shape), split)  # [count, rows, out / count]
    return made.transpose(0, 1).reshape(*x.shape[:-1], len(weight))
