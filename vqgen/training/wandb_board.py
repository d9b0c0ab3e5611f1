"""The W&B logger: offline by default, one own step axis, grids and histograms, no model artifacts.

The only file that imports wandb; it is imported only when logger=wandb."""

import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np
import wandb
from lightning.pytorch.utilities import rank_zero_only

from vqgen.training.logs import Board


class WandbBoard(Board):
    """Sends a run to W&B.

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

    @property
    def name(self) -> str:
        """The W&B project."""
        return self.project

    @property
    def version(self) -> str:
        """The W&B run id."""
        return self.id

    @property
    def experiment(self) -> Any:
        """The W&B run, started at first use; a W&B that cannot start turns itself off and training
        goes on."""
        if self._run is None:
            settings = wandb.Settings(console="off", silent=True)
            options: dict[str, Any] = {
                "project": self.project,
                "name": self.folder.name,
                "config": self.config,
                "id": self.id,
            }
            options |= {"dir": str(self.folder), "settings": settings}
            try:
                resume = "allow" if self.mode == "online" else None
                self._run = wandb.init(mode=self.mode, resume=resume, **options)
            except Exception as error:  # any failure of a dashboard must not stop a training
                print(
                    f"W&B could not start ({error}); training goes on, "
                    f"numbers are in {self.folder}/metrics.csv"
                )
                self._run = wandb.init(mode="disabled")
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The resolved config is given at the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Numbers, grouped in panels by the prefix of their names."""
        self._send(metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """One image panel."""
        self._send({name: wandb.Image(picture, caption=caption)}, step)

    @rank_zero_only
    def log_counts(self, name: str, counts: np.ndarray, step: int) -> None:
        """How codes are used: share of the tokens by rank of the code, in at most 512 bars."""
        ranked = np.sort(counts)[::-1] / max(1, counts.sum())
        bars = np.array([b.sum() for b in np.array_split(ranked, min(512, len(ranked)))])
        edges = np.linspace(0, len(ranked), len(bars) + 1)
        self._send({name: wandb.Histogram(np_histogram=(bars, edges))}, step)

    @rank_zero_only
    def log_table(self, name: str, head: list[str], rows: list[Any], step: int) -> None:
        """A W&B Table."""
        shown: list[Any] = [
            [wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row]
            for row in rows
        ]
        self._send({name: wandb.Table(columns=list(head), data=shown)}, step)

    def _send(self, values: dict[str, Any], step: int | None) -> None:
        try:
            self.experiment.log({**values, "step": step})
        except wandb.Error as error:
            print(f"W&B did not take {', '.join(values)} ({error}); training goes on")

    @rank_zero_only
    def close(self) -> None:
        """Finish the W&B run."""
        if self._run is not None:
            self._run.finish()
