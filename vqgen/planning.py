"""plan=true of either stage: the models of the config, unloaded, and what training them will
take."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqgen import build, checkpoint, finetune, fitting
from vqgen.data.order import micro_batch_size
from vqgen.training import devices, plan, trial


def stage1(settings: dict[str, Any]) -> dict[str, str]:
    """The rows of a plan; no data are loaded, and LPIPS is only timed.

    Raises ValueError for settings that training would refuse."""
    size = settings["data"]["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    node = settings["tokenizer"]
    if settings["init"]:
        found = finetune.find(settings["init"], "tokenizer")
        node = checkpoint.read_header(found)["architecture"]
    node = {**node, "image_size": list(size)}
    with torch.device("meta"):
        tokenizer = build.make(node)
        loss = build.make({**settings["loss"], "perceptual": None})
    loss.check_size(size)
    parts = partial(build.make, node), partial(build.make, settings["loss"])
    tried = trial.of_tokenizer(*parts, size)
    return plan.plan(settings, tokenizer, others=loss.gan, make=tried, **_shares(settings))


def stage2(settings: dict[str, Any], export: Path, *, typed_data: bool) -> dict[str, str]:
    """The same of a prior for the tokenizer in `export`; the data are those that it had, unless
    they were typed."""
    header = checkpoint.read_header(export)
    tokenizer, prior = fitting.sketch(settings, header)
    fitting.check_size(settings["data"].get("size"), tokenizer, export)
    facts = {} if typed_data else header["facts"]
    shares = _shares(settings)
    tried = trial.of_prior(
        partial(fitting.sketch, settings, header, shares["device"]),
        num_classes=len(header["facts"]["class_names"]),
        encodes="size" in settings["data"],
    )
    images = fitting.training_images(settings, facts)
    return plan.plan(settings, prior, images=images, make=tried, **shares)


def _shares(settings: dict[str, Any]) -> dict[str, Any]:
    """Devices, what each of them computes at once, and what this machine would compute it with."""
    world, train = devices.planned(settings["trainer"]), settings["train"]
    micro = micro_batch_size(train["global_batch"], train["accumulate"], world)
    return {"devices": world, "micro": micro, **build.place(settings)}
