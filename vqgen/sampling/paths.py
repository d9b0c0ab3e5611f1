"""Gaussian paths from noise (t = 0) to data (t = 1): one family for flow matching and diffusion.

Every path is x_t = a(t) x_1 + b(t) e with e ~ N(0, I). `OT` is the straight one; `VP` and `VE` are
the score-based SDEs read as conditional flow-matching paths at the SDE's time s = 1 - t:

    OT   a = t        b = 1 - t                     f(x_t, x_1, t) = (x_1 - x_t) / (1 - t)
    VP   a = alpha_s  b = (1 - alpha_s^2)^(1/2)     f = alpha'_s / b^2 (alpha_s x_t - x_1)
    VE   a = 1        b = sigma_s                   f = -(sigma'_s / sigma_s) (x_t - x_1)

Times are tensors, 0-dim or [batch], in float64 on the CPU: near the ends float32 loses b, and not
every device has float64. Coefficients move to the device and type of what they multiply.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

Kind = Literal["velocity", "score", "noise", "data", "residual"]  # what a network may predict
EDGE = 1e-3  # how far from a singular end loops and losses stay
LARGEST_BETA = 200.0  # a(0) = e^-50: float32 still holds 1/a, of which data is made from noise
SIGMAS = (1e-6, 1e6)  # float32's 24 bits hold x_1 and its noise together in there only


class GaussianPath(ABC):
    """a = `mean`, b = `deviation` and their derivatives in t; the rest follows from these four.

    What a network may predict is a combination p x_1 + q e, see `weights`:

        velocity  a' x_1 + b' e, the conditional field f
        score     -e / b = grad log p_t(x_t | x_1)
        noise     e
        data      x_1
        residual  (b x_1 - a e) / (a^2 + b^2)^(1/2): what is left of all of them when the best
                  linear guess from x_t is taken out, for data of unit variance (the
                  preconditioning of Karras et al. 2022, on any path; on VP minus the v of Salimans
                  and Ho 2022). No end is singular for it.
    """

    name: ClassVar[str]  # what is typed: path=name
    rescaled: ClassVar[bool] = False  # whether ODE solvers step in y = x / r, see `scale`

    @abstractmethod
    def mean(self, t: Tensor) -> Tensor:
        """a(t)."""

    @abstractmethod
    def deviation(self, t: Tensor) -> Tensor:
        """b(t)."""

    @abstractmethod
    def mean_rate(self, t: Tensor) -> Tensor:
        """a'(t)."""

    @abstractmethod
    def deviation_rate(self, t: Tensor) -> Tensor:
        """b'(t)."""

    @abstractmethod
    def span(self, kind: Kind) -> tuple[float, float]:
        """(first, last): the times between which everything of this kind is finite."""

    @final
    def point(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a x_1 + b e; data and noise [batch, ...]."""
        return fit(self.mean(t), data) * data + fit(self.deviation(t), data) * noise

    @final
    def scale(self, t: Tensor) -> Tensor:
        """r = (a^2 + b^2)^(1/2), the deviation of x_t for data of unit variance: 1 on VP."""
        return torch.hypot(self.mean(t), self.deviation(t))

    @final
    def scale_rate(self, t: Tensor) -> Tensor:
        """r' / r = (a a' + b b') / r^2; singular where b' is (VP at 1)."""
        a, b = self.mean(t), self.deviation(t)
        return (a * self.mean_rate(t) + b * self.deviation_rate(t)) / self.scale(t).square()

    # ---- the lecture's conditional field and score

    @final
    def field(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """f(x_t, x_1, t) = a' x_1 + (b'/b)(x_t - a x_1); singular where b = 0 (OT, VP at 1)."""
        ratio = fit(self.deviation_rate(t) / self.deviation(t), x)
        return fit(self.mean_rate(t), x) * data + ratio * (x - fit(self.mean(t), x) * data)

    @final
    def score(self, x: Tensor, data: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t | x_1) = -(x_t - a x_1) / b^2; singular where b = 0."""
        return -(x - fit(self.mean(t), x) * data) / fit(self.deviation(t).square(), x)

    # ---- the SDE at its own time s = 1 - t: dx = drift ds + diffusion dw

    @final
    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """-(a'/a) x; singular where a = 0 (OT, t = 0)."""
        return fit(-self.mean_rate(t) / self.mean(t), x) * x

    @final
    def diffusion(self, t: Tensor) -> Tensor:
        """g with g^2 = 2 (b^2 a'/a - b b'); on VP beta_s, on VE d sigma_s^2 / ds; singular where
        a = 0 (OT, t = 0)."""
        a, b = self.mean(t), self.deviation(t)
        squared = 2 * (b.square() * self.mean_rate(t) / a - b * self.deviation_rate(t))
        return squared.clamp(min=0).sqrt()

    # ---- what a network predicts, and what follows from it

    @final
    def weights(self, kind: Kind, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of the prediction p x_1 + q e, each of t's shape."""
        a, b = self.mean(t), self.deviation(t)
        return WEIGHTS[kind](self, t, a, b)

    @final
    def size(self, kind: Kind, t: Tensor) -> Tensor:
        """(p^2 + q^2)^(1/2): the root mean square of the prediction's target, for data of unit
        variance. A network predicts the target divided by it."""
        return torch.hypot(*self.weights(kind, t))

    @final
    def target(self, kind: Kind, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """p x_1 + q e, of data's shape."""
        p, q = self.weights(kind, t)
        return fit(p, data) * data + fit(q, data) * noise

    @final
    def split(self, kind: Kind, value: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """A prediction at x_t -> (data x_1, noise e): the two unknowns of x_t = a x_1 + b e and
        value = p x_1 + q e. Singular outside `span(kind)`."""
        a, b = self.mean(t), self.deviation(t)
        p, q = self.weights(kind, t)
        size = torch.hypot(p, q)  # p and q may be large where their ratio is fine
        p, q = p / size, q / size
        determinant = a * q - b * p
        value = value / fit(size, x)
        data = fit(q / determinant, x) * x - fit(b / determinant, x) * value
        noise = fit(a / determinant, x) * value - fit(p / determinant, x) * x
        return data, noise

    @final
    def convert(self, value: Tensor, x: Tensor, t: Tensor, source: Kind, target: Kind) -> Tensor:
        """One kind of prediction at x_t into another."""
        if source == target:
            return value
        return self.target(target, *self.split(source, value, x, t), t)

    # ---- time by noise level

    @final
    def log_snr(self, t: Tensor) -> Tensor:
        """log(a^2 / b^2), rising in t; infinite where a or b is 0."""
        return 2 * (self.mean(t).log() - self.deviation(t).log())

    @final
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, float64, by 60 bisections of [0, 1]."""
        low, high = torch.zeros_like(log_snr), torch.ones_like(log_snr)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.log_snr(middle) < log_snr
            low, high = middle.where(below, low), high.where(below, middle)
        return (low + high) / 2


class OT(GaussianPath):
    """The straight path x_t = t x_1 + (1 - t) e (Lipman et al. 2023; Liu et al. 2023)."""

    name = "ot"

    def mean(self, t: Tensor) -> Tensor:
        return t

    def deviation(self, t: Tensor) -> Tensor:
        return 1 - t

    def mean_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def deviation_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def span(self, kind: Kind) -> tuple[float, float]:
        """Velocity and residual are fine everywhere; noise tells nothing of the data at t = 0, data
        nothing of the noise at t = 1."""
        first = 10 * EDGE if kind in ("noise", "score") else 0.0  # errors grow with 1/a there
        return first, 1 - EDGE if kind in ("data", "score") else 1.0


class VP(GaussianPath):
    """The variance-preserving SDE dx = -beta/2 x ds + beta^(1/2) dw, beta linear in s (Song et al.
    2021): alpha_s = exp(-1/2 int_0^s beta). At t = 0 a is exp(-(beta_min + beta_max) / 4), not 0:
    the start N(0, I) is approximate."""

    name = "vp"

    def __init__(self, *, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max <= LARGEST_BETA - beta_min:
            raise ValueError(
                f"path=vp wanted 0 < beta_min < beta_max, their sum at most {LARGEST_BETA:g}, got "
                f"beta_min={beta_min}, beta_max={beta_max}; type "
                "prior.path.beta_min=0.1 prior.path.beta_max=20"
            )
        self.beta_min, self.beta_max = beta_min, beta_max

    def beta(self, t: Tensor) -> Tensor:
        """beta at s = 1 - t."""
        return self.beta_min + (1 - t) * (self.beta_max - self.beta_min)

    def _log_mean(self, t: Tensor) -> Tensor:
        s = 1 - t
        return -0.5 * (self.beta_min * s + 0.5 * (self.beta_max - self.beta_min) * s.square())

    def mean(self, t: Tensor) -> Tensor:
        return self._log_mean(t).exp()

    def deviation(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_mean(t))).sqrt()

    def mean_rate(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t) * self.mean(t)

    def deviation_rate(self, t: Tensor) -> Tensor:
        """-a a' / b; infinite at t = 1."""
        return -self.mean(t) * self.mean_rate(t) / self.deviation(t)

    def span(self, kind: Kind) -> tuple[float, float]:
        """b' is infinite at t = 1, so loops end just before."""
        return 0.0, 1 - EDGE


class VE(GaussianPath):
    """The variance-exploding SDE dx = (d sigma_s^2 / ds)^(1/2) dw with the geometric sigma_s =
    sigma_min (sigma_max / sigma_min)^s (Song et al. 2021). Nothing is singular: at t = 1 noise of
    sigma_min is left. At t = 0 x is x_1 + sigma_max e: the start N(0, sigma_max^2 I) is
    approximate. Most of x's way is the shrinking of its noise, so solvers step in y = x / r."""

    name = "ve"
    rescaled = True

    def __init__(self, *, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        low, high = SIGMAS
        if not low <= sigma_min < sigma_max <= high:
            raise ValueError(
                f"path=ve wanted {low:g} <= sigma_min < sigma_max <= {high:g}, got "
                f"sigma_min={sigma_min}, sigma_max={sigma_max}; type "
                "prior.path.sigma_min=0.01 prior.path.sigma_max=50"
            )
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._log_ratio = torch.tensor(sigma_max / sigma_min, dtype=torch.float64).log().item()

    def mean(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def deviation(self, t: Tensor) -> Tensor:
        return self.sigma_min * ((1 - t) * self._log_ratio).exp()

    def mean_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def deviation_rate(self, t: Tensor) -> Tensor:
        return -self._log_ratio * self.deviation(t)

    def span(self, kind: Kind) -> tuple[float, float]:
        return 0.0, 1.0


def fit(coefficient: Tensor, x: Tensor) -> Tensor:
    """A 0-dim or [batch] coefficient, on x's device and in its type, shaped to multiply x
    [batch, ...]."""
    there = coefficient.to(dtype=x.dtype).to(device=x.device)
    return there.reshape(-1, *[1] * (x.ndim - 1)) if there.ndim else there


Weights = Callable[[GaussianPath, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
WEIGHTS: dict[Kind, Weights] = {  # (path, t, a, b) -> (p, q)
    "velocity": lambda path, t, a, b: (path.mean_rate(t), path.deviation_rate(t)),
    "score": lambda path, t, a, b: (torch.zeros_like(t), -1 / b),
    "noise": lambda path, t, a, b: (torch.zeros_like(t), torch.ones_like(t)),
    "data": lambda path, t, a, b: (torch.ones_like(t), torch.zeros_like(t)),
    "residual": lambda path, t, a, b: (b / path.scale(t), -a / path.scale(t)),
}
