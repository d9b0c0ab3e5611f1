"""What one sampling command asks for: the condition, the seed and the row of every image."""

from typing import Any

import torch
from torch import Tensor

from vqgen import editing, text
from vqgen.pipeline import Pipeline
from vqgen.progress import Progress


class Order:
    """The settings of sample.py, checked against a loaded pipeline.

    total    images
    rows     of the sheet, one number per image; None: a plain grid
    labels   classes of the images; None without classes
    names    of the rows: class names or captions
    edit     the image to edit and what to paint of it; None: nothing is edited

    Raises ValueError where the settings do not say one thing, or suit another model."""

    def __init__(self, pipeline: Pipeline, settings: dict[str, Any], knobs: dict[str, Any]) -> None:
        for name in ("n", "batch", "frames"):
            if type(settings[name]) is not int or settings[name] < 1:
                raise ValueError(
                    f"wanted {name} of at least 1, got {settings[name]}; type {name}=8"
                )
        self.pipeline, self.settings, self.knobs = pipeline, settings, knobs
        captions = text.asked(settings, pipeline.prior)
        self.edit = editing.asked(settings, pipeline.tokenizer.image_size)
        kinds = list(range(len(captions))) or _classes(pipeline, settings["classes"])
        spread = [kind for kind in kinds for _ in range(settings["n"])]
        self.total, self.rows = len(spread) or settings["n"], spread or None
        self.labels = None if captions else self.rows
        self.names = captions or pipeline.class_names
        self.text = (
            text.embed(captions, settings, pipeline.prior, pipeline.device) if captions else None
        )

    def draw(self, rows: slice, *, shown: bool) -> Tensor:
        """The images of these rows, uint8 [rows, frames, 3, H, W]: one frame unless film=true.

        shown  with a progress bar"""
        settings, count = self.settings, rows.stop - rows.start
        guidance, own = settings["guidance"], self.pipeline.facts.get("guidance", "2.0")
        options = {
            "seeds": [settings["seed"] + i for i in range(rows.start, rows.stop)],
            "guidance": own if guidance is None else guidance,
            "batch": settings["batch"],
            "on_step": Progress(count, settings["batch"]) if shown else None,
            **self.knobs,
        }
        if self.text is not None:
            options["text"] = self.text.map(lambda part: part[rows])
        if self.edit is not None:
            parts = (part.expand(count, *part.shape) for part in self.edit)
            options["known"] = self.pipeline.known(*parts)
        labels = None if self.labels is None else self.labels[rows]
        if settings["film"]:
            film = self.pipeline.film(labels, frames=settings["frames"], **options)
            return film.transpose(0, 1).cpu()
        return self.pipeline.sample(labels, **options)[:, None].cpu()

    def finished(self, images: Tensor) -> Tensor:
        """Images [..., 3, H, W] as they are written: of an edit with paste=true, the pixels that
        were to stay are put back."""
        if self.edit is None or not self.settings["paste"]:
            return images
        image, paint = self.edit
        return torch.where(paint, images, image)


def _classes(pipeline: Pipeline, wanted: Any) -> list[int]:
    """The class indices of classes=; [] for an unconditional model."""
    if wanted == []:
        raise ValueError("wanted classes=all or a list like classes=[0,2], got none")
    if wanted == "all":
        return list(range(min(pipeline.prior.num_classes, 10)))
    return pipeline.class_indices(wanted if isinstance(wanted, list) else [wanted])
