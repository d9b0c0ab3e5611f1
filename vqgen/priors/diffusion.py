"""Score-based diffusion over continuous latents: learn the score of a noised density by denoising
(Song et al. 2021), sample by the reverse SDE or the probability flow."""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
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
from vqgen.sampling.density import bound_parts
from vqgen.sampling.draws import Draws
from vqgen.sampling.knobs import ContinuousKnobs
from vqgen.sampling.paths import EDGE, VP, GaussianPath, Kind, fit
from vqgen.sampling.times import TRAINING_TIMES


class Diffusion(Prior):
    """s(x, t, condition) = grad log p_t(x), the score of the latents with the noise of time t.

    path       VP unless given, or VE
    predict    what the network predicts; the loss compares scores whatever it is. `residual` suits
               every path at every noise level; `noise` is the choice of Ho et al. 2020
    weighting  of the squared score error: uniform (the plain objective), 1/lambda (divided by the
               mean square of the score, 1/b^2: the squared error of the noise), likelihood (g^2:
               the variational bound), min_snr (min(a^2/b^2, 5) of the squared error of the data,
               Hang et al. 2023)
    times      training times: uniform, or logit_normal
    likelihood_evaluations
               network evaluations per image of `bits`
    """

    likelihood: ClassVar[Literal["bound"]] = "bound"
    Knobs: ClassVar[type] = ContinuousKnobs
    spec: FeatureSpec

    def __init__(
        self,
        spec: LatentSpec,
        *,
        network: Callable[..., nn.Module],
        path: GaussianPath | None = None,
        predict: Kind = "residual",
        weighting: str = "1/lambda",
        times: str = "uniform",
        num_classes: int = 0,
        label_dropout: float = 0.1,  # how often training withholds the condition, for guidance
        likelihood_evaluations: int = 16,
    ) -> None:
        super().__init__()
        self.check(spec)
        assert isinstance(spec, FeatureSpec)
        choice("weighting", weighting, NOISE_WEIGHTS)
        choice("times", times, TRAINING_TIMES)
        check_at_least(1, instead=16, likelihood_evaluations=likelihood_evaluations)
        path = path or VP()
        self.check_path(path)
        check_at_least(0, num_classes=num_classes)
        check_shares(label_dropout=label_dropout)
        self.spec, self.num_classes, self.label_dropout = spec, num_classes, label_dropout
        self.weighting, self.times = weighting, times
        self.likelihood_evaluations = likelihood_evaluations
        self.denoiser = Denoiser(
            spec,
            network=network,
            path=path,
            kind=predict,
            num_classes=num_classes,
            label_dropout=label_dropout,
        )

    @classmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError unless the latents are continuous."""
        check_features(spec, "diffusion")

    @classmethod
    def check_path(cls, path: GaussianPath) -> None:
        """Raise a ValueError for a path that is no diffusion."""
        choice("path", path.name, ("vp", "ve"), instead="path=vp, or prior=flow for path=ot")

    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """The mean over batch and numbers of the weighted squared score error; conditions are
        withheld with `label_dropout`."""
        path, kind = self.denoiser.path, self.denoiser.kind
        t = self.denoiser.inside(TRAINING_TIMES[self.times](len(latents)))
        noise = torch.randn_like(latents)
        x, value = self.denoiser.at(latents, noise, t, condition)
        # the score is -e / b: its squared error is that of the noise over b^2, which stays finite
        error = (path.split(kind, value, x, t)[1] - noise).square()
        weight = NOISE_WEIGHTS[self.weighting](path, t)
        total = (fit(weight, error) * error).mean()
        return Losses(total, {"score_error": total.detach(), "noise_error": error.mean().detach()})

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

    @torch.no_grad()
    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """The variational bound of -log2 of the density of each image's latents: its terms prior,
        path and data, estimated with fixed noise. A density: it may be negative. Put the module
        in eval() first."""
        with torch.autocast(latents.device.type, enabled=False):
            # one stream for all images: what a bound is must not depend on the place in a batch
            shape = (self.likelihood_evaluations, *latents.shape[1:])
            noise = (
                Draws([0])
                .normal(*shape)[0]
                .to(latents)[:, None]
                .expand(-1, len(latents), -1, -1, -1)
            )
            first, last = self.denoiser.span
            span = (max(first, EDGE), min(last, 1 - EDGE))
            nats = bound_parts(self.denoiser.field(condition), latents, span, noise)
        return {name: part / math.log(2) for name, part in nats.items()}


Weighting = Callable[[GaussianPath, Tensor], Tensor]
NOISE_WEIGHTS: dict[str, Weighting] = {  # of the squared noise error, b^2 times the score's
    "uniform": lambda path, t: path.deviation(t) ** -2,
    "1/lambda": lambda path, t: torch.ones_like(t),
    "likelihood": lambda path, t: (path.diffusion(t) / path.deviation(t)).square(),
    "min_snr": lambda path, t: (5 / path.log_snr(t).exp()).clamp(max=1),
}
