"""What both stages share: the count of generator steps, accumulation, clipping, EMA, the guard
against bad losses.

Optimization is manual in Lightning's sense, because `global_step` counts every optimizer's steps
and Trainer clipping cannot be used with two of them. Here one step is one step of the generator
(the model that is exported), whatever else is optimized beside it; every schedule, log and budget
counts these."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from lightning import LightningModule
from torch import Tensor, nn

from vqgen.training import devices, sharding
from vqgen.training.ema import EMA, Model
from vqgen.training.logs import Board
from vqgen.training.optimizer import Schedule
from vqgen.training.randomness import random_state, set_random_state


@dataclass(frozen=True)
class Budget:
    """How long a run lasts: whichever of the two limits is reached first; at least one must be
    given."""

    max_steps: int | None = None  # generator steps
    max_minutes: float | None = None  # wall time of training, over all resumed pieces

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.max_steps, self.max_minutes) if limit is not None]
        if not limits or min(limits) <= 0:
            raise ValueError(
                "wanted train.max_steps or train.max_minutes above 0, got "
                f"{self.max_steps} and {self.max_minutes}; type train.max_steps=1000, say"
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
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999  # decay of the averaged copy; 0 turns averaging off
    accumulate: int = 1  # micro-batches per step
    log_every: int = 50  # steps
    patience: int = 3  # non-finite losses in a row before the run stops


@dataclass
class Counters:
    """What a resumed run has to know beside weights and optimizers."""

    step: int = 0  # generator steps done
    micro: int = 0  # micro-batches done since the last step
    samples: int = 0  # images seen, over all ranks
    seconds: float = 0.0  # training time, over all pieces
    bad_in_a_row: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # for instance the W&B run id


class TrainingModule(LightningModule, Generic[Model]):
    """A model under training. A stage implements `compute`, `configure_optimizers` and its
    validation.

    model  the module that is trained, averaged and exported
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model: Model = model
        self.average: EMA[Model] = EMA(model, recipe.ema)
        self.recipe = recipe
        self.counters = Counters()
        self.validated_step = -1
        self._saved_random_state: dict[str, Any] | None = None

    # ---- progress

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1]; the same on every rank."""
        return self.recipe.budget.progress(self.counters.step, self.counters.seconds)

    def on_train_start(self) -> None:
        self._started = time.monotonic() - self.counters.seconds
        if self._saved_random_state is not None:
            set_random_state(self._saved_random_state)
            self._saved_random_state = None
        elif self.global_rank:  # else all ranks would drop the same conditions and units
            torch.manual_seed(torch.initial_seed() + self.global_rank + 1000 * self.counters.step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        if self.counters.micro:  # a step is never left half done
            return None
        elapsed = time.monotonic() - self._started
        if self.recipe.budget.max_minutes and self.trainer.world_size > 1:
            # every rank must stop at the same step
            elapsed = self.trainer.strategy.broadcast(elapsed)
        self.counters.seconds = elapsed
        if self.progress >= 1:
            self.trainer.should_stop = True
            return -1
        return None

    # ---- one step

    def finish_step(self, optimizer: Any, parameters: list[nn.Parameter]) -> Tensor:
        """Clip, step and clear; a non-finite gradient norm leaves the weights alone. Returns the
        norm."""
        norm = sharding.whole(nn.utils.clip_grad_norm_(parameters, self.recipe.clip))
        if torch.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def set_learning_rate(self, *optimizers: Any) -> float:
        """Set the scheduled learning rate for this step on all parameter groups; returns it."""
        rate = self.recipe.schedule.at(self.counters.step, self.progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    def is_usable(self, total: Tensor, parts: dict[str, Tensor], batch: dict[str, Tensor]) -> bool:
        """False for a non-finite loss: the batch is dumped and skipped; `patience` in a row stop
        the run."""
        usable = bool(torch.isfinite(total))
        if self.trainer.strategy.reduce_boolean_decision(usable, all=True):  # on every rank
            self.counters.bad_in_a_row = 0
            return True
        self.counters.bad_in_a_row += 1
        terms = [name for name, value in parts.items() if not bool(torch.isfinite(value).all())]
        folder = self.trainer.default_root_dir
        dump = f"{folder}/bad_batch_step{self.counters.step}_rank{self.global_rank}.pt"
        torch.save({name: value.cpu() for name, value in batch.items()}, dump)
        named = ", ".join(terms) or "total"
        text = f"step {self.counters.step}: the loss is not finite (terms: {named})"
        print(f"ALARM {text}; step skipped, batch saved in {dump}")
        if self.counters.bad_in_a_row >= self.recipe.patience:
            raise ValueError(
                f"{text}, {self.recipe.patience} times in a row. Look at {dump}, "
                "lower train.lr, or type trainer.precision=32-true"
            )
        return False

    def count_batch(self, images: int) -> bool:
        """Count one micro-batch of `images` on this rank; True if it completes a generator step."""
        self.counters.samples += images * self.trainer.world_size
        self.counters.micro = (self.counters.micro + 1) % self.recipe.accumulate
        return self.counters.micro == 0

    def count_step(self) -> None:
        """Count a generator step and move the average."""
        self.counters.step += 1
        self.average.update(self.model, self.counters.step)
        if self.is_log_step and self.trainer.world_size > 1 and self._device_mesh is None:
            self.check_ranks()

    def check_ranks(self) -> None:
        """Raise ValueError if the replicas of a distributed run differ in a single bit."""
        names = devices.differing(self.model)
        if names:
            raise ValueError(
                f"step {self.counters.step}: {', '.join(names[:5])} differ between the processes; "
                "the last checkpoint is sound: go on from it with train.resume=auto, and please "
                "report this"
            )

    # ---- logs

    @property
    def boards(self) -> list[Board]:
        """Where numbers and pictures go."""
        return [logger for logger in self.trainer.loggers if isinstance(logger, Board)]

    def record(self, numbers: dict[str, Any]) -> None:
        """Log numbers under the generator step."""
        plain = {name: float(value) for name, value in numbers.items()}
        for board in self.boards:
            board.log_metrics(plain, step=self.counters.step)

    def over_ranks(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of this process -> their means over all; every one has to call it."""
        if self.trainer.world_size == 1:
            return parts
        values = torch.stack([value.detach().double() for value in parts.values()])
        return dict(zip(parts, self.trainer.strategy.reduce(values, reduce_op="mean"), strict=True))

    @property
    def is_log_step(self) -> bool:
        """Whether the step just counted is one to log."""
        return self.counters.step % self.recipe.log_every == 0 or self.counters.step == 1

    # ---- the best checkpoint

    def is_best(
        self, small_fd: Callable[[Model], tuple[str, float]] | None, averaged: Model
    ) -> bool:
        """Measure the small distance of the averaged model, if one is wanted, and log it; True if
        it is the smallest of the run so far. To be asked on rank 0."""
        if small_fd is None:
            return False
        name, value = small_fd(averaged)
        self.record({name: value})
        print(f"  {name} {value:.4g} (few images: compare within this run only)")
        facts: dict[str, Any] = self.counters.facts
        if value >= facts.get("best_small_fd", {}).get("value", float("inf")):
            return False
        facts["best_small_fd"] = {"name": name, "value": value, "step": self.counters.step}
        return True

    # ---- exact resume

    def on_validation_start(self) -> None:
        self._before_validation = random_state()

    def on_validation_end(self) -> None:
        self.validated_step = self.counters.step
        set_random_state(
            self._before_validation
        )  # training is the same with and without validation

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        first, *others = devices.gather(random_state())
        counters = vars(self.counters)
        checkpoint["vqgen"] = {"counters": counters, "random": first, "random_others": others}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counters = Counters(**checkpoint["vqgen"]["counters"])
        saved = checkpoint["vqgen"]
        states = [saved["random"], *saved.get("random_others", [])]
        if self.global_rank < len(states):  # more devices than before: those begin anew
            self._saved_random_state = states[self.global_rank]
