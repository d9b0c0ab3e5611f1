"""Stochastic samplers, one step from t to u > t: Euler-Maruyama, ancestral, Langevin corrector.

`noise()` gives fresh standard normal numbers of x's shape, from one stream per image.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vqgen.sampling.field import Field
from vqgen.sampling.paths import GaussianPath, fit

Noise = Callable[[], Tensor]


def euler_maruyama(
    field: Field, x: Tensor, t: Tensor, u: Tensor, *, noise: Noise, stochasticity: float = 1.0
) -> Tensor:
    """x + h (velocity + w^2/2 score) + w h^(1/2) z, where w is `stochasticity` times the SDE's g: 1
    is the reverse SDE (Anderson 1982), 0 the probability flow.

    Any w leaves the marginals as they are, so w^2 is cut to b^2 / h: more noise than that is not
    resolved by a step of h (near the data, and at OT's t = 0, where g is infinite)."""
    h, b = u - t, field.path.deviation(t)
    level = torch.minimum(
        (stochasticity * field.path.diffusion(t).nan_to_num(nan=torch.inf)).square(),
        b.square() / h,
    )
    if stochasticity == 0:
        level = torch.zeros_like(level)
    velocity, score = field.velocity_and_score(x, t)
    x = x + fit(h, x) * velocity + fit(h * level / 2, x) * score
    return x + fit((h * level).sqrt(), x) * noise()


def ancestral(
    field: Field, x: Tensor, t: Tensor, u: Tensor, *, noise: Noise, stochasticity: float = 1.0
) -> Tensor:
    """A draw of q(x_u | x_t, x_1) at the estimated x_1 (Ho et al. 2020; with `stochasticity` below
    1 the eta of Song et al. 2021, eq. 16; 0 is DDIM)."""
    path, (data, guess) = field.path, field.split(x, t)
    before, after, ratio = path.deviation(t), path.deviation(u), path.mean(t) / path.mean(u)
    added = (before.square() - (ratio * after).square()).clamp(min=0)  # noise from u back to t
    new = stochasticity * after / before * added.sqrt()
    kept = (after.square() - new.square()).clamp(min=0).sqrt()
    return fit(path.mean(u), x) * data + fit(kept, x) * guess + fit(new, x) * noise()


def langevin(
    field: Field, x: Tensor, t: Tensor, *, noise: Noise, steps: int, snr: float = 0.16
) -> Tensor:
    """`steps` of x + d score + (2 d)^(1/2) z at one time, with d = (snr b)^2: the corrector of Song
    et al. 2021 (algorithms 4, 5) with b in place of a measured norm, so that no image feels
    another."""
    size = (snr * field.path.deviation(t)).square()
    for _ in range(steps):
        x = x + fit(size, x) * field.score(x, t) + fit((2 * size).sqrt(), x) * noise()
    return x


def annealing_steps(
    path: GaussianPath, t: Tensor, u: Tensor, *, snr: float, left: float = 0.15
) -> int:
    """Langevin steps at the level of u after that of t, so that noise with `left` of the data's
    variance (1) is never taken out.

    Each step takes the share 2 snr^2 b^2 / (1 + b^2) off the excess of the variance 1 + b^2, which
    grows by 2 b^2 log(b_t / b_u) from level to level: they balance at log(b_t / b_u) / (count
    snr^2) of 1 + b^2, and below b = 1 that is frozen in."""
    ratio = float(path.deviation(t) / path.deviation(u))
    return max(1, math.ceil(math.log(ratio) / (left * snr**2) - 1e-9))


def renoise(field: Field, x: Tensor, u: Tensor, t: Tensor, *, noise: Noise) -> Tensor:
    """Back from u to an earlier t by the forward process: what resampling repeats a step from
    (Lugmayr et al. 2022)."""
    path = field.path
    ratio = path.mean(t) / path.mean(u)
    added = path.deviation(t).square() - (ratio * path.deviation(u)).square()
    return fit(ratio, x) * x + fit(added.clamp(min=0).sqrt(), x) * noise()
