"""Stage 2: train a prior over the latents of a stage-1 run. `python train_stage2.py
[prior=llamagen] [tokenizer=PATH] ...`"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from vqgen import build, checkpoint, cli, features, finetune, pipeline, runs
from vqgen.contracts import Tokenizer
from vqgen.data import cache
from vqgen.data.order import micro_batch_size
from vqgen.evaluation import small
from vqgen.training import devices, latents, launch, plan
from vqgen.training.stage2 import Stage2


@cli.entry("stage2", "train_stage2")
def main(config: DictConfig) -> int:
    """Find the tokenizer, build data and prior, train, export runs/stage2/<run>/pipeline."""
    if config.plan:
        return show_plan(build.plain(config))
    name = f"{cli.choice('prior')}-{cli.choice('data')}"
    resumed = launch.find_resumed(build.plain(config), stage="stage2", name=name)
    words = cli.merged(launch.stored_overrides(resumed)) if resumed else cli.typed_overrides()
    chosen = build.plain(cli.compose("train_stage2", words))
    export = devices.once(lambda: find_tokenizer(chosen))
    if not resumed:  # the data that the tokenizer was trained on, unless told otherwise
        words = cli.merged(launch.stored_overrides(export.parent), group="data")
    settings = build.plain(cli.compose("train_stage2", words))
    settings["tokenizer"] = str(export)
    wrap = settings["as_features"] and not resumed  # a resumed run has the wrapped one already
    source = resumed / "tokenizer" if resumed and settings["as_features"] else export
    tokenizer, _, fingerprint = (features.load if wrap else pipeline.load_tokenizer)(source)
    seed_everything(settings["train"]["seed"], verbose=False)
    data = build.data(settings)
    check_size(data.image_size, tokenizer, export)
    batches = data.latents(tokenizer, fingerprint)
    start = finetune.begin_prior(settings, cli.typed_overrides(), tokenizer, data.num_classes)
    prior, settings["prior"] = start.model, start.settings
    if settings["prior"].get("label_dropout") == 0:  # no null condition was learned to guide by
        settings["preview"]["guidance"] = 1.0
    device = build.device("auto")
    has_images = "size" in settings["data"]  # a cache has none, and was made by this tokenizer
    if not has_images and (settings["as_features"] or settings["small_fd"]["samples"]):
        raise ValueError(
            "as_features=true and small_fd.samples need images, and data=cache holds latents; "
            "leave them out, or type data=emoji, data=folder ..."
        )
    if wrap:
        latents.standardize_(tokenizer, data, device)
    measured = latents.check(tokenizer, data, device) if has_images else {}
    distance = small.measure(data, settings["small_fd"])
    words = [
        *(word for word in words if not word.startswith("tokenizer=")),
        f"tokenizer='{export}'",
    ]
    run = launch.open_run(settings, words, resumed, stage="stage2", name=name)
    if wrap:
        source = run.folder / "tokenizer"
        fingerprint = devices.once(partial(features.save, source, tokenizer, export))
    batches.samples_seen = run.counters.samples
    module = Stage2(
        prior,
        launch.recipe(settings["train"]),
        image_size=tokenizer.image_size,
        preview=partial(pipeline.preview, tokenizer, tuple(data.class_names), settings["preview"]),
        tokenizer=source,
        architecture=start.architecture,
        facts={
            "class_names": list(data.class_names),
            "num_classes": data.num_classes,
            "tokenizer_fingerprint": fingerprint,
            "data": data.describe(),
            **start.facts,
        },
        small_fd=distance
        and partial(
            distance.of_prior, tokenizer=tokenizer, guidance=settings["preview"]["guidance"]
        ),
    )
    derived = {"run": str(run.folder), "tokenizer": str(export), **measured, **data.describe()}
    derived |= build.sizes(prior=prior)
    launch.print_recipe(settings, derived)
    boards = build.boards(settings, derived, run.folder, run.counters.facts)
    precision = build.precision(settings)
    return launch.train(module, batches, run, settings, boards=boards, precision=precision)


def show_plan(settings: dict) -> int:
    """plan=true: what the run would take; no data and no weights of a prior are loaded."""
    export = find_tokenizer(settings)
    words = cli.merged(launch.stored_overrides(export.parent), group="data")
    settings = build.plain(cli.compose("train_stage2", words))  # as training will find it
    header = checkpoint.read_header(export)
    architecture = header["architecture"]
    if settings["as_features"]:
        architecture = features.wrapped(architecture)
    node = settings["prior"]
    if settings["init"]:
        found = finetune.find(settings["init"], "prior")
        node = checkpoint.read_header(found)["architecture"]
    names = header["facts"]["class_names"]
    with torch.device("meta"):
        tokenizer = build.model(architecture)
        prior = build.prior(node, tokenizer, num_classes=len(names))
    check_size(settings["data"].get("size"), tokenizer, export)
    world = devices.planned(settings["trainer"])
    typed = any(word.lstrip("+~").startswith("data") for word in cli.typed_overrides())
    cached = cache.made_from(settings["data"])
    known = {} if typed else header["facts"].get("data", {})
    images = cached.images["train"] if cached else known.get("train_images")
    train = settings["train"]
    micro = micro_batch_size(train["global_batch"], train["accumulate"], world)
    return plan.show(plan.plan(settings, prior, devices=world, images=images, micro=micro))


def check_size(size: Any, tokenizer: Tokenizer, export: Path) -> None:
    """Raise ValueError if images of this size (None: of a cache, which knows) are not what the
    tokenizer takes."""
    given = (size, size) if isinstance(size, int) else tuple(size or tokenizer.image_size)
    if given != tuple(tokenizer.image_size):
        raise ValueError(
            f"the tokenizer {export} takes images of {tokenizer.image_size}, the data gives "
            f"{given}; type data.size=[{tokenizer.image_size[0]},"
            f"{tokenizer.image_size[1]}] or another tokenizer=PATH"
        )


def find_tokenizer(settings: dict) -> Path:
    """The tokenizer=PATH that was typed, or the newest stage-1 run whose latents this prior can
    read (and that made the cache, for data=cache)."""
    build.check_path(settings["prior"])
    if settings["as_features"]:
        features.check(settings["prior"])
    if settings["tokenizer"] == "auto" and settings["init"]:
        return finetune.find(settings["init"], "tokenizer")
    wrap = settings["as_features"]
    cached = cache.made_from(settings["data"])
    command = "python train_stage1.py (what the prior needs is said above), or tokenizer=PATH"
    if cached:
        command = f"tokenizer={cached.tokenizer_path}, where the one that made the cache was"
    return runs.stage1_export(
        settings["tokenizer"],
        Path(settings["run"]["root"]),
        refusal=partial(
            pipeline.refusal,
            settings["prior"],
            fingerprint=cached and cached.tokenizer,
            as_features=wrap,
        ),
        command=command,
    )


if __name__ == "__main__":
    main()
