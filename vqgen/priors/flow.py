"""Flow matching over continuous latents: learn the velocity of a path by its conditional field
(Lipman et al. 2023), sample by its ODE."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from vqgen.contracts import (
    Condition,
    FeatureSpec,
    Guidance,
    Known,
    LatentSpec,
    Losses,
    OnStep,
    Prior,
)
from vqgen.priors.continuous import Denoiser, check_features, choice
from vqgen.priors.requests import check_at_least, check_shares
from vqgen.sampling.density import flow_nats, normal_nats
from vqgen.sampling.knobs import ContinuousKnobs
from vqgen.sampling.paths import OT, GaussianPath, Kind, fit
from vqgen.sampling.solvers import dopri5, heun
from vqgen.sampling.times import TRAINING_TIMES, grid

WEIGHTINGS = ("uniform", "1/lambda")


class Flow(Prior):
    """dx/dt = f(x, t, condition) carries N(0, I) at t = 0 to the latents at t = 1.

    path           OT unless given; VP and VE are the score-based ones read as flow-matching paths
    predict        what the network predicts; the loss compares velocities whatever it is
    weighting      of the squared velocity error: uniform is the plain objective; 1/lambda divides
                   it by the mean square of the target at that t (2 everywhere on OT), without which
                   VE would learn its noisiest times alone
    times          training times: uniform, or logit_normal
    pairing        random, or optimal: noise goes to the latents of its batch (and class, which
                   noise must not tell) by least total squared distance (Pooladian et al. 2023)
    likelihood_steps, likelihood_probes
                   Heun steps (on the quadratic grid, shorter towards the data) and Hutchinson
                   probes of `bits`; 0 steps: adaptive, 0 probes: the exact trace (small latents)
    """

    likelihood: ClassVar[Literal["estimate"]] = "estimate"
    Knobs: ClassVar[type] = ContinuousKnobs
    spec: FeatureSpec

    def __init__(
        self,
        spec: LatentSpec,
        *,
        network: Callable[..., nn.Module],
        path: GaussianPath | None = None,
        predict: Kind = "velocity",
        weighting: str = "1/lambda",
        times: str = "uniform",
        pairing: str = "random",
        num_classes: int = 0,
        label_dropout: float = 0.1,  # how often training withholds the condition, for guidance
        likelihood_steps: int = 32,
        likelihood_probes: int = 1,
    ) -> None:
        super().__init__()
        self.check(spec)
        assert isinstance(spec, FeatureSpec)
        choice("weighting", weighting, WEIGHTINGS)
        choice("times", times, TRAINING_TIMES)
        choice("pairing", pairing, PAIRINGS)
        check_at_least(0, instead=32, likelihood_steps=likelihood_steps)
        check_at_least(0, instead=1, likelihood_probes=likelihood_probes)
        check_at_least(0, num_classes=num_classes)
        check_shares(label_dropout=label_dropout)
        self.spec, self.num_classes, self.label_dropout = spec, num_classes, label_dropout
        self.weighting, self.times, self.pairing = weighting, times, pairing
        self.likelihood_steps, self.likelihood_probes = likelihood_steps, likelihood_probes
        self.denoiser = Denoiser(
            spec,
            network=network,
            path=path or OT(),
            kind=predict,
            num_classes=num_classes,
            label_dropout=label_dropout,
        )

    @classmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError unless the latents are continuous."""
        check_features(spec, "flow")

    @classmethod
    def check_path(cls, path: GaussianPath) -> None:
        """Every path suits."""

    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """The mean over batch and numbers of the weighted squared velocity error; conditions are
        withheld with `label_dropout`."""
        path, kind = self.denoiser.path, self.denoiser.kind
        t = self.denoiser.inside(TRAINING_TIMES[self.times](len(latents)))
        noise = torch.randn_like(latents)
        noise = PAIRINGS[self.pairing](latents, noise, condition)
        x, value = self.denoiser.at(latents, noise, t, condition)
        error = path.convert(value, x, t, kind, "velocity")
        error = error - path.target("velocity", latents, noise, t)
        if self.weighting == "1/lambda":
            error = error / fit(path.size("velocity", t), error)
        total = error.square().mean()
        return Losses(total, {"velocity_error": total.detach()})

    def sample(
        self,
        condition: Condition,
        knobs: ContinuousKnobs,
        guidance: Guidance,
        seeds: Sequence[int],
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """-> latents Float [batch, C, h, w]; put the module in eval() first.

        Raises ValueError if an argument does not suit this model or the batch."""
        return self.denoiser.sample(condition, knobs, guidance, seeds, known, on_step)

    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """-log2 of the density of each image's latents, in two parts: of the noise they came from,
        and the change of volume on the way. A density: it may be negative. Put the module in
        eval() first."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(latents.device.type, enabled=False),
        ):
            latents, condition = latents.clone(), condition.map(torch.clone)
            path, (first, last) = self.denoiser.path, self.denoiser.span
            steps = self.likelihood_steps
            # short steps near the data, where OT and VP are stiff: equal ones flatter the density
            times = grid(path, "quadratic", max(steps, 1), first, last).flip(0)
            field = self.denoiser.field(condition)
            step = heun if steps else partial(dopri5, tolerance=1e-5)
            probes = random_signs(self.likelihood_probes, latents)
            # in units of the path's scale: on VE most of x's way is the shrinking of its noise
            ends = path.scale(times[[0, -1]]).tolist()
            start, volume = flow_nats(
                field.scaled_velocity, latents / ends[0], times, step=step, probes=probes
            )
            volume = volume + latents[0].numel() * math.log(ends[0])
            deviation = float(path.deviation(times[-1])) / ends[1]
            nats = {"start": normal_nats(start, deviation), "volume": volume}
        return {name: part / math.log(2) for name, part in nats.items()}


def random_signs(count: int, like: Tensor) -> Tensor | None:
    """-> [count, *like.shape] of -1 and 1, the same for every image and at every call; None for
    count 0."""
    if count == 0:
        return None
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (count, 1, *like.shape[1:]), generator=generator)
    return (2 * signs - 1).to(like).expand(-1, len(like), *like.shape[1:])


def random_pairs(latents: Tensor, noise: Tensor, condition: Condition) -> Tensor:
    """The noise as it came."""
    return noise


def optimal_pairs(latents: Tensor, noise: Tensor, condition: Condition) -> Tensor:
    """The noise, permuted inside each class to the least total squared distance to the latents
    [batch, ...]."""
    labels = condition.labels
    groups = torch.zeros(len(latents)) if labels is None else labels.cpu()
    order = torch.arange(len(latents))
    cost = torch.cdist(latents.flatten(1).float(), noise.flatten(1).float()).square().cpu()
    for label in groups.unique():
        rows = (groups == label).nonzero()[:, 0]
        _, columns = linear_sum_assignment(cost[rows][:, rows].numpy())
        order[rows] = rows[torch.as_tensor(columns)]
    return noise[order.to(noise.device)]


PAIRINGS = {"random": random_pairs, "optimal": optimal_pairs}
