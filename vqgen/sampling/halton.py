"""Halton order: places of a grid such that every stretch of the order is spread evenly over it."""

import math

import torch
from torch import Tensor


def halton_ranks(height: int, width: int) -> Tensor:
    """-> Float [height * width]: when the Halton sequence of bases 2 (rows) and 3 (columns) first
    visits each cell of the grid, as ranks 0, 1, ... in raster order of the cells."""
    # 2^a 3^b consecutive points put one into each box of 2^-a x 3^-b: half a cell's sides suffice
    count = 2 ** math.ceil(math.log2(2 * height)) * 3 ** math.ceil(math.log(2 * width, 3))
    points = torch.arange(count)
    rows = (radical_inverse(points, 2) * height).long().clamp(max=height - 1)
    columns = (radical_inverse(points, 3) * width).long().clamp(max=width - 1)
    first = torch.full((height * width,), count)
    first = first.scatter_reduce(0, rows * width + columns, points, "amin")
    return first.argsort().argsort().float()


def radical_inverse(numbers: Tensor, base: int) -> Tensor:
    """The digits of each number mirrored at the point: 6 = 110 in base 2 -> 0.011 = 3/8 (van der
    Corput); float64."""
    result, weight = torch.zeros(numbers.shape, dtype=torch.float64), 1.0
    while bool((numbers > 0).any()):
        weight /= base
        result = result + weight * (numbers % base)
        numbers = numbers // base
    return result
