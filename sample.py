"""Sample images from a trained pipeline into a PNG sheet and an ADM-style npz; film them; edit one.
`python sample.py [classes=[flags]] [text=CAPTION] [film=true] [edit=inpaint image=PATH] ...`;
`torchrun --nproc_per_node=8 sample.py ...` shares the batches out and gives the same images."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from vqgen import build, cli, pictures, pipeline, runs
from vqgen.order import Order
from vqgen.sampling import ranks


@cli.entry(".", "sample")
def main(config: DictConfig) -> None:
    """Load, sample, write `out` and what goes beside it."""
    settings = build.plain(config)
    if "frames" in cli.typed_keys() and not settings["film"]:
        raise ValueError("frames= is of a film: type film=true with it")
    files = pictures.Files(settings["out"], film=settings["film"])
    files.check({name: settings[name] for name in ("image", "mask")})
    with ranks.joined() as first:
        path = find_pipeline(settings)
        loaded = pipeline.load(path, settings["device"], settings["precision"])
        order = Order(loaded, settings, knobs_of(settings))
        draw = partial(order.draw, shown=first)
        film = ranks.spread(draw, order.total, batch=settings["batch"])
    if first:
        write(order, order.finished(film.transpose(0, 1)), files)
        if settings["film"] and film.shape[1] < settings["frames"]:
            print(f"the film has {film.shape[1]} frames, one for each step of the sampling loop")
        print(f"{order.total} images from {path}: {', '.join(map(str, files.all))}")


def write(order: Order, film: Tensor, files: pictures.Files) -> None:
    """The sheet, the npz and, if asked for, the film: uint8 [frames, n, 3, H, W]."""
    columns = min(8, order.settings["n"])
    frames = [pictures.sheet(part, order.rows, order.names, columns) for part in film]
    if order.settings["film"]:
        pictures.save_gif(frames, files.film)
        pictures.save_png(pictures.strip(film), files.strip)
    picture = frames[-1]
    if order.edit is not None:
        picture = pictures.under(pictures.asked(*order.edit), picture)
    pictures.save_png(picture, files.sheet)
    pictures.save_arrays(film[-1], order.labels, files.arrays)


def find_pipeline(settings: dict) -> Path:
    """The pipeline=PATH that was typed, or the newest stage-2 export."""
    if settings["pipeline"] != "auto":
        return Path(settings["pipeline"])
    return runs.newest_export(
        Path(settings["root"]), "stage2", lambda folder: None, "python train_stage2.py"
    )


def knobs_of(settings: dict) -> dict[str, Any]:
    """The knobs of the prior that were typed: settings whose word in sample.yaml is `default`."""
    names = [name for name, value in cli.compose("sample", []).items() if value == "default"]
    return {str(name): settings[name] for name in names if settings[name] != "default"}


if __name__ == "__main__":
    main()
