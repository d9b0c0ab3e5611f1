"""What both stages share: the count of generator steps, accumulation, clipping, EMA, the guard
against bad losses.

Optimization is manual in Lightning's sense, because `global_step` counts every optimizer's steps
and Trainer clipping cannot be used with two of them. Here one step is one step of the generator
(the model that is exported), whatever else is optimized beside it; every schedule, log and budget
counts these."""

import math
import time
from collections.abc import Callable
from typing import Any, ClassVar, Generic

import torch
from lightning import LightningModule
from torch import Tensor, nn

from vqgen.training import devices, sharding
from vqgen.training.ema import EMA, Model
from vqgen.training.logs import Board
from vqgen.training.randomness import random_state, set_random_state
from vqgen.training.recipe import Counters, Recipe

# BatchNorm's statistics of each device's own images, which training never reads
PER_DEVICE = ("running_mean", "running_var")


class TrainingModule(LightningModule, Generic[Model]):
    """A model under training. A stage implements `compute`, `configure_optimizers` and its
    validation.

    model  the module that is trained, averaged and exported
    """

    some_unused: ClassVar[bool] = True  # may a loss leave trained parameters out? (a GAN's two do)

    def __init__(self, model: Model, recipe: Recipe) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model: Model = model
        self.average: EMA[Model] = EMA(model, recipe.ema)
        self.recipe = recipe
        self.counters = Counters()
        self.validated_step = -1
        self._bad_step = False  # was something of the step under way not finite?
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

    def finish_step(
        self,
        optimizer: Any,
        parameters: list[nn.Parameter],
        batch: dict[str, Tensor],
        name: str = "model",
    ) -> Tensor:
        """Clip, step and clear; a gradient that is not finite leaves the weights alone and counts
        as a bad step. Returns the norm before clipping. `name`: whose parameters these are."""
        largest = float("inf") if self.recipe.clip is None else self.recipe.clip
        norm = sharding.whole(nn.utils.clip_grad_norm_(parameters, largest))
        if torch.isfinite(norm):  # the same number on every rank
            optimizer.step()
        else:
            self._skip([f"gradient of the {name}"], batch)
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
        """False for a loss that is not finite on some rank: it must not be learned from."""
        usable = bool(torch.isfinite(total))
        if self.trainer.strategy.reduce_boolean_decision(usable, all=True):  # on every rank
            return True
        terms = [name for name, value in parts.items() if not bool(torch.isfinite(value).all())]
        self._skip(terms or ["total" if not usable else "those of another process"], batch)
        return False

    def _skip(self, terms: list[str], batch: dict[str, Tensor]) -> None:
        """These terms are not finite: say so and save the batch; `patience` such steps in a row
        stop the run."""
        self.counters.bad_in_a_row += not self._bad_step
        self._bad_step = True
        folder = self.trainer.default_root_dir
        dump = f"{folder}/bad_batch_step{self.counters.step}_rank{self.global_rank}.pt"
        torch.save({name: value.cpu() for name, value in batch.items()}, dump)
        text = f"step {self.counters.step}: the loss is not finite (terms: {', '.join(terms)})"
        print(f"ALARM {text}; step skipped, batch saved in {dump}")
        if self.counters.bad_in_a_row >= self.recipe.patience:
            raise ValueError(
                f"{text}, {self.recipe.patience} times in a row. Look at {dump}, "
                "lower train.lr, or type trainer.precision=32-true"
            )

    def count_batch(self, images: int) -> bool:
        """Count one micro-batch of `images` on this rank; True if it completes a generator step."""
        self.counters.samples += images * self.trainer.world_size
        self.counters.micro = (self.counters.micro + 1) % self.recipe.accumulate
        return self.counters.micro == 0

    def count_step(self) -> None:
        """Count a generator step and move the average."""
        self.counters.step += 1
        if not self._bad_step:
            self.counters.bad_in_a_row = 0
        self._bad_step = False
        self.average.update(self.model, self.counters.step)
        if self.is_log_step and self.trainer.world_size > 1 and self._device_mesh is None:
            self.check_ranks()

    def check_ranks(self) -> None:
        """Raise ValueError if the replicas of a distributed run (model, average, discriminator and
        its running means) differ in a single bit."""
        names = [name for name in devices.differing(self) if not name.endswith(PER_DEVICE)]
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

    def say(self, text: str) -> None:
        """Print, once for all ranks."""
        if self.trainer.is_global_zero:
            print(text, flush=True)

    def record(self, numbers: dict[str, Any]) -> None:
        """Log numbers under the generator step; one of the validation that is not finite is an
        alarm."""
        plain = {name: float(value) for name, value in numbers.items()}
        bad = [n for n, value in plain.items() if n.startswith("val/") and not math.isfinite(value)]
        if bad:
            self.say(
                f"ALARM step {self.counters.step}: {', '.join(bad)} not finite; lower train.lr, or "
                "look at the numbers of the model (path, weights) that were typed"
            )
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
        try:
            name, value = small_fd(averaged)
        except ValueError as error:  # samples that are not finite, say: no reason to lose the run
            print(f"ALARM step {self.counters.step}: no distance of samples: {error}")
            return False
        self.record({name: value})
        print(f"  {name} {value:.4g} (few images: compare within this run only)")
        facts: dict[str, Any] = self.counters.facts
        if not value < facts.get("best_small_fd", {}).get("value", float("inf")):
            return False
        facts["best_small_fd"] = {"name": name, "value": value, "step": self.counters.step}
        return True

    # ---- exact resume

    def on_validation_start(self) -> None:
        if self.counters.bad_in_a_row >= self.counters.step > 0:
            raise ValueError(
                f"nothing was learned by step {self.counters.step}: no loss was finite and every "
                "step was skipped, so nothing is exported; look at the weights of the losses, "
                "lower train.lr, or type trainer.precision=32-true"
            )
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
        saved, validated = checkpoint["vqgen"], self.counters.facts
        self.counters = Counters(**saved["counters"])
        if self.counters.step == self.validated_step:  # it has told what is best since then
            self.counters.facts |= validated
        states = [saved["random"], *saved.get("random_others", [])]
        if self.global_rank < len(states):  # more devices than before: those begin anew
            self._saved_random_state = states[self.global_rank]
