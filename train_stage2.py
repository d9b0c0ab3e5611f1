"""Stage 2: train a prior over the latents of a stage-1 run. `python train_stage2.py
[prior=llamagen] [tokenizer=PATH] ...`"""

from functools import partial
from pathlib import Path

from lightning import seed_everything
from omegaconf import DictConfig

from vqgen import build, cli, features, pipeline, runs
from vqgen.data.encoded import EncodedImages
from vqgen.training import latents, launch
from vqgen.training.stage2 import Stage2


@cli.entry("stage2", "train_stage2")
def main(config: DictConfig) -> int:
    """Find the tokenizer, build data and prior, train, export runs/stage2/<run>/pipeline."""
    name = f"{cli.choice('prior')}-{cli.choice('data')}"
    resumed = launch.find_resumed(build.plain(config), stage="stage2", name=name)
    words = cli.merged(launch.stored_overrides(resumed)) if resumed else cli.typed_overrides()
    export = find_tokenizer(build.plain(cli.compose("train_stage2", words)))
    if not resumed:  # the data that the tokenizer was trained on, unless told otherwise
        words = cli.merged(launch.stored_overrides(export.parent), group="data")
    settings = build.plain(cli.compose("train_stage2", words))
    settings["tokenizer"] = str(export)
    wrap = settings["as_features"] and not resumed  # a resumed run has the wrapped one already
    source = resumed / "tokenizer" if resumed and settings["as_features"] else export
    tokenizer, _, fingerprint = (features.load if wrap else pipeline.load_tokenizer)(source)
    seed_everything(settings["train"]["seed"], verbose=False)
    data = build.data(settings)
    if tuple(data.image_size) != tuple(tokenizer.image_size):
        raise ValueError(
            f"the tokenizer {export} takes images of {tokenizer.image_size}, the data gives "
            f"{tuple(data.image_size)}; type data.size=[{tokenizer.image_size[0]},"
            f"{tokenizer.image_size[1]}] or another tokenizer=PATH"
        )
    prior = build.prior(settings["prior"], tokenizer, num_classes=data.num_classes)
    if settings["prior"].get("label_dropout") == 0:  # no null condition was learned to guide by
        settings["preview"]["guidance"] = 1.0
    device = build.device("auto")
    if wrap:
        latents.standardize_(tokenizer, data, device)
    measured = latents.check(tokenizer, data, device)
    words = [
        *(word for word in words if not word.startswith("tokenizer=")),
        f"tokenizer='{export}'",
    ]
    run = launch.open_run(settings, words, resumed, stage="stage2", name=name)
    if wrap:
        source = run.folder / "tokenizer"
        fingerprint = features.save(source, tokenizer, export)
    data.samples_seen = run.counters.samples
    module = Stage2(
        prior,
        launch.recipe(settings["train"]),
        image_size=tokenizer.image_size,
        preview=partial(pipeline.preview, tokenizer, tuple(data.class_names), settings["preview"]),
        tokenizer=source,
        architecture=settings["prior"],
        facts={
            "class_names": list(data.class_names),
            "num_classes": data.num_classes,
            "tokenizer_fingerprint": fingerprint,
            "data": data.describe(),
        },
    )
    derived = {"run": str(run.folder), "tokenizer": str(export), **measured, **data.describe()}
    derived |= build.sizes(prior=prior)
    launch.print_recipe(settings, derived)
    boards = build.boards(settings, derived, run.folder, run.counters.facts)
    data = EncodedImages(data, tokenizer)
    precision = build.precision(settings)
    return launch.train(module, data, run, settings, boards=boards, precision=precision)


def find_tokenizer(settings: dict) -> Path:
    """The tokenizer=PATH that was typed, or the newest stage-1 run whose latents this prior can
    read."""
    given = settings["tokenizer"]
    if given != "auto":
        for folder in (Path(given) / "tokenizer", Path(given)):
            if (folder / "model.safetensors").is_file():
                return folder
        raise ValueError(
            f"wanted tokenizer=PATH of a finished stage-1 run, got {given}, which "
            f"{'holds none' if Path(given).exists() else 'does not exist'}; look for one with: "
            f"ls {settings['run']['root']}/stage1, or leave tokenizer out for the newest that fits"
        )
    wrap = settings["as_features"]
    return runs.newest_export(
        Path(settings["run"]["root"]),
        "stage1",
        refusal=partial(pipeline.refusal, settings["prior"], as_features=wrap),
        command="python train_stage1.py (what the prior needs is said above), or tokenizer=PATH",
    )


if __name__ == "__main__":
    main()
