"""Classifier-free guidance u + s (c - u) (Ho and Salimans 2022), with a scale s that may change
along the loop.

s = 1 is off and s = 0 unconditional. Peers that write (1 + w) c - w u mean s = 1 + w.
"""

import math
from collections.abc import Callable

from torch import Tensor

Guidance = Callable[[float], float]  # progress of the sampling loop in [0, 1] -> scale s


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Two predictions of one shape -> the guided one; at scale 1 the conditional one itself, bit
    for bit."""
    if scale == 1:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def constant(scale: float) -> Guidance:
    """The same scale all the way."""
    return lambda progress: scale


def linear(scale: float) -> Guidance:
    """From 1 (off) at the start in a straight line to `scale` at the end."""
    return lambda progress: 1 + (scale - 1) * progress


def interval(scale: float, start: float, stop: float) -> Guidance:
    """`scale` while start <= progress <= stop, off elsewhere (Kynkaanniemi et al. 2024).

    Raises ValueError unless 0 <= start <= stop <= 1."""
    if not 0 <= start <= stop <= 1:
        raise ValueError(
            f"wanted a guidance interval with 0 <= start <= stop <= 1, got {start} to {stop}; "
            f"type for instance guidance=interval:{scale}:0.1:0.8"
        )
    return lambda progress: scale if start <= progress <= stop else 1.0


def parse(wanted: str | float | Guidance) -> Guidance:
    """What a user types (a number, or name:number:...), or a schedule itself -> the schedule.

    Raises ValueError with the valid forms."""
    if callable(wanted):
        return wanted
    name, *numbers = str(wanted).strip().split(":")
    if not numbers:
        name, numbers = "constant", [name]
    try:
        values = [float(number) for number in numbers]
        schedule = SCHEDULES[name, len(values)]
    except (KeyError, ValueError):
        values, schedule = [math.nan], constant
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(
            f"wanted guidance as a number of at least 0 or a schedule, got {wanted!r}; type one of "
            "guidance=4.0, guidance=linear:4.0 (rises from 1), guidance=interval:4.0:0.1:0.8 "
            "(4.0 between these parts of the loop, off elsewhere)"
        )
    return schedule(*values)


SCHEDULES: dict[tuple[str, int], Callable[..., Guidance]] = {  # by name and count of numbers
    ("constant", 1): constant,
    ("linear", 1): linear,
    ("interval", 3): interval,
}
