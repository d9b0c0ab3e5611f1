"""Stage 2: train a prior over the latents of a stage-1 run. `python train_stage2.py
[prior=llamagen] [tokenizer=PATH] ...`"""

from functools import partial

from lightning import seed_everything
from omegaconf import DictConfig

from vqgen import build, cli, features, finetune, fitting, pipeline, planning, runs
from vqgen.data.order import micro_batch_size
from vqgen.evaluation import small
from vqgen.preview import Preview
from vqgen.training import devices, latents, launch, opening, plan
from vqgen.training.stage2 import Stage2


@cli.entry("stage2", "train_stage2")
def main(config: DictConfig) -> int:
    """Find the tokenizer, build data and prior, train, export runs/stage2/<run>/pipeline."""
    if config.plan:
        return show_plan(build.plain(config))
    if config.train.resume is None and "train.global_batch" in cli.typed_keys():
        world = devices.planned(build.plain(config.trainer))  # before their processes are started
        micro_batch_size(config.train.global_batch, 1, world)
    build.check_logger(build.plain(config))
    name = f"{cli.choice('prior')}-{cli.choice('data')}"
    resumed = opening.find_resumed(build.plain(config), stage="stage2", name=name)
    words = cli.merged(runs.stored_overrides(resumed)) if resumed else cli.typed_overrides()
    chosen = build.plain(cli.compose("train_stage2", words))
    devices.join(chosen["trainer"])  # a resumed run's, which need not be typed again
    export = devices.once(lambda: fitting.find_tokenizer(chosen))
    if not resumed:  # the data that the tokenizer was trained on, unless told otherwise
        words = cli.merged(runs.stored_overrides(export.parent), group="data")
    settings = build.plain(cli.compose("train_stage2", words))
    settings["tokenizer"] = str(export)
    wrap = settings["as_features"] and not resumed  # a resumed run has the wrapped one already
    source = resumed / "tokenizer" if resumed and settings["as_features"] else export
    tokenizer, _, fingerprint = (features.load if wrap else pipeline.load_tokenizer)(source)
    recipe, precision = launch.recipe(settings["train"]), build.precision(settings)
    seed_everything(settings["train"]["seed"], verbose=False)
    data = build.data(settings)
    fitting.check_data(settings, data, tokenizer)
    batches = data.latents(tokenizer, fingerprint)
    start = finetune.begin_prior(settings, cli.typed_overrides(), tokenizer, data.num_classes)
    prior, settings["prior"] = start.model, start.settings
    if settings["prior"].get("label_dropout") == 0:  # no null condition was learned to guide by
        settings["preview"]["guidance"] = 1.0
    names = tuple(data.class_names)
    scale = settings["preview"]["guidance"]
    preview = Preview(settings["preview"], tokenizer, prior, names)
    device = build.device("auto")
    has_images = "size" in settings["data"]  # a cache has none
    if wrap:
        latents.standardize_(tokenizer, data, device)
    measured = latents.check(tokenizer, data, device) if has_images else latents.check_cached(data)
    distance = small.measure(data, settings["small_fd"])
    kept = (word for word in words if not word.startswith("tokenizer="))
    words = [*kept, f"tokenizer='{export}'"]
    run = opening.open_run(settings, words, resumed, stage="stage2", name=name)
    if wrap:
        source = run.folder / "tokenizer"
        fingerprint = devices.once(partial(features.save, source, tokenizer, export))
    opening.check_data(run, data)
    batches.samples_seen = run.counters.samples
    module = Stage2(
        prior,
        recipe,
        image_size=tokenizer.image_size,
        preview=preview,
        tokenizer=source,
        architecture=start.architecture,
        facts={
            "class_names": list(names),
            "num_classes": data.num_classes,
            "tokenizer_fingerprint": fingerprint,
            "data": data.describe(),
            **start.facts,
        },
        small_fd=distance and partial(distance.of_prior, tokenizer=tokenizer, guidance=scale),
    )
    derived = {"run": str(run.folder), "tokenizer": str(export), **measured, **data.describe()}
    derived |= build.sizes(prior=prior)
    launch.print_recipe(settings, derived)
    less = f"experiment=emoji_{cli.choice('prior').partition('_')[0]}"
    launch.hint_at_size(prior, build.place(settings)["device"], less)
    boards = build.boards(settings, derived, run.folder, run.counters.facts)
    return launch.train(module, batches, run, settings, boards=boards, precision=precision)


def show_plan(settings: dict) -> int:
    """plan=true: what the run would take; no data and no weights of a prior are loaded."""
    export = fitting.find_tokenizer(settings)
    words = cli.merged(runs.stored_overrides(export.parent), group="data")
    settings = build.plain(cli.compose("train_stage2", words))  # as training will find it
    typed = any(word.lstrip("+~").startswith("data") for word in cli.typed_overrides())
    return plan.show(planning.stage2(settings, export, typed_data=typed))


if __name__ == "__main__":
    main()
