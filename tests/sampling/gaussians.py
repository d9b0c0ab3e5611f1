"""Gaussian data, where everything on a path is known in closed form."""

import torch
from torch import Tensor

from vqgen.sampling.field import Field
from vqgen.sampling.paths import OT, VE, VP, GaussianPath, Kind, fit

PATHS: dict[str, GaussianPath] = {"ot": OT(), "vp": VP(), "ve": VE()}


class Gaussian:
    """N(mean, covariance) in two dimensions, as latents [batch, 2, 1, 1] in float64."""

    def __init__(self, mean: list[float], covariance: list[list[float]]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.covariance = torch.tensor(covariance, dtype=torch.float64)
        self.values, self.axes = torch.linalg.eigh(self.covariance)

    def draw(self, count: int, seed: int = 0) -> Tensor:
        z = standard(count, seed)
        x = self.mean + (z.flatten(1) @ (self.axes * self.values.sqrt()).T)
        return x.reshape(-1, 2, 1, 1)

    def nats(self, x: Tensor) -> Tensor:
        normal = torch.distributions.MultivariateNormal(self.mean, self.covariance)
        return -normal.log_prob(x.flatten(1))

    def posterior(self, path: GaussianPath, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(E[x_1 | x_t], E[e | x_t])."""
        a, b = fit(path.mean(t), x), fit(path.deviation(t), x)
        along = (x - a * self.mean.reshape(2, 1, 1)).flatten(1) @ self.axes
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
        share = along / (a**2 * self.values + b**2)
        data = self.mean + (share * a * self.values) @ self.axes.T
        noise = (share * b) @ self.axes.T
        return data.reshape(x.shape), noise.reshape(x.shape)

    def field(self, path: GaussianPath, kind: Kind = "residual") -> Field:
        """The exact marginal field, given as a prediction of this kind."""
        return Field(path, kind, lambda x, t: path.target(kind, *self.posterior(path, x, t), t))

    def flow(self, path: GaussianPath, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """The probability flow from t to u: x - a m scales by the deviation along each axis."""
        mean = self.mean.reshape(2, 1, 1)

        def scale(t: Tensor) -> Tensor:
            return (path.mean(t) ** 2 * self.values + path.deviation(t) ** 2).sqrt()

        along = (x - path.mean(t) * mean).flatten(1) @ self.axes * (scale(u) / scale(t))
        return (along @ self.axes.T).reshape(x.shape) + path.mean(u) * mean


DATA = Gaussian([0.7, -0.4], [[0.9, 0.5], [0.5, 0.6]])


def standard(count: int, seed: int = 0) -> Tensor:
    """Standard normal [count, 2, 1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)


def time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)
