"""What the processes of a distributed run decide once; without others, this process decides."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def once(decide: Callable[[], Value]) -> Value:
    """What `decide` returns on the first process, on all of them; its error is everyone's.

    Every process has to call it, and none goes on before the first is done."""
    if not dist.is_initialized():
        return decide()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return not dist.is_initialized() or dist.get_rank() == 0
