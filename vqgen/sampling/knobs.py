"""How continuous latents are sampled: the solver, its steps and its noise, checked when they are
typed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeGuard

from torch import Tensor

from vqgen.sampling import solvers, stochastic
from vqgen.sampling.counts import whole
from vqgen.sampling.field import Field
from vqgen.sampling.paths import GaussianPath
from vqgen.sampling.stochastic import Noise
from vqgen.sampling.times import SPACINGS
from vqgen.words import cure

Advance = Callable[[Field, Tensor, Tensor, Tensor], Tensor]  # (field, x_t, t, u) -> x_u
ANNEALED_SNR, LEAST_SNR = 0.5, 0.05  # of langevin: by default, and the least
LEAST_TOLERANCE = 1e-6  # of dopri5: float32 rounds at 1e-7 of the numbers


@dataclass(frozen=True)
class ContinuousKnobs:
    """The sampling knobs of priors over continuous latents.

    solver          ODE: euler heun rk4 dopri5, on path=vp also ddim dpm; SDE: euler_maruyama
                    ancestral predictor_corrector, on path=ve also langevin (annealed)
    steps           of the loop; heun evaluates the network twice a step, rk4 four times; dopri5
                    divides each step as its tolerance asks. None: heun 25, rk4 12, dopri5 5,
                    the others 50
    spacing         uniform, quadratic or log_snr, see sampling/times.py
    stochasticity   of SDE solvers: 1 is the reverse SDE, 0 the flow; None: 1
    corrector_steps Langevin steps after each step of predictor_corrector or at each level of
                    langevin; None: 1, langevin as many as the step to the level needs
    snr             size of a Langevin step as a share of the noise level; None: 0.16, langevin 0.5
    tolerance       of dopri5, relative and absolute; None: 1e-4
    temperature     times the deviation of the noise that sampling starts from
    resample        times each step is repeated where latents are given (inpainting)
    """

    solver: str = "heun"
    steps: int | None = None
    spacing: str = "uniform"
    stochasticity: float | None = None
    corrector_steps: int | None = None
    snr: float | None = None
    tolerance: float | None = None
    temperature: float = 1.0
    resample: int = 1

    def __post_init__(self) -> None:
        for name, table in (("solver", SOLVERS), ("spacing", SPACINGS)):
            if getattr(self, name) not in list(table):  # a list has no hash
                raise ValueError(
                    f"wanted {name} as one of {', '.join(table)}, got {getattr(self, name)}"
                    f"{cure(getattr(self, name), table, f'{name}={next(iter(table))}')}"
                )
        for name in ("steps", "corrector_steps", "resample"):
            if (count := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, count, f"{name}=10"))
        for name, default in (("snr", 0.16), ("tolerance", 1e-4), ("temperature", 1.0)):
            value = getattr(self, name)
            if value is None and name != "temperature":
                continue
            if not (_is_number(value) and math.isfinite(value) and value > 0):
                raise ValueError(f"wanted {name} above 0, got {value}; type {name}={default}")
        level = self.stochasticity
        if level is not None and not (_is_number(level) and 0 <= level <= 1):
            raise ValueError(
                f"wanted stochasticity from 0 to 1, got {level}; type stochasticity=1.0"
            )
        for name in ("stochasticity", "corrector_steps", "snr", "tolerance"):
            users = [word for word, solver in SOLVERS.items() if name in solver.uses]
            if getattr(self, name) is not None and self.solver not in users:
                raise ValueError(
                    f"{name} is for solver={', '.join(users)}, got {name}={getattr(self, name)} "
                    f"with solver={self.solver}; type solver={users[0]} or leave {name} out"
                )
        if self.snr is not None and self.snr >= 1:
            default = ANNEALED_SNR if self.solver == "langevin" else 0.16
            raise ValueError(
                f"wanted snr below 1 (a step as large as the noise), got {self.snr}; "
                f"type snr={default}"
            )
        if self.tolerance is not None and self.tolerance < LEAST_TOLERANCE:
            raise ValueError(
                f"wanted tolerance of at least {LEAST_TOLERANCE:g} (float32 tells no smaller "
                f"errors), got {self.tolerance}; type tolerance=0.0001"
            )

    @property
    def count(self) -> int:
        """Steps of the loop."""
        return self.steps or SOLVERS[self.solver].steps

    def check(self, path: GaussianPath, times: Tensor) -> None:
        """Raise a ValueError if the solver is not meant for this path, or annealed Langevin adds
        more noise than it takes away between two of the times."""
        wanted = SOLVERS[self.solver].path
        if wanted not in (None, path.name):
            raise ValueError(
                f"solver={self.solver} needs path={wanted}, this prior has path={path.name}; "
                f"type solver={SOLVERS[self.solver].instead}, or train with path={wanted}"
            )
        if self.solver == "langevin":
            self._check_annealing(path, times)

    def _check_annealing(self, path: GaussianPath, times: Tensor) -> None:
        snr, levels = self.snr or ANNEALED_SNR, list(pairwise(times))
        if snr < LEAST_SNR:
            raise ValueError(
                f"solver=langevin needs snr of at least {LEAST_SNR} (smaller steps are too many), "
                f"got snr={snr}; type snr={ANNEALED_SNR}"
            )
        ratio = max(float(path.deviation(t) / path.deviation(u)) for t, u in levels)
        if ratio > math.e:  # data of unit variance would be frozen in before its noise is out
            steps = math.ceil(self.count * math.log(ratio))
            raise ValueError(
                "solver=langevin needs noise levels at most a factor of 2.7 apart, got a factor of "
                f"{ratio:.3g} with steps={self.count}; type steps={steps}"
            )
        least = max(stochastic.annealing_steps(path, t, u, snr=snr, left=1.0) for t, u in levels)
        if self.corrector_steps is not None and self.corrector_steps < least:
            raise ValueError(
                f"solver=langevin with steps={self.count} and snr={snr} needs corrector_steps of "
                f"at least {least}, or as much noise as data is left, got {self.corrector_steps}; "
                "leave corrector_steps out, or type more steps"
            )

    def stepper(self, noise: Noise) -> Advance:
        """A fresh solver for one batch."""
        return SOLVERS[self.solver].make(self, noise)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Solver:
    """make(knobs, noise) -> the step; `path` is the only one it is meant for, `uses` are knobs that
    others do not have."""

    make: Callable[[Any, Noise], Advance]
    steps: int = 50  # by default
    path: str | None = None
    instead: str = "heun"
    uses: tuple[str, ...] = ()


def _ode(step: Callable[..., Tensor]) -> Callable[[Any, Noise], Advance]:
    def make(knobs: ContinuousKnobs, noise: Noise) -> Advance:
        return lambda field, x, t, u: field.follow(step, x, t, u)

    return make


def _dopri5(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    step = partial(solvers.dopri5, tolerance=knobs.tolerance or 1e-4)
    return lambda field, x, t, u: field.follow(step, x, t, u)


def _sde(step: Callable[..., Tensor]) -> Callable[[Any, Noise], Advance]:
    def make(knobs: ContinuousKnobs, noise: Noise) -> Advance:
        level = 1.0 if knobs.stochasticity is None else knobs.stochasticity
        return partial(step, noise=noise, stochasticity=level)

    return make


def _predictor_corrector(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    """Ancestral steps, each followed by Langevin steps where it arrives."""
    predict, count = _sde(stochastic.ancestral)(knobs, noise), knobs.corrector_steps or 1

    def step(field: Field, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        x = predict(field, x, t, u)
        if float(field.path.deviation(u)) == 0:  # clean data: nothing to correct, no score
            return x
        return stochastic.langevin(field, x, u, noise=noise, steps=count, snr=knobs.snr or 0.16)

    return step


def _langevin(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    """Annealed Langevin (Song and Ermon 2019): x stays where it is while the level falls."""
    snr = knobs.snr or ANNEALED_SNR

    def step(field: Field, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        needed = stochastic.annealing_steps(field.path, t, u, snr=snr)
        count = knobs.corrector_steps or needed
        return stochastic.langevin(field, x, u, noise=noise, steps=count, snr=snr)

    return step


def _dpm(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    return solvers.MultistepDPM()


def _ddim(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    return solvers.ddim


SOLVERS: dict[str, Solver] = {
    "heun": Solver(_ode(solvers.heun), steps=25),
    "euler": Solver(_ode(solvers.euler)),
    "rk4": Solver(_ode(solvers.rk4), steps=12),
    "dopri5": Solver(_dopri5, steps=5, uses=("tolerance",)),
    "ddim": Solver(_ddim, path="vp", instead="euler"),
    "dpm": Solver(_dpm, path="vp", instead="heun"),
    "euler_maruyama": Solver(_sde(stochastic.euler_maruyama), uses=("stochasticity",)),
    "ancestral": Solver(_sde(stochastic.ancestral), uses=("stochasticity",)),
    "predictor_corrector": Solver(
        _predictor_corrector, uses=("stochasticity", "corrector_steps", "snr")
    ),
    "langevin": Solver(
        _langevin, path="ve", instead="predictor_corrector", uses=("corrector_steps", "snr")
    ),
}
