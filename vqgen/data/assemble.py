"""From two listings and the options that every source shares to the images of a run."""

from collections.abc import Sequence
from typing import Literal

from vqgen.contracts import Size
from vqgen.data.decode import Crop
from vqgen.data.images import ImageData
from vqgen.data.listing import Listing
from vqgen.data.load import load
from vqgen.data.store import ImageSet


def assemble(
    train: Listing,
    val: Listing,
    *,
    name: str,  # of the source, for messages and the recipe
    class_names: Sequence[str],  # empty: unconditional
    size: int | Sequence[int],  # target: one side, or [height, width]
    crop: Crop = "center",  # of training images of another aspect
    flip: bool = False,  # mirror half of the training images
    min_size: int = 16,  # pixels; a shorter side under it is an error, above it is scaled up
    on_error: Literal["error", "skip"] = "error",  # unusable files: stop, or go on and count
    cache_mb: float = 2000,  # a split that takes less, decoded, is kept in memory of each rank
    verify: bool = True,  # check every file before training; False: open none, keep none in memory
    workers: int | None = None,  # loader processes; None: 0 in memory, else per core, at most 8
    global_batch: int,  # images per optimizer step, over all ranks and micro-batches
    accumulate: int = 1,  # micro-batches per optimizer step
    seed: int = 0,  # of order, crops and flips; not of the split
) -> ImageData:
    """Check the options, load both splits, join them.

    Raises ValueError: an option out of its range, a file that cannot be used, a batch larger than
    the set.
    """
    height_width = _size(size)
    _one_of("crop", crop, ("center", "random"))
    _one_of("on_error", on_error, ("error", "skip"))
    for option, number in (("min_size", min_size), ("cache_mb", cache_mb), ("workers", workers)):
        if number is not None and number < 0:
            raise ValueError(
                f"wanted data.{option} of at least 0, got {number}; type data.{option}=0"
            )

    def split(listing: Listing, which: str, crop: Crop) -> ImageSet:
        return load(
            listing,
            name=f"{name} ({which})",
            size=height_width,
            crop=crop,
            min_size=min_size,
            on_error=on_error,
            cache_mb=cache_mb,
            verify=verify,
        )

    return ImageData(
        name=name,
        train=split(train, "training", crop),
        val=split(val, "validation", "center"),
        class_names=class_names,
        crop=crop,
        flip=flip,
        workers=workers,
        global_batch=global_batch,
        accumulate=accumulate,
        seed=seed,
    )


def _size(size: int | Sequence[int]) -> Size:
    """An int or [height, width] -> (height, width), or a ValueError."""
    sides = [size, size] if isinstance(size, int) else list(size or ())
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(
            "wanted data.size as a positive number of pixels or [height, width], "
            f"got {size}; type data.size=64 or data.size=[96,128]"
        )
    return sides[0], sides[1]


def _one_of(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        listed = " or ".join(choices)
        raise ValueError(
            f"wanted data.{option} to be {listed}, got {value}; type data.{option}={choices[0]}"
        )
