"""The card of an evaluation: what was done, with what, and every number; JSON and Markdown."""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vqgen import checkpoint

DIGITS = 6  # significant: what is beyond depends on the batch size of the sampler


@dataclass(frozen=True)
class Number:
    """A value, its 95 % interval if it has one, how many images it is about, its unit."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""


@dataclass
class Card:
    """`numbers` are the same at each evaluation; `costs` (time, memory) are measured anew."""

    model: dict[str, Any]
    protocol: dict[str, Any]
    numbers: dict[str, Number] = field(default_factory=dict)
    costs: dict[str, Number] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # what was not measured, and why
    details: dict[str, Any] = field(default_factory=dict)  # features, reference, likelihood kind
    seconds: dict[str, float] = field(default_factory=dict)  # wall time by part

    def write(self, folder: Path) -> None:
        """card.json and card.md in `folder`."""
        checkpoint.write_text(folder / "card.json", json.dumps(self.as_dict(), indent=2) + "\n")
        checkpoint.write_text(folder / "card.md", self.markdown())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, numbers to six significant digits."""
        return {
            "model": self.model,
            "numbers": {name: _plain(number) for name, number in self.numbers.items()},
            "costs": {name: _plain(number) for name, number in self.costs.items()},
            "left_out": self.left_out,
            "protocol": self.protocol,
            "details": self.details,
            "seconds": {
                **{name: round(value, 2) for name, value in self.seconds.items()},
                "all of it": round(sum(self.seconds.values()), 2),
            },
            "made_with": made_with(),
        }

    def markdown(self) -> str:
        """The same for people: numbers first."""
        whole = self.as_dict()
        path, given = self.model.get("path", "images"), self.model.get("given_samples")
        title = path if given is None else f"given samples {given}, beside the model {path}"
        lines = [f"# Evaluation: {title}", ""]
        lines += table(self.rows(), ("number", "value", "95 % interval", "images", "unit"))
        if self.left_out:
            lines += ["", "Left out: " + "; ".join(f"{k} ({v})" for k, v in self.left_out.items())]
        for part in ("model", "protocol", "details", "seconds", "made_with"):
            lines += ["", f"## {part.replace('_', ' ')}", ""]
            lines += [f"- {name}: {value}" for name, value in whole[part].items()]
        return "\n".join(lines) + "\n"

    def rows(self) -> list[tuple[str, ...]]:
        """Name, value, interval, images, unit of every number and cost."""
        made = []
        for name, number in {**self.numbers, **self.costs}.items():
            interval = ""
            if number.low is not None and number.high is not None:
                interval = f"{shown(number.low, 4)} to {shown(number.high, 4)}"
            count = "" if number.n is None else f"{number.n:,}"
            made.append((name, shown(number.value, 5), interval, count, number.unit))
        return made


def check_folder(folder: Path, name: str = "out") -> None:
    """Make it; `name` is its setting. Raises ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no right to write there"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise ValueError(
            f"nothing can be written to {folder} ({reason}); type {name}=DIR for another"
        )


def shown(value: float, digits: int) -> str:
    """A number for people: so many digits, and whole instead of 1.23e+04."""
    return f"{value:.0f}" if 10**digits <= abs(value) < 10**9 else f"{value:.{digits}g}"


def table(rows: list[tuple[str, ...]], head: tuple[str, ...]) -> list[str]:
    """A Markdown table as lines."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def made_with() -> dict[str, Any]:
    """Versions, commit, machine: what else a number may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        vqgen = version("vqgen")
    except PackageNotFoundError:
        vqgen = "not installed"
    return {
        "vqgen": vqgen,
        "git_commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _commit() -> str | None:
    """The checkout's commit, marked if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    ask = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _plain(number: Number) -> dict[str, Any]:
    plain: dict[str, Any] = {"value": _rounded(number.value)}
    if number.low is not None and number.high is not None:
        plain |= {"low": _rounded(number.low), "high": _rounded(number.high)}
    if number.n is not None:
        plain["n"] = number.n
    return plain | ({"unit": number.unit} if number.unit else {})


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
