"""How continuous latents are sampled: the solver, its steps and its noise, checked when they are
typed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from vqgen.sampling import solvers, stochastic
from vqgen.sampling.field import Field
from vqgen.sampling.stochastic import Noise
from vqgen.sampling.times import SPACINGS

Advance = Callable[[Field, Tensor, Tensor, Tensor], Tensor]  # (field, x_t, t, u) -> x_u
STEPS, LEGS = 50, 5  # by default; legs are what the adaptive solver divides by itself
DEFAULTS = {"snr": 0.16, "tolerance": 1e-4, "temperature": 1.0}


@dataclass(frozen=True)
class ContinuousKnobs:
    """The sampling knobs of priors over continuous latents.

    solver          ODE: euler heun rk4 dopri5, on path=vp also ddim dpm; SDE: euler_maruyama
                    ancestral predictor_corrector, on path=ve also langevin (annealed)
    steps           of the loop; heun evaluates the network twice a step, rk4 four times; dopri5
                    divides each step as its tolerance asks. None: 50, dopri5 5
    spacing         uniform, quadratic or log_snr, see sampling/times.py
    stochasticity   of SDE solvers: 1 is the reverse SDE, 0 the flow; None: 1
    corrector_steps Langevin steps after each step of predictor_corrector or at each level of
                    langevin; None: 1 and 5
    snr             size of a Langevin step as a share of the noise level; None: 0.16, langevin 0.3
    tolerance       of dopri5, relative and absolute
    temperature     times the deviation of the noise that sampling starts from
    resample        times each step is repeated where latents are given (inpainting)
    """

    solver: str = "heun"
    steps: int | None = None
    spacing: str = "uniform"
    stochasticity: float | None = None
    corrector_steps: int | None = None
    snr: float | None = None
    tolerance: float = 1e-4
    temperature: float = 1.0
    resample: int = 1

    def __post_init__(self) -> None:
        for name, table in (("solver", SOLVERS), ("spacing", SPACINGS)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"wanted {name} as one of {', '.join(table)}, got {getattr(self, name)}; "
                    f"type {name}={next(iter(table))}"
                )
        for name in ("steps", "corrector_steps", "resample"):
            count = getattr(self, name)
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(
                    f"wanted {name} as a whole number of at least 1, got {count}; type {name}=10"
                )
        for name in ("snr", "tolerance", "temperature"):
            value, default = getattr(self, name), DEFAULTS[name]
            if name == "snr" and value is None:
                continue
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"wanted {name} above 0, got {value}; type {name}={default}")
        level = self.stochasticity
        if level is not None and not (isinstance(level, int | float) and 0 <= level <= 1):
            raise ValueError(
                f"wanted stochasticity from 0 to 1, got {level}; type stochasticity=1.0"
            )
        if level is not None and not SOLVERS[self.solver].stochastic:
            noisy = ", ".join(name for name, solver in SOLVERS.items() if solver.stochastic)
            raise ValueError(
                f"stochasticity needs a solver with noise ({noisy}), got solver={self.solver}; "
                "type solver=ancestral or leave stochasticity out"
            )

    @property
    def count(self) -> int:
        """Steps of the loop."""
        return self.steps or (LEGS if self.solver == "dopri5" else STEPS)

    def check_path(self, path: str) -> None:
        """Raise a ValueError if the solver is not meant for this path."""
        wanted = SOLVERS[self.solver].path
        if wanted not in (None, path):
            raise ValueError(
                f"solver={self.solver} needs path={wanted}, this prior has path={path}; "
                f"type solver={SOLVERS[self.solver].instead}, or train with path={wanted}"
            )

    def stepper(self, noise: Noise) -> Advance:
        """A fresh solver for one batch."""
        return SOLVERS[self.solver].make(self, noise)


@dataclass(frozen=True)
class Solver:
    """make(knobs, noise) -> the step; `path` is the only one it is meant for."""

    make: Callable[[Any, Noise], Advance]
    path: str | None = None
    instead: str = "heun"
    stochastic: bool = False


def _ode(step: Callable[..., Tensor]) -> Callable[[Any, Noise], Advance]:
    def make(knobs: ContinuousKnobs, noise: Noise) -> Advance:
        return lambda field, x, t, u: step(field.velocity, x, t, u)

    return make


def _dopri5(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    step = partial(solvers.dopri5, tolerance=knobs.tolerance)
    return lambda field, x, t, u: step(field.velocity, x, t, u)


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
    count, snr = knobs.corrector_steps or 5, knobs.snr or 0.3

    def step(field: Field, x: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return stochastic.langevin(field, x, u, noise=noise, steps=count, snr=snr)

    return step


def _dpm(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    return solvers.MultistepDPM()


def _ddim(knobs: ContinuousKnobs, noise: Noise) -> Advance:
    return solvers.ddim


SOLVERS: dict[str, Solver] = {
    "heun": Solver(_ode(solvers.heun)),
    "euler": Solver(_ode(solvers.euler)),
    "rk4": Solver(_ode(solvers.rk4)),
    "dopri5": Solver(_dopri5),
    "ddim": Solver(_ddim, path="vp", instead="euler"),
    "dpm": Solver(_dpm, path="vp", instead="heun"),
    "euler_maruyama": Solver(_sde(stochastic.euler_maruyama), stochastic=True),
    "ancestral": Solver(_sde(stochastic.ancestral), stochastic=True),
    "predictor_corrector": Solver(_predictor_corrector, stochastic=True),
    "langevin": Solver(_langevin, path="ve", instead="predictor_corrector", stochastic=False),
}
