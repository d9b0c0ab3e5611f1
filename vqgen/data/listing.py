"""A listing is images before decoding: what image i is called, how to open it, and which class it
shows."""

import hashlib
import os
from abc import ABC, abstractmethod
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from vqgen.data.decode import UnreadableImage, open_image


class Listing(ABC):
    """Images of one split: `names`, one per image, the same on every machine, and `labels`, int64
    [n], or None."""

    names: list[str]
    labels: np.ndarray | None

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """-> Pillow image, its pixels not yet decoded. Raises UnreadableImage."""

    @abstractmethod
    def take(self, indices: np.ndarray) -> "Listing":
        """The listing of these images, in this order."""

    def __len__(self) -> int:
        return len(self.names)


class Files(Listing):
    """Image files; names are paths under `root`."""

    def __init__(self, root: str, names: list[str], labels: np.ndarray | None) -> None:
        self.root = root
        self.names = names
        self.labels = labels

    def open(self, index: int) -> Image.Image:
        return open_image(os.path.join(self.root, self.names[index]))

    def take(self, indices: np.ndarray) -> "Files":
        return Files(self.root, [self.names[i] for i in indices], _taken(self.labels, indices))


class Arrays(Listing):
    """Pixels in memory: uint8 [n, h, w] (gray) or [n, h, w, 3]."""

    def __init__(self, pixels: np.ndarray, names: list[str], labels: np.ndarray | None) -> None:
        self.pixels = pixels
        self.names = names
        self.labels = labels

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def take(self, indices: np.ndarray) -> "Arrays":
        names = [self.names[i] for i in indices]
        return Arrays(self.pixels[indices], names, _taken(self.labels, indices))


class Rows(Listing):
    """Rows of a table, each {"bytes": encoded image or None, "path": file or None}: the way
    `datasets` stores images.

    `rows` is anything that indexing with an int turns into such a dictionary, or into None for a
    missing image."""

    def __init__(self, rows: Any, names: list[str], labels: np.ndarray | None) -> None:
        self.rows = rows
        self.names = names
        self.labels = labels

    def open(self, index: int) -> Image.Image:
        row = self.rows[index]
        if row is None:
            raise UnreadableImage("is empty")
        return open_image(row["path"] if row["bytes"] is None else BytesIO(row["bytes"]))

    def take(self, indices: np.ndarray) -> "Rows":
        names = [self.names[i] for i in indices]
        return Rows(_Picked(self.rows, indices), names, _taken(self.labels, indices))


class _Picked:
    """Some of the rows, without copying any."""

    def __init__(self, rows: Any, indices: np.ndarray) -> None:
        self.rows = rows
        self.indices = indices

    def __getitem__(self, index: int) -> Any:
        return self.rows[int(self.indices[index])]


def split(listing: Listing, *, val_fraction: float, seed: int) -> tuple[Listing, Listing]:
    """-> (training, validation) images, at least one each, in the listing's order.

    The images whose hash of (seed, name) is smallest validate, so an image keeps its side when
    others come or go (but for those next to the border), and neither the order of a directory nor
    the run's seed moves it. Raises ValueError: val_fraction not in (0, 1), or fewer than two
    images.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(
            "wanted data.val_fraction between 0 and 1 (the part of the images that validates), "
            f"got {val_fraction}; type data.val_fraction=0.1"
        )
    if len(listing) < 2:
        raise ValueError(
            "wanted at least two images, one to train and one to validate, "
            f"got {len(listing)}; add images"
        )
    ranks = np.argsort([_hash(f"{seed}/{name}") for name in listing.names], kind="stable")
    held_out = min(max(1, round(val_fraction * len(listing))), len(listing) - 1)
    return listing.take(np.sort(ranks[held_out:])), listing.take(np.sort(ranks[:held_out]))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:7])


def _taken(labels: np.ndarray | None, indices: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[indices]
