"""Sampling split over the processes of a distributed run: each samples its share, all get the
whole."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined() -> Iterator[bool]:
    """Inside, processes that torchrun started know of each other; gives whether this one is the
    first, which prints and writes. A process that was started alone stays alone.

    The first goes on behind it, the others end there: what is left of their group's threads may
    abort a process that Python takes down (seen with torch 2.14), and all would count as failed."""
    if not dist.is_torchelastic_launched():
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")  # what is exchanged are finished images, on the CPU
    first = dist.get_rank() == 0
    try:
        yield first
        dist.barrier()
    finally:
        dist.destroy_process_group()
    if not first:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def spread(sample: Callable[[slice], Tensor], total: int, *, batch: int = 1) -> Tensor:
    """`sample(rows)` gives the images or latents of these rows, any shape [rows, ...]; -> [total,
    ...], on every process, in order.

    batch   what `sample` computes at once: shares are whole batches, so that every one is computed
            in the company it would have in one process, where rounding may depend on that

    Since image i depends on its label and seed alone, the result is that of one process. Every
    process has to call it; without others it is sample(slice(0, total))."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return sample(slice(0, total))
    share = -(-total // (batch * world)) * batch
    start = min(dist.get_rank() * share, total)
    # a rank without images of its own samples one, to know the shape
    rows = slice(start, min(start + share, total)) if start < total else slice(0, 1)
    own = sample(rows)
    padded = own.new_zeros(share, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[:total]
