"""A saved model in a peer's layout: what the peer would read from it must be the same model."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vqgen import build, checkpoint
from vqgen.contracts import TokenSpec
from vqgen.importing import layout
from vqgen.importing.convert import AUTO, FAMILIES
from vqgen.importing.family import Family, Hints
from vqgen.importing.pairs import Beside

# kept for training, or copied from the tokenizer: no peer stores it
OURS_ALONE = re.compile(
    r"bottleneck\.codebooks?\.(\d+\.)?(usage|started|ema_count|ema_sum)|pyramid\..*|calls"
)
# how a model is trained, not what it is
TRAINING = re.compile(
    r".*(dropout|drop_path|_weight|temperature|smoothing|_steps|_decay|_below|_init|update|start)"
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")


def export(folder: Path, kind: str, out: Path, wanted: str = AUTO) -> list[str]:
    """Write the tokenizer or prior of a folder as a peer's file, and the peer's settings beside it
    as JSON; returns what was done, with a line for each tensor whose values cannot be known.

    wanted  a family's name; "auto": the one it was imported as
    Raises ValueError for a model with parts or settings that the peer does not have."""
    if out.suffix not in SUFFIXES:
        raise ValueError(f"wanted --out as a name in {', '.join(SUFFIXES)}, got {out}")
    saved = checkpoint.read_model(folder / kind, kind)
    spec = Beside.of_folder(folder / "tokenizer").spec
    family = _family(saved, wanted)
    architecture = canonical(saved.architecture, spec)
    tensors, loose = to_theirs(family, architecture, spec, saved.tensors)
    with checkpoint.atomic(out) as temporary:
        if out.suffix == ".safetensors":
            save_file({name: value.clone() for name, value in tensors.items()}, temporary)
        else:
            place = family.places[0]
            torch.save({place: tensors} if place else tensors, temporary)
    settings = family.settings(architecture, spec)
    beside = out.with_suffix(".json")
    checkpoint.write_text(beside, json.dumps(settings, indent=2) + "\n")
    done = f"{out} ({family.name}, {len(tensors)} keys), its settings: {beside}"
    return [done, *(f"  {name}: {reason}" for name, reason in loose.items())]


def to_theirs(
    family: Family, architecture: dict[str, Any], spec: TokenSpec, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Our state dict -> the peer's, and what stands where nothing is known, by name; `architecture`
    is canonical.

    Raises ValueError where the peer would read another model from it."""
    names = [name for name in tensors if not OURS_ALONE.fullmatch(name)]
    levels = len(architecture.get("encoder", {}).get("multipliers", ()))
    table = layout.links(family.rows(architecture), names, levels=levels)
    theirs = layout.to_theirs(table, tensors)
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    size = tuple(architecture["image_size"]) if "image_size" in architecture else None
    hints = Hints(family.settings(architecture, spec), size=size, name="the export")
    try:
        description = family.describe(shapes, hints)
    except KeyError as error:
        raise ValueError(f"{family.name} has {error.args[0]}, this model has not") from error
    changed = list(_changes(canonical(description.architecture, spec), architecture))
    if description.spec not in (None, spec):  # the peers' images are square
        assert description.spec is not None
        changed.append(f"its grids are {spec.scales}, there they are {description.spec.scales}")
    if changed:
        raise ValueError(
            f"{family.name} cannot hold this model: {'; '.join(changed)}. A model for export is "
            "trained with the peer's settings"
        )
    more = description.peers_own(spec)
    theirs |= {n: value for n, value in more.items() if n not in description.unsaved}
    return theirs, description.loose


def canonical(architecture: dict[str, Any], spec: TokenSpec) -> dict[str, Any]:
    """The same model with nothing left to defaults, so that two can be compared."""
    node = build.complete(architecture)
    for side in ("encoder", "decoder"):
        if side in node:
            half, count = node[side], len(node[side]["multipliers"])
            blocks = half["blocks"]
            half["blocks"] = [blocks] * count if isinstance(blocks, int) else list(blocks)
            half["attention_levels"] = sorted(level % count for level in half["attention_levels"])
            half["multipliers"] = list(half["multipliers"])
    if "scales" in node.get("bottleneck", {}):
        node["bottleneck"]["scales"] = [list(scale) for scale in spec.scales]
    if "depth" in node:
        node["width"] = node["width"] or 64 * node["depth"]
        node["heads"] = node["heads"] or node["width"] // 64
    if "kv_heads" in node:
        node["kv_heads"] = node["kv_heads"] or node["heads"]
    return node


def _changes(theirs: dict[str, Any], ours: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _changes(a, b, f"{path}{key}.")
        elif a != b and not TRAINING.fullmatch(key):
            yield f"{path}{key} is {b}, there it is {a}"


def _family(saved: checkpoint.SavedModel, wanted: str) -> Family:
    if wanted == AUTO:
        wanted = saved.facts.get("imported", {}).get("family", AUTO)
    fit = [name for name, family in FAMILIES.items() if family.kind == saved.kind]
    if wanted not in fit:
        raise ValueError(
            f"wanted --as with the layout for this {saved.kind}, got {wanted}; type one of "
            f"{', '.join(fit)}"
        )
    return FAMILIES[wanted]
