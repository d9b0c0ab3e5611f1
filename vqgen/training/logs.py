"""Where numbers and pictures of a run go: always to files in the run folder, and to W&B if that
logger is chosen."""

import csv
import json
from abc import abstractmethod
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from vqgen import checkpoint

HEAD = ("step", "name", "value")  # of metrics.csv


class Board(Logger):
    """A Lightning logger that also takes pictures and code counts, all under the generator step."""

    @abstractmethod
    def log_picture(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """picture uint8 [height, width, 3]."""

    @abstractmethod
    def log_counts(self, name: str, counts: np.ndarray, step: int) -> None:
        """counts [codes]: how often each code was used."""

    @abstractmethod
    def log_table(self, name: str, head: list[str], rows: list[Any], step: int) -> None:
        """A table; a cell that is uint8 [height, width, 3] is a picture."""

    @abstractmethod
    def close(self) -> None:
        """The run is over (Lightning's `finalize` comes earlier, after every loop of a trainer)."""


class FileBoard(Board):
    """metrics.csv in long form (step, name, value), to which a resumed run appends; pictures as
    PNG in samples/."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        """Lightning's name of the logger."""
        return "files"

    @property
    def version(self) -> str:
        """Lightning's version of the logger: the run's name."""
        return self.folder.name

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder already holds config.yaml."""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop what a run wrote after the checkpoint of this step, its validation first of all:
        it comes again. A file that is no metrics.csv is put aside."""
        path = self.folder / "metrics.csv"
        if not path.exists():
            return
        with path.open(newline="", errors="replace") as file:
            head, *lines = [*file] or [""]
        if head.strip() != ",".join(HEAD):
            names = (path.with_name(f"metrics_damaged_{number}.csv") for number in count(1))
            aside = next(name for name in names if not name.exists())
            path.rename(aside)
            print(f"{path} does not begin with {','.join(HEAD)}: kept as {aside.name}, begun anew")
            return
        kept, validated = [head], False
        for line in lines:
            number, _, rest = line.partition(",")
            validated |= number == str(step) and rest.startswith("val/")
            old = (
                number.isdigit() and int(number) <= step and not (validated and int(number) == step)
            )
            if line.endswith("\n") and old:
                kept.append(line)
        checkpoint.write_text(path, "".join(kept))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line per number."""
        path = self.folder / "metrics.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(HEAD)
            writer.writerows((step, name, f"{value:.7g}") for name, value in metrics.items())

    @rank_zero_only
    def log_picture(self, name: str, picture: np.ndarray, step: int, caption: str = "") -> None:
        """Write samples/<name>_<step>.png."""
        path = self.folder / "samples" / f"{name.replace('/', '_')}_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)

    @rank_zero_only
    def log_counts(self, name: str, counts: np.ndarray, step: int) -> None:
        """Keep the latest counts in samples/<name>.json."""
        path = self.folder / "samples" / f"{name.replace('/', '_')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"step": step, "counts": [int(count) for count in counts]}))

    @rank_zero_only
    def log_table(self, name: str, head: list[str], rows: list[Any], step: int) -> None:
        """Write samples/<name>.csv; pictures are left out of it."""
        path = self.folder / "samples" / f"{name.replace('/', '_')}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            plain = [["" if isinstance(cell, np.ndarray) else cell for cell in row] for row in rows]
            csv.writer(file).writerows([head, *plain])

    def close(self) -> None:
        """Every line is on disk already."""
