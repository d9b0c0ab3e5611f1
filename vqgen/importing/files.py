"""Reading published weights: memory-mapped, checked, and without executing anything in them."""

import argparse
import codecs
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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
                self._check_stored(found)
                # files of wrapped modules (DDP, torch.compile) put a word before every key
                return self._unwrapped(found), place
        listed = ", ".join(place or "(the file itself)" for place in places)
        keys = ", ".join(map(str, list(self.content)[:12]))
        raise ValueError(
            f"wanted weights under {listed} in {self.path}, "
            f"{f'whose keys are {keys}' if keys else 'which is empty'}; type another --weights or "
            "--as, or give another file"
        )

    def _check_stored(self, found: Mapping[str, Tensor]) -> None:
        for name, tensor in found.items():
            sparse = "sparse, " if tensor.layout != torch.strided else ""
            kind = "without its values, " if tensor.is_meta else sparse
            if kind:
                raise Refused(
                    f"{self.path} stores {name} {kind}which no published file does; save it again "
                    "with tensor.to_dense(), out of the model with its weights loaded"
                )

    def beside(self, place: str) -> list[str]:
        """The keys that stay in the file when the weights are taken from this place, dotted."""
        left: list[str] = []
        found: Any = self.content
        before = ""
        for key in place.split(".") if place else ():
            left += [f"{before}{name}" for name in found if name != key]
            found, before = found[key], f"{before}{key}."
        return left

    def _unwrapped(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Without the word that wrapped modules (DDP, torch.compile) put before every key."""
        tensors: dict[str, Tensor] = {}
        for key, value in found.items():
            name = re.sub(r"^(module\.|_orig_mod\.)+", "", key)
            if name in tensors:
                raise ValueError(
                    f"{self.path} has {name} twice, once of a wrapped module; give the file as it "
                    "was released"
                )
            tensors[name] = value
        return tensors


def read(path: Path) -> WeightsFile:
    """Read .safetensors, also under another name, or .pt, .pth, .ckpt of torch.save.

    Raises ValueError for a file that is missing, cut short, altered, or that needs objects other
    than tensors, numbers and texts."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        cure = (
            f"type one of the files in it: {', '.join(inside[:8])}" if inside else "none is in it"
        )
        raise ValueError(f"wanted a file of weights, but {path} is a folder; {cure}")
    if not path.is_file():
        what = "is a device or pipe" if path.exists() else "does not exist"
        raise ValueError(f"wanted a file of weights, but {path} {what}; type another FILE")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"wanted a file of weights ({', '.join(SUFFIXES)}), got {path}")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); look at its rights") from error
    if OURS in head:
        raise Refused(
            f"{path} is vqgen's own already, nothing is to import; type its folder, for instance "
            f"python sample.py pipeline=DIR, or tokenizer={path.parent}"
        )
    try:
        content = load_file(path) if _is_safetensors(head) else _read_torch(path)
    except Refused:
        raise
    except Exception as error:  # whatever these bytes make the readers do
        raise _damaged(path, _reason(path, head, error)) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"wanted a dictionary of weights in {path}, got {type(content).__name__}")
    return WeightsFile(path, content)


def _read_torch(path: Path) -> Any:
    mapped = zipfile.is_zipfile(path)  # what torch.save writes since 1.6
    if mapped:
        _check_sums(path)
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            # many files have another protocol than torch.save's; what it does not know it refuses
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|class) ([\w.]+\w)", str(error))
        if not name and mapped and "Unsupported operand" in str(error):  # its sums are right
            raise Refused(
                f"{path} was saved with a newer pickle protocol than torch.save's, and the safe "
                "reader does not know it; save it again: torch.save(content, 'weights.pt')"
            ) from error
        if not name:
            raise
        raise Refused(
            f"{path} needs the Python object {name[1]}, and loading it could run any program; "
            "nothing was read. Ask for the file as .safetensors, or where you trust it save the "
            "state dict alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from error


def _check_sums(path: Path) -> None:
    """torch.load does not look at the check sums of the archive; an altered tensor shows there."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
        names = archive.namelist()
    if broken is not None:
        raise _damaged(path, f"the check sum of {broken} is wrong")
    if not any(name.endswith("/data.pkl") for name in names):
        raise _damaged(
            path, f"a zip archive of {names[0] if names else 'nothing'}, not torch.save's"
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refused(
            f"{path} is a TorchScript program, and loading it would run it; save the state dict "
            "alone: torch.save(model.state_dict(), 'weights.pt')"
        )


class Refused(ValueError):
    """A file that was understood, and is not taken."""


def _damaged(path: Path, reason: str) -> ValueError:
    return Refused(f"{path} is damaged, cut short or no file of weights ({reason}); get it again")


HEAD = 512  # bytes that tell what a file is
ZIP, PICKLE, LEGACY = b"PK\x03\x04", b"\x80", b"\x80\x02\x8a\x0a"
OURS = b'"__metadata__":{"vqgen"'
TAR = b"ustar"  # at 257


def _is_safetensors(head: bytes) -> bool:
    """The length of a JSON text in 8 bytes, then that text."""
    return head[8:9] == b"{" and head[6:8] == b"\0\0"


def _reason(path: Path, head: bytes, error: BaseException) -> str:
    """What a file is that cannot be read: by its first bytes, since torch.load says little, or says
    to try again without its safety."""
    if not head:
        return "it is empty"
    if _is_safetensors(head):
        return str(error)
    if path.suffix == ".safetensors" and head.startswith((ZIP, LEGACY)):
        return "a file of torch.save: give it the ending .pt"
    if head.startswith(ZIP):
        return "a zip archive that does not reach its end, or was altered"
    if head.startswith(LEGACY):
        return "what torch.save wrote before 1.6, and it does not reach its end, or was altered"
    if head[257:262] == TAR:
        return "a tar archive, torch.save's form before 0.1.10: save it again with a newer torch"
    if head.startswith(PICKLE):
        return "a pickle that torch.save did not write"
    with suppress(UnicodeDecodeError):
        text = " ".join(codecs.getincrementaldecoder("utf-8")().decode(head).split())
        if text.isprintable():
            lfs = ", a pointer of Git LFS: type git lfs pull" if "git-lfs" in text else ""
            return f"a text that begins with {text[:40]!r}{lfs}"
    return "its first bytes are none of a file of weights"


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
