"""Evaluate several runs by one protocol and set them side by side: table, CSV, plots.
`python scripts/compare.py RUN RUN ... [steps=[4,16,64]]`, or `demo=true` to train them all first"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torchvision.transforms.v2 import functional

from vqgen import build, checkpoint, cli, demo, pictures, pipeline
from vqgen.evaluation import comparison, plots, sets
from vqgen.evaluation.card import check_folder
from vqgen.evaluation.protocol import Protocol, check_batch, check_texts, chosen
from vqgen.evaluation.subject import which
from vqgen.metrics import features
from vqgen.sampling.counts import MOST

EVALUATE = Path(__file__).with_name("evaluate.py")
SHOWN = 24  # samples of each prior in the picture of all


@cli.entry("evaluate", "compare")
def main(config: DictConfig) -> None:
    """Cards of every model (and step count), then comparison.md, .csv, front and triangle."""
    compared(config)


def compared(config: DictConfig) -> None:
    """The same, with errors as they come. Raises ValueError for what cannot be compared."""
    settings = build.plain(config)
    check_texts(settings, "cache", "out", "demo_root")
    settings["protocol"] = chosen(settings)
    protocol = Protocol(**settings["protocol"])  # what cannot be followed is refused at once
    check_batch(settings["batch"])
    if protocol.samples <= protocol.neighbors:
        raise ValueError(
            f"wanted protocol.samples above protocol.neighbors={protocol.neighbors}, got "
            f"{protocol.samples}; type protocol.samples=2000"
        )
    if settings["demo"]:
        demo.check(settings)
    if settings["models"] or settings["demo"]:
        check_folder(Path(settings["out"]))
        check_folder(Path(settings["cache"]), "cache")
    settings["steps"] = checked_steps(settings["steps"])
    if settings["steps"] and "steps" in protocol.knobs:
        raise ValueError(
            f"wanted step counts once, got steps={settings['steps']} and protocol.knobs with "
            f"steps={protocol.knobs['steps']}; leave one of them out"
        )
    if settings["demo"]:
        features.load(protocol.features, protocol.weights)
    given = settings["models"] if isinstance(settings["models"], list) else [settings["models"]]
    models = [Path(str(path)) for path in given if path is not None]
    if settings["demo"]:
        models += demo.train(settings, run)
    models = each_once(models)
    if not models:
        raise ValueError("wanted runs to compare: python scripts/compare.py RUN RUN, or demo=true")
    jobs = [job for model in models for job in jobs_of(model, settings)]
    if not all(reusable(*job, settings) for job in jobs):
        features.load(protocol.features, protocol.weights)  # what cannot be had is said once
    print("\n".join(which(model) for model in models), flush=True)
    done = [(*job, evaluate(*job, settings)) for job in jobs]
    done.sort(key=lambda each: (models.index(each[0]), each[1]["knobs"].get("steps", 0)))
    rows = [comparison.row_of(card, demo.minutes_of(model)) for model, _, card in done]
    rows = comparison.told_apart(comparison.with_likelihoods(rows))
    out = Path(settings["out"])
    checkpoint.write_text(out / "comparison.md", comparison.markdown(rows))
    checkpoint.write_text(out / "comparison.csv", comparison.as_csv(rows))
    folders = [folder_of(model, changes, settings) for model, changes, _ in done]  # now there
    written = [*plots.draw(rows, out), *side_by_side(rows, folders, out / "samples.png")]
    send(rows, folders, written, settings)
    print(comparison.markdown(rows))
    print(f"{out}/comparison.md, comparison.csv, {', '.join(path.name for path in written)}")


def each_once(models: list[Path]) -> list[Path]:
    """The runs in the order typed; of one that was typed twice the first, which is said."""
    found: dict[Path, Path] = {}
    for model in models:
        first = found.setdefault(model.resolve(), model)
        if first is not model:
            print(f"{model} is the same run as {first}: compared once")
    return list(found.values())


def checked_steps(steps: Any) -> list[int]:
    """Step counts as typed, each once. Raises ValueError for what no sampler can do."""
    given = [] if steps is None else steps if isinstance(steps, list) else [steps]
    if not all(type(count) is int and 1 <= count <= MOST for count in given):
        raise ValueError(
            f"wanted steps as whole numbers from 1 to {MOST}, got {steps}; type 'steps=[4,16]'"
        )
    return list(dict.fromkeys(given))


def jobs_of(model: Path, settings: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """(model, changes of the protocol): once per step count if it has that knob, and then the
    likelihood, which does not depend on it, the first time only.

    Raises ValueError for what is no run."""
    loaded = pipeline.load(model)
    knobs = settings["protocol"]["knobs"] or {}
    fixed: dict[str, Any] = {"knobs": knobs}
    drawn = loaded.has_prior and loaded.prior.bound_samples is not None
    if settings["protocol"].get("bound_samples") is not None and not drawn:
        fixed["bound_samples"] = None  # it is for the other runs
    if loaded.has_prior and "steps" in loaded.prior.Knobs.__dataclass_fields__:
        many: list[dict[str, Any]] = [
            {**fixed, "knobs": {**knobs, "steps": steps}} for steps in settings["steps"]
        ]
        many[1:] = [{**changes, "validation_images": 0} for changes in many[1:]]
        return [(model, changes) for changes in many or [fixed]]
    return [(model, fixed)]


def evaluate(model: Path, changes: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The card of scripts/evaluate.py, in a process of its own, so that memory is its own."""
    out = folder_of(model, changes, settings)
    path = out / "card.json"
    if reusable(model, changes, settings):
        print(f"reusing {path}")
        return comparison.read_card(path)
    asked = ("batch", "device", "cache", "features", "weights")
    words = [f"{name}={settings[name]}" for name in asked if settings[name] is not None]
    words += [f"protocol={cli.choice('protocol')}"]
    words += [f"protocol.{name}={_typed(value)}" for name, value in changes.items() if value != {}]
    typed = [word for word in cli.typed_overrides() if word.startswith("protocol.")]
    words += [word for word in typed if word.split(".")[1].split("=")[0] not in changes]
    words += typed_data()
    run([EVALUATE, f"model='{model}'", f"out='{out}'", *words])
    return comparison.read_card(path)


