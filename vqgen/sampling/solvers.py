"""Solvers of dx/dt = velocity(x, t), each one step from t to u: Euler, Heun, RK4, Dormand-Prince;
DDIM and DPM-Solver++ 2M for the VP path.

A velocity is any function (x [batch, ...], t 0-dim or [batch]) -> the shape of x. Times are float64
tensors; u may be before t. No image feels another: errors are controlled per image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vqgen.sampling.field import Field
from vqgen.sampling.paths import fit

Velocity = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 1e-5  # of the whole stretch: a step as short as that is taken whatever its error


def euler(velocity: Velocity, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Order 1, one evaluation."""
    return x + fit(u - t, x) * velocity(x, t)


def heun(velocity: Velocity, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Order 2, two evaluations: the mean of the slopes at both ends."""
    h, first = fit(u - t, x), velocity(x, t)
    return x + h / 2 * (first + velocity(x + h * first, u))


def rk4(velocity: Velocity, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """Order 4, four evaluations: the classical Runge-Kutta step."""
    h, middle = fit(u - t, x), (t + u) / 2
    k1 = velocity(x, t)
    k2 = velocity(x + h / 2 * k1, middle)
    k3 = velocity(x + h / 2 * k2, middle)
    k4 = velocity(x + h * k3, u)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


# Dormand and Prince 1980: nodes, stages (the last row is the solution of order 5), and the
# difference of the two embedded solutions.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dopri5(
    velocity: Velocity, x: Tensor, t: Tensor, u: Tensor, *, tolerance: float = 1e-4
) -> Tensor:
    """Order 5 with adaptive steps (Dormand and Prince 1980), six evaluations each.

    Every image has its own steps: one is taken if the root mean square over the image of error /
    (tolerance (1 + max(|x|, |new x|))) is at most 1. An image that has arrived waits.

    Raises ValueError where the velocity is not finite however short the step."""
    whole = u - t
    now = t.expand(x.shape[0]).clone()
    length = torch.full_like(now, 0.1)  # of the next step, as a share of the whole
    done = torch.zeros_like(now)
    slope = velocity(x, now)
    while bool((done < 1).any()):
        share = torch.minimum(length, 1 - done)
        h, slopes, new = share * whole, [slope], x
        for node, row in zip(NODES, STAGES, strict=True):
            new = x + fit(h, x) * _sum(row, slopes)
            slopes.append(velocity(new, now + node * h))
        scale = tolerance * (1 + torch.maximum(x.abs(), new.abs()))
        ratio = (fit(h, x) * _sum(ERROR, slopes) / scale).flatten(1).square().mean(dim=1).sqrt()
        ratio = ratio.double().cpu()
        lost = (share <= SMALLEST) & ~ratio.isfinite()
        if bool(lost.any()):
            raise ValueError(
                "solver=dopri5 wanted a finite velocity, got none near "
                f"t={float(now[lost][0]):.3g}; try a smaller guidance, or solver=heun"
            )
        taken = ((ratio <= 1) | (share <= SMALLEST)) & (done < 1)
        wide = taken.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        x, slope = new.where(wide, x), slopes[-1].where(wide, slope)
        done = (done + share).where(taken, done)
        done = done.where(done < 1 - 1e-12, 1.0)
        now = t + done * whole
        grown = share * (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
        length = torch.nan_to_num(grown, nan=SMALLEST).clamp(min=SMALLEST)
    return x


def _sum(row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = row[0] * slopes[0]
    for weight, slope in zip(row[1:], slopes[1:], strict=False):
        total = total + weight * slope if weight else total
    return total


def ddim(field: Field, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """a_u x_1 + b_u e with the estimates at x_t (Song et al. 2021, eq. 12 without noise)."""
    return field.path.point(*field.split(x, t), u)


class MultistepDPM:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2): second order from one evaluation per step, by
    the data estimate of the step before. The first step is of order 1; so is one that does not go
    on where the last ended (the jumps back of inpainting)."""

    def __init__(self) -> None:
        self._last: tuple[float, float, Tensor] | None = None  # its end, length, data estimate

    def __call__(self, field: Field, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """A step of x [batch, ...] from t to u."""
        path, data = field.path, field.split(x, t)[0]
        h = float(path.log_snr(u) - path.log_snr(t)) / 2
        guess = data
        if self._last is not None and self._last[0] == float(t):
            _, before, old = self._last
            guess = data + (data - old) * (h / (2 * before))
        self._last = (float(u), h, data)
        step = -torch.expm1(torch.tensor(-h, dtype=torch.float64))
        shrink = path.deviation(u) / path.deviation(t)
        return fit(shrink, x) * x + fit(path.mean(u) * step, x) * guess
