"""Draw a run's metrics.csv: `python scripts/plot_metrics.py runs/stage1/<run>` writes
<run>/metrics.png."""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.csv -> points (step, value) by name."""
    curves = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            curves[row["name"]].append((int(row["step"]), float(row["value"])))
    return dict(curves)


def draw(curves: dict[str, list[tuple[int, float]]], out: Path) -> None:
    """One small plot per number, grouped by the prefix of its name."""
    names = sorted(curves)
    columns = 4
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 2.4 * rows), squeeze=False)
    for name, axis in zip(names, axes.flat, strict=False):
        steps, values = zip(*curves[name], strict=True)
        axis.plot(steps, values, marker="." if len(steps) < 20 else None)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(out, dpi=80)


def main() -> None:
    """Read the run folder named on the command line."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.csv").is_file():
        sys.exit("wanted a run folder with a metrics.csv: python scripts/plot_metrics.py RUN")
    run = Path(sys.argv[1])
    draw(read(run / "metrics.csv"), run / "metrics.png")
    print(run / "metrics.png")


if __name__ == "__main__":
    main()
