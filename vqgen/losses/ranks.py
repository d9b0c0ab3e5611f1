"""Averages over the processes of a distributed run; on one process they change nothing."""

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(values: Tensor) -> Tensor:
    """values, any shape, the same on every rank -> their mean over all ranks, detached.

    Every rank has to call it."""
    if rank_count() == 1:
        return values.detach()
    total = values.detach().clone()
    dist.all_reduce(total)  # a sum: gloo has no average
    return total / rank_count()


def rank_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
