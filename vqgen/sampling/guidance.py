"""Classifier-free guidance u + s (c - u) (Ho and Salimans 2022), with a scale s that may change
along the loop.

s = 1 is off and s = 0 unconditional. Peers that write (1 + w) c - w u mean s = 1 + w.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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


def through(scales: Sequence[float]) -> Guidance:
    """From the first scale to the last, evenly along the loop and straight in between: as many as
    there are steps are one for each."""
    last = len(scales) - 1

    def schedule(progress: float) -> float:
        place = round(progress * last, 9)  # k / (K - 1) * (K - 1) is not always k
        before = min(int(place), last)
        share = place - before
        after = scales[before + 1] if share else scales[before]
        return scales[before] + share * (after - scales[before])

    return schedule


def parse(wanted: str | float | Sequence[float] | Guidance) -> Guidance:
    """What a user types (a number, name:number:..., or a list of scales), or a schedule itself ->
    the schedule, which raises a ValueError for a scale that is none.

    Raises ValueError with the valid forms."""
    if callable(wanted):
        return partial(_checked, wanted)
    if isinstance(wanted, list | tuple) and wanted and all(map(_is_scale, wanted)):
        return through(wanted)
    name, *numbers = str(wanted).strip().split(":")
    if not numbers:
        name, numbers = "constant", [name]
    try:
        values = [float(number) for number in numbers]
        schedule = SCHEDULES[name, len(values)]
    except (KeyError, ValueError):
        values, schedule = [math.nan], constant
    if not all(map(_is_scale, values)):
        raise ValueError(
            f"wanted guidance as a number of at least 0 or a schedule, got {wanted!r}; type one of "
            "guidance=4.0, guidance=linear:4.0 (rises from 1), guidance=interval:4.0:0.1:0.8 "
            "(4.0 between these parts of the loop, off elsewhere), guidance=[1,2,4] (evenly along "
            "the loop)"
        )
    return schedule(*values)


def _is_scale(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


def _checked(schedule: Guidance, progress: float) -> float:
    scale = schedule(progress)
    if not _is_scale(scale):
        raise ValueError(
            f"wanted a guidance function that gives a number of at least 0, got {scale!r} at "
            f"progress {progress:.4g} of the loop"
        )
    return scale


SCHEDULES: dict[tuple[str, int], Callable[..., Guidance]] = {  # by name and count of numbers
    ("constant", 1): constant,
    ("linear", 1): linear,
    ("interval", 3): interval,
}
