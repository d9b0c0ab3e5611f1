"""Small pictures on disk for the tests of data, drawn from a seed."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A smooth RGB gradient: no two seeds alike, and little changed by JPEG or resizing."""
    draw = np.random.default_rng(seed)
    corners = draw.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


def write_classes(root: Path, classes: dict[str, int], **size: int) -> Path:
    """root/CLASS/0.png ...: as many pictures per class as told."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(100 * number + index, **size).save(root / name / f"{index}.png")
    return root


def write_flat(root: Path, count: int, **size: int) -> Path:
    """root/0.png ..."""
    root.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture(index, **size).save(root / f"{index}.png")
    return root


def write_bomb(path: Path, side: int = 30_000) -> None:
    """A PNG whose header promises side x side pixels: a decompression bomb."""
    Image.new("1", (8, 8)).save(path)
    file = bytearray(path.read_bytes())
    file[16:24] = struct.pack(">II", side, side)
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    path.write_bytes(file)
