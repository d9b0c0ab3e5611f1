"""Sets of images that are compared: a split of the data, an ADM-style npz, a folder of pictures."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from vqgen import checkpoint
from vqgen.data.images import ImageData
from vqgen.metrics.distances import Moments

ANOTHER = "make it again, or type the path of another one"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Images:
    """uint8 [n, 3, H, W], labels Long [n] or None, where they come from, and a hash of it.

    moments  of Inception features as ADM's reference files store them, by name: pooled, spatial
    """

    images: Tensor
    labels: Tensor | None
    source: str
    sha256: str
    moments: dict[str, Moments] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def take(self, rows: Tensor) -> "Images":
        """Those rows, as a set of its own."""
        labels = None if self.labels is None else self.labels[rows]
        images = self.images[rows]
        return Images(images, labels, f"{self.source}, {len(rows)} of them", digest(images))


def of_split(data: ImageData, split: str, n: int | None = None, seed: int = 0) -> Images:
    """Images of a split, center crop, unflipped; with `n` so many of them, drawn with the seed, in
    the order of the set."""
    chosen = {"train": data.train, "val": data.val}[split]
    count = len(chosen)
    if n is not None and not 1 <= n <= count:
        raise ValueError(f"wanted 1 to {count} images of the {split} split, got n={n}")
    rows = torch.arange(count)
    if n is not None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        rows = order[:n].sort().values
    parts = [chosen.__getitems__(part.tolist()) for part in rows.split(256)]
    images = torch.cat([part["images"] for part in parts]).contiguous()
    labels = torch.cat([part["labels"] for part in parts]) if "labels" in parts[0] else None
    return Images(images, labels, f"{split} split of {data.name}", digest(images))


def read(path: str | Path, sha256: str | None = None) -> Images:
    """An npz in the ADM layout (arr_0 uint8 [n, H, W, 3], labels arr_1 if there) or a folder of
    pictures of one size.

    Raises ValueError for what is neither, and for a file whose SHA-256 is another."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise ValueError(
            f"wanted an npz file or a folder of pictures, but {path} does not exist; "
            "type another path"
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path} has the SHA-256 {found}, the protocol wants {sha256}; type the path of that "
            "file, or protocol.reference.sha256=null to compare with this one"
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no readable npz file (a zip of arrays); {ANOTHER}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no readable npz file ({error}); {ANOTHER}") from error
    pixels = arrays.get("arr_0")
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        got = "none" if pixels is None else f"{pixels.dtype} {list(pixels.shape)}"
        raise ValueError(
            f"wanted arr_0 in {path} as uint8 [n, H, W, 3] (the ADM layout), got {got}"
        )
    if not len(pixels):
        raise ValueError(f"{path} holds no images; {ANOTHER}")
    images = rearrange(torch.from_numpy(pixels), "n h w c -> n c h w")
    labels = _labels(path, arrays["arr_1"], len(images)) if "arr_1" in arrays else None
    return Images(images, labels, str(path), found, _moments(path, arrays) or None)


def write_npz(path: Path, images: Tensor, labels: Tensor | None) -> None:
    """Images and labels in the ADM layout, uncompressed."""
    arrays: dict[str, Any] = {"arr_0": rearrange(images, "n c h w -> n h w c").cpu().numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.cpu().numpy()
    with checkpoint.atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def digest(images: Tensor) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()


def _read_folder(folder: Path) -> Images:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(PICTURES)}): nothing to evaluate")
    pictures = [_read_picture(path) for path in files]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(
            f"the pictures in {folder} have several sizes, {sorted(sizes)}; wanted one"
        )
    images = rearrange(torch.from_numpy(np.stack(pictures)), "n h w c -> n c h w").contiguous()
    return Images(images, None, str(folder), digest(images))


def _moments(path: Path, arrays: dict[str, Any]) -> dict[str, Moments]:
    found = {}
    for name, keys in {"pooled": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        mean, covariance = (arrays.get(key) for key in keys)
        if mean is None and covariance is None:
            continue
        shapes = [None if part is None else list(part.shape) for part in (mean, covariance)]
        d = 0 if mean is None else mean.size
        if mean is None or covariance is None or shapes != [[d], [d, d]]:
            raise ValueError(
                f"wanted {keys[0]} [d] and {keys[1]} [d, d] in {path} (the ADM layout), got "
                f"{shapes[0]} and {shapes[1]}"
            )
        if not all(
            np.issubdtype(part.dtype, np.floating) and np.isfinite(part).all()
            for part in (mean, covariance)
        ):
            raise ValueError(
                f"wanted {keys[0]} and {keys[1]} in {path} as finite numbers, got "
                f"{mean.dtype} and {covariance.dtype}, not all of them finite numbers"
            )
        pair = (torch.from_numpy(part.astype(np.float64)) for part in (mean, covariance))
        found[name] = Moments(*pair)
    return found


def _labels(path: Path, classes: np.ndarray, count: int) -> Tensor:
    if classes.shape != (count,):
        raise ValueError(
            f"wanted arr_1 in {path} as one class per image, [{count}], got {list(classes.shape)}"
        )
    if not np.issubdtype(classes.dtype, np.integer) or (classes.size and classes.min() < 0):
        raise ValueError(
            f"wanted arr_1 in {path} as classes from 0, whole numbers, got {classes.dtype}"
            + (f" from {classes.min()}" if classes.size else "")
        )
    return torch.from_numpy(classes.astype(np.int64))


def _read_picture(path: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"wanted pictures alone under samples=, but {path} cannot be read ({error}); "
            "take it out of the folder"
        ) from error
