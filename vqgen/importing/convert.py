"""Published weights into vqgen's modules: recognize, describe, match by name, check."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgen import build
from vqgen.contracts import LatentSpec, Pyramid
from vqgen.importing import files, layout
from vqgen.importing.family import Description, Family, Hints
from vqgen.importing.llamagen import LLAMAGEN_GPT
from vqgen.importing.var import VAR
from vqgen.importing.var_vae import VAR_VAE
from vqgen.importing.vqgan import LLAMAGEN_VQ, TAMING_VQGAN
from vqgen.words import nearest

KNOWN = (LLAMAGEN_VQ, LLAMAGEN_GPT, VAR_VAE, VAR, TAMING_VQGAN)
FAMILIES = {family.name: family for family in KNOWN}
AUTO = "auto"
CLOSE = 1e-2  # files in bfloat16 store derivable tables to 3 digits


@dataclass(frozen=True)
class Latents:
    """What a prior has to know of a tokenizer."""

    spec: LatentSpec
    pyramid: Pyramid | None = None


@dataclass(frozen=True)
class Published:
    """The weights of one file, recognized: still under the peer's names, on disk where the format
    allows."""

    family: Family
    source: Path
    place: str  # where in the file
    tensors: Mapping[str, Tensor]
    beside: Sequence[str] = ()  # what else the file holds

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By the peer's names."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def codes(self) -> int | None:
        """How many codes its tokens may name; None if the file has no table of them."""
        table = self.tensors.get(self.family.codes)
        return table.shape[0] if table is not None and table.ndim else None

    def describe(self, hints: Hints) -> Description:
        """Raises ValueError for a file of another layout than the family's."""
        empty = next((name for name, shape in self.shapes.items() if 0 in shape), None)
        if empty:
            raise ValueError(f"{self.source} is damaged: {empty} holds no numbers; get it again")
        try:
            return self.family.describe(self.shapes, replace(hints, name=self.source.name))
        except KeyError as error:
            raise ValueError(
                f"{self.source} looks like {self.family.name}, but has no {error.args[0]!r}; "
                "give the file as it was released"
            ) from error
        except IndexError as error:  # a scalar, say, where a matrix tells the width
            raise ValueError(
                f"{self.source} looks like {self.family.name}, but some of its tensors have fewer "
                "axes than there; give the file as it was released"
            ) from error


def check_name(wanted: str) -> None:
    """Raise a ValueError if --as names no family."""
    kinds = (AUTO, *FAMILIES)
    if wanted not in kinds:
        raise ValueError(
            f"wanted --as as one of {', '.join(kinds)}, got {wanted!r}{nearest(wanted, kinds)}"
        )


def recognize(path: Path, wanted: str = AUTO, weights: str = AUTO) -> Published:
    """Read a file and find out what it is by its keys.

    wanted   a family's name, or "auto"
    weights  "auto" (what the peer's own scripts take), "model" or "ema"
    Raises ValueError for a file of no known family, or of another one than wanted."""
    check_name(wanted)
    file, reasons = files.read(path), []
    first = [FAMILIES[wanted]] if wanted != AUTO else []  # a file may hold two models
    for family in first + list(KNOWN):
        try:
            tensors, place = file.tensors(_places(family, weights))
        except files.Refused:
            raise
        except ValueError as error:
            reasons.append(error)
            continue
        if family.mark not in tensors:
            continue
        if wanted not in (AUTO, family.name):
            raise ValueError(
                f"{path} was to be {wanted}, but its keys are those of {family.name} (it has "
                f"{family.mark}); type --as {family.name}, or give another file"
            )
        return Published(family, path, place, tensors, file.beside(place))
    if len(reasons) == len(first) + len(KNOWN):
        raise reasons[0]
    raise ValueError(
        f"{path} is none of {', '.join(FAMILIES)}: it has none of the keys "
        f"{', '.join(family.mark for family in FAMILIES.values())}"
    )


