"""Pictures of a comparison: the measured triangle, and quality against speed."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vqgen.evaluation.comparison import CORNERS, Row, title

PLACES = {"quality": (0.5, 0.866), "speed": (0.0, 0.0), "coverage": (1.0, 0.0)}
FORMATS = ("png", "pdf")
DOT = 60  # square points per unit of score
CEILINGS = ("-", "--", "-.", ":")  # line styles, in turn
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "fontsize": 8, "frameon": False}


def draw(rows: list[Row], out: Path) -> list[Path]:
    """Write front.{png,pdf} and triangle.{png,pdf} into `out`; returns what was written."""
    priors = [row for row in rows if not row.ceiling]
    written = []
    for name, plot in (("front", _front), ("triangle", _triangle)):
        figure, axis = pyplot.subplots(figsize=(6.4, 4.8))
        plot(axis, priors, rows)
        for ending in FORMATS:
            written.append(out / f"{name}.{ending}")
            # no creation date: the same comparison gives the same file
            date = {} if ending == "png" else {"CreationDate": None}
            figure.savefig(written[-1], dpi=120, bbox_inches="tight", metadata=date)
        pyplot.close(figure)
    return written


def _front(axis: Axes, priors: list[Row], rows: list[Row]) -> None:
    """Distance against seconds per image; a run's step counts are joined, the front dashed."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in priors:
        if {"FD", "seconds per image"} <= row.numbers.keys():
            runs[row.run].append(row)
    points, colors = [], _colors(priors)
    for run, members in runs.items():
        members = sorted(members, key=lambda row: row.numbers["seconds per image"])
        x = [row.numbers["seconds per image"] for row in members]
        y = [row.numbers["FD"] for row in members]
        axis.plot(x, y, marker="o", label=run, color=colors[run])
        for row, place in zip(members, zip(x, y, strict=True), strict=True):
            _step_count(axis, row, place, colors[run])
        points += zip(x, y, strict=True)
    best = [p for p in sorted(points) if all(q[1] > p[1] for q in points if q[0] < p[0])]
    if len(best) > 1:
        axis.step(*zip(*best, strict=True), where="post", color="gray", ls="--", lw=1, zorder=0)
    ceilings = [row for row in rows if row.ceiling and "FD" in row.numbers]
    for row, style in zip(ceilings, itertools.cycle(CEILINGS), strict=False):
        name = f"reconstructions: {row.name}"
        axis.axhline(row.numbers["FD"], color="gray", lw=0.8, ls=style, label=name, zorder=0)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())  # few enough to be read
    axis.margins(0.08)
    axis.set_xlabel("seconds per image")
    axis.set_ylabel(f"{title(rows, 'FD')}, lower is better")
    axis.set_title("Quality against speed; numbers along a curve are steps", fontsize=10)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**BESIDE)


def _colors(rows: list[Row]) -> dict[str, Any]:
    """One per run, the same in every picture."""
    names = list(dict.fromkeys(row.run for row in rows))
    palette = pyplot.get_cmap("tab10" if len(names) <= 10 else "tab20")
    return {name: palette(i % palette.N) for i, name in enumerate(names)}


def _step_count(axis: Axes, row: Row, place: Sequence[float], color: Any) -> None:
    if row.steps:
        beside: dict[str, Any] = {"textcoords": "offset points", "xytext": (4, 4), "fontsize": 8}
        axis.annotate(str(row.steps), (place[0], place[1]), color=color, **beside)


def _triangle(axis: Axes, priors: list[Row], rows: list[Row]) -> None:
    """Each prior between the corners it is best at: weights are scores from 0 (worst) to 1. Where
    all three are alike it is in the middle, so the size of the dot says how high they are."""
    axis.fill(*zip(*PLACES.values(), strict=True), fill=False, edgecolor="gray")
    for corner, (x, y) in PLACES.items():
        axis.annotate(corner, (x, y), ha="center", va="bottom" if y else "top", fontsize=11)
    scores = {corner: _scores(priors, corner) for corner in PLACES}
    colors, named = _colors(priors), set()
    for row in priors:
        weights = np.array([scores[corner][row.name] for corner in PLACES]) + 0.05
        place = weights @ np.array(list(PLACES.values())) / weights.sum()
        label = None if row.run in named else row.run
        named.add(row.run)
        options: dict[str, Any] = {"color": [colors[row.run]], "label": label, "alpha": 0.8}
        axis.scatter(*place, s=DOT * weights.sum(), **options)
        _step_count(axis, row, place, colors[row.run])
    if priors:  # dots of one size: theirs say something else
        for handle in axis.legend(**BESIDE).legend_handles:
            handle.set_sizes([DOT])  # type: ignore[union-attr]
    axis.set_title(
        "The trilemma as measured: a dot nearer to a corner is better at it\n"
        "than at the others, a larger one is better in all, among these; numbers are steps",
        fontsize=10,
    )
    axis.set_aspect("equal")
    axis.axis("off")


def _scores(priors: list[Row], corner: str) -> dict[str, float]:
    """By row: its place between the worst (0) and the best (1) of a corner; speed on a log axis."""
    name, larger = CORNERS[corner]
    values = {row.name: row.numbers.get(name, float("nan")) for row in priors}
    if corner == "speed":
        values = {key: float(np.log(max(value, 1e-9))) for key, value in values.items()}
    low, high = np.nanmin(list(values.values())), np.nanmax(list(values.values()))
    span = high - low if high > low else 1.0
    shares = {key: (value - low) / span for key, value in values.items()}
    return {
        key: 0.0 if np.isnan(share) else float(share if larger else 1 - share)
        for key, share in shares.items()
    }
