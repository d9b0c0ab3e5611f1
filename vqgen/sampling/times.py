"""Where along a path: the times a sampling loop visits, and the times a training batch is drawn at.
All float64 on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from vqgen.sampling.paths import EDGE, GaussianPath

Spacing = Callable[[GaussianPath, int, float, float], Tensor]


def grid(path: GaussianPath, spacing: str, steps: int, first: float, last: float) -> Tensor:
    """-> [steps + 1] times from `first` to `last`.

    uniform    equal steps of t (on VE these are equal steps of log sigma)
    quadratic  shorter and shorter steps towards the data
    log_snr    equal steps of log(a^2 / b^2), but for the first and the last where it is infinite
    """
    return SPACINGS[spacing](path, steps, first, last)


def _uniform(path: GaussianPath, steps: int, first: float, last: float) -> Tensor:
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def _quadratic(path: GaussianPath, steps: int, first: float, last: float) -> Tensor:
    left = torch.linspace(1, 0, steps + 1, dtype=torch.float64).square()
    return last - (last - first) * left


def _log_snr(path: GaussianPath, steps: int, first: float, last: float) -> Tensor:
    ends = torch.tensor([max(first, EDGE), min(last, 1 - EDGE)], dtype=torch.float64)
    low, high = path.log_snr(ends).tolist()
    times = path.time_of(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    times[0], times[-1] = first, last
    return times


SPACINGS: dict[str, Spacing] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
}


def uniform_times(count: int) -> Tensor:
    """Training times, each uniform on [0, 1)."""
    return torch.rand(count, dtype=torch.float64)


def logit_normal_times(count: int) -> Tensor:
    """Training times sigmoid(N(0, 1)): more in the middle (Esser et al. 2024, section 3.1)."""
    return torch.randn(count, dtype=torch.float64).sigmoid()


TRAINING_TIMES: dict[str, Callable[[int], Tensor]] = {
    "uniform": uniform_times,
    "logit_normal": logit_normal_times,
}
