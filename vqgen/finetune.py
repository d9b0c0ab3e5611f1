"""The weights of a saved model as the start of a training: `init=DIR` of both stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vqgen import build, checkpoint
from vqgen.contracts import Prior, Tokenizer

SAMPLING = ("guidance", "knobs", "knobs_source")  # facts that a fine-tuned prior keeps


@dataclass(frozen=True)
class Start:
    """The model that a training starts from.

    settings      its node, as the run's config.yaml keeps it
    architecture  what build.py makes it from, as the export keeps it
    facts         for the export
    """

    model: Any
    settings: dict[str, Any]
    architecture: dict[str, Any]
    facts: dict[str, Any]


def begin_tokenizer(
    settings: dict[str, Any], typed: Sequence[str], image_size: Sequence[int]
) -> Start:
    """The tokenizer of init=DIR, or a new one of the settings.

    typed  the overrides of this start: with init=, none of them may describe a tokenizer"""
    if settings["init"]:
        refuse_typed(typed, "tokenizer")
        return tokenizer(settings["init"], image_size)
    node = settings["tokenizer"]
    architecture = {**node, "image_size": list(image_size)}
    return Start(build.make(architecture), node, architecture, {})


def begin_prior(
    settings: dict[str, Any], typed: Sequence[str], beside: Tokenizer, num_classes: int
) -> Start:
    """The prior of init=DIR, or a new one of the settings, for the latents of a tokenizer."""
    if settings["init"]:
        refuse_typed(typed, "prior")
        path = find(settings["init"], "prior")
        if checkpoint.read_header(path)["architecture"].get("text_length"):
            raise ValueError(
                f"{path} is a text-to-image model, and training one on needs a caption for each "
                "image, which is not supported; it samples with sample.py text=, and init=DIR "
                "takes a model by class or without a condition"
            )
        return prior(settings["init"], beside, num_classes)
    node = settings["prior"]
    return Start(build.prior(node, beside, num_classes=num_classes), node, node, {})


def find(folder: str | Path, kind: str) -> Path:
    """The saved tokenizer or prior in a run, a pipeline folder or an imported one.

    Raises ValueError if there is none."""
    for found in (Path(folder) / "pipeline" / kind, Path(folder) / kind, Path(folder)):
        if (found / "model.safetensors").is_file():
            return found
    raise ValueError(
        f"wanted init=DIR with a {kind} in it (a run, or what scripts/import_weights.py made), got "
        f"{folder}, which {'holds none' if Path(folder).exists() else 'does not exist'}"
    )


def tokenizer(folder: str | Path, image_size: Sequence[int]) -> Start:
    """The tokenizer of a folder, for images of this (height, width)."""
    path = find(folder, "tokenizer")
    saved = checkpoint.read_model(path, "tokenizer")
    architecture = {**saved.architecture, "image_size": list(image_size)}
    model: Tokenizer = build.model(architecture)
    checkpoint.load_strict(model, saved.tensors, str(path))
    return Start(model, architecture, architecture, {"init": str(folder)})


def prior(folder: str | Path, beside: Tokenizer, num_classes: int) -> Start:
    """The prior of a folder, for the latents of this tokenizer and so many classes.

    Where the number of classes is another one, every class starts as "no class"."""
    path = find(folder, "prior")
    saved = checkpoint.read_model(path, "prior")
    model: Prior = build.prior(saved.architecture, beside, num_classes=num_classes)
    tensors = dict(saved.tensors)
    before = saved.facts["num_classes"]
    if before and num_classes and before != num_classes:
        tables = _class_tables(model, tensors, before - num_classes)
        print(f"{path} knows {before} classes, the data {num_classes}: all start as no class")
        tensors |= {name: tensors[name][-1:].repeat(num_classes + 1, 1) for name in tables}
    checkpoint.load_strict(model, tensors, str(path))
    kept = {name: saved.facts[name] for name in SAMPLING if name in saved.facts}
    return Start(model, saved.architecture, saved.architecture, {**kept, "init": str(folder)})


def refuse_typed(words: Sequence[str], group: str) -> None:
    """Raise a ValueError if settings of a model were typed beside init=, which brings its own."""
    typed = [word for word in words if word.lstrip("+~").split("=")[0].split(".")[0] == group]
    if typed:
        raise ValueError(
            f"init=DIR brings the {group} with all its sizes, but {typed[0]} was typed as well; "
            "leave out the one or the other"
        )


def _class_tables(model: Prior, tensors: dict[str, Tensor], fewer: int) -> list[str]:
    """The embeddings of classes, whose last row is "no class": they alone change with the number of
    classes."""
    own = model.state_dict()
    return [
        name
        for name, tensor in tensors.items()
        if name in own
        and tensor.ndim == 2
        and tensor.shape[1] == own[name].shape[1]
        and tensor.shape[0] - own[name].shape[0] == fewer
    ]
