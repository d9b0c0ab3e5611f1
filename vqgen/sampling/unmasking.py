"""Samplers of absorbing diffusion over the same weights: which masked tokens a step decides."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqgen.sampling.counts import whole
from vqgen.sampling.draws import Draws
from vqgen.sampling.halton import halton_ranks
from vqgen.sampling.logits import LogitKnobs
from vqgen.sampling.schedules import Schedule, parse
from vqgen.words import cure

# (tokens [batch, length], places to predict Bool [batch, length], noise rate, step) -> guided
# logits of those places, in order, [places, vocab]
Predict = Callable[[Tensor, Tensor, float, int], Tensor]
OnStep = Callable[[int, int, Tensor], None]  # (steps done, steps in all, tokens with -1)
CHOICE_TEMPERATURE = 4.5  # MaskGIT's, of the confidence sampler
ROUNDING = 1e-4  # of a token: 0.3 x 10 places are 3, not 2.9999999


@dataclass(frozen=True)
class UnmaskingKnobs(LogitKnobs):
    """The sampling knobs of discrete diffusion, checked.

    sampler             ancestral (the chain's own posterior), confidence (MaskGIT), halton (evenly
                        spread places), random (places in random order)
    steps               of the loop, any number
    schedule            of the mask rate along the loop; None: the one of training
    choice_temperature  Gumbel noise on the confidences, fading to 0 at the end; None: 4.5
    remask              share of the tokens decided so far that are undone after each step, the
                        least probable first; so many more are decided that the mask rates stay
    """

    sampler: str = "ancestral"
    steps: int = 32
    schedule: str | Sequence[float] | Schedule | None = None
    choice_temperature: float | None = None
    remask: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in list(ORDERS):  # a list has no hash
            raise ValueError(
                f"wanted sampler as one of {', '.join(ORDERS)}, got {self.sampler}"
                f"{cure(self.sampler, ORDERS, 'sampler=ancestral')}"
            )
        object.__setattr__(self, "steps", whole("steps", self.steps, "steps=16"))
        if self.schedule is not None:
            parse(self.schedule)
        noise = self.choice_temperature
        if noise is not None and not (isinstance(noise, int | float) and 0 <= noise < math.inf):
            raise ValueError(
                f"wanted a choice_temperature of at least 0, got {noise}; type "
                f"choice_temperature={CHOICE_TEMPERATURE}"
            )
        if noise is not None and self.sampler != "confidence":
            raise ValueError(
                "choice_temperature is the noise on the confidences, got it with "
                f"sampler={self.sampler}; type sampler=confidence, or leave it out"
            )
        if not (isinstance(self.remask, int | float) and 0 <= self.remask < 1):
            raise ValueError(
                f"wanted remask as a share from 0 to under 1, got {self.remask}; type remask=0.05, "
                "or remask=0 to keep what was decided"
            )

    def rates(self, trained: Schedule) -> list[float]:
        """The mask rates of the loop, `steps` + 1 falling numbers, 0 last."""
        return (trained if self.schedule is None else parse(self.schedule)).rates(self.steps)


@dataclass(frozen=True)
class Plan:
    """How many places are to be masked after each step.

    rates   falling mask rates, one more than steps
    masked  Long [batch], the places there are to decide
    remask  share of the decided ones that a step undoes: it decides more first
    """

    rates: Sequence[float]
    masked: Tensor
    remask: float = 0.0

    def opened(self, step: int) -> float:
        """The mask rate between deciding and undoing: (1 - opened) (1 - remask) = 1 - rate after,
        unless that is more than there is."""
        return max(0.0, 1 - (1 - self.rates[step + 1]) / (1 - self.remask))

    def surplus(self, masked: Tensor, step: int) -> Tensor:
        """masked Bool [batch, length] -> Long [batch], how many of them this step has to decide."""
        wanted = (self.masked * self.opened(step) + ROUNDING).floor().long()
        return (masked.sum(dim=1) - wanted).clamp(min=0)

    def excess(self, masked: Tensor, step: int) -> Tensor:
        """masked Bool [batch, length] after deciding -> Long [batch], how many to undo."""
        wanted = (self.masked * self.rates[step + 1] + ROUNDING).floor().long()
        return (wanted - masked.sum(dim=1)).clamp(min=0)


class Order(ABC):
    """Which masked places a step decides; one object per sampling run."""

    @abstractmethod
    def ask(self, masked: Tensor, step: int) -> Tensor:
        """masked Bool [batch, length] -> the places, Bool, whose tokens this step wants to hear; if
        there are none the network is not asked."""

    @abstractmethod
    def accept(self, asked: Tensor, certainty: Tensor, step: int) -> Tensor:
        """certainty Float [batch, length], log p of the tokens drawn where `asked` -> the places to
        decide, Bool."""

    @abstractmethod
    def undo(self, masked: Tensor, step: int) -> Tensor:
        """masked Bool [batch, length] after deciding -> Long [batch], how many decided places to
        mask again."""


class Ranked(Order):
    """As many as planned, places of low rank first: ranks Float [batch or 1, length]."""

    def __init__(self, plan: Plan, ranks: Tensor) -> None:
        self.plan, self.ranks = plan, ranks

    def ask(self, masked: Tensor, step: int) -> Tensor:
        ranks = self.ranks.to(masked.device).expand(masked.shape)
        return lowest(ranks, masked, self.plan.surplus(masked, step))

    def accept(self, asked: Tensor, certainty: Tensor, step: int) -> Tensor:
        return asked

    def undo(self, masked: Tensor, step: int) -> Tensor:
        return self.plan.excess(masked, step)


class Ancestral(Order):
    """The reverse chain itself: each masked token is decided with probability rho = 1 - rate after
    / rate before, whatever the others do."""

    def __init__(self, plan: Plan, draws: Draws) -> None:
        self.plan, self.draws = plan, draws

    def ask(self, masked: Tensor, step: int) -> Tensor:
        stays = self.plan.opened(step) / self.plan.rates[step]
        return masked & (self.draws.uniform(masked.shape[1]).to(masked.device) >= stays)

    def accept(self, asked: Tensor, certainty: Tensor, step: int) -> Tensor:
        return asked

    def undo(self, masked: Tensor, step: int) -> Tensor:
        """A share of what is decided, rounded up or down by chance: counts are right on average."""
        share = 1 - (1 - self.plan.rates[step + 1]) / (1 - self.plan.opened(step))
        decided = self.plan.masked - masked.sum(dim=1)
        return (decided * share + self.draws.uniform().to(masked.device)).floor().long()


class Confidence(Order):
    """Hears all masked places and decides the most certain ones, as many as planned (MaskGIT, Chang
    et al. 2022, section 3.2): largest log p + noise (1 - progress) Gumbel."""

    def __init__(self, plan: Plan, draws: Draws, noise: float) -> None:
        self.plan, self.draws, self.noise = plan, draws, noise

    def ask(self, masked: Tensor, step: int) -> Tensor:
        return masked & (self.plan.surplus(masked, step) > 0)[:, None]

    def accept(self, asked: Tensor, certainty: Tensor, step: int) -> Tensor:
        noise = self.noise * (1 - (step + 1) / (len(self.plan.rates) - 1))
        score = certainty.masked_scatter(asked, certainty[asked] + noise * self.draws.gumbel(asked))
        return lowest(-score, asked, self.plan.surplus(asked, step))

    def undo(self, masked: Tensor, step: int) -> Tensor:
        return self.plan.excess(masked, step)


def ancestral(plan: Plan, draws: Draws, knobs: UnmaskingKnobs, size: tuple[int, int]) -> Order:
    """The chain's own posterior."""
    return Ancestral(plan, draws)


