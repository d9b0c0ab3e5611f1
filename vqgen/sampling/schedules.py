"""Noise schedules of discrete diffusion: how many tokens are still clean at noise time s."""

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqgen.words import nearest

Curve = Callable[[Tensor], Tensor]

NEARLY_ALL = 0.01  # of the tokens may be clean at s = 1: sampling starts as if none were
GRID = 257  # points at which a schedule is checked
SLOPE_ERROR = 1e-3  # relative, of a derivative that was given


class Schedule:
    """alpha-bar(s), the chance that a token is clean at noise time s = t / T, and its derivative.

    clean   Float [...] in [0, 1] -> the same shape: 1 at s = 0, strictly falling to (nearly) 0
    slope   d clean / ds, the same shape; None: by automatic differentiation

    Raises ValueError if `clean` is no such curve, or `slope` is not its derivative.
    """

    def __init__(self, clean: Curve, slope: Curve | None = None, *, name: str = "custom") -> None:
        self.clean, self.name = clean, name
        self.slope: Curve = slope or self._derivative
        self._check()

    def rates(self, steps: int) -> list[float]:
        """The mask rates 1 - alpha-bar of a sampling loop: `steps` + 1 falling numbers, 0 last."""
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
        # exactly 0 last, whatever `clean` rounds to: nothing may stay masked
        return [*(1 - self.clean(times)).clamp(0, 1).tolist()[:-1], 0.0]

    def _derivative(self, s: Tensor) -> Tensor:
        with warnings.catch_warnings():  # of torch about itself: jvp loads scripts of old make
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            return torch.func.jvp(self.clean, (s,), (torch.ones_like(s),))[1]

    def _check(self) -> None:
        times = torch.linspace(0, 1, GRID, dtype=torch.float64, device="cpu")
        values = self.clean(times)
        ends = abs(float(values[0]) - 1) < 1e-6 and -1e-6 < float(values[-1]) <= NEARLY_ALL
        if not (ends and bool((values.diff() < 0).all())):
            raise ValueError(
                f"wanted a schedule that falls from 1 at s=0 strictly to at most {NEARLY_ALL} at "
                f"s=1, got {float(values[0]):.4g} to {float(values[-1]):.4g} with steps of "
                f"{float(values.diff().min()):.4g} to {float(values.diff().max()):.4g}; "
                f"type schedule={' or '.join(SCHEDULES)}, or change your own"
            )
        inner = times[1:-1]
        given, true = self.slope(inner), self._derivative(inner)
        if not torch.allclose(given, true, rtol=SLOPE_ERROR, atol=SLOPE_ERROR):
            raise ValueError(
                f"wanted slope as the derivative of clean, got {float(given[0]):.4g} for "
                f"{float(true[0]):.4g} at s={float(inner[0]):.4g}; leave slope out to have it "
                "computed"
            )


def linear() -> Schedule:
    """alpha-bar = 1 - s: every t masks as many tokens as the next, so rho_t = 1 / t."""
    return Schedule(lambda s: 1 - s, lambda s: -torch.ones_like(s), name="linear")


def cosine() -> Schedule:
    """alpha-bar = 1 - sin(pi s / 2): the mask rates of MaskGIT (Chang et al. 2022, section 3.3),
    cos(pi r / 2) at r = 1 - s; many steps at high mask rates."""
    half = math.pi / 2
    return Schedule(
        lambda s: 1 - (half * s).sin(), lambda s: -half * (half * s).cos(), name="cosine"
    )


def log_linear(left: float = 1e-3) -> Schedule:
    """alpha-bar = exp(-sigma) with the total noise sigma = -log(1 - (1 - left) s), as text models
    use it (Lou et al. 2024, section 5): linear but for the share `left` that is never masked."""
    return Schedule(
        lambda s: 1 - (1 - left) * s, lambda s: (left - 1) * torch.ones_like(s), name="log_linear"
    )


def arc_cosine() -> Schedule:
    """alpha-bar = (2 / pi) arcsin(1 - s), the mask rate (2 / pi) arccos(1 - s): few tokens in the
    first sampling steps, many in the last (Besnier et al. 2025 sample with it)."""
    two = 2 / math.pi
    return Schedule(
        lambda s: two * (1 - s).asin(),
        lambda s: -two / (1 - (1 - s).square()).sqrt(),
        name="arc_cosine",
    )


def knots(values: Sequence[float]) -> Schedule:
    """alpha-bar at s = 0, 1 / n, ..., 1 and straight lines between: [1, 0.9, 0.72, 0.504, 0] has
    beta = .1, .2, .3, 1 at four noise steps. Raises ValueError unless they fall from 1 to 0."""
    known, pieces = torch.tensor(values, dtype=torch.float64, device="cpu"), len(values) - 1

    def clean(s: Tensor) -> Tensor:
        left = (s * pieces).long().clamp(0, pieces - 1)
        return known[left] + (s * pieces - left) * (known[left + 1] - known[left])

    if pieces > 0 and bool((known.diff() < 0).all()):
        return Schedule(clean)
    raise ValueError(
        f"wanted a schedule of falling alpha-bars, got {list(values)}; type for instance "
        "schedule=[1,0.9,0.5,0]"
    )


def parse(wanted: str | Sequence[float] | Schedule) -> Schedule:
    """What a user types, a name or a list of alpha-bars, or a schedule itself -> the schedule.
    Raises ValueError with what may be typed."""
    if isinstance(wanted, Schedule):
        return wanted
    if isinstance(wanted, str) and wanted in SCHEDULES:
        return SCHEDULES[wanted]()
    if isinstance(wanted, list | tuple) and all(isinstance(v, int | float) for v in wanted):
        return knots(wanted)
    if callable(wanted):
        raise ValueError(
            "wanted a function s -> alpha-bar as a schedule that checks it: hand in "
            "vqgen.sampling.schedules.Schedule(function)"
        )
    raise ValueError(
        f"wanted schedule as one of {', '.join(SCHEDULES)} or a list of falling alpha-bars like "
        f"[1,0.9,0.5,0], got {wanted}{nearest(str(wanted), SCHEDULES)}"
    )


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "log_linear": log_linear,
    "arc_cosine": arc_cosine,
}
