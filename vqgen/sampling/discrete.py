"""Discrete diffusion as a Markov chain over tokens: transition matrices, posterior, time.

Noise steps count t = 1 ... T. A token stays clean up to t with probability alpha-bar_t, else it is
replaced by a draw from `limit`: always the mask (absorbing), or any code (uniform). Columns of a
matrix sum to 1: Q[i, j] = q(x_t = i | x_{t-1} = j).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgen.sampling.schedules import GRID, Schedule
from vqgen.words import cure

Weight = Callable[[Tensor], Tensor]  # noise times s = t / T, float64 [batch] -> w_t, as many

TINY = 1e-12  # under a root, where the mask rate is 1
MOST_STEPS = 1_000_000  # differences of alpha-bars keep ten digits in float64


@dataclass(frozen=True)
class Kernel:
    """Q = keep I + (1 - keep) limit 1^T (Austin et al. 2021, sections 3.1 and A.2): Q_t with keep =
    1 - beta_t and Q_{1:t} = Q_t ... Q_1 with keep = alpha-bar_t = prod (1 - beta).

    limit   Float [states], where a token goes that does not stay
    """

    limit: Tensor

    @classmethod
    def absorbing(cls, codes: int) -> "Kernel":
        """`codes` codes and one more state, the mask, whose number is `codes`."""
        return cls(F.one_hot(torch.tensor(codes, device="cpu"), codes + 1).double())

    @classmethod
    def uniform(cls, codes: int) -> "Kernel":
        """`codes` codes, each as likely as the next."""
        return cls(torch.full((codes,), 1 / codes, dtype=torch.float64, device="cpu"))

    def matrix(self, keep: float) -> Tensor:
        """-> Q, float64 [states, states]."""
        states = len(self.limit)
        return keep * torch.eye(states).double() + (1 - keep) * self.limit[:, None].expand(
            -1, states
        )

    def marginal(self, clean: Tensor, keep: Tensor) -> Tensor:
        """q(x_t | x_0) = Q_{1:t} x_0: clean Float [..., states], keep [...] -> [..., states]."""
        return keep[..., None] * clean + (1 - keep[..., None]) * self.limit.to(clean)

    def posterior(self, noisy: Tensor, clean: Tensor, before: Tensor, now: Tensor) -> Tensor:
        """q(x_{t-1} | x_t, x_0) = Q_t^T x_t * Q_{1:t-1} x_0 / (x_t^T Q_{1:t} x_0), averaged over
        x_0 (Austin et al. 2021, eq. 3; mind the transpose: Q_t x_t would never unmask).

        noisy        Long [...], x_t
        clean        Float [..., states], a distribution of x_0: one-hot where it is known, what a
                     network predicts where it is not
        before, now  alpha-bar_{t-1} and alpha-bar_t, broadcast to [...]

        -> Float [..., states]; an x_0 that cannot have become x_t takes no part."""
        limit, before, now = self.limit.to(clean), before[..., None], now[..., None]
        itself, reached = F.one_hot(noisy, len(limit)).to(clean), limit[noisy][..., None]
        evidence = now * itself + (1 - now) * reached  # x_t^T Q_{1:t} x_0, for every x_0
        share = clean / evidence.masked_fill(evidence == 0, math.inf)
        stay = now / before  # 1 - beta_t
        arrive = stay * itself + (1 - stay) * reached  # Q_t^T x_t
        chances = arrive * (before * share + (1 - before) * limit * share.sum(-1, keepdim=True))
        return chances / chances.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Clock:
    """Noise times s = t / T under a schedule: T discrete `steps`, or any s in (0, 1] with None.

    Everything is float64 on the CPU: a handful of numbers per batch, and differences of nearly
    equal alpha-bars."""

    schedule: Schedule
    steps: int | None = None

    def __post_init__(self) -> None:
        steps = self.steps
        whole = isinstance(steps, int) and not isinstance(steps, bool)
        if steps is not None and not (whole and 1 <= steps <= MOST_STEPS):
            raise ValueError(
                f"wanted noise_steps as a whole number of at least 1 and at most {MOST_STEPS}, got "
                f"{steps}; type prior.noise_steps=1000, or null for a continuous mask rate"
            )

    def draw(self, count: int) -> Tensor:
        """-> `count` noise times, uniform, one in each of `count` equal parts of all of them: less
        variance than independent ones. A training draw: from the global generator."""
        return self.at((torch.arange(count) + torch.rand(count, dtype=torch.float64)) / count)

    def at(self, shares: Tensor) -> Tensor:
        """shares in [0, 1) of the way from t = 1 to T -> noise times s, float64."""
        if self.steps is None:
            return 1 - shares.double()
        return ((shares.double() * self.steps).floor() + 1) / self.steps

    def now(self, s: Tensor) -> Tensor:
        """alpha-bar_t."""
        return self.schedule.clean(s).clamp(0, 1)

    def before(self, s: Tensor) -> Tensor:
        """alpha-bar_{t-1}. Needs discrete steps."""
        assert self.steps is not None
        return self.now((s - 1 / self.steps).clamp(min=0))

    def reveal(self, s: Tensor) -> Tensor:
        """rho_t = (alpha-bar_{t-1} - alpha-bar_t) / (1 - alpha-bar_t): the chance that a token that
        is masked at t was not at t - 1. Needs discrete steps."""
        return (self.before(s) - self.now(s)) / (1 - self.now(s))

    def elbo(self, s: Tensor) -> Tensor:
        """The weight of the bound for s drawn uniformly: T rho_t; -alpha-bar' / (1 - alpha-bar) in
        continuous time, which is d lambda / lambda for the mask rate lambda."""
        if self.steps is None:
            return -self.schedule.slope(s) / (1 - self.now(s))
        return self.steps * self.reveal(s)

    def maskgit(self, s: Tensor) -> Tensor:
        """The weight that makes any schedule train what MaskGIT trains (Chang et al. 2022, section
        3.3): 1 where the mask rate is cos(pi r / 2), r uniform. Its distribution function is
        (2 / pi) arcsin(rate); the weight is the mass between two steps, times T."""
        if self.steps is None:
            rate = 1 - self.now(s)
            return (
                -(2 / math.pi) * self.schedule.slope(s) / (1 - rate.square()).clamp(min=TINY).sqrt()
            )
        mass = (1 - self.now(s)).asin() - (1 - self.before(s)).asin()
        return self.steps * (2 / math.pi) * mass

    def weight(self, wanted: str | Weight) -> Weight | None:
        """What a user types, or a function of s -> w_t of the simplified loss; None for `elbo`, the
        bound itself. Raises ValueError for other names, negative or infinite weights, or all 0."""
        if wanted == "elbo":
            return None
        named: dict[str, Weight] = {"uniform": torch.ones_like, "maskgit": self.maskgit}
        if not callable(wanted) and str(wanted) not in named:
            raise ValueError(
                f"wanted prior.weight as one of elbo, {', '.join(named)} or, in Python, a function "
                f"of s = t / T that is nowhere negative, got {wanted}"
                f"{cure(wanted, ['elbo', *named], 'prior.weight=elbo')}"
            )
        weight = wanted if callable(wanted) else named[wanted]
        times = self.at((torch.arange(GRID, device="cpu") + 0.5) / GRID)
        values = weight(times)
        if not isinstance(values, Tensor) or values.shape != times.shape:
            shown = list(values.shape) if isinstance(values, Tensor) else repr(values)
            raise ValueError(
                f"wanted a weight w_t for each s of a tensor {list(times.shape)}, got {shown}; a "
                "constant is prior.weight=uniform"
            )
        if not bool(((values >= 0) & values.isfinite()).all()) or float(values.sum()) == 0:
            raise ValueError(
                "wanted a weight w_t of at least 0 and not 0 everywhere, got values from "
                f"{float(values.min()):.4g} to {float(values.max()):.4g}; type prior.weight=elbo"
            )
        return weight
