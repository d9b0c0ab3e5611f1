"""Callbacks of both stages: save and resume, leave cleanly on a signal, say what is going on."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from vqgen import checkpoint
from vqgen.training import devices
from vqgen.training.module import TrainingModule


class Left(Exception):
    """A signal came during a validation, which comes again when the run is resumed."""


class SaveRun(Callback):
    """Writes checkpoints/last.ckpt every `every` steps, before each validation (`validate_every`),
    at the end, and when a signal asks the run to leave.

    The file before it stays as previous.ckpt. While `listening`, Ctrl-C and SIGTERM finish the step
    under way, save and set `signal`; a scheduler grants seconds: no validation comes before that,
    and one under way, whose step is saved, ends in `Left`. A second Ctrl-C leaves at once."""

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self.folder, self.intervals = folder / "checkpoints", (every, validate_every)
        self.signal: int | None = None
        self._saved_step = -1
        self._validating = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals inside of this block."""
        self._process = os.getpid()  # loader processes inherit the handlers
        before = self._listen()
        try:
            yield
        except Left:
            pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _listen(self) -> dict[int, Any]:
        """Take both signals; returns who had them."""
        both = (signal.SIGINT, signal.SIGTERM)
        return {number: signal.signal(number, self._leave) for number in both}

    def _leave(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._validating and os.getpid() == self._process:
            raise Left

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._validating = True
        self._listen()  # Lightning has taken SIGTERM in between
        if self.signal is not None:
            raise Left

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._validating = False

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._listen()
        self._saved_step = pl_module.counters.step if (self.folder / "last.ckpt").exists() else -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        counters = pl_module.counters
        if counters.micro != 0:
            return
        # a scheduler's signal reaches the processes at different times; they leave together
        self.signal = devices.largest(self.signal or 0) or None
        if self.signal is not None:
            trainer.should_stop, trainer.limit_val_batches = True, 0
        due = any(counters.step % interval == 0 for interval in self.intervals)
        if counters.step != self._saved_step and (due or self.signal is not None):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.counters.step != self._saved_step:
            self.save(trainer, pl_module)

    def save(self, trainer: Trainer, pl_module: TrainingModule) -> None:
        """Write the checkpoint to a temporary name, then rename (on rank 0; every rank takes part
        in gathering)."""
        last = self.folder / "last.ckpt"
        self._saved_step = pl_module.counters.step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(last)
            return
        with checkpoint.atomic(last) as temporary:
            trainer.save_checkpoint(temporary)
            if last.exists():
                os.replace(last, self.folder / "previous.ckpt")


class Console(Callback):
    """One line every log step: step, share of the run, time left, loss, images per second, memory;
    logged as perf/."""

    def __init__(self) -> None:
        self._inside = 0.0  # seconds inside training batches since the last line
        self._inside_all = 0.0  # and since the start
        self._mark: tuple[float, int] = (0.0, 0)  # time and images at the last line

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._started = time.monotonic()
        self._mark = (self._started, pl_module.counters.samples)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self._batch_started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now, counters = time.monotonic(), pl_module.counters
        self._inside += now - self._batch_started
        self._inside_all += now - self._batch_started
        if counters.micro != 0 or not pl_module.is_log_step:
            return
        seconds, images = now - self._mark[0], counters.samples - self._mark[1]
        numbers = {
            "perf/images_per_second": images / max(seconds, 1e-9),
            "perf/training_share": self._inside / max(seconds, 1e-9),
            "perf/memory_gib": peak_memory_gib(),
            "perf/progress": pl_module.progress,
        }
        pl_module.record(numbers)
        progress = max(pl_module.progress, 1e-9)
        left = counters.seconds / progress * (1 - progress) / 60
        if trainer.is_global_zero:
            print(
                f"step {counters.step}  {progress:6.1%}  {left:5.1f} min left  "
                f"{numbers['perf/images_per_second']:.0f} images/s  "
                f"{numbers['perf/memory_gib']:.1f} GiB",
                flush=True,
            )
        self._inside, self._mark = 0.0, (now, counters.samples)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        seconds = time.monotonic() - self._started
        if trainer.is_global_zero:
            print(
                f"{seconds / 60:.1f} min, of which {self._inside_all / seconds:.1%} in training "
                "steps; the rest is validation, logging, data and checkpoints"
            )


def peak_memory_gib() -> float:
    """Peak memory so far: of the accelerator if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # Linux counts KiB, macOS bytes
