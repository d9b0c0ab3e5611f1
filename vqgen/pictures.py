"""Pictures for people: image grids, reconstructions under their inputs, sample sheets with class
names."""

import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from vqgen.checkpoint import atomic

INK, PAPER, GAP = (40, 40, 40), 255, 2
UNDECIDED = 205  # grey of what is not there yet


class Files:
    """What a sampling command writes for out=NAME.png: `sheet`, `arrays`, and of a film `film` and
    `strip`. Raises ValueError for another kind of picture."""

    def __init__(self, out: str, *, film: bool = False) -> None:
        self.sheet = Path(str(out))
        if self.sheet.suffix.lower() != ".png":
            raise ValueError(f"wanted out=NAME.png, got out={out}")
        self.arrays = self.sheet.with_suffix(".npz")
        self.film = self.sheet.with_name(f"{self.sheet.stem}_film.gif")
        self.strip = self.film.with_suffix(".png")
        self.all = [self.sheet, self.arrays, *([self.film, self.strip] if film else [])]

    def check(self, read: dict[str, Any]) -> None:
        """Raise ValueError if one of them is a file that is `read` (by setting; None is none), or
        OSError if their folder cannot be written."""
        for name, path in read.items():
            if path is not None and not isinstance(path, str):
                raise ValueError(f"wanted {name}=FILE, one path, got {path}")
            for file in self.all:
                if path and file.exists() and Path(path).exists() and file.samefile(path):
                    raise ValueError(
                        f"out={self.sheet} would overwrite {name}={path}; type another out=NAME.png"
                    )
        try:  # in the folder, or in the one that it will be made in
            with tempfile.TemporaryFile(dir=next(filter(Path.exists, self.sheet.parents))):
                pass
        except OSError as error:
            raise OSError(
                f"cannot write {self.sheet} ({error.strerror or error}); type out=NAME.png in a "
                "folder you may write"
            ) from error


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [-1, 1] (clamped) -> uint8 of the same shape, rounded to the nearest."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, columns: int) -> np.ndarray:
    """uint8 [n, 3, H, W] -> uint8 [height, width, 3], row by row; images under 64 px are
    enlarged."""
    zoom = max(1, 64 // images.shape[-1])
    images = images.cpu().repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    images = functional.pad(images, (GAP, GAP, GAP, GAP), value=PAPER)
    missing = -images.shape[0] % columns
    images = torch.cat([images, images.new_full((missing, *images.shape[1:]), PAPER)])
    return rearrange(images, "(r c) ch h w -> (r h) (c w) ch", c=columns).numpy()


def pairs(inputs: Tensor, outputs: Tensor, columns: int = 8) -> np.ndarray:
    """Inputs above their reconstructions; both uint8 [n, 3, H, W]."""
    rows = []
    for start in range(0, inputs.shape[0], columns):
        rows.append(grid(inputs[start : start + columns], columns))
        rows.append(grid(outputs[start : start + columns], columns))
    return np.concatenate(rows)


def sheet(
    images: Tensor, labels: Sequence[int] | None, class_names: Sequence[str], columns: int = 8
) -> np.ndarray:
    """A sample sheet: one block of rows per class, in the order of their first images, its name to
    the left; without labels a plain grid.

    images uint8 [n, 3, H, W]; labels one integer per image. Returns uint8 [height, width, 3]."""
    if labels is None:
        return grid(images, columns)
    blocks, names = [], []
    for label in dict.fromkeys(labels):
        chosen = torch.tensor([i for i, other in enumerate(labels) if other == label])
        blocks.append(grid(images[chosen], columns))
        name = class_names[label] if label < len(class_names) else f"class {label}"
        names.append(textwrap.fill(name, width=32))  # a caption is longer than a class
    font = ImageFont.load_default(size=14)
    lines = [line for name in names for line in name.splitlines()]
    margin = 12 + int(max(font.getlength(line) for line in lines))
    rows = []
    for block, name in zip(blocks, names, strict=True):
        side = Image.new("RGB", (margin, block.shape[0]), (PAPER,) * 3)
        ImageDraw.Draw(side).text((6, 6 + GAP), name, fill=INK, font=font)
        rows.append(np.concatenate([np.asarray(side), block], axis=1))
    return np.concatenate(rows)


def strip(film: Tensor, rows: int = 8) -> np.ndarray:
    """A film, uint8 [frames, n, 3, H, W] -> its first `rows` images as rows, frames from left to
    right."""
    shown = film[:, :rows]
    return grid(rearrange(shown, "f n c h w -> (n f) c h w"), columns=film.shape[0])


def asked(image: Tensor, paint: Tensor) -> np.ndarray:
    """What an edit was given: the image, uint8 [3, H, W], and again with grey where `paint`, Bool
    [H, W], wants new content."""
    return grid(torch.stack([image, image.masked_fill(paint, UNDECIDED)]), columns=2)


def under(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Two pictures, one above the other, on paper."""
    width = max(above.shape[1], below.shape[1])
    sides = [((0, 0), (0, width - part.shape[1]), (0, 0)) for part in (above, below)]
    parts = [
        np.pad(part, side, constant_values=PAPER)
        for part, side in zip((above, below), sides, strict=True)
    ]
    return np.concatenate(parts)


def save_png(picture: np.ndarray, path: Path) -> None:
    """Write a picture, uint8 [height, width, 3]."""
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def save_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write pictures of one size as an endless film; the last one stays for two seconds."""
    first, *more = [Image.fromarray(frame) for frame in frames]
    times = [250] * len(more) + [2000]
    with atomic(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=more, duration=times, loop=0
        )


def save_arrays(images: Tensor, labels: Sequence[int] | None, path: Path) -> None:
    """Write images, uint8 [n, 3, H, W], and labels as .npz in the ADM layout (arr_0 [n, H, W, 3],
    arr_1)."""
    arrays: dict[str, Any] = {"arr_0": rearrange(images, "n c h w -> n h w c").cpu().numpy()}
    if labels is not None:
        arrays["arr_1"] = np.array(labels)
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
