"""Stage 1: train a tokenizer. `python train_stage1.py [tokenizer=vqgan|vqvae] [data=folder
data.root=DIR] ...`"""

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from vqgen import build, checkpoint, cli, finetune
from vqgen.data.order import micro_batch_size
from vqgen.evaluation import small
from vqgen.training import devices, launch, plan
from vqgen.training.stage1 import Stage1


@cli.entry("stage1", "train_stage1")
def main(config: DictConfig) -> int:
    """Build data, tokenizer and loss from the config, train, export runs/stage1/<run>/tokenizer."""
    if config.plan:
        return show_plan(build.plain(config))
    name = f"{cli.choice('tokenizer')}-{cli.choice('data')}"
    resumed = launch.find_resumed(build.plain(config), stage="stage1", name=name)
    if resumed is not None:
        config = cli.compose("train_stage1", cli.merged(launch.stored_overrides(resumed)))
    settings = build.plain(config)
    check(settings)
    recipe, precision = launch.recipe(settings["train"]), build.precision(settings)
    seed_everything(settings["train"]["seed"], verbose=False)
    data = build.data(settings)
    start = finetune.begin_tokenizer(settings, cli.typed_overrides(), data.image_size)
    tokenizer, settings["tokenizer"] = start.model, start.settings
    loss = build.make(settings["loss"])
    loss.check_size(data.image_size)
    if settings["train"]["channels_last"]:
        for model in (tokenizer, loss):
            model.to(memory_format=torch.channels_last)
    distance = small.measure(data, settings["small_fd"])
    random_lpips = loss.perceptual is not None and bool(loss.perceptual.random)
    run = launch.open_run(settings, cli.typed_overrides(), resumed, stage="stage1", name=name)
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
    boards = build.boards(settings, derived, run.folder, run.counters.facts)
    return launch.train(module, data, run, settings, boards=boards, precision=precision)


def check(settings: dict) -> None:
    """Raise ValueError for what is for stage 2 only."""
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


def show_plan(settings: dict) -> int:
    """plan=true: what the run would take; neither data nor LPIPS weights are loaded."""
    check(settings)
    size = settings["data"]["size"]
    size = [size, size] if isinstance(size, int) else size
    with torch.device("meta"):
        node = settings["tokenizer"]
        if settings["init"]:
            found = finetune.find(settings["init"], "tokenizer")
            node = checkpoint.read_header(found)["architecture"]
        tokenizer = build.make({**node, "image_size": size})
        loss = build.make({**settings["loss"], "perceptual": None})
    loss.check_size(tuple(size))
    world = devices.planned(settings["trainer"])
    train = settings["train"]
    micro = micro_batch_size(train["global_batch"], train["accumulate"], world)
    return plan.show(plan.plan(settings, tokenizer, devices=world, others=loss.gan, micro=micro))


if __name__ == "__main__":
    main()
