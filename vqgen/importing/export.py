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
from vqgen.importing import autoencoders, layout, target
from vqgen.importing.convert import AUTO, FAMILIES, KNOWN, check_name
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
    as JSON; returns what was done, with a line for each tensor whose values cannot be known
    and each number that the peer has to change in its code.

    wanted  a family's name; "auto": the one it was imported as, or the only one that can hold it
    Raises ValueError for a model with parts or settings that the peer does not have."""
    if out.suffix not in SUFFIXES:
        raise ValueError(f"wanted --out as a name in {', '.join(SUFFIXES)}, got {out}")
    target.check(out.parent, out.name, out.with_suffix(".json").name)
    if not (folder / kind / "model.safetensors").is_file():
        raise ValueError(
            f"wanted a pipeline folder or a stage-1 run with a {kind} in it, but {folder / kind} "
            "holds no model.safetensors; type another folder, or the other --part"
        )
    saved = checkpoint.read_model(folder / kind, kind)
    families = _families(saved, wanted)
    spec = Beside.of_folder(folder / "tokenizer").spec
    architecture = canonical(saved.architecture, spec)
    family = families[0] if len(families) == 1 else _only(families, architecture, spec, saved)
    tensors, loose = to_theirs(family, architecture, spec, saved.tensors)
    with target.fresh_folder(out.parent, out.name, out.with_suffix(".json").name) as folder:
        if out.suffix == ".safetensors":
            with checkpoint.atomic(folder / out.name) as temporary:
                save_file({name: value.clone() for name, value in tensors.items()}, temporary)
        else:
            place = family.places[0]
            torch.save({place: tensors} if place else tensors, folder / out.name)
        beside = folder / out.with_suffix(".json").name
        settings = family.settings(architecture, spec)
        if "num_classes" in saved.facts and "caption_dim" not in settings:
            settings["num_classes"] = saved.facts["num_classes"]
        beside.write_text(json.dumps(settings, indent=2) + "\n")
    done = f"{out} ({family.name}, {len(tensors)} keys), its settings: {out.with_suffix('.json')}"
    return [
        done,
        *(f"  {name}: {reason}" for name, reason in loose.items()),
        *_written_in(family, architecture),
    ]


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
    wanted = canonical(description.architecture, spec)
    changed = list(_changes(wanted, architecture))
    if description.spec not in (None, spec):  # the peers' images are square
        assert description.spec is not None
        changed.append(f"its grids are {spec.grids}, there they are {description.spec.grids}")
    changed += family.unbuilt(architecture)
    if changed:
        raise ValueError(
            f"{family.name} cannot hold this model: {'; '.join(changed)} (a model for export is "
            f"trained with the peer's settings{_to_type(wanted, architecture)}{_others(family)})"
        )
    more = description.peers_own(spec)
    theirs |= {n: value for n, value in more.items() if n not in description.unsaved}
    return theirs, description.loose


def _written_in(family: Family, architecture: dict[str, Any]) -> Iterator[str]:
    """A line for each number that the peer's code does not take as a setting, and has otherwise."""
    if family.fixed:
        numbers = autoencoders.numbers(architecture)
        for name, value in family.fixed.items():
            if numbers[name] != value:
                yield f"  {name} is {numbers[name]}: change the {value} in {family.name}'s code"


def _to_type(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The switches of a prior with which a model like the peer's would be trained."""
    if not ours["_target_"].startswith("vqgen.priors."):
        return ""
    differ = [key for key in ours if isinstance(theirs.get(key), bool) and theirs[key] != ours[key]]
    return "".join(f", prior.{key}={str(theirs[key]).lower()}" for key in differ)


def _others(family: Family) -> str:
    """Where else such a model may go."""
    same = [one.name for one in KNOWN if one.holds == family.holds and one is not family]
    return f"; or try --as {' or '.join(same)}" if same else ""


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
    if node.get("drop_path", 0.0) is None:  # VAR's rule
        node["drop_path"] = 0.1 * node["depth"] / 24
    if "kv_heads" in node:
        node["kv_heads"] = node["kv_heads"] or node["heads"]
    return node


def _changes(theirs: dict[str, Any], ours: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _changes(a, b, f"{path}{key}.")
        elif a != b and not TRAINING.fullmatch(key):
            there = "nothing that can be read" if a == [] else a
            yield f"{path}{key} is {b}, there it is {there}"


def _families(saved: checkpoint.SavedModel, wanted: str) -> list[Family]:
    """The layouts for a model of this class: the one that was asked for, or the one that it was
    imported as, or all."""
    node = saved.architecture if saved.kind == "prior" else saved.architecture.get("bottleneck", {})
    ours = node.get("_target_", saved.architecture["_target_"])
    fit = [one for one in KNOWN if one.kind == saved.kind and one.holds == ours]
    kinds = ", ".join(sorted({one.holds.split(".")[-1] for one in KNOWN if one.kind == saved.kind}))
    if not fit:
        raise ValueError(
            f"no published layout holds this {saved.kind} of class {ours.split('.')[-1]}: the ones "
            f"there are hold {kinds}; share the folder itself"
        )
    check_name(wanted)
    if wanted == AUTO:
        wanted = saved.facts.get("imported", {}).get("family", AUTO)
    names = [one.name for one in fit]
    if wanted not in (AUTO, *names):
        raise ValueError(
            f"wanted --as with a layout for this {saved.kind}, a {ours.split('.')[-1]}, got "
            f"{wanted}; leave --as out, or type {' or '.join(names)}"
        )
    return fit if wanted == AUTO else [FAMILIES[wanted]]


def _only(
    families: list[Family],
    architecture: dict[str, Any],
    spec: TokenSpec,
    saved: checkpoint.SavedModel,
) -> Family:
    """The one of these layouts that can hold this model."""
    able, reasons = [], []
    for family in families:
        try:
            to_theirs(family, architecture, spec, saved.tensors)
            able.append(family)
        except ValueError as error:
            reasons.append(str(error))
    if not able:
        raise ValueError("; ".join(reasons))
    if len(able) > 1:
        names = " or ".join(family.name for family in able)
        raise ValueError(f"this {saved.kind} fits several layouts; type --as {names}")
    return able[0]
