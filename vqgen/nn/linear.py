"""A linear layer without bias that is fast at few rows, as in sampling token by token."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 16
LARGE = 2**18  # numbers in a weight from which it matters who reads them
TILE = 64  # rows of a part: a kernel rounds otherwise at a ragged edge


class Linear(nn.Linear):
    """x weight^T, as nn.Linear without bias, bit for bit.

    A CPU's matrix product with few rows runs on one thread, though it does little else than read
    the weight. As a batch of products with parts of the weight, every thread reads its own."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        weight, rows = self.weight, math.prod(input.shape[:-1])
        is_plain = weight.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        if torch.is_grad_enabled() or rows > FEW_ROWS or not is_plain or weight.numel() < LARGE:
            return F.linear(input, weight)
        return linear_in_parts(input, weight, parts(len(weight)))


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
