"""Sampling split over the processes of a distributed run: each samples its share, all get the
whole."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def spread(sample: Callable[[slice], Tensor], total: int) -> Tensor:
    """`sample(rows)` gives the images or latents of these rows, any shape [rows, ...]; -> [total,
    ...], on every process, in order.

    Since image i depends on its label and seed alone, the result is that of one process. Every
    process has to call it; without others it is sample(slice(0, total))."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return sample(slice(0, total))
    share = -(-total // world)
    start = min(dist.get_rank() * share, total)
    # a rank without images of its own samples one, to know the shape
    rows = slice(start, min(start + share, total)) if start < total else slice(0, 1)
    own = sample(rows)
    padded = own.new_zeros(share, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:total]
