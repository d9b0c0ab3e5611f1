"""What the flow and the diffusion prior share: one network read as a field on a path, and the loop
that samples from it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn

from vqgen.contracts import (
    Condition,
    FeatureSpec,
    Guidance,
    Known,
    LatentSpec,
    OnStep,
    TokenSpec,
)
from vqgen.priors.conditioning import condition_tokens
from vqgen.priors.requests import check_guidance
from vqgen.sampling import stochastic
from vqgen.sampling.branches import Branches
from vqgen.sampling.draws import Draws
from vqgen.sampling.field import Field
from vqgen.sampling.knobs import ContinuousKnobs
from vqgen.sampling.paths import WEIGHTS, GaussianPath, Kind, fit
from vqgen.sampling.times import grid
from vqgen.words import cure


@final
class Denoiser(nn.Module):
    """A network that predicts `kind` on `path` for latents of `spec`, under a class or nothing.

    The network sees x_t / (a^2 + b^2)^(1/2) and predicts the target divided by `path.size`: for
    standardized latents both have unit variance at every t, on every path.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        network: Callable[..., nn.Module],  # made with channels=, size=; has `width`
        path: GaussianPath,
        kind: Kind,
        num_classes: int,
        label_dropout: float,
    ) -> None:
        super().__init__()
        choice("predict", kind, WEIGHTS)
        self.spec, self.path, self.label_dropout = spec, path, label_dropout
        self.kind: Kind = kind
        self.span = path.span(kind)
        self.network = network(channels=spec.channels, size=(spec.height, spec.width))
        width: Any = self.network.width
        self.condition = condition_tokens(width, num_classes=num_classes)
        nn.init.normal_(self.condition.embedding.weight, std=0.02)  # type: ignore[union-attr]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The prediction at x_t: x [rows, C, h, w], t [rows] (float64, CPU), condition [rows,
        width] -> the shape of x, in float32 or better."""
        weights = next(self.network.parameters()).dtype
        inputs = x / fit(self.path.scale(t), x)
        inputs = inputs.to(weights) if weights.itemsize < 4 else inputs  # in half precision
        value = self.network(inputs, fit(t, x).flatten(), condition)
        return fit(self.path.size(self.kind, t), x) * value.to(x.dtype)

    def embed(self, condition: Condition) -> Tensor:
        """-> [batch, width], what the network is told of the condition."""
        return self.condition(condition)[:, 0]

    def at(self, x: Tensor, noise: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, ...]:
        """For losses: (x_t, the prediction there), with the condition dropped at times; x and noise
        [batch, C, h, w], t [batch] within `span`."""
        vectors = self.embed(condition.drop(self.label_dropout))
        point = self.path.point(x, noise, t)
        return point, self(point, t, vectors)

    def inside(self, t: Tensor) -> Tensor:
        """Times of [0, 1] moved into `span`."""
        first, last = self.span
        return first + (last - first) * t

    def field(self, condition: Condition) -> Field:
        """The unguided field, for likelihoods."""
        vectors = self.embed(condition)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return self(x, t.expand(len(x)), vectors)

        return Field(self.path, self.kind, predict)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        knobs: ContinuousKnobs,
        guidance: Guidance,
        seeds: Sequence[int],
        known: Known | None,
        on_step: OnStep | None,
    ) -> Tensor:
        """`Prior.sample` of both families. Raises ValueError if an argument does not suit."""
        self.condition.check(condition)
        shape = [condition.batch, self.spec.channels, self.spec.height, self.spec.width]
        if len(seeds) != condition.batch:
            raise ValueError(
                f"wanted one seed for each of {condition.batch} images, got {len(seeds)}"
            )
        if known is not None and list(known.latents.shape) != shape:
            raise ValueError(
                f"wanted known latents of shape {shape}, got {list(known.latents.shape)}; encode "
                "the images with this prior's tokenizer"
            )
        given = None if known is None else known.latents
        if given is not None and not given.is_floating_point():
            raise ValueError(
                f"wanted known latents as floating-point numbers, got {given.dtype}; encode the "
                "images with this prior's tokenizer"
            )
        if given is not None and not bool(given.isfinite().all()):
            raise ValueError(
                f"wanted known latents that are finite, got {int((~given.isfinite()).sum())} "
                "numbers that are not; encode the images with this prior's tokenizer"
            )
        if known is None and knobs.resample > 1:
            raise ValueError(
                "resample repeats steps where latents are given, for edit=inpaint or outpaint, got "
                f"resample={knobs.resample} without; leave resample out"
            )
        times = grid(self.path, knobs.spacing, knobs.count, *self.span)
        knobs.check(self.path, times)
        null = self.condition.can_drop
        branches = Branches(condition.batch, len(times) - 1, guidance, has_null=null)
        check_guidance(branches, self.label_dropout)
        both = [condition, condition.null()] if branches.guided else [condition]
        like = next(self.network.parameters())
        with torch.autocast(like.device.type, enabled=False):
            vectors = branches.stack([self.embed(part) for part in both])
            draws = Draws(seeds)

            def noise() -> Tensor:
                wide = torch.promote_types(like.dtype, torch.float32)  # small steps are not lost
                return draws.normal(*shape[1:]).to(like.device, wide)

            def field(step: int) -> Field:
                predict = partial(self._guided, branches, vectors, step)
                return Field(self.path, self.kind, predict)

            return integrate(field, times, knobs, noise, known=known, on_step=on_step)

    def _guided(
        self, branches: Branches, vectors: Tensor, step: int, x: Tensor, t: Tensor
    ) -> Tensor:
        """Both branches in one batch."""
        rows = branches.images(step, t.device)
        value = self(x[rows.to(x.device)], t.expand(len(x))[rows], vectors[: len(rows)])
        return branches.guide(value, step)


@dataclass(frozen=True)
class Keep:
    """Known latents on their way along the path: the same noise at every time."""

    known: Known
    noise: Tensor

    def put(self, path: GaussianPath, x: Tensor, t: Tensor) -> Tensor:
        """x_t with the known latents as they are at time t."""
        there = path.point(self.known.latents.to(x), self.noise, t)
        return there.where(self.known.keep.to(x.device), x)


def integrate(
    field: Callable[[int], Field],
    times: Tensor,
    knobs: ContinuousKnobs,
    noise: stochastic.Noise,
    *,
    known: Known | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The sampling loop: from noise along `times` [steps + 1] to latents.

    field(step) is what holds at that step; where the path still has noise at the last time, one
    more evaluation removes it. Known latents replace the sample's after each step, which is done
    `knobs.resample` times (Lugmayr et al. 2022)."""
    path, total = field(0).path, len(times) - 1
    x = noise()
    x = fit(path.deviation(times[0]) * knobs.temperature, x) * x
    advance, keep = knobs.stepper(noise), None
    if known is not None:
        keep = Keep(known, noise())
        x = keep.put(path, x, times[0])
    for step, (t, u) in enumerate(pairwise(times)):
        here = field(step)
        for again in range(knobs.resample if keep is not None else 1):
            if again:
                x = stochastic.renoise(here, x, u, t, noise=noise)
            x = advance(here, x, t, u)
            if keep is not None:
                x = keep.put(path, x, u)
        if step == total - 1:
            if float(path.deviation(u)) > 0:
                x = here.split(x, u)[0]
            if keep is not None:
                x = keep.known.latents.to(x).where(keep.known.keep.to(x.device), x)
        if on_step is not None:
            on_step(step + 1, total, x.clone() if step == total - 1 else here.estimate())
    return x


def check_features(spec: LatentSpec, family: str) -> None:
    """Raise the ValueError of a continuous family for tokens."""
    if isinstance(spec, TokenSpec):
        raise ValueError(
            f"prior={family} needs continuous latents, got tokens of {len(spec.scales)} scale(s) "
            f"with {spec.vocab_size:,} codes; type as_features=true to use this tokenizer's "
            "features, or train one with continuous latents: python train_stage1.py tokenizer=kl"
        )


def choice(name: str, value: str, options: Iterable[str], *, instead: str | None = None) -> None:
    """Raise a ValueError unless `value` is one of the options; `instead` is what to type."""
    words = list(options)
    if value not in words:
        raise ValueError(
            f"wanted {name} as one of {', '.join(words)}, got {value}"
            f"{cure(value, words, instead or f'prior.{name}={words[0]}')}"
        )