def _places(family: Family, weights: str) -> tuple[str, ...]:
    if weights == AUTO:
        return ("ema", *family.places) if family.averaged else family.places
    return family.places if weights == "model" else (weights,)


class Match:
    """A described model beside the peer's names: what goes where.

    latents  of a prior: those of its tokenizer; None: those that the description says it was
             trained on
    """

    def __init__(
        self, family: Family, description: Description, latents: Latents | None = None
    ) -> None:
        self.family, self.description = family, description
        self.latents = latents
        with torch.device("meta"):
            self.module = self._make()  # names and shapes, no memory
        self.shapes = {n: tuple(v.shape) for n, v in self.module.state_dict().items()}
        self.own = {**description.own, **_frozen(latents)}
        names = [name for name in self.shapes if name not in self.own]
        self.links = layout.links(
            family.rows(description.architecture), names, levels=description.levels
        )
        self.wanted = layout.expected(self.links, self.shapes)

    def _make(self) -> Any:
        node = self.description.architecture
        if self.family.kind == "tokenizer":
            return build.model(node)
        latents = self.latents
        if latents is None:
            assert self.description.spec is not None
            latents = Latents(self.description.spec)
        return build.prior(node, latents, num_classes=self.description.num_classes)

    @cached_property
    def peers_own(self) -> dict[str, Tensor]:
        """The peer's tensors that follow from the sizes."""
        return self.description.peers_own(self.module.spec)

    def to_ours(self, theirs: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
        """The peer's tensors -> our state dict, float32, every value checked.

        Raises ValueError with a list of what does not fit."""
        given = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
        extra = self.left_out(theirs)
        wrong = layout.difference(
            self.wanted, {n: s for n, s in given.items() if n not in extra}, source
        )
        if wrong:
            raise ValueError(
                f"{wrong}\nIt is not the {self.family.name} that its sizes describe; give the file "
                "as it was released"
            )
        ours = layout.to_ours(self.links, theirs, self.shapes)
        for name, tensor in ours.items():
            if not tensor.is_floating_point():
                raise ValueError(
                    f"{source} is damaged: wanted weights as floating-point numbers, got {name} as "
                    f"{tensor.dtype}"
                )
        ours |= self.own
        return {name: _checked(name, tensor, source) for name, tensor in ours.items()}

    def left_out(self, theirs: Mapping[str, Tensor]) -> dict[str, str]:
        """The peer's names that need no place with us -> why; ValueError if a derivable one has
        another value than it should."""
        reasons = {}
        for name in theirs.keys() - self.wanted.keys():
            for pattern, reason in self.family.ignored:
                if re.fullmatch(pattern, name):
                    reasons[name] = reason
            if name in self.description.loose:
                reasons[name] = "a record of its training"
            elif name in self.peers_own:
                self._check_derived(name, theirs[name])
                reasons[name] = "checked: it follows from the sizes"
        return reasons

    def _check_derived(self, name: str, tensor: Tensor) -> None:
        if tensor.is_meta:
            return
        want = self.peers_own[name]
        if tensor.shape != want.shape:
            wrong = f"has the shape {tuple(tensor.shape)}, not {tuple(want.shape)} as follows"
        elif not torch.allclose(tensor.float(), want.float(), atol=CLOSE, rtol=0):
            wrong = "has its shape, but its values differ from those that follow"
        else:
            return
        raise ValueError(
            f"{name} {wrong} from this model's sizes: the file is damaged, or was made with other "
            "settings; give them with --config"
        )


def _frozen(latents: Latents | None) -> dict[str, Tensor]:
    """What a prior keeps of its tokenizer."""
    if latents is None or latents.pyramid is None:
        return {}
    return {f"pyramid.{name}": value for name, value in latents.pyramid.state_dict().items()}


def _checked(name: str, tensor: Tensor, source: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if not tensor.is_meta and not bool(torch.isfinite(tensor.sum())):  # one pass, no copy
        raise ValueError(
            f"{source} is damaged: {name} holds values that are infinite or no numbers"
        )
    return tensor.contiguous()
