"""What callers hand to a pipeline, checked before any work is done."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqgen.contracts import Condition, LatentSpec, Prior, TokenSpec
from vqgen.words import nearest

SEEDS = 2**63  # what every generator takes
LARGEST = 1.01  # of a float image, but for rounding


def count(labels: Sequence[Any] | Tensor | None, n: int | None, seeds: Sequence[int] | None) -> int:
    """How many images these ask for. Raises ValueError where they disagree, or ask for none."""
    for name, given in (("labels", labels), ("seeds", seeds)):
        if given is not None and (
            isinstance(given, str)
            or not hasattr(given, "__len__")
            or (isinstance(given, Tensor) and given.ndim != 1)
        ):
            raise ValueError(f"wanted {name} as a list with one entry per image, got {given!r}")
    lengths = {
        "labels": None if labels is None else len(labels),
        "seeds": None if seeds is None else len(seeds),
        "n": n,
    }
    lengths = {name: count for name, count in lengths.items() if count is not None}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name}: {count}" for name, count in lengths.items())
        raise ValueError(f"labels, seeds and n must agree on the number of images, got {got}")
    total = next(iter(lengths.values()), 1)
    if total < 1:
        raise ValueError(f"wanted at least one image, got {total}")
    return total


def check_whole(**counts: Any) -> None:
    """Raise a ValueError unless each of these is a whole number of at least 1."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"wanted {name} as a whole number of at least 1, got {value!r}")


def checked_seeds(seeds: Sequence[Any]) -> list[int]:
    """The seeds as plain integers. Raises ValueError for one that is none, or out of range."""
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        raise ValueError(f"wanted seeds as whole numbers, got {list(seeds)[:5]}") from None
    for seed in numbers:
        if not 0 <= seed < SEEDS:
            raise ValueError(f"wanted seeds from 0 to 2**63 - 1, got {seed}; type seed=0")
    return numbers


def check_latents(spec: LatentSpec, latents: Tensor) -> None:
    """Raise ValueError unless there are latents of such a kind, shape and range, finite ones; a
    token may be -1 (not yet decided)."""
    if not len(latents):
        raise ValueError("wanted the latents of at least one image, got 0")
    if not isinstance(spec, TokenSpec):
        shape = [spec.channels, spec.height, spec.width]
        if list(latents.shape[1:]) != shape or not latents.is_floating_point():
            raise ValueError(
                f"wanted float latents [n, {', '.join(map(str, shape))}], got {latents.dtype} "
                f"{list(latents.shape)}"
            )
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"wanted finite latents, got {int((~latents.isfinite()).sum())} numbers that are "
                "not; if they were sampled, try a smaller guidance, more steps or another solver"
            )
        return
    if latents.shape[1:] != (spec.length,) or latents.is_floating_point():
        raise ValueError(
            f"wanted tokens as integers [n, {spec.length}], got {latents.dtype} "
            f"{list(latents.shape)}"
        )
    lowest, highest = latents.min(), latents.max()
    if lowest < -1 or highest >= spec.vocab_size:
        raise ValueError(
            f"wanted tokens from 0 to {spec.vocab_size - 1} (-1: not yet decided), got "
            f"{int(lowest)} to {int(highest)}; are they another tokenizer's?"
        )


def check_text(text: Any) -> None:
    """Raise a ValueError unless these are captions as vqgen.text embeds them, or None."""
    if text is not None and not isinstance(text, Condition):
        raise ValueError(
            "wanted text as vqgen.text embeds captions, a Condition, got "
            f"{type(text).__name__}; or type python sample.py 'text=\"a cat\"'"
        )


def check_images(images: Any) -> None:
    """Raise a ValueError unless this is a tensor [n, 3, H, W] of at least one image."""
    if not isinstance(images, Tensor):
        raise ValueError(
            f"wanted images as a tensor [n, 3, H, W], got {type(images).__name__}; convert with "
            "torch.from_numpy(images).permute(0, 3, 1, 2) or the like"
        )
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"wanted images [n, 3, H, W], got {list(images.shape)}")
    if not len(images):
        raise ValueError("wanted at least one image, got 0")


def floats(images: Tensor) -> Tensor:
    """uint8 or float images -> float32 in [-1, 1]. Raises ValueError for numbers out of range."""
    if not images.is_floating_point():
        low, high = int(images.amin()), int(images.amax())
        if images.dtype == torch.bool or low < 0 or high > 255:
            raise ValueError(
                f"wanted images as uint8 or as floats in [-1, 1], got {images.dtype} from "
                f"{low} to {high}; convert with images.to(torch.uint8)"
            )
        return images.float() / 127.5 - 1
    if not float(images.abs().amax()) <= LARGEST:  # nan is not, either
        raise ValueError(
            f"wanted float images in [-1, 1], got up to {float(images.abs().amax()):.4g}; for "
            "0 to 255 hand in uint8, or images / 127.5 - 1"
        )
    return images.float()


def checked_knobs(prior: Prior, given: dict[str, Any]) -> Any:
    """The sampling knobs of a prior, its defaults where nothing is given.

    Raises ValueError for a knob that its family does not have, or a word for a number."""
    valid = prior.Knobs.__dataclass_fields__
    for name in given:
        if name not in valid:
            family = type(prior).__name__
            hint = nearest(name, list(valid))
            raise ValueError(f"{family} has no knob {name!r}{hint}; it has {', '.join(valid)}")
        default, value = valid[name].default, given[name]
        if isinstance(value, bool) and not isinstance(default, bool):
            raise ValueError(f"{name} wants no {value}; leave it out for its default, {default}")
        if isinstance(default, int | float) and isinstance(value, str | None):
            raise ValueError(f"{name} wants a number like {default}, got {value!r}")
    return prior.Knobs(**given)
