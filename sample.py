"""Sample images from a trained pipeline into a PNG sheet and an ADM-style npz; film them; edit one.
`python sample.py [classes=[flags]] [text=CAPTION] [film=true] [edit=inpaint image=PATH] ...`"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from vqgen import build, cli, editing, pictures, pipeline, runs, text
from vqgen.progress import Progress


@cli.entry(".", "sample")
def main(config: DictConfig) -> None:
    """Load, sample, write `out` and what goes beside it."""
    settings = build.plain(config)
    out = Path(settings["out"])
    if out.suffix.lower() != ".png":
        raise ValueError(f"wanted out=NAME.png, got out={out}")
    path = find_pipeline(settings)
    loaded = pipeline.load(path, device=build.device(settings["device"]))
    captions = text.asked(settings, loaded.prior)
    labels = labels_of(loaded, settings)
    total = len(labels) if labels is not None else settings["n"] * max(1, len(captions))
    rows, names = labels, captions or loaded.class_names  # of the sheet
    guidance = settings["guidance"]
    options = {
        "seeds": [settings["seed"] + i for i in range(total)],
        "guidance": loaded.facts.get("guidance", "2.0") if guidance is None else guidance,
        "batch": settings["batch"],
        **knobs_of(settings),
    }
    if captions:
        options["text"] = text.embed(captions, settings, loaded.prior, loaded.device)
        rows = [row for row in range(len(captions)) for _ in range(settings["n"])]
    options["on_step"] = Progress(total, settings["batch"])
    edited, unused = None, [name for name in ("image", "mask", "box") if settings[name] is not None]
    if unused and settings["edit"] is None:
        raise ValueError(f"{unused[0]}= is for edits: type edit=inpaint or edit=outpaint with it")
    if settings["edit"] is not None:
        edited = editing.asked(settings, loaded.tokenizer.image_size)
        options["known"] = loaded.known(*(part.expand(total, *part.shape) for part in edited))
    columns = min(8, settings["n"])
    if settings["film"]:
        film = loaded.film(labels, frames=settings["frames"], **options)
        frames = [pictures.sheet(part, rows, names, columns) for part in film]
        pictures.save_gif(frames, out.with_name(f"{out.stem}_film.gif"))
        pictures.save_png(pictures.strip(film), out.with_name(f"{out.stem}_film.png"))
        images = film[-1].cpu()
    else:
        images = loaded.sample(labels, **options).cpu()
    if edited is not None:
        image, paint = edited
        images = images.where(paint, image) if settings["paste"] else images
    picture = pictures.sheet(images, rows, names, columns)
    if edited is not None:
        picture = pictures.under(pictures.asked(*edited), picture)
    pictures.save_png(picture, out)
    pictures.save_arrays(images, labels, out.with_suffix(".npz"))
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
