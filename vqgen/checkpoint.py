"""Saved models: one safetensors file that carries its own description, written whole or not at all.

`folder/model.safetensors` holds the tensors and, in its header, one JSON text: format number, kind,
architecture (what build.py instantiates), facts (class names, image size, recipe ...) and a
fingerprint of tensors and architecture. `folder/model.json` is a copy of that text for people; only
the header is read back. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1
HALF_WRITTEN = ".*.writing"  # names of files that a killed process may leave behind
# format number -> function that turns (header, tensors) of that format into the next one
MIGRATIONS: dict[int, Callable[[dict, dict], tuple[dict, dict]]] = {}


@dataclass(frozen=True)
class SavedModel:
    """A model as read from disk: `tensors` fit the module that `architecture` describes."""

    kind: str  # "tokenizer" or "prior"
    architecture: dict[str, Any]
    facts: dict[str, Any]
    fingerprint: str
    tensors: dict[str, Tensor]


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if all went well, else remove
    it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # safetensors writes files that others cannot read
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"could not write {path} ({error.strerror or error}); what was saved there before is "
            "untouched. Free some space or type run.root=DIR for a disk with room."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Which rights new files are made without; it can be read by setting it only."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def fingerprint(tensors: dict[str, Tensor], architecture: dict[str, Any]) -> str:
    """16 hexadecimal digits over names, shapes, types and values: equal if and only if the models
    are."""
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_model(
    folder: Path,
    model: nn.Module,
    *,
    kind: str,
    architecture: dict[str, Any],
    facts: dict[str, Any],
) -> str:
    """Write model.safetensors and model.json into `folder`; returns the fingerprint."""
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    mark = fingerprint(tensors, architecture)
    header = {
        "format": FORMAT,
        "kind": kind,
        "fingerprint": mark,
        "architecture": architecture,
        "facts": facts,
    }
    with atomic(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"vqgen": json.dumps(header)})
    write_text(folder / "model.json", json.dumps(header, indent=2) + "\n")
    return mark


def read_header(folder: Path) -> dict[str, Any]:
    """The description of a saved model without its tensors. Raises ValueError for what is not
    one."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"wanted a saved model, but {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("vqgen", "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}); export or copy it again"
        ) from error
    if header is None:
        raise ValueError(
            f"{path} was not written by vqgen: its header has no description of the model"
        )
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {header['format']}, this vqgen reads up to {FORMAT}; update vqgen"
        )
    return header


def read_model(folder: Path, kind: str) -> SavedModel:
    """Read a saved model of this kind, migrated to today's format. Raises ValueError with what is
    wrong."""
    header = read_header(folder)
    if header["kind"] != kind:
        raise ValueError(f"wanted a {kind}, but {folder} holds a {header['kind']}")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if fingerprint(tensors, header["architecture"]) != header["fingerprint"]:
        raise ValueError(
            f"{folder / 'model.safetensors'} is not as it was written (a value or the description "
            "was changed, or the disk has an error); export or copy it again"
        )
    for number in range(header["format"], FORMAT):
        header, tensors = MIGRATIONS[number](header, tensors)
    return SavedModel(kind, header["architecture"], header["facts"], header["fingerprint"], tensors)


def load_strict(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load all tensors into the model; a difference in names or shapes is a ValueError that lists
    it."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    lines = [f"  missing  {name} {wanted[name]}{_hint(name, extra)}" for name in missing]
    lines += [f"  unknown  {name} {given[name]}" for name in extra]
    shared = sorted(wanted.keys() & given.keys())
    lines += [
        f"  shape    {name}: model {wanted[name]}, file {given[name]}"
        for name in shared
        if wanted[name] != given[name]
    ]
    if lines:
        shown = "\n".join(lines[:20]) + (
            f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
        )
        raise ValueError(f"{source} does not fit the model it describes:\n{shown}")
    model.load_state_dict(tensors)


def _hint(name: str, candidates: list[str]) -> str:
    close = get_close_matches(name, candidates, n=1)
    return f"  (is it {close[0]}?)" if close else ""


def copy_model(source: Path, target: Path) -> None:
    """Copy a saved model as it is; nothing is done if the target holds the same one already."""
    if (target / "model.safetensors").is_file():
        with contextlib.suppress(ValueError):
            if read_header(target)["fingerprint"] == read_header(source)["fingerprint"]:
                return
    for name in ("model.safetensors", "model.json"):
        with atomic(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
