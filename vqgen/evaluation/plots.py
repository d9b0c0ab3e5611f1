"""Pictures of a comparison: the measured triangle, and quality against speed."""

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from vqgen.evaluation.comparison import CORNERS, Row

PLACES = {"quality": (0.5, 0.866), "speed": (0.0, 0.0), "coverage": (1.0, 0.0)}
FORMATS = ("png", "pdf")
DOT = 60  # square points per unit of score


def draw(rows: list[Row], out: Path) -> list[Path]:
    """Write front.{png,pdf} and triangle.{png,pdf} into `out`; returns what was written."""
    priors = [row for row in rows if not row.ceiling]
    written = []
    for name, plot in (("front", _front), ("triangle", _triangle)):
        figure, axis = pyplot.subplots(figsize=(6.4, 4.8))
        plot(axis, priors, rows)
        figure.tight_layout()
        for ending in FORMATS:
            written.append(out / f"{name}.{ending}")
            # no creation date: the same comparison gives the same file
            figure.savefig(
                written[-1], dpi=120, metadata=None if ending == "png" else {"CreationDate": None}
            )
        pyplot.close(figure)
    return written


def _front(axis: Axes, priors: list[Row], rows: list[Row]) -> None:
    """Distance against seconds per image; a run's step counts are joined, the front dashed."""
    runs: dict[str, list[Row]] = defaultdict(list)
    for row in priors:
        if {"FD", "seconds per image"} <= row.numbers.keys():
            runs[row.run].append(row)
    points = []
    for run, members in runs.items():
        members = sorted(members, key=lambda row: row.numbers["seconds per image"])
        x = [row.numbers["seconds per image"] for row in members]
        y = [row.numbers["FD"] for row in members]
        axis.plot(x, y, marker="o", label=run)
        for row, place in zip(members, zip(x, y, strict=True), strict=True):
            if row.steps:
                axis.annotate(str(row.steps), place, textcoords="offset points", xytext=(4, 4))
        points += zip(x, y, strict=True)
    best = [p for p in sorted(points) if all(q[1] > p[1] for q in points if q[0] < p[0])]
    if len(best) > 1:
        axis.step(*zip(*best, strict=True), where="post", color="gray", ls="--", lw=1, zorder=0)
    for row in rows:
        if row.ceiling and "FD" in row.numbers:
            axis.axhline(row.numbers["FD"], color="gray", lw=0.8)
            axis.annotate(
                f"reconstructions: {row.name}",
                (0.01, row.numbers["FD"]),
                fontsize=7,
                xycoords=("axes fraction", "data"),
                va="bottom",
            )
    axis.set_xscale("log")
    axis.set_xlabel("seconds per image")
    axis.set_ylabel("FD, lower is better")
    axis.set_title("Quality against speed; numbers along a curve are steps")
    axis.legend()


def _triangle(axis: Axes, priors: list[Row], rows: list[Row]) -> None:
    """Each prior between the corners it is best at: weights are scores from 0 (worst) to 1. Where
    all three are alike it is in the middle, so the size of the dot says how high they are."""
    axis.fill(*zip(*PLACES.values(), strict=True), fill=False, edgecolor="gray")
    for corner, (x, y) in PLACES.items():
        axis.annotate(corner, (x, y), ha="center", va="bottom" if y else "top", fontsize=11)
    scores = {corner: _scores(priors, corner) for corner in PLACES}
    for row in priors:
        weights = np.array([scores[corner][row.name] for corner in PLACES]) + 0.05
        place = weights @ np.array(list(PLACES.values())) / weights.sum()
        axis.scatter(*place, s=DOT * weights.sum(), label=row.name, alpha=0.8)
    if priors:  # dots of one size: theirs say something else
        for handle in axis.legend(fontsize=8, loc="upper left", frameon=False).legend_handles:
            handle.set_sizes([DOT])  # type: ignore[union-attr]
    axis.set_title(
        "The trilemma as measured: a dot nearer to a corner is better at it\n"
        "than at the others, a larger one is better in all, among these",
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
