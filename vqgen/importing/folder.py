"""Published files into a pipeline folder: a tokenizer, or a tokenizer and a prior that fit."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from vqgen import checkpoint
from vqgen.importing import agreement, pairs, settings, target
from vqgen.importing.convert import AUTO, Latents, Match, Published, recognize
from vqgen.importing.family import Description, Hints
from vqgen.importing.pairs import Beside


def import_files(
    paths: Sequence[Path],
    out: Path,
    *,
    wanted: Sequence[str] = (),
    weights: str = AUTO,
    hints: Hints | None = None,
) -> list[str]:
    """Write out/tokenizer, or out/tokenizer and out/prior; returns what was done and left out.

    paths   a tokenizer's file, a prior's, or both in any order; a prior alone goes beside the
            tokenizer that is in `out` already
    wanted  the family of each file; () or "auto": by its keys
    Raises ValueError for what cannot be read, is incomplete, or does not belong together; then
    nothing is left behind."""
    hints = hints or Hints()
    target.check(out)
    if wanted and len(wanted) != len(paths):
        files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
        raise ValueError(
            f"wanted one --as per FILE, got {len(wanted)} for {files}; leave all --as out, or type "
            f"{len(paths)}"
        )
    asked = list(zip(paths, wanted or [AUTO] * len(paths), strict=True))
    places = [(path.resolve(), kind) for path, kind in asked]
    twice = [
        path for (path, _), place in zip(asked, places, strict=True) if places.count(place) > 1
    ]
    if twice:
        raise ValueError(
            f"{twice[0]} was given twice; give a tokenizer, a prior, or one of each (for a file "
            "with both: an --as for each)"
        )
    found = [recognize(path, kind, weights) for path, kind in asked]
    tokenizers = [one for one in found if one.family.kind == "tokenizer"]
    priors = [one for one in found if one.family.kind == "prior"]
    if len(tokenizers) > 1 or len(priors) > 1:
        listed = ", ".join(f"{one.source} is {one.family.name}" for one in found)
        raise ValueError(f"wanted one tokenizer and one prior at most, but {listed}")
    if not priors:
        lines = _import_tokenizer(tokenizers[0], out, hints)
    elif tokenizers:
        lines = _import_pair(tokenizers[0], priors[0], out, hints)
    else:
        lines = _add_prior(priors[0], out, hints)
    return lines + settings.unused(hints.config, [one.family.name for one in found])


def _import_tokenizer(tokenizer: Published, out: Path, hints: Hints) -> list[str]:
    target.check(out, "tokenizer")
    factor = _factor(tokenizer, hints)
    pairs.check_multiple(tokenizer.source, hints.size, factor)
    description = tokenizer.describe(hints)
    scales = description.architecture["bottleneck"].get("scales")
    if scales:
        pairs.check_size(tokenizer.source, hints.size, scales[-1], factor)
    match = _loaded(tokenizer, description, hints)
    with target.fresh_folder(out, "tokenizer") as folder:
        save_tokenizer(tokenizer, match, folder)
    return _lines(tokenizer, match, out / "tokenizer", hints)


def _import_pair(tokenizer: Published, prior: Published, out: Path, hints: Hints) -> list[str]:
    target.check(out, "tokenizer", "prior")
    pairs.check_kinds(prior, tokenizer.family.name, tokenizer.codes)
    factor = _factor(tokenizer, hints)
    pairs.check_multiple(tokenizer.source, hints.size, factor)
    description = prior.describe(replace(hints, factor=factor))
    assert description.spec is not None
    height, width = description.spec.scales[-1]
    pairs.check_size(prior.source, hints.size, (height, width), factor)
    size = height * factor, width * factor
    more = replace(hints, size=size, scales=description.spec.scales)
    encoder = _loaded(tokenizer, tokenizer.describe(more), hints)
    beside = Beside.of_match(tokenizer, encoder)
    pairs.check_grids(prior, description, beside)
    match = _loaded(prior, description, hints, beside.latents)
    with target.fresh_folder(out, "tokenizer", "prior") as folder:
        mark = save_tokenizer(tokenizer, encoder, folder)
        save_prior(prior, match, folder, mark)
    return [
        *_lines(tokenizer, encoder, out / "tokenizer", hints),
        *_lines(prior, match, out / "prior", hints),
    ]


def _add_prior(prior: Published, out: Path, hints: Hints) -> list[str]:
    target.check(out, "prior")
    if not (out / "tokenizer" / "model.safetensors").is_file():
        raise ValueError(
            f"{prior.source} is a prior, which samples with its tokenizer only, and {out} has "
            f"none; give both: python scripts/import_weights.py TOKENIZER {prior.source} "
            f"--out {out} ({prior.family.name} wants a {prior.family.partner} file)"
        )
    header = checkpoint.read_header(out / "tokenizer")
    beside = Beside.of_folder(out / "tokenizer")
    pairs.check_kinds(prior, beside.family, beside.spec.vocab_size)
    pairs.check_size(out / "tokenizer", hints.size, beside.spec.scales[-1], beside.factor)
    size = tuple(header["architecture"]["image_size"])
    description = prior.describe(replace(hints, factor=beside.factor, size=size))
    pairs.check_grids(prior, description, beside)
    match = _loaded(prior, description, hints, beside.latents)
    with target.fresh_folder(out, "prior") as folder:
        save_prior(prior, match, folder, header["fingerprint"])
    return _lines(prior, match, out / "prior", hints)


def _factor(tokenizer: Published, hints: Hints) -> int:
    """Pixels per side of a token; the size that was typed may still be wrong."""
    return 2 ** (tokenizer.describe(replace(hints, size=None)).levels - 1)


def _loaded(
    published: Published, description: Description, hints: Hints, latents: Latents | None = None
) -> Match:
    """The module of this description with the file's weights, which --config may not contradict."""
    pairs.check_largest(published.source, description.architecture.get("image_size", ()))
    match = Match(published.family, description, latents)
    agreement.check(published.source, match, hints)
    load(published, match)
    return match


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


def _lines(published: Published, match: Match, folder: Path, hints: Hints) -> list[str]:
    """What was imported; what else the file holds; the settings that nothing told; the keys that
    were not needed, a line for each reason."""
    count = sum(parameter.numel() for parameter in match.module.parameters())
    spec, left_out = match.module.spec, match.left_out(published.tensors)
    done = (
        f"{published.source.name}: {published.family.name}, {count:,} parameters, weights under "
        f"{published.place or 'no key'}, tokens {spec.scales[-1]} of {spec.vocab_size} -> {folder}"
    )
    lines, beside = [done], published.beside
    if beside:
        more = f" and {len(beside) - 8} more" if len(beside) > 8 else ""
        kept = f"{', '.join(beside[:8])}{more}"
        lines.append(f"  taken: {published.place}; left in the file: {kept}")
    if assumed := agreement.assumed(match, hints):
        lines.append(f"  no key tells, so as published (--config changes it): {assumed}")
    return lines + [f"  left out: {line}" for line in _by_reason(left_out)]


def _by_reason(left_out: dict[str, str]) -> list[str]:
    found: dict[str, list[str]] = {}
    for name in sorted(left_out):
        found.setdefault(left_out[name], []).append(name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''} ({reason})"
        for reason, names in found.items()
    ]
