"""Image sets by name: the embedded emoji, and those that torchvision knows."""

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from filelock import FileLock
from torchvision import datasets

from vqgen.data.assemble import assemble
from vqgen.data.images import ImageData
from vqgen.data.listing import Arrays, Files, Listing, Rows


def emoji(**options: Any) -> ImageData:
    """The embedded set: 4,757 training and 526 validation images, 64 px on white, nine classes."""
    (train, class_names), (val, _) = _emoji("train"), _emoji("val")
    return assemble(train, val, name="emoji", class_names=class_names, **options)


def cifar10(*, root: str, **options: Any) -> ImageData:
    """32 px photographs, ten classes; the test images validate."""
    train, test = _fetched(datasets.CIFAR10, "cifar10", root, ({"train": True}, {"train": False}))
    return assemble(
        _arrays(train), _arrays(test), name="cifar10", class_names=train.classes, **options
    )


def mnist(*, root: str, **options: Any) -> ImageData:
    """28 px gray digits, ten classes; the test images validate."""
    train, test = _fetched(datasets.MNIST, "mnist", root, ({"train": True}, {"train": False}))
    return assemble(
        _arrays(train), _arrays(test), name="mnist", class_names=train.classes, **options
    )


def fashion_mnist(*, root: str, **options: Any) -> ImageData:
    """28 px gray clothes, ten classes; the test images validate."""
    which = ({"train": True}, {"train": False})
    train, test = _fetched(datasets.FashionMNIST, "fashion_mnist", root, which)
    return assemble(
        _arrays(train), _arrays(test), name="fashion_mnist", class_names=train.classes, **options
    )


def celeba(*, root: str, **options: Any) -> ImageData:
    """178 x 218 px aligned faces, unconditional, in the authors' train and valid splits."""
    which = ({"split": "train"}, {"split": "valid"})
    train, valid = _fetched(datasets.CelebA, "celeba", root, which)
    folder = str(Path(root).expanduser() / "celeba" / "img_align_celeba")
    listings = [Files(folder, list(part.filename), None) for part in (train, valid)]
    return assemble(*listings, name="celeba", class_names=(), **options)


def imagenet(*, root: str, **options: Any) -> ImageData:
    """ImageNet-1k out of its official archives, 1,000 classes; the validation images validate."""
    folder = Path(root).expanduser().absolute()
    try:
        train, val = (datasets.ImageNet(folder, split=split) for split in ("train", "val"))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            "wanted ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar (to be had with an account of image-net.org only) in "
            f"{folder}, got: {_first_line(error)} Put them there or type data.root=DIR; for train/ "
            "and val/ with one folder per class type data=folder data.root=DIR"
        ) from None
    names = [words[0] for words in train.classes]
    listings = [
        Files(
            part.split_folder,
            [str(Path(path).relative_to(part.split_folder)) for path, _ in part.samples],
            np.array(part.targets, dtype=np.int64),
        )
        for part in (train, val)
    ]
    return assemble(*listings, name="imagenet", class_names=names, **options)


def _emoji(split: str) -> tuple[Listing, Sequence[str]]:
    """-> (the images, the classes' names). Read without `datasets`, whose import takes a second."""
    file = files("vqgen.data") / "emoji" / f"{split}.parquet"
    table = pyarrow.parquet.read_table(str(file), columns=["image", "label"])
    rows = table["image"].to_pylist()
    listing = Rows(rows, [row["path"] for row in rows], table["label"].to_numpy())
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    return listing, features["label"]["names"]


def _arrays(part: Any) -> Listing:
    """A torchvision set that holds its pixels in memory."""
    names = [f"image {index}" for index in range(len(part.data))]
    return Arrays(np.asarray(part.data), names, np.asarray(part.targets, dtype=np.int64))


def _fetched(
    dataset: Callable[..., Any], name: str, root: str, splits: tuple[dict, dict]
) -> tuple[Any, Any]:
    """Both splits of a torchvision set, downloaded if they are not in `root`; one rank of a
    machine downloads."""
    folder = Path(root).expanduser().absolute()
    try:
        return _both(dataset, folder, splits, download=False)
    except RuntimeError:
        pass  # not there, or not whole
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            return _both(dataset, folder, splits, download=True)
    except (RuntimeError, OSError, ImportError) as error:
        raise ValueError(
            f"wanted {name} in {folder}, got no complete copy there and no download "
            f"({_first_line(error)}); connect to the network, or type data.root=DIR of a copy made "
            "by torchvision elsewhere, or data=emoji, which needs no network"
        ) from None


def _both(
    dataset: Callable[..., Any], folder: Path, splits: tuple[dict, dict], *, download: bool
) -> tuple[Any, Any]:
    first, second = (dataset(str(folder), download=download, **split) for split in splits)
    return first, second


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
