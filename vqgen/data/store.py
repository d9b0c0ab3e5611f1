"""Images of one size, ready to be cut into batches: kept in memory, or decoded on access."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from vqgen.contracts import Size
from vqgen.data.decode import CENTER, UnreadableImage, cut
from vqgen.data.listing import Listing

# images uint8 [B, 3, H, W], channels_last; labels Long [B], only if there are classes
Batch = dict[str, Tensor]


class ImageSet(Dataset[Batch]):
    """Images of one split: `set[i]`, or a loader over it, shows center crops, unflipped.

    `skipped` maps the names of the files left out under data.on_error=skip to the reason.
    """

    def __init__(self, pixels: "Pixels", *, size: Size, skipped: dict[str, str]) -> None:
        self.pixels = pixels
        self.size = size
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def skipped_files(self) -> int:
        """Files left out at the start, plus those that turned out damaged while loading."""
        return len(self.skipped) + self.pixels.damaged

    def __getitem__(self, index: int) -> Batch:
        """images uint8 [3, H, W] and, if there are classes, labels Long []."""
        return {name: part[0] for name, part in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.views(indices, np.full((len(indices), 2), CENTER), np.zeros(len(indices), bool))

    def views(self, indices: Sequence[int], places: np.ndarray, flips: np.ndarray) -> Batch:
        """Crops at `places` [n, 2] (down, right, in [0, 1)), mirrored where `flips` [n] is true."""
        found = [self.pixels.fetch(index) for index in indices]
        labels = [label for _, label in found]
        images = np.empty((len(found), *self.size, 3), np.uint8)
        placed = zip(found, places, strict=True)
        np.stack([cut(pixels, self.size, *place) for (pixels, _), place in placed], out=images)
        whole = images.view("V3")[..., 0]  # three bytes that move as one: mirrors in half the time
        whole[flips] = whole[flips][:, :, ::-1]
        # A rearranged view of [B, H, W, 3]: this IS channels_last, without a copy
        batch = {"images": rearrange(torch.from_numpy(images), "b h w c -> b c h w")}
        if self.pixels.labels is not None:
            batch["labels"] = torch.tensor(labels, dtype=torch.long)
        return batch


class Pixels(ABC):
    """Decoded images by index, each at least as large as the set's size."""

    labels: np.ndarray | None
    in_memory: ClassVar[bool]

    @property
    @abstractmethod
    def damaged(self) -> int:
        """Images replaced while loading, by all workers so far."""

    @abstractmethod
    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        """-> (uint8 [h, w, 3], label; 0 if there are no classes)."""

    @abstractmethod
    def __len__(self) -> int: ...


class Kept(Pixels):
    """Every image decoded, in memory."""

    in_memory = True

    def __init__(self, images: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        self.images = images
        self.labels = labels

    @property
    def damaged(self) -> int:
        return 0

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], _label(self.labels, index)

    def __len__(self) -> int:
        return len(self.images)


class Decoded(Pixels):
    """Images decoded on each access, in the worker that asks.

    With `skip`, an image that turns out damaged is replaced by the next one of the set, with that
    one's label, so that batches stay full and the same on every machine; without, it raises
    UnreadableImage with its name.
    """

    in_memory = False

    def __init__(self, listing: Listing, *, decoder: Callable[..., np.ndarray], skip: bool) -> None:
        self.listing = listing
        self.labels = listing.labels
        self.decoder = decoder
        self.skip = skip
        self.replaced = torch.zeros((), dtype=torch.long).share_memory_()  # counted by all workers

    @property
    def damaged(self) -> int:
        return int(self.replaced)

    def fetch(self, index: int) -> tuple[np.ndarray, int]:
        for candidate in range(index, index + len(self)):
            candidate %= len(self)
            try:
                with self.listing.open(candidate) as image:
                    return self.decoder(image), _label(self.labels, candidate)
            except UnreadableImage as error:
                name = self.listing.names[candidate]
                if not self.skip:
                    raise UnreadableImage(
                        f"{name} {error}; remove it, or type data.on_error=skip to go on without"
                    ) from None
                self.replaced += 1
                warnings.warn(f"{name} {error}; the next image replaces it", stacklevel=2)
        raise UnreadableImage(f"none of the {len(self)} images can be decoded")

    def __len__(self) -> int:
        return len(self.listing)


def _label(labels: np.ndarray | None, index: int) -> int:
    return 0 if labels is None else int(labels[index])
