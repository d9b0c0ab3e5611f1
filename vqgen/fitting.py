"""Which tokenizer a prior is trained on: the one that was typed, or the newest run that fits; and
whether the data suits it."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqgen import build, checkpoint, features, finetune, pipeline, runs
from vqgen.contracts import Prior, Tokenizer
from vqgen.data import cache


def find_tokenizer(settings: dict[str, Any]) -> Path:
    """The tokenizer=PATH that was typed, or the newest stage-1 run whose latents this prior can
    read (and that made the cache, for data=cache).

    settings  the resolved config of stage 2. Raises ValueError if there is none."""
    build.check_path(settings["prior"])
    if settings["as_features"]:
        features.check(settings["prior"])
    if settings["tokenizer"] == "auto" and settings["init"]:
        return finetune.find(settings["init"], "tokenizer")
    cached = cache.made_from(settings["data"])
    command = "python train_stage1.py (what the prior needs is said above), or tokenizer=PATH"
    if cached:
        command = f"tokenizer={cached.tokenizer_path}, where the one that made the cache was"
    fits = partial(
        refusal,
        settings["prior"],
        fingerprint=cached and cached.tokenizer,
        as_features=settings["as_features"],
    )
    root = Path(settings["run"]["root"])
    return runs.stage1_export(settings["tokenizer"], root, refusal=fits, command=command)


def check_size(size: Any, tokenizer: Tokenizer, export: Path | str) -> None:
    """Raise ValueError if images of this size, a number or (height, width), are not what the
    tokenizer takes; None is a cache's, which was made by it."""
    height, width = tokenizer.image_size
    given = (size, size) if isinstance(size, int) else tuple(size or (height, width))
    if given != (height, width):
        raise ValueError(
            f"the tokenizer {export} takes images of {tokenizer.image_size}, the data gives "
            f"{given}; type data.size=[{height},{width}] or another tokenizer=PATH"
        )


def check_data(settings: dict[str, Any], data: Any, tokenizer: Tokenizer) -> None:
    """Raise ValueError for data of another size than the tokenizer's, and where images are needed
    but the data is a cache of latents.

    settings  the resolved config of stage 2; data: the data module made of it"""
    check_size(data.image_size, tokenizer, settings["tokenizer"])
    has_images = "size" in settings["data"]
    if not has_images and (settings["as_features"] or settings["small_fd"]["samples"]):
        raise ValueError(
            "as_features=true and small_fd.samples need images, and data=cache holds latents; "
            "leave them out, or type data=emoji, data=folder ..."
        )


def sketch(
    settings: dict[str, Any], header: dict[str, Any], device: str = "meta"
) -> tuple[Tokenizer, Prior]:
    """The tokenizer of this header and the prior that would be trained on it, with random weights,
    or on the meta device without memory for them."""
    architecture, node = header["architecture"], settings["prior"]
    if settings["as_features"]:
        architecture = features.wrapped(architecture)
    if settings["init"]:
        node = checkpoint.read_header(finetune.find(settings["init"], "prior"))["architecture"]
    with torch.device(device):
        tokenizer = build.model(architecture)
        return tokenizer, build.prior(
            node, tokenizer, num_classes=len(header["facts"]["class_names"])
        )


def training_images(settings: dict[str, Any], facts: dict[str, Any]) -> int | None:
    """Images of an epoch: of the cache, or of the data that the tokenizer with these facts had;
    None where only the data could tell."""
    cached = cache.made_from(settings["data"])
    return cached.images["train"] if cached else facts.get("data", {}).get("train_images")


def refusal(
    prior: dict[str, Any],
    export: Path,
    *,
    fingerprint: str | None = None,
    as_features: bool = False,
) -> str | None:
    """Why the prior of this config node cannot read the latents of a tokenizer export, or that it
    is not the one of this fingerprint; None if it can."""
    load = features.load if as_features else pipeline.load_tokenizer
    try:
        tokenizer, _, mark = load(export)
        if fingerprint is not None and mark != fingerprint:
            return f"its tokenizer ({mark}) is not the one that made the cache ({fingerprint})"
        build.check_pair(prior, tokenizer.spec)
    except ValueError as error:
        return str(error)
    return None