def typed_data() -> list[str]:
    """What was typed of data=."""
    return [w for w in cli.typed_overrides() if w.split("=")[0].split(".")[0] == "data"]


def reusable(model: Path, changes: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether there is a card of this recipe, newer than the model."""
    path = folder_of(model, changes, settings) / "card.json"
    newest = max(file.stat().st_mtime for file in model.rglob("model.safetensors"))
    if not settings["reuse"] or typed_data() or not path.is_file():
        return False
    recipe = Protocol(**{**settings["protocol"], **changes}).as_dict()
    return path.stat().st_mtime > newest and comparison.read_card(path)["protocol"] == recipe


def folder_of(model: Path, changes: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Where the card of a model under these changes of the protocol is or will be."""
    recipe = Protocol(**{**settings["protocol"], **changes})
    steps = recipe.knobs.get("steps")
    usual = recipe.name if steps is None else f"{recipe.name}_steps{steps}"
    return comparison.card_folder(model / "evaluation" / usual, recipe.as_dict())


def side_by_side(rows: list[comparison.Row], folders: list[Path], out: Path) -> list[Path]:
    """A picture with a block per prior: the same classes and seeds in the same places."""
    blocks = {
        row.name: sets.read(folder / "samples.npz").images[:SHOWN]
        for row, folder in zip(rows, folders, strict=True)
        if (folder / "samples.npz").is_file()
    }
    if not blocks:
        return []
    labels = [number for number, images in enumerate(blocks.values()) for _ in images]
    images = torch.cat([functional.resize(part, [64, 64]) for part in blocks.values()])
    pictures.save_png(pictures.sheet(images, labels, list(blocks), columns=SHOWN // 2), out)
    return [out]


def run(command: list[Any], variables: dict[str, str] | None = None) -> None:
    """Run a script of the repository; stop with its own words if it fails."""
    print(" ".join(["python", *map(str, command)]), flush=True)
    environment = {**os.environ, **(variables or {})}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment)
    if done.returncode:
        raise ValueError(f"{Path(command[1]).name} failed; its words are above")


def send(rows: Any, folders: list[Path], written: list[Path], settings: dict[str, Any]) -> None:
    """The table with sample pictures, and the plots, to the chosen logger."""
    out = Path(settings["out"])
    for board in build.boards(settings, {}, out, {}):
        titles = [comparison.title(rows, column) for column in comparison.COLUMNS]
        head = ["run", *titles, "samples"]
        body = []
        for row, folder in zip(rows, folders, strict=True):
            files = [folder / "samples.png", folder / "reconstructions.png"]
            picture = next((np.asarray(Image.open(f)) for f in files if f.is_file()), None)
            body.append([row.name, *(row.numbers.get(c) for c in comparison.COLUMNS), picture])
        board.log_table("comparison/trilemma", head, body, 0)
        for path in written:
            if path.suffix == ".png":
                picture = np.asarray(Image.open(path).convert("RGB"))
                board.log_picture(f"comparison/{path.stem}", picture, 0)
        board.close()


def _typed(value: Any) -> str:
    """A value as Hydra's grammar has it: {steps:4}."""
    return json.dumps(value).replace('"', "").replace(" ", "")


if __name__ == "__main__":
    named = [word for word in sys.argv[1:] if "=" not in word and not word.startswith(("-", "~"))]
    if named:  # runs may be typed as they are
        rest = [word for word in sys.argv[1:] if word not in named]
        quoted = ",".join("'" + word.replace("'", "\\'") + "'" for word in named)
        sys.argv[1:] = [*rest, f"models=[{quoted}]"]
    main()
