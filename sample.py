"""Sample images from a trained pipeline into a PNG sheet and an ADM-style npz. `python sample.py
[classes=[flags]] ...`"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from omegaconf import DictConfig
from PIL import Image

from vqgen import build, checkpoint, cli, pictures, pipeline, runs


@cli.entry(".", "sample")
def main(config: DictConfig) -> None:
    """Load, sample, write `out` and the .npz beside it."""
    settings = build.plain(config)
    path = find_pipeline(settings)
    loaded = pipeline.load(path, device=build.device(settings["device"]))
    labels = labels_of(loaded, settings)
    total = len(labels) if labels is not None else settings["n"]
    seeds = [settings["seed"] + i for i in range(total)]
    out = Path(settings["out"])
    if out.suffix.lower() != ".png":
        raise ValueError(f"wanted out=NAME.png, got out={out}")
    knobs = {name: settings[name] for name in ("temperature", "top_k", "top_p")}
    images = loaded.sample(
        labels,
        n=total,
        seeds=seeds,
        guidance=settings["guidance"],
        batch=settings["batch"],
        on_step=Progress(total, settings["batch"]),
        **knobs,
    )
    columns = min(8, settings["n"])
    picture = pictures.sheet(images, labels, loaded.class_names, columns)
    with checkpoint.atomic(out) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    arrays: dict[str, Any] = {"arr_0": rearrange(images, "n c h w -> n h w c").cpu().numpy()}
    if labels is not None:
        arrays["arr_1"] = np.array(labels)
    with checkpoint.atomic(out.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    print(f"{total} images from {path}: {out} and {out.with_suffix('.npz')}")


def find_pipeline(settings: dict) -> Path:
    """The pipeline=PATH that was typed, or the newest stage-2 export."""
    if settings["pipeline"] != "auto":
        return Path(settings["pipeline"])
    return runs.newest_export(
        Path(settings["root"]), "stage2", lambda folder: None, "python train_stage2.py"
    )


def labels_of(loaded: pipeline.Pipeline, settings: dict) -> list[int] | None:
    """One class index per image; None for an unconditional model."""
    classes, count = settings["classes"], loaded.prior.num_classes
    for name in ("n", "batch"):
        if settings[name] < 1:
            raise ValueError(f"wanted {name} of at least 1, got {settings[name]}; type {name}=8")
    if classes == []:
        raise ValueError("wanted classes=all or a list like classes=[0,2], got none")
    if classes == "all":
        chosen = list(range(min(count, 10)))
    else:
        chosen = loaded.class_indices(classes if isinstance(classes, list) else [classes])
    return [index for index in chosen for _ in range(settings["n"])] if chosen else None


class Progress:
    """A progress bar with the time left, over all batches; nothing is drawn where stderr is no
    terminal."""

    def __init__(self, total: int, batch: int) -> None:
        self.batches, self.batch = -(-total // batch), 0
        self.started = time.monotonic()

    def __call__(self, done: int, steps: int, latents: torch.Tensor) -> None:
        share = (self.batch + done / steps) / self.batches
        left = (time.monotonic() - self.started) / share * (1 - share)
        bar = "#" * int(30 * share)
        if sys.stderr.isatty():
            end = "\n" if share >= 1 else ""
            print(
                f"\r[{bar:<30}] {share:4.0%}  {left:5.1f} s left",
                end=end,
                file=sys.stderr,
                flush=True,
            )
        self.batch += done == steps


if __name__ == "__main__":
    main()
