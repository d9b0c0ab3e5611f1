"""The images of a run for Lightning: endless training batches that resume exactly, validation."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.fabric.utilities import suggested_max_num_workers
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from vqgen.contracts import Size, Tokenizer
from vqgen.data.decode import CENTER, Crop
from vqgen.data.encoded import EncodedImages
from vqgen.data.order import GlobalBatches, Key, chances, in_order, micro_batch_size
from vqgen.data.store import Batch, ImageSet

PROBED = 16  # images of each split that tell one data set from another


class ImageData(LightningDataModule):
    """Training and validation images, with their classes.

    Batches are dict(images=, labels=): uint8 [B, 3, H, W] from the loaders, float in [-1, 1],
    channels_last, after `on_after_batch_transfer`; labels Long [B]. Without classes there is no
    `labels` key.

    To resume, set `samples_seen` (images shown so far, over all ranks) before
    `train_dataloader()`: the order and the augmentation go on exactly there, at any number of
    ranks, workers and micro-batches.

    Raises ValueError: a batch larger than the set, or one that accumulation does not divide.
    """

    def __init__(
        self,
        *,
        name: str,  # of the source, for the recipe
        train: ImageSet,
        val: ImageSet,
        class_names: Sequence[str] = (),  # empty: unconditional
        crop: Crop = "center",  # of training images
        flip: bool = False,  # mirror half of the training images
        workers: int | None = None,  # loader processes; None: 0 in memory, else per core, at most 8
        global_batch: int,  # images per optimizer step, over all ranks and micro-batches
        accumulate: int = 1,  # micro-batches per optimizer step
        seed: int,  # of order, crops and flips
    ) -> None:
        super().__init__()
        check_batch(name, global_batch, accumulate, len(train), seed)
        self.name = name
        self.train = train
        self.val = val
        self.class_names = tuple(class_names)
        self.crop: Crop = crop
        self.flip = flip
        self.workers = workers
        self.global_batch = global_batch
        self.accumulate = accumulate
        self.seed = seed
        self.samples_seen = 0

    @property
    def num_classes(self) -> int:
        """0: unconditional."""
        return len(self.class_names)

    @property
    def image_size(self) -> Size:
        """(height, width)."""
        return self.train.size

    def describe(self) -> dict[str, Any]:
        """Plain facts for the recipe table and the checkpoint."""
        return {
            "name": self.name,
            "train_images": len(self.train),
            "val_images": len(self.val),
            "image_size": list(self.image_size),
            "class_names": list(self.class_names),
            "crop": self.crop,
            "flip": self.flip,
            "in_memory": self.train.pixels.in_memory,
            "skipped_files": self.train.skipped_files + self.val.skipped_files,
        }

    def content(self) -> str:
        """sha256 of all classes and of a few images per split, which other data does not share."""
        found = hashlib.sha256(repr(self.class_names).encode())
        for images in (self.train, self.val):
            labels = images.pixels.labels
            found.update(b"none" if labels is None else np.asarray(labels, np.int64).tobytes())
            some = np.linspace(0, len(images) - 1, PROBED).astype(int)
            found.update(images.__getitems__(some.tolist())["images"].numpy().tobytes())
        return found.hexdigest()

    def latents(self, tokenizer: Tokenizer, fingerprint: str) -> EncodedImages:
        """The same images for a prior over the latents of that tokenizer, encoded on the fly."""
        return EncodedImages(self, tokenizer)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless micro-batches of this rank, from `samples_seen` on.

        Raises ValueError if global_batch is not a multiple of accumulation x ranks."""
        rank, world = rank_and_world()
        order = GlobalBatches(
            size=len(self.train),
            global_batch=self.global_batch,
            accumulate=self.accumulate,
            rank=rank,
            world=world,
            seed=self.seed,
            samples_seen=self.samples_seen,
        )
        augmented = Augmented(self.train, seed=self.seed, crop=self.crop, flip=self.flip)
        return self.loader(augmented, order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once over all ranks, center crop, unflipped, in a fixed order."""
        return self.in_order(self.val)

    def in_order(self, images: ImageSet) -> DataLoader[Batch]:
        """Every image of `images` (self.train or self.val) once over all ranks, center crop,
        unflipped.

        Every rank gets the same number of batches, of at most the micro-batch of training, so that
        no rank waits for another; sizes differ by at most one image."""
        rank, world = rank_and_world()
        micro = micro_batch_size(self.global_batch, self.accumulate, world)
        return self.loader(images, in_order(len(images), micro, rank, world))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 -> float in [-1, 1], channels_last, on the device; white is exactly 1."""
        images = batch["images"].to(torch.float32, memory_format=torch.channels_last)
        return {**batch, "images": 2 * (images / 255) - 1}

    def loader(self, images: Dataset[Batch], batches: Any) -> DataLoader[Batch]:
        """Batches of keys -> batches of `images`, with the worker processes this data needs."""
        workers = self.workers
        if workers is None:
            ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
            workers = min(8, suggested_max_num_workers(ranks_here))
            workers = 0 if self.train.pixels.in_memory else workers
        return DataLoader(
            images,
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            # An own generator: the iterator's base seed is then not drawn from the training's
            # random numbers
            generator=torch.Generator().manual_seed(self.seed),
        )


class Augmented(Dataset[Batch]):
    """Training views: crop and flip are functions of (seed, position), whoever makes them."""

    def __init__(self, images: ImageSet, *, seed: int, crop: Crop, flip: bool) -> None:
        self.images = images
        self.seed = seed
        self.crop = crop
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Batch:
        return {name: part[0] for name, part in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        drawn = chances(self.seed, [position for _, position in keys])
        center = np.full((len(keys), 2), CENTER)
        places = drawn[:, :2] if self.crop == "random" else center
        return self.images.views(
            [index for index, _ in keys], places, (drawn[:, 2] < 0.5) & self.flip
        )


def all_alike(images: ImageSet, looked_at: int = 64) -> bool:
    """Whether so many images, evenly spread, are one and the same picture; ends at the first that
    differs."""
    first = images.pixels.fetch(0)[0]
    spread = np.linspace(1, len(images) - 1, min(looked_at, len(images) - 1)).round().astype(int)
    return all(np.array_equal(first, images.pixels.fetch(int(i))[0]) for i in spread)


def _as_it_is(batch: Any) -> Any:
    """The sets make whole batches; there is nothing to collate."""
    return batch


def check_batch(name: str, global_batch: int, accumulate: int, images: int, seed: int) -> None:
    """Raise ValueError for a batch that does not divide or is larger than the set, or a seed under
    0."""
    micro_batch_size(global_batch, accumulate, 1)
    if global_batch > images:
        raise ValueError(
            f"wanted a batch no larger than the training set of {name}, {images} images, "
            f"got {global_batch}; type train.global_batch={images} or less"
        )
    if seed < 0:
        raise ValueError(f"wanted a seed of at least 0, got {seed}; type seed=0")


def rank_and_world() -> tuple[int, int]:
    """(rank, ranks) of this process; (0, 1) outside a distributed run."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
