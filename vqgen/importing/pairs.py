"""Whether a prior and a tokenizer belong together, and whether the typed size suits them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vqgen import build, checkpoint
from vqgen.contracts import Size, TokenSpec
from vqgen.importing.convert import Latents, Match, Published
from vqgen.importing.family import Description


@dataclass(frozen=True)
class Beside:
    """The tokenizer that a prior is to be used with; `family` is None, and `file` empty, for one of
    vqgen's own."""

    family: str | None
    file: str  # what it was imported from
    factor: int  # pixels per side of a token
    latents: Latents

    @property
    def spec(self) -> TokenSpec:
        """Of its tokens."""
        assert isinstance(self.latents.spec, TokenSpec)
        return self.latents.spec

    @classmethod
    def of_match(cls, tokenizer: Published, match: Match) -> "Beside":
        """The tokenizer that is being imported."""
        module = match.module
        factor = module.image_size[0] // module.spec.scales[-1][0]
        name, file = tokenizer.family.name, tokenizer.source.name
        return cls(name, file, factor, Latents(module.spec, module.pyramid))

    @classmethod
    def of_folder(cls, folder: Path) -> "Beside":
        """One that is saved already."""
        saved = checkpoint.read_model(folder, "tokenizer")
        with torch.device("meta"):
            module = build.model(saved.architecture)
        module.load_state_dict(saved.tensors, assign=True)
        origin = saved.facts.get("imported", {})
        if not isinstance(module.spec, TokenSpec):
            raise ValueError("wanted a tokenizer with tokens beside the prior, got features")
        factor = module.image_size[0] // module.spec.scales[-1][0]
        latents = Latents(module.spec, module.pyramid)
        return cls(origin.get("family"), origin.get("file", ""), factor, latents)


def check_kinds(prior: Published, family: str | None, codes: int | None) -> None:
    """Raise a ValueError for a tokenizer that is not of the prior's kind or has another number of
    codes. Needs no settings, so that nobody is asked for those of a pair that cannot work."""
    reasons = []
    if family not in (None, prior.family.partner):
        reasons.append(f"it wants a {prior.family.partner} tokenizer, this one is {family}")
    if None not in (prior.codes, codes) and prior.codes != codes:
        reasons.append(f"it knows {prior.codes} codes, the tokenizer has {codes}")
    _refuse(prior, reasons)


def check_grids(prior: Published, description: Description, beside: Beside) -> None:
    """Raise a ValueError unless this prior was trained on such grids of tokens."""
    want, got, reasons = description.spec, beside.spec, []
    assert want is not None
    if description.factor not in (None, beside.factor):
        reasons.append(
            f"it was trained on tokens of {description.factor} pixels a side, these have "
            f"{beside.factor}"
        )
    elif want.scales != got.scales:
        reasons.append(f"it was trained on grids {want.grids}, the tokenizer gives {got.grids}")
    # the published tokenizers for classes and for texts differ in their values alone
    own = str(description.facts.get("published"))[:3]
    other = {"c2i": "t2i", "t2i": "c2i"}.get(own)
    if other and other in beside.file:
        reasons.append(f"it was trained with the {own} tokenizer, {beside.file} is the {other} one")
    _refuse(prior, reasons)


def check_size(source: Path, size: Size | None, grid: Size, factor: int) -> None:
    """Raise a ValueError if --size is another one than that of this grid of tokens."""
    fits = grid[0] * factor, grid[1] * factor
    if size not in (None, fits):
        assert size is not None
        raise ValueError(
            f"wanted --size {_typed(fits)}, since {source} is made for {_typed(grid)} tokens of "
            f"{factor} pixels a side, got --size {_typed(size)}; leave --size out, or give the "
            "file for that size"
        )


LARGEST = 4096  # pixels a side; one attention over the tokens of that takes 17 GB at factor 16


def parse_size(text: str) -> Size:
    """--size 256 or 256x384 -> (height, width). Raises ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+)(?:x([0-9]+))?", text.strip())
    sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= LARGEST for side in sides):
        raise ValueError(
            f"wanted --size as 1 to {LARGEST} pixels, like 256, or HEIGHTxWIDTH like 256x384, got "
            f"{text!r}"
        )
    return sides


def check_largest(source: Path, size: Sequence[int]) -> None:
    """Raise a ValueError for images of a size that --config made too large."""
    if any(side > LARGEST for side in size):
        raise ValueError(
            f"wanted images of at most {LARGEST} pixels a side, got {'x'.join(map(str, size))} of "
            f"{source}; correct block_size, patch_nums, v_patch_nums or resolution in --config"
        )


def check_multiple(source: Path, size: Size | None, factor: int) -> None:
    """Raise a ValueError if --size is no whole number of tokens."""
    if size is not None and (size[0] % factor or size[1] % factor):
        fits = tuple(max(1, round(side / factor)) * factor for side in size)
        raise ValueError(
            f"wanted --size in multiples of {factor}, the pixels of a token of {source}, got "
            f"--size {_typed(size)}; type --size {_typed(fits)}"
        )


def _typed(size: tuple[int, ...]) -> str:
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _refuse(prior: Published, reasons: list[str]) -> None:
    if reasons:
        raise ValueError(
            f"{prior.source} does not fit this tokenizer: {'; '.join(reasons)}. Give the "
            "tokenizer it was trained with, both files at once and into another --out"
        )
