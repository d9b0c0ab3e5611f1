"""Published files into a pipeline folder: a tokenizer, or a tokenizer and a prior that fit."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vqgen import build, checkpoint
from vqgen.contracts import TokenSpec
from vqgen.importing.convert import AUTO, Latents, Match, Published, recognize
from vqgen.importing.family import Description, Hints


def import_files(
    paths: Sequence[Path],
    out: Path,
    *,
    wanted: Sequence[str] = (),
    weights: str = AUTO,
    hints: Hints | None = None,
) -> list[str]:
    """Write out/tokenizer, or out/tokenizer and out/prior; returns what was done, a line each.

    paths   a tokenizer's file, a prior's, or both in any order; a prior alone goes beside the
            tokenizer that is in `out` already
    wanted  the family of each file; () or "auto": by its keys
    Raises ValueError for what cannot be read, is incomplete, or does not belong together; then
    nothing is left behind."""
    hints = hints or Hints()
    if wanted and len(wanted) != len(paths):
        raise ValueError(f"wanted one --as per file, got {len(wanted)} for {len(paths)} files")
    found = [
        recognize(path, kind, weights)
        for path, kind in zip(paths, wanted or [AUTO] * len(paths), strict=True)
    ]
    tokenizers = [one for one in found if one.family.kind == "tokenizer"]
    priors = [one for one in found if one.family.kind == "prior"]
    if len(tokenizers) > 1 or len(priors) > 1:
        listed = ", ".join(f"{one.source.name} is {one.family.name}" for one in found)
        raise ValueError(f"wanted one tokenizer and one prior at most, but {listed}")
    if not priors:
        return _import_tokenizer(tokenizers[0], out, hints)
    if tokenizers:
        return _import_pair(tokenizers[0], priors[0], out, hints)
    return _add_prior(priors[0], out, hints)


def _import_tokenizer(tokenizer: Published, out: Path, hints: Hints) -> list[str]:
    match = Match(tokenizer.family, tokenizer.describe(hints))
    load(tokenizer, match)
    with fresh_folder(out, "tokenizer") as folder:
        save_tokenizer(tokenizer, match, folder)
    return [_line(tokenizer, match, out / "tokenizer")]


def _import_pair(tokenizer: Published, prior: Published, out: Path, hints: Hints) -> list[str]:
    factor = 2 ** (tokenizer.describe(hints).levels - 1)
    description = prior.describe(replace(hints, factor=factor))
    assert description.spec is not None
    height, width = description.spec.scales[-1]
    size = hints.size or (height * factor, width * factor)
    more = replace(hints, size=size, scales=description.spec.scales)
    encoder = Match(tokenizer.family, tokenizer.describe(more))
    load(tokenizer, encoder)
    beside = Beside.of_match(tokenizer.family.name, encoder)
    _check_pair(prior, description, beside)
    match = Match(prior.family, description, beside.latents)
    load(prior, match)
    with fresh_folder(out, "tokenizer", "prior") as folder:
        mark = save_tokenizer(tokenizer, encoder, folder)
        save_prior(prior, match, folder, mark)
    return [
        _line(tokenizer, encoder, out / "tokenizer"),
        _line(prior, match, out / "prior"),
    ]


def _add_prior(prior: Published, out: Path, hints: Hints) -> list[str]:
    if not (out / "tokenizer" / "model.safetensors").is_file():
        raise ValueError(
            f"{prior.source.name} is a prior, which samples with its tokenizer only, and {out} has "
            f"none; give both: python scripts/import_weights.py TOKENIZER {prior.source} "
            f"--out {out} ({prior.family.name} wants a {prior.family.partner} file)"
        )
    header = checkpoint.read_header(out / "tokenizer")
    beside = Beside.of_folder(out / "tokenizer")
    size = hints.size or tuple(header["architecture"]["image_size"])  # of the tokenizer there
    description = prior.describe(replace(hints, factor=beside.factor, size=size))
    _check_pair(prior, description, beside)
    match = Match(prior.family, description, beside.latents)
    load(prior, match)
    with fresh_folder(out, "prior") as folder:
        save_prior(prior, match, folder, header["fingerprint"])
    return [_line(prior, match, out / "prior")]


@dataclass(frozen=True)
class Beside:
    """The tokenizer that a prior is to be used with; `family` is None for one of vqgen's own."""

    family: str | None
    factor: int  # pixels per side of a token
    latents: Latents

    @property
    def spec(self) -> TokenSpec:
        """Of its tokens."""
        assert isinstance(self.latents.spec, TokenSpec)
        return self.latents.spec

    @classmethod
    def of_match(cls, family: str, match: Match) -> "Beside":
        """The tokenizer that is being imported."""
        module = match.module
        factor = module.image_size[0] // module.spec.scales[-1][0]
        return cls(family, factor, Latents(module.spec, module.pyramid))

    @classmethod
    def of_folder(cls, folder: Path) -> "Beside":
        """One that is saved already."""
        saved = checkpoint.read_model(folder, "tokenizer")
        with torch.device("meta"):
            module = build.model(saved.architecture)
        module.load_state_dict(saved.tensors, assign=True)
        family = saved.facts.get("imported", {}).get("family")
        if not isinstance(module.spec, TokenSpec):
            raise ValueError("wanted a tokenizer with tokens beside the prior, got features")
        factor = module.image_size[0] // module.spec.scales[-1][0]
        return cls(family, factor, Latents(module.spec, module.pyramid))


