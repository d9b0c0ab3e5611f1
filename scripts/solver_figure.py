"""Solvers of continuous priors: quality against network calls, and sheets by solver and steps:
python scripts/solver_figure.py OUT RUN [RUN ...] [n=500]

RUNs are stage-2 runs of prior=flow or prior=diffusion. Writes OUT.csv, OUT.png (FD of n samples of
guidance 1 to the training images) and OUT_sheets.png (guidance 2, the same classes and seeds in
every cell). The distance is FD-efficientnet_lite0."""

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot

import vqgen
from vqgen import checkpoint, cli, pictures
from vqgen.data.images import ImageData
from vqgen.evaluation import generator, sets, subject
from vqgen.evaluation.quality import Extractor
from vqgen.metrics import features
from vqgen.metrics.distances import Moments, frechet
from vqgen.pipeline import Pipeline
from vqgen.priors.diffusion import Diffusion
from vqgen.priors.flow import Flow

STEPS = {  # of each path's solvers; heun calls the network twice a step
    "ot": {"euler": (4, 8, 16, 50), "heun": (4, 8, 16, 50)},
    "vp": {"heun": (4, 8, 16), "dpm": (4, 8, 16, 32), "ancestral": (8, 16, 50)},
    "ve": {"heun": (8, 16), "rk4": (4, 8, 12), "ancestral": (8, 16, 50), "langevin": (10, 20)},
}
SHOWN, GUIDANCE = 8, 2.0  # images per cell of a sheet, and their guidance
MOST_CALLS = 51  # of a measured point: beyond it there is a sheet only
Row = dict[str, Any]


def main() -> None:
    """Measure every run with every solver of its path; write the table and the pictures."""
    counts = [word[2:] for word in sys.argv[1:] if word.startswith("n=")] or ["500"]
    out, *paths = [word for word in sys.argv[1:] if not word.startswith("n=")] or [""]
    if not paths or not counts[-1].isdecimal() or int(counts[-1]) < 2:
        sys.exit("wanted: python scripts/solver_figure.py OUT RUN [RUN ...] [n=500]")
    try:
        draw(out, [Path(path) for path in paths], int(counts[-1]))
    except cli.USER_ERRORS as error:
        cli.refuse(error)


def draw(out: str, paths: list[Path], count: int) -> None:
    """Check all runs, then measure them; the table and the pictures."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        load(path)
    rows: list[Row] = []
    for path in paths:
        for row in measured(path, count):
            rows.append(row)
            print(*(row[name] for name in ("run", "solver", "steps", "calls", "FD")), flush=True)
    with checkpoint.atomic(Path(f"{out}.csv")) as temporary, temporary.open("w") as file:
        table = csv.DictWriter(file, [name for name in rows[0] if name != "images"])
        table.writeheader()
        table.writerows({name: row[name] for name in table.fieldnames} for row in rows)
    curves([row for row in rows if row["FD"] is not None], Path(f"{out}.png"), count)
    sheets(rows, Path(f"{out}_sheets.png"))


def load(path: Path) -> tuple[Pipeline, Flow | Diffusion, ImageData]:
    """A run's pipeline, its prior and its data. Raises ValueError for what is no such run."""
    pipeline = vqgen.load(path)
    prior = pipeline.prior
    if not isinstance(prior, Flow | Diffusion):
        raise ValueError(
            f"wanted a run of prior=flow or prior=diffusion, got {type(prior).__name__} in {path}; "
            "type python train_stage2.py prior=flow, then the run it makes"
        )
    data = subject.data_of(path)
    if data is None:
        raise ValueError(
            f"wanted a run with its config.yaml, got {path}; name the run's own folder"
        )
    return pipeline, prior, data


def measured(path: Path, count: int) -> list[Row]:
    """A row per solver and number of steps of one run, with `SHOWN` images of it."""
    pipeline, prior, data = load(path)
    train = sets.of_split(data, "train")
    extractor = Extractor(features.load("efficientnet_lite0"), Path("runs/features"))
    real = Moments.of(extractor.remembered(train).pooled)
    labels = spread(pipeline, train.labels, count)
    kind = prior.denoiser.path.name
    rows = []
    for solver, counts in STEPS[kind].items():
        for steps in counts:
            knobs = {"solver": solver, "steps": steps}
            calls = generator.evaluations_of(pipeline, labels, {"guidance": 1.0, **knobs})
            value = None
            if calls <= MOST_CALLS:
                images = pipeline.sample(labels, n=count, guidance=1.0, batch=64, **knobs)
                value = frechet(extractor.features.extract(images).pooled, real).value
            few = spread(pipeline, train.labels, SHOWN)
            shown = pipeline.sample(few, n=SHOWN, guidance=GUIDANCE, **knobs)
            name = f"{type(prior).__name__.lower()} {kind}"
            rows.append({"run": name, **knobs, "calls": calls, "FD": value, "images": shown})
    return rows


def spread(pipeline: Pipeline, labels: torch.Tensor | None, count: int) -> list[int] | None:
    """Classes as often as in training; none for an unconditional model."""
    if not pipeline.prior.num_classes or labels is None:
        return None
    return labels.sort().values[torch.linspace(0, len(labels) - 1, count).long()].tolist()


def curves(rows: list[Row], out: Path, count: int) -> None:
    """Distance against network calls, a line per run and solver."""
    figure, axis = pyplot.subplots(figsize=(7, 4.8))
    lines = dict.fromkeys((row["run"], row["solver"]) for row in rows)
    styles = dict(zip(dict.fromkeys(run for run, _ in lines), ("-", "--", ":"), strict=False))
    for run, solver in lines:
        mine = [row for row in rows if (row["run"], row["solver"]) == (run, solver)]
        x, y = [row["calls"] for row in mine], [row["FD"] for row in mine]
        axis.plot(x, y, styles.get(run, "-"), marker="o", label=f"{run}, {solver}")
    axis.set_xscale("log", base=2)
    axis.set_xticks([4, 8, 16, 32, 50], ["4", "8", "16", "32", "50"])
    axis.set_xlabel("network calls per image")
    axis.set_ylabel(f"FD-efficientnet_lite0 of {count} samples, lower is better")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def sheets(rows: list[Row], out: Path) -> None:
    """A row per run and solver, a cell per number of steps."""
    lines = dict.fromkeys((row["run"], row["solver"]) for row in rows)
    widest = max(sum((row["run"], row["solver"]) == line for row in rows) for line in lines)
    figure, axes = pyplot.subplots(
        len(lines), widest, figsize=(3.2 * widest, 2.0 * len(lines)), squeeze=False
    )
    for line, cells in zip(lines, axes, strict=True):
        mine = [row for row in rows if (row["run"], row["solver"]) == line]
        for axis in cells:
            axis.axis("off")
        for row, axis in zip(mine, cells, strict=False):
            axis.imshow(pictures.grid(row["images"], SHOWN // 2))
            title = f"{row['run']}, {row['solver']}: {row['steps']} steps, {row['calls']} calls"
            axis.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    main()
