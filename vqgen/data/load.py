"""From a listing to an ImageSet: every file checked before training, small sets decoded at once."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import numpy as np
from tqdm import tqdm

from vqgen.contracts import Size
from vqgen.data.decode import Crop, UnreadableImage, check_complete, check_header, decode
from vqgen.data.listing import Listing
from vqgen.data.store import Decoded, ImageSet, Kept


def load(
    listing: Listing,
    *,
    name: str,  # of the source, for messages
    size: Size,
    crop: Crop,
    min_size: int,
    on_error: Literal["error", "skip"],
    cache_mb: float,  # images that take less than this, decoded, are kept in memory
    verify: bool,  # check every file before training; False: open none, and keep none in memory
) -> ImageSet:
    """Listing -> images of `size`, every file checked.

    A set that is kept in memory is checked by decoding it, a larger one by its files' headers and
    ends. What is damaged in between, or was not checked, shows while training: see Decoded.
    Raises ValueError that names the files that cannot be used (unless on_error=skip), or if none
    is left.
    """
    decoder = partial(decode, size=size, min_size=min_size, crop=crop == "center")

    def keep(index: int) -> np.ndarray:
        with listing.open(index) as image:
            return decoder(image)

    def check(index: int) -> None:
        with listing.open(index) as image:
            check_header(image, min_size=min_size)
            check_complete(image)

    small = verify and _megabytes(listing, keep) <= cache_mb
    work, doing = (keep, "decoding") if small else (check, "checking")
    indices = range(len(listing) if verify else 0)
    results, reasons = _each(work, indices, f"{doing} the images of {name}")
    if listing.labels is not None:
        reasons |= {int(i): "has no class" for i in np.flatnonzero(listing.labels < 0)}
    skipped = {listing.names[i]: reason for i, reason in sorted(reasons.items())}
    if skipped:
        _report(skipped, name=name, total=len(listing), on_error=on_error)
    good = np.array([i for i in range(len(listing)) if i not in reasons], dtype=np.int64)
    if small:
        labels = None if listing.labels is None else listing.labels[good]
        return ImageSet(Kept([results[i] for i in good], labels), size=size, skipped=skipped)
    usable = listing.take(good) if skipped else listing
    pixels = Decoded(usable, decoder=decoder, skip=on_error == "skip")
    return ImageSet(pixels, size=size, skipped=skipped)


def _each(work: Callable[[int], object], indices: range, doing: str) -> tuple[dict, dict[int, str]]:
    """Run `work` in threads -> (results, reasons why some cannot be used), both by index."""

    def attempt(index: int) -> tuple[object, str | None]:
        try:
            return work(index), None
        except UnreadableImage as error:
            return None, str(error)

    with ThreadPoolExecutor() as pool:
        outcomes = pool.map(attempt, indices)
        # A bar on terminals only, and only where there is something to wait for
        shown = tqdm(outcomes, doing, total=len(indices), delay=2, disable=None, leave=False)
        outcomes = dict(zip(indices, shown, strict=True))
    reasons = {index: reason for index, (_, reason) in outcomes.items() if reason is not None}
    return {index: result for index, (result, _) in outcomes.items()}, reasons


def _report(skipped: dict[str, str], *, name: str, total: int, on_error: str) -> None:
    """Stop, or warn once, naming the first files that cannot be used."""
    shown = "; ".join(f"{file} {reason}" for file, reason in list(skipped.items())[:5])
    more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    found = f"{len(skipped)} of the {total} files of {name} cannot be used: {shown}{more}"
    if on_error == "error":
        raise ValueError(f"{found}. Remove them, or type data.on_error=skip to go on without")
    if len(skipped) == total:
        raise ValueError(f"{found}. No image is left; give other images")
    warnings.warn(f"skipped: {found}", stacklevel=2)


def _megabytes(listing: Listing, keep: Callable[[int], np.ndarray], sample: int = 32) -> float:
    """What the decoded images would take, estimated from a few spread over the set."""
    sizes = []
    for index in np.linspace(0, len(listing) - 1, min(sample, len(listing)), dtype=int):
        try:
            sizes.append(keep(index).nbytes)
        except UnreadableImage:
            continue
    return float(np.mean(sizes)) * len(listing) / 1e6 if sizes else 0.0