def _check_pair(prior: Published, description: Description, beside: Beside) -> None:
    """Raise a ValueError unless this prior was trained on such tokens."""
    want, got = description.spec, beside.spec
    assert want is not None
    reasons = []
    if beside.family not in (None, prior.family.partner):
        reasons.append(f"it wants a {prior.family.partner} tokenizer, this one is {beside.family}")
    if want.vocab_size != got.vocab_size:
        reasons.append(f"it knows {want.vocab_size} codes, the tokenizer has {got.vocab_size}")
    if description.factor not in (None, beside.factor):
        reasons.append(
            f"it was trained on tokens of {description.factor} pixels a side, these have "
            f"{beside.factor}"
        )
    elif want.scales != got.scales:
        reasons.append(f"it was trained on grids {want.scales}, the tokenizer gives {got.scales}")
    if reasons:
        raise ValueError(
            f"{prior.source.name} does not fit this tokenizer: {'; '.join(reasons)}. Give the "
            "tokenizer it was trained with, or another --size"
        )


def load(published: Published, match: Match) -> None:
    """Put the weights into the module without a copy: what is mapped stays on disk."""
    tensors = match.to_ours(published.tensors, str(published.source))
    match.module.load_state_dict(tensors, assign=True)


def save_tokenizer(published: Published, match: Match, folder: Path) -> str:
    """Write folder/tokenizer; returns its fingerprint."""
    facts = {"class_names": [], **_origin(published), **match.description.facts}
    return _save(published, match, folder / "tokenizer", facts)


def save_prior(published: Published, match: Match, folder: Path, mark: str) -> None:
    """Write folder/prior, for the tokenizer with this fingerprint."""
    count = match.description.num_classes
    facts = {
        "class_names": imagenet_classes()
        if count == 1000
        else [f"class {i}" for i in range(count)],
        "num_classes": count,
        "tokenizer_fingerprint": mark,
        **_origin(published),
        **match.description.facts,
    }
    _save(published, match, folder / "prior", facts)


def imagenet_classes() -> list[str]:
    """The 1000 names of ImageNet-1k (ILSVRC 2012) by class index, as torchvision has them; only
    number 264 is longer, since it differs from 474 in its capital letter alone."""
    text = resources.files("vqgen.importing").joinpath("imagenet_classes.txt").read_text()
    return text.splitlines()


def _save(published: Published, match: Match, folder: Path, facts: dict[str, Any]) -> str:
    return checkpoint.save_model(
        folder,
        match.module,
        kind=published.family.kind,
        architecture=match.description.architecture,
        facts=facts,
    )


def _origin(published: Published) -> dict[str, Any]:
    origin = {"family": published.family.name, "file": published.source.name}
    return {"imported": {**origin, "weights": published.place or "(the file itself)"}}


def _line(published: Published, match: Match, folder: Path) -> str:
    count = sum(parameter.numel() for parameter in match.module.parameters())
    spec = match.module.spec
    return (
        f"{published.source.name}: {published.family.name}, {count:,} parameters, weights under "
        f"{published.place or 'no key'}, tokens {spec.scales[-1]} of {spec.vocab_size} -> {folder}"
    )


@contextmanager
def fresh_folder(out: Path, *names: str) -> Iterator[Path]:
    """Yield an empty folder on the same disk; at the end its folders `names` become out/<name>, all
    or none. Raises ValueError if one is there already."""
    taken = [str(out / name) for name in names if (out / name).exists()]
    if taken:
        raise ValueError(f"{' and '.join(taken)} exist already; type another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    temporary = out / f".{os.getpid()}.writing"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for name in names:
            os.replace(temporary / name, out / name)
    except BaseException:
        for name in names:
            shutil.rmtree(out / name, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:  # empty again if it failed
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
