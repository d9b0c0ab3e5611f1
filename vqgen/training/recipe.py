"""What a run is told (recipe, budget) and what it counts."""

import math
from dataclasses import dataclass, field
from typing import Any

from vqgen.training.optimizer import Schedule


@dataclass(frozen=True)
class Budget:
    """How long a run lasts: whichever of the two limits is reached first; at least one must be
    given."""

    max_steps: int | None = None  # generator steps
    max_minutes: float | None = None  # wall time of training, over all resumed pieces

    def __post_init__(self) -> None:
        limits = {name: limit for name, limit in vars(self).items() if limit is not None}
        if not limits:
            raise ValueError(
                "wanted train.max_steps or train.max_minutes, got neither; type "
                "train.max_steps=1000, say"
            )
        for name, limit in limits.items():
            if not _is_above_0(limit):
                other = "max_minutes=60" if name == "max_steps" else "max_steps=1000"
                instead = "" if len(limits) == 2 else f" train.{other}"
                raise ValueError(
                    f"wanted train.{name} above 0, got {limit}; type train.{name}=null{instead} to "
                    "go without this limit"
                )

    def progress(self, step: int, seconds: float) -> float:
        """The fraction of the run that is done, in [0, 1]."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_time = seconds / (60 * self.max_minutes) if self.max_minutes else 0.0
        return min(1.0, max(by_steps, by_time))


@dataclass(frozen=True)
class Recipe:
    """Everything about optimization that both stages share. Learning rate and batch are final,
    never rescaled."""

    budget: Budget
    schedule: Schedule
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0  # largest gradient norm; None: not clipped
    ema: float = 0.999  # decay of the averaged copy; 0 turns averaging off
    accumulate: int = 1  # micro-batches per step
    log_every: int = 50  # steps
    patience: int = 3  # non-finite steps in a row before the run stops

    def __post_init__(self) -> None:
        numbers = [isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas]
        if numbers != [True, True]:
            raise ValueError(
                "wanted train.betas as two numbers from 0 to below 1, got "
                f"{list(self.betas)}; type train.betas=[0.9,0.95]"
            )
        if self.clip is not None and not _is_above_0(self.clip):
            raise ValueError(
                f"wanted train.clip (the largest gradient norm) above 0, got {self.clip}; "
                "type train.clip=1.0, or train.clip=null to switch it off"
            )


def _is_above_0(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


@dataclass
class Counters:
    """What a resumed run has to know beside weights and optimizers."""

    step: int = 0  # generator steps done
    micro: int = 0  # micro-batches done since the last step
    samples: int = 0  # images seen, over all ranks
    seconds: float = 0.0  # training time, over all pieces
    bad_in_a_row: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # for instance the W&B run id
