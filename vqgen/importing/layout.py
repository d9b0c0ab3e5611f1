"""A family's parameter names in ours, as a table that reads from both sides: import and export."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def axes(shapes: Shapes, name: str, count: int) -> tuple[int, ...]:
    """The sides of a tensor that must have this many; KeyError if it is not there, ValueError for
    another number of them."""
    if len(shapes[name]) != count:
        raise ValueError(f"wanted {name} with {count} axes, the file has it as {shapes[name]}")
    return shapes[name]


@dataclass(frozen=True)
class Row:
    """One line of the table: `ours` stacked along the first axis are `theirs` stacked along it.

    ours, theirs  a name, or several separated by spaces (one side at least is a single one).
                  {word} stands for a part between dots, the same on both sides; {i} is a level
                  counted from the finest and {up} the same counted from the other end
    shape         the peer's shape where it differs: one -1 for what is left; a last 0 is our last
                  axis
    """

    ours: str
    theirs: str
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Link:
    """A row with its words filled in: names of tensors."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shape: tuple[int, ...] | None


def links(rows: Iterable[Row], names: Iterable[str], *, levels: int = 0) -> list[Link]:
    """Fill the table in for a model with these parameter names; each is matched by one row.

    levels  of the autoencoder, for {up}
    Raises ValueError for a name that no row knows: the peer has no such part."""
    found, unknown = {}, []
    patterns = [(row, re.compile(_pattern(row.ours.split()[0]))) for row in rows]
    covered: set[str] = set()
    for name in names:
        for row, pattern in patterns:
            words = pattern.fullmatch(name)
            if words:
                filled = words.groupdict()
                if "i" in filled:
                    filled["up"] = str(levels - 1 - int(filled["i"]))
                ours = tuple(part.format(**filled) for part in row.ours.split())
                theirs = tuple(part.format(**filled) for part in row.theirs.split())
                found[ours] = Link(ours, theirs, row.shape)
                covered.update(ours)
                break
        else:
            unknown.append(name)
    unknown = [name for name in unknown if name not in covered]
    if unknown:
        raise ValueError(f"the peer has no place for {', '.join(unknown[:5])}")
    return list(found.values())


def expected(table: Iterable[Link], ours: Shapes) -> dict[str, tuple[int, ...]]:
    """The peer's names and shapes for a model with these shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for link in table:
        rows = sum(ours[name][0] for name in link.ours)
        whole = (rows, *ours[link.ours[0]][1:])
        part = (whole[0] // len(link.theirs), *whole[1:])
        shapes |= {name: _reshaped(part, link.shape) for name in link.theirs}
    return shapes


def to_ours(table: Iterable[Link], theirs: Mapping[str, Tensor], ours: Shapes) -> dict[str, Tensor]:
    """The peer's tensors under our names, as float32; they fit `expected`."""
    tensors: dict[str, Tensor] = {}
    for link in table:
        whole = _stack([theirs[name] for name in link.theirs])
        parts = [ours[name] for name in link.ours]
        whole = whole.reshape(sum(part[0] for part in parts), *parts[0][1:])
        split = whole.split([part[0] for part in parts])
        tensors |= zip(link.ours, split, strict=True)
    return tensors


def to_theirs(table: Iterable[Link], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the peer's names: undoes `to_ours`."""
    tensors: dict[str, Tensor] = {}
    for link in table:
        whole = _stack([ours[name] for name in link.ours])
        for name, part in zip(link.theirs, whole.chunk(len(link.theirs)), strict=True):
            tensors[name] = part.reshape(_reshaped(tuple(part.shape), link.shape))
    return tensors


def difference(wanted: Shapes, given: Shapes, source: str) -> str:
    """What a file has too little, too much or in another shape; empty if nothing."""
    lines = [f"  missing  {name} {wanted[name]}" for name in wanted if name not in given]
    lines += [f"  unknown  {name} {given[name]}" for name in given if name not in wanted]
    lines += [
        f"  shape    {name}: wanted {wanted[name]}, the file has {given[name]}"
        for name in wanted
        if name in given and wanted[name] != given[name]
    ]
    if not lines:
        return ""
    more = f"\n  ... and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"{source}:\n" + "\n".join(lines[:20]) + more


def _pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(template))


def _reshaped(shape: tuple[int, ...], wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    if wanted is None:
        return shape
    sides = [shape[-1] if side == 0 else side for side in wanted]
    known = -prod(sides)  # one entry is -1
    return tuple(prod(shape) // known if side == -1 else side for side in sides)


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
