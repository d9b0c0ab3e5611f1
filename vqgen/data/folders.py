"""data=folder: images from a directory, with one subfolder per class or none."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqgen.data.assemble import assemble
from vqgen.data.images import ImageData
from vqgen.data.listing import Files, split

_TRAINING = "train"
_VALIDATION = ("val", "valid", "validation", "test")  # the first that exists validates
# Left behind by operating systems; passed over like hidden files
_DROPPINGS = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")


def folder(
    *,
    root: str | None,
    val_fraction: float = 0.1,  # of the images, if the folder has no validation part of its own
    split_seed: int = 0,  # which images validate; not the run's seed, which must not move them
    **options: Any,  # of assemble
) -> ImageData:
    """Images under `root`, of any size, aspect and mode.

    root/CLASS/**/image           classes are the sorted names of the subfolders
    root/image                    flat: unconditional
    root/train/..., root/val/...  already split (or valid, validation, test for val), either layout
                                  inside; only if there are no subfolders of other names. train/
                                  without a validation part is split like any folder

    Hidden files are passed over; every other file has to be an image, or is skipped and counted
    under on_error=skip, as are files beside class folders.
    Raises ValueError: no such folder, an empty one, validation classes that training lacks.
    """
    if root is None:
        raise ValueError("wanted a folder of images, got none; type data.root=DIR")
    path = Path(root).expanduser()
    if not path.is_dir():
        what = "a file" if path.exists() else "nothing"
        raise ValueError(
            f"wanted a folder of images, got {path.absolute()}, where there is {what}; "
            "type data.root=DIR"
        )
    train_folder, val_folder = _parts(path)
    train, class_names = _listed(train_folder)
    if val_folder is None:
        train, val = split(train, val_fraction=val_fraction, seed=split_seed)
    else:
        val, _ = _listed(val_folder, class_names)
    name = f"folder {path.absolute()}"
    return assemble(train, val, name=name, class_names=class_names, **options)


def _parts(root: Path) -> tuple[Path, Path | None]:
    """-> (training folder, validation folder or None), as the subfolders' names say."""
    names = {entry.name for entry in os.scandir(root) if entry.is_dir() and _visible(entry.name)}
    if _TRAINING not in names or names - {_TRAINING, *_VALIDATION}:
        return root, None
    validation = next((root / name for name in _VALIDATION if name in names), None)
    return root / _TRAINING, validation


def _listed(root: Path, class_names: Sequence[str] | None = None) -> tuple[Files, Sequence[str]]:
    """-> (every visible file under root, class names); a validation part gets training's names.

    Files beside class folders get the label -1: no class, which `load` refuses or skips."""
    entries = sorted(
        (entry for entry in os.scandir(root) if _visible(entry.name)), key=lambda e: e.name
    )
    found = [entry.name for entry in entries if entry.is_dir()]
    names = found if class_names is None else list(class_names)
    if bool(found) != bool(names) or not set(found) <= set(names):
        raise ValueError(
            f"wanted the classes of the training part, {list(names) or 'none'}, "
            f"in {root.absolute()}, got {found or 'none'}; give both parts the same subfolders"
        )
    files = [(entry.name, -1) for entry in entries if entry.is_file()]
    for name in found:
        inside = [(path, names.index(name)) for path in _walk(root, name)]
        if not inside:
            raise ValueError(
                f"wanted images in every class folder, got {root.absolute() / name} without any; "
                "fill it or remove it"
            )
        files += inside
    if not files:
        raise ValueError(
            f"wanted a folder of images, got {root.absolute()}, which is empty; "
            "put images there or type data.root=DIR"
        )
    labels = np.array([label for _, label in files], dtype=np.int64) if names else None
    return Files(str(root), [path for path, _ in files], labels), tuple(names)


def _walk(root: Path, name: str) -> list[str]:
    """Paths under root/name, relative to root, hidden ones left out, sorted."""
    paths = []
    for here, folders, files in os.walk(root / name, followlinks=True):
        folders[:] = sorted(folder for folder in folders if _visible(folder))
        paths += [
            os.path.relpath(os.path.join(here, file), root) for file in files if _visible(file)
        ]
    return sorted(paths)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _DROPPINGS
