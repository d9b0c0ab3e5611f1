"""The W&B logger: offline by default, one own step axis, grids and histograms, no model artifacts.

The only file that imports wandb; it is imported only when logger=wandb."""

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from vqgen.training.logs import Board

LOGIN_SECONDS = 60  # to type a key, where somebody sits at a terminal
FINISH_SECONDS = "120"  # to send what is left; what was not sent stays in the run folder


class WandbBoard(Board):
    """Sends a run to W&B. Whatever goes wrong with it is one warning, and training goes on.

    folder  the run folder; W&B writes its own files into folder/wandb
    mode    "offline" (no account, no network, no prompt) or "online"
    id      of an earlier piece of the same run, so that a resumed run goes on in the same W&B run
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str,
        mode: Literal["offline", "online"] = "offline",
        id: str | None = None,
        config: dict | None = None,
    ) -> None:
        super().__init__()
        if mode not in ("offline", "online"):
            raise ValueError(f"wanted logger.mode=offline or logger.mode=online, got {mode!r}")
        self.folder, self.project, self.config = Path(folder), project, config or {}
        self.mode: Literal["offline", "online"] = mode
        self.id = id or uuid.uuid4().hex[:8]
        self._run: Any = None
        self._warned = False

    @property
    def name(self) -> str:
        """The W&B project."""
        return self.project

    @property
    def version(self) -> str:
        """The W&B run id."""
        return self.id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at first use: offline if W&B cannot be reached, and turned off if
        its folder cannot be written."""
        if self._run is None:
            self._run = self._start()
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        return self._run

    def _start(self) -> Any:
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_SECONDS)
        options: dict[str, Any] = {
            "project": self.project,
            "name": self.folder.name,
            "config": self.config,
            "id": self.id,
            "dir": str(self.folder),
            "settings": wandb.Settings(console="off", silent=True),
        }
        if self.mode == "online":
            try:
                if not wandb.login(timeout=LOGIN_SECONDS):
                    raise ValueError("no login")
                return wandb.init(mode="online", resume="allow", **options)
            except Exception as error:  # no key, no network, and what not
                print(
                    f"W&B cannot be reached ({_first_line(error)}); the run goes on with "
                    f"logger.mode=offline: later type wandb login, and wandb sync {self.folder}"
                    "/wandb/offline-run-*"
                )
        try:
            return wandb.init(mode="offline", **options)
        except Exception as error:
            self._warn(error)
            return wandb.init(mode="disabled")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The resolved config is given at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Numbers, grouped in panels by the prefix of their names."""
        self._send(lambda: metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """One image panel."""
        self._send(lambda: {name: wandb.Image(picture, caption=caption)}, step)

    @rank_zero_only
    def log_counts(self, name: str, counts: np.ndarray, step: int) -> None:
        """How codes are used: share of the tokens by rank of the code, in at most 512 bars."""
        ranked = np.sort(counts)[::-1] / max(1, counts.sum())
        bars = np.array([b.sum() for b in np.array_split(ranked, min(512, len(ranked)))])
        edges = np.linspace(0, len(ranked), len(bars) + 1)
        self._send(lambda: {name: wandb.Histogram(np_histogram=(bars, edges))}, step)

    @rank_zero_only
    def log_table(self, name: str, head: list[str], rows: list[Any], step: int) -> None:
        """A W&B Table."""

        def shown(cell: Any) -> Any:
            return wandb.Image(cell) if isinstance(cell, np.ndarray) else cell

        self._send(
            lambda: {
                name: wandb.Table(
                    columns=list(head), data=[[shown(cell) for cell in row] for row in rows]
                )
            },
            step,
        )

    def _send(self, values: Callable[[], dict[str, Any]], step: int | None) -> None:
        try:
            self.experiment.log({**values(), "step": step})
        except Exception as error:  # its service may die, its folder or /tmp be full
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            print(
                f"W&B does not take what it is sent ({_first_line(error)}); training goes on, "
                f"numbers are in {self.folder}/metrics.csv"
            )
        self._warned = True

    @rank_zero_only
    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._warn(error)
                with contextlib.suppress(Exception):
                    wandb.teardown()  # else a traceback when Python ends


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
