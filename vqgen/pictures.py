"""Pictures for people: image grids, reconstructions under their inputs, sample sheets with class
names."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

INK, PAPER, GAP = (40, 40, 40), 255, 2


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
    """A sample sheet: one block of rows per class, its name to the left; without labels a plain
    grid.

    images uint8 [n, 3, H, W]; labels one integer per image. Returns uint8 [height, width, 3]."""
    if labels is None:
        return grid(images, columns)
    blocks, names = [], []
    for label in sorted(set(labels)):
        chosen = torch.tensor([i for i, other in enumerate(labels) if other == label])
        blocks.append(grid(images[chosen], columns))
        names.append(class_names[label] if label < len(class_names) else f"class {label}")
    font = ImageFont.load_default(size=14)
    margin = 12 + int(max(font.getlength(name) for name in names))
    rows = []
    for block, name in zip(blocks, names, strict=True):
        side = Image.new("RGB", (margin, block.shape[0]), (PAPER,) * 3)
        ImageDraw.Draw(side).text((6, 6 + GAP), name, fill=INK, font=font)
        rows.append(np.concatenate([np.asarray(side), block], axis=1))
    return np.concatenate(rows)
