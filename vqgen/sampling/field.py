"""What a solver asks for, out of a network's prediction: velocity, data and noise, score."""

from collections.abc import Callable

from torch import Tensor

from vqgen.sampling.paths import GaussianPath, Kind, fit

Predict = Callable[[Tensor, Tensor], Tensor]  # (x [batch, ...], t 0-dim or [batch]) -> like x
Step = Callable[[Predict, Tensor, Tensor, Tensor], Tensor]  # (velocity, x_t, t, u) -> x_u


class Field:
    """A path with a function that predicts one kind of thing on it."""

    def __init__(self, path: GaussianPath, kind: Kind, predict: Predict) -> None:
        self.path = path
        self.kind: Kind = kind
        self._predict = predict
        self._latest: tuple[Tensor, Tensor, Tensor] | None = None

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the probability flow at x_t, of x's shape."""
        return self.path.convert(self._ask(x, t), x, t, self.kind, "velocity")

    def scaled_velocity(self, y: Tensor, t: Tensor) -> Tensor:
        """dy/dt of y = x_t / r along the same flow, r = `path.scale`: 0 for standard normal data,
        while x itself shrinks by sigma_max on VE. Of y's shape."""
        r = fit(self.path.scale(t), y)
        return self.velocity(r * y, t) / r - fit(self.path.scale_rate(t), y) * y

    def follow(self, step: Step, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """x_u from x_t by a step of an ODE solver along the flow: in y = x / r on a path whose
        scale runs over decades, else in x."""
        if not self.path.rescaled:
            return step(self.velocity, x, t, u)
        y = step(self.scaled_velocity, x / fit(self.path.scale(t), x), t, u)
        return fit(self.path.scale(u), x) * y

    def split(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of (data x_1, noise e) at x_t, each of x's shape."""
        return self.path.split(self.kind, self._ask(x, t), x, t)

    def velocity_and_score(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one evaluation."""
        value = self._ask(x, t)
        velocity = self.path.convert(value, x, t, self.kind, "velocity")
        return velocity, self.path.convert(value, x, t, self.kind, "score")

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x), of x's shape."""
        return self.path.convert(self._ask(x, t), x, t, self.kind, "score")

    def estimate(self) -> Tensor:
        """The clean data as estimated at the latest evaluation: what films show."""
        assert self._latest is not None, "nothing was evaluated yet"
        value, x, t = self._latest
        return self.path.split(self.kind, value, x, t)[0]

    def _ask(self, x: Tensor, t: Tensor) -> Tensor:
        value = self._predict(x, t)
        self._latest = (value, x, t)
        return value
