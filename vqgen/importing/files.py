"""Reading published weights: memory-mapped, checked, and without executing anything in them."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class Ignored:
    """Stands in for a class that files of weights may name without needing it: its fields are read
    and dropped, and its program is neither run nor installed."""


# Both lie beside the weights: the settings of a LlamaGen training, and the key under which old
# Lightning files keep the state of a callback.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]


@dataclass(frozen=True)
class WeightsFile:
    """A file as read: nested dicts with tensors in them, still on disk where the format allows."""

    path: Path
    content: Mapping[str, Any]

    def tensors(self, places: Iterable[str]) -> tuple[dict[str, Tensor], str]:
        """The state dict in the first of these places that the file has, and that place.

        places  dotted keys ("model", "trainer.var_wo_ddp"); "" is the file itself"""
        for place in places:
            found: Any = self.content
            for key in place.split(".") if place else ():
                found = found.get(key) if isinstance(found, Mapping) else None
            if isinstance(found, Mapping) and found and all(map(_is_entry, found.items())):
                # files of wrapped modules (DDP, torch.compile) put a word before every key
                return {re.sub(r"^(module\.|_orig_mod\.)+", "", k): v for k, v in found.items()}, (
                    place
                )
        listed = ", ".join(place or "(the file itself)" for place in places)
        raise ValueError(
            f"wanted weights under {listed} in {self.path}, whose keys are "
            f"{', '.join(map(str, list(self.content)[:12]))}; type another --weights or --as"
        )


def read(path: Path) -> WeightsFile:
    """Read .safetensors, or .pt, .pth, .ckpt of torch.save.

    Raises ValueError for a file that is missing, cut short, altered, or that needs objects other
    than tensors, numbers and texts."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        cure = (
            f"type one of the files in it: {', '.join(inside[:8])}" if inside else "none is in it"
        )
        raise ValueError(f"wanted a file of weights, but {path} is a folder; {cure}")
    if not path.is_file():
        raise ValueError(f"wanted a file of weights, but {path} does not exist")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"wanted a file of weights ({', '.join(SUFFIXES)}), got {path}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_torch(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"wanted a dictionary of weights in {path}, got {type(content).__name__}")
    return WeightsFile(path, content)


def _read_torch(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # what torch.save writes since 1.6
    if mapped:
        _check_sums(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|class) ([\w.]+\w)", str(error))
        if not name:
            raise _damaged(path, error) from error
        raise ValueError(
            f"{path} needs the Python object {name[1]}, and loading it could run any program; "
            "nothing was read. Ask for the file as .safetensors, or where you trust it save the "
            "state dict alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except (
        *(RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError),
        OSError,  # a file cut short, seen while it is mapped
    ) as error:
        raise _damaged(path, error) from error


def _check_sums(path: Path) -> None:
    """torch.load does not look at the check sums of the archive; an altered tensor shows there."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    if broken is not None:
        raise _damaged(path, ValueError(f"the check sum of {broken} is wrong"))


def _damaged(path: Path, error: BaseException) -> ValueError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(f"{path} is damaged, cut short or no file of weights ({first}); get it again")


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