def confidence(plan: Plan, draws: Draws, knobs: UnmaskingKnobs, size: tuple[int, int]) -> Order:
    """The most certain tokens first."""
    noise = knobs.choice_temperature
    return Confidence(plan, draws, CHOICE_TEMPERATURE if noise is None else noise)


def halton(plan: Plan, draws: Draws, knobs: UnmaskingKnobs, size: tuple[int, int]) -> Order:
    """Places in the order of a Halton sequence, the same for all images: every stretch of it is
    spread evenly, so tokens decided together are far apart (Besnier et al. 2025)."""
    return Ranked(plan, halton_ranks(*size)[None])


def random(plan: Plan, draws: Draws, knobs: UnmaskingKnobs, size: tuple[int, int]) -> Order:
    """Places in an order of each image's own."""
    return Ranked(plan, draws.uniform(size[0] * size[1]))


ORDERS = {"ancestral": ancestral, "confidence": confidence, "halton": halton, "random": random}


@torch.no_grad()
def unmask(
    predict: Predict,
    tokens: Tensor,
    *,
    size: tuple[int, int],
    knobs: UnmaskingKnobs,
    rates: Sequence[float],
    draws: Draws,
    on_step: OnStep | None = None,
) -> Tensor:
    """tokens Long [batch, length], -1 where they are to be decided -> all decided.

    A decided token stays, unless `remask` undoes it; a given one stays always. The network is
    asked only in steps that decide something.

    size   (height, width) of the grid of places
    rates  mask rates, one more than steps
    """
    steps, given = knobs.steps, tokens >= 0
    order = ORDERS[knobs.sampler](
        Plan(rates, (~given).sum(dim=1), knobs.remask), draws, knobs, size
    )
    certainty = torch.full(tokens.shape, math.inf, device=tokens.device)
    for step in range(steps):
        asked = order.ask(tokens < 0, step)
        if bool(asked.any()):
            logits = predict(tokens, asked, rates[step], step)
            drawn = knobs.filter(logits).float()
            drawn = (drawn + draws.gumbel(asked, drawn.shape[-1])).argmax(dim=-1)
            heard = logits.float().log_softmax(dim=-1).gather(-1, drawn[:, None])[:, 0]
            certainty = certainty.masked_scatter(asked, heard)
            accepted = order.accept(asked, certainty, step)
            tokens = torch.where(accepted, tokens.masked_scatter(asked, drawn), tokens)
        if step < steps - 1 and knobs.remask > 0:
            mine = (tokens >= 0) & ~given
            undone = lowest(certainty, mine, order.undo(tokens < 0, step))
            tokens = tokens.masked_fill(undone, -1)
        if on_step is not None:
            on_step(step + 1, steps, tokens.clone())
    return tokens


def lowest(scores: Tensor, among: Tensor, counts: Tensor) -> Tensor:
    """-> Bool [batch, length], True at the counts[i] lowest scores of row i among the places
    given; ties go to the earlier place."""
    order = scores.masked_fill(~among, math.inf).argsort(dim=1, stable=True)
    return (order.argsort(dim=1) < counts[:, None]) & among
