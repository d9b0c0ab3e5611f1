"""Sample images from a trained pipeline into a PNG sheet and an ADM-style npz; film them; edit one.
`python sample.py [classes=[flags]] [film=true] [edit=inpaint image=PATH box=[0,0,1,0.5]] ...`;
`torchrun --nproc_per_node=8 sample.py ...` shares the batches out and gives the same images."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vqgen import build, cli, editing, pictures, pipeline, runs
from vqgen.progress import Progress
from vqgen.sampling import ranks


@cli.entry(".", "sample")
def main(config: DictConfig) -> None:
    """Load, sample, write `out` and what goes beside it."""
    settings = build.plain(config)
    out = Path(settings["out"])
    if out.suffix.lower() != ".png":
        raise ValueError(f"wanted out=NAME.png, got out={out}")
    with ranks.joined() as first:
        path = find_pipeline(settings)
        loaded = pipeline.load(path, device=build.device(settings["device"]))
        labels = labels_of(loaded, settings)
        edited = editing.asked(settings, loaded.tokenizer.image_size)
        total = len(labels) if labels is not None else settings["n"]
        part = partial(draw, loaded, settings, labels, edited, first)
        film = ranks.spread(part, total, batch=settings["batch"])
    if first:
        write(film.transpose(0, 1), loaded, settings, labels, edited)
        print(f"{total} images from {path}: {out} and {out.with_suffix('.npz')}")


def draw(
    loaded: pipeline.Pipeline,
    settings: dict,
    labels: list[int] | None,
    edited: editing.Edit | None,
    shown: bool,
    rows: slice,
) -> Tensor:
    """The images of these rows, uint8 [rows, frames, 3, H, W]: one frame unless film=true."""
    count = rows.stop - rows.start
    guidance = settings["guidance"]
    options = {
        "seeds": [settings["seed"] + i for i in range(rows.start, rows.stop)],
        "guidance": loaded.facts.get("guidance", "2.0") if guidance is None else guidance,
        "batch": settings["batch"],
        "on_step": Progress(count, settings["batch"]) if shown else None,
        **knobs_of(settings),
    }
    if edited is not None:
        options["known"] = loaded.known(*(part.expand(count, *part.shape) for part in edited))
    own = None if labels is None else labels[rows]
    if settings["film"]:
        return loaded.film(own, frames=settings["frames"], **options).transpose(0, 1).cpu()
    return loaded.sample(own, **options)[:, None].cpu()


def write(
    film: Tensor,
    loaded: pipeline.Pipeline,
    settings: dict,
    labels: list[int] | None,
    edited: editing.Edit | None,
) -> None:
    """The sheet, the npz and, of more than one frame, the film; uint8 [frames, n, 3, H, W]."""
    out, columns = Path(settings["out"]), min(8, settings["n"])
    if settings["film"]:
        frames = [pictures.sheet(part, labels, loaded.class_names, columns) for part in film]
        pictures.save_gif(frames, out.with_name(f"{out.stem}_film.gif"))
        pictures.save_png(pictures.strip(film), out.with_name(f"{out.stem}_film.png"))
    images = film[-1]
    if edited is not None and settings["paste"]:
        image, paint = edited
        images = torch.where(paint, images, image)
    picture = pictures.sheet(images, labels, loaded.class_names, columns)
    if edited is not None:
        picture = pictures.under(pictures.asked(*edited), picture)
    pictures.save_png(picture, out)
    pictures.save_arrays(images, labels, out.with_suffix(".npz"))


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
    for name in ("n", "batch", "frames"):
        if settings[name] < 1:
            raise ValueError(f"wanted {name} of at least 1, got {settings[name]}; type {name}=8")
    if classes == []:
        raise ValueError("wanted classes=all or a list like classes=[0,2], got none")
    if classes == "all":
        chosen = list(range(min(count, 10)))
    else:
        chosen = loaded.class_indices(classes if isinstance(classes, list) else [classes])
    return [index for index in chosen for _ in range(settings["n"])] if chosen else None


def knobs_of(settings: dict) -> dict[str, Any]:
    """The knobs of the prior that were typed: settings whose word in sample.yaml is `default`."""
    names = [name for name, value in cli.compose("sample", []).items() if value == "default"]
    return {str(name): settings[name] for name in names if settings[name] != "default"}


if __name__ == "__main__":
    main()
