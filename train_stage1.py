"""Stage 1: train a tokenizer. `python train_stage1.py [tokenizer=vqgan|vqvae] [data=folder
data.root=DIR] ...`"""

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from vqgen import build, cli, finetune, planning, runs
from vqgen.data.images import all_alike
from vqgen.data.order import micro_batch_size
from vqgen.evaluation import small
from vqgen.training import devices, launch, opening, plan
from vqgen.training.stage1 import Stage1


@cli.entry("stage1", "train_stage1")
def main(config: DictConfig) -> int:
    """Build data, tokenizer and loss from the config, train, export runs/stage1/<run>/tokenizer."""
    if config.plan:
        check(build.plain(config))
        return plan.show(planning.stage1(build.plain(config)))
    if config.train.resume is None:  # before several processes are started, which all would say it
        check(build.plain(config))
    name = f"{cli.choice('tokenizer')}-{cli.choice('data')}"
    resumed = opening.find_resumed(build.plain(config), stage="stage1", name=name)
    if resumed is not None:
        config = cli.compose("train_stage1", cli.merged(runs.stored_overrides(resumed)))
    settings = build.plain(config)
    devices.join(settings["trainer"])  # a resumed run's, which need not be typed again
    check(settings)
    recipe, precision = launch.recipe(settings["train"]), build.precision(settings)
    seed_everything(settings["train"]["seed"], verbose=False)
    data = build.data(settings)
    if devices.is_first() and all_alike(data.train):
        print("all training images are the same picture, as far as was looked: is that meant?")
    start = finetune.begin_tokenizer(settings, cli.typed_overrides(), data.image_size)
    tokenizer, settings["tokenizer"] = start.model, start.settings
    loss = build.make(settings["loss"])
    loss.check_size(data.image_size)
    if settings["train"]["channels_last"]:
        for model in (tokenizer, loss):
            model.to(memory_format=torch.channels_last)
    distance = small.measure(data, settings["small_fd"])
    random_lpips = loss.perceptual is not None and bool(loss.perceptual.random)
    run = opening.open_run(settings, cli.typed_overrides(), resumed, stage="stage1", name=name)
    opening.check_data(run, data)
    data.samples_seen = run.counters.samples
    module = Stage1(
        tokenizer,
        loss,
        recipe,
        architecture=start.architecture,
        facts={
            "class_names": list(data.class_names),
            "data": data.describe(),
            "perceptual_random": random_lpips,
            **start.facts,
        },
        small_fd=None if distance is None else distance.of_tokenizer,
    )
    derived = {"run": str(run.folder), "perceptual_random": random_lpips, **data.describe()}
    derived |= build.sizes(tokenizer=tokenizer, loss=loss)
    launch.print_recipe(settings, derived)
    less = f"data.size=32 experiment=emoji_{cli.choice('tokenizer').partition('_')[0]}"
    launch.hint_at_size(tokenizer, build.place(settings)["device"], less)
    boards = build.boards(settings, derived, run.folder, run.counters.facts)
    return launch.train(module, data, run, settings, boards=boards, precision=precision)


def check(settings: dict) -> None:
    """Raise ValueError for what is for stage 2 only, numbers that no tokenizer has, a batch that
    the devices cannot share, and a logger that is not installed."""
    if settings["trainer"]["strategy"] == "fsdp":
        raise ValueError(
            "trainer=fsdp shards priors; a tokenizer is small enough for a replica on each device: "
            "type trainer=ddp"
        )
    if "size" not in settings["data"]:
        raise ValueError(
            f"stage 1 needs images, and data={cli.choice('data')} holds latents for stage 2; "
            "type data=emoji, or data=folder data.root=DIR"
        )
    for group in ("tokenizer", "loss"):
        build.check_numbers(settings[group], group)
    build.check_logger(settings)
    train, world = settings["train"], devices.planned(settings["trainer"])
    micro_batch_size(train["global_batch"], train["accumulate"], world)


if __name__ == "__main__":
    main()
