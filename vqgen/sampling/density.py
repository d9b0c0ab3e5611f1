"""Code lengths along a path, in nats: the change of variables of the probability flow, and the
variational bound of the diffusion."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vqgen.sampling.field import Field
from vqgen.sampling.paths import GaussianPath, fit
from vqgen.sampling.solvers import Velocity

Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]


def flow_nats(
    velocity: Velocity, x: Tensor, times: Tensor, *, step: Step, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Follow the flow from data x [batch, ...] back along falling `times`; -> (the noise it came
    from, int tr(dv/dx) dt over rising time [batch]). Then -log p(x) = -log p_0(noise) + the second
    (instantaneous change of variables, Chen et al. 2018, eq. 8).

    probes  [count, batch, ...] of random signs: Hutchinson's estimate of the trace, the mean over
            probes of e^T (dv/dx) e (Grathwohl et al. 2019); None: the exact trace, as many
            backward passes as an image has numbers

    Needs gradients of the velocity in x; works inside no_grad, not inside inference_mode."""
    shape = x.shape

    def extended(state: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            at = state[:, :-1].reshape(shape).detach().requires_grad_()
            v = velocity(at, t)
            trace = _exact_trace(v, at) if probes is None else _estimated_trace(v, at, probes)
        return torch.cat((v.detach().flatten(1), trace[:, None]), dim=1)

    state = torch.cat((x.flatten(1), torch.zeros_like(x.flatten(1)[:, :1])), dim=1)
    for t, u in pairwise(times):
        state = step(extended, state, t, u)
    return state[:, :-1].reshape(shape), -state[:, -1]


def normal_nats(x: Tensor, deviation: float) -> Tensor:
    """-log N(x; 0, deviation^2 I) of x [batch, ...] -> [batch]."""
    x = x.flatten(1)
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi * deviation**2)
    return 0.5 * (x / deviation).square().sum(dim=1) + constant


def _exact_trace(v: Tensor, x: Tensor) -> Tensor:
    flat, total = v.flatten(1), torch.zeros_like(v.flatten(1)[:, 0])
    for i in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
        total = total + row.flatten(1)[:, i]
    return total


def _estimated_trace(v: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    total = torch.zeros_like(v.flatten(1)[:, 0])
    for probe in probes:
        (row,) = torch.autograd.grad(v, x, probe, retain_graph=True)
        total = total + (row * probe).flatten(1).sum(dim=1)
    return total / len(probes)


def bound_parts(
    field: Field, x: Tensor, span: tuple[float, float], noise: Tensor
) -> dict[str, Tensor]:
    """The three terms of -log p(x) <= prior + path + data, each [batch] in nats, for x [batch, ...]
    (Kingma et al. 2021, eq. 11-13 in continuous time, for a continuous x).

    prior  KL of q(x_first | x) to the start N(0, b_first^2 I)
    path   1/2 int E ||e - guess||^2 d log_snr, by the midpoint rule over the rows of noise [count,
           batch, ...], one stratum of log_snr each; less the error that the same noise makes on
           standard normal data, whose mean is known (a control variate)
    data   E -log N(x; x_last / a, (b / a)^2 I), which the model need not know
    """
    path, count, numbers = field.path, len(noise), x[0].numel()
    ends = torch.tensor(span, dtype=torch.float64)
    low, high = path.log_snr(ends).tolist()
    levels = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    errors = torch.zeros_like(x.flatten(1)[:, 0])
    for t, drawn in zip(path.time_of(levels), noise, strict=True):
        guess = field.split(path.point(x, drawn, t), t)[1]
        error = (guess - drawn).square() - _excess(path, x, drawn, t)
        errors = errors + error.flatten(1).sum(dim=1)
    a, b = (float(end) for end in (path.mean(ends)[0], path.deviation(ends)[0]))
    last = math.exp(-high / 2)  # b / a at the end
    return {
        "prior": 0.5 * (a / b) ** 2 * x.square().flatten(1).sum(dim=1),
        "path": 0.5 * (high - low) * errors / count,
        "data": torch.full_like(errors, 0.5 * numbers * (math.log(2 * math.pi * last**2) + 1)),
    }


def _excess(path: GaussianPath, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The squared error of the guess b x_t / r^2 of the noise, best for standard normal data, less
    its mean over the noise: of mean 0, and large where the true error is."""
    r = path.scale(t)
    a, b = fit(path.mean(t) / r, x), fit(path.deviation(t) / r, x)
    error = a * (a * noise - b * x)
    return error.square() - a.square() * (a.square() + (b * x).square())
