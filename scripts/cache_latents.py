"""Encode a data set once: `python scripts/cache_latents.py tokenizer=RUN out=DIR [data=...]`, also
under torchrun; then `python train_stage2.py data=cache data.root=DIR`."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
from omegaconf import DictConfig

from vqgen import build, cli, commands, pipeline, runs
from vqgen.data import extract


@cli.entry(".", "cache_latents")
def main(config: DictConfig) -> int:
    """Load the tokenizer and its data, write what is missing of the cache, say what it takes.

    Returns 0, or 130 if Ctrl-C or SIGTERM stopped it."""
    settings = build.plain(config)
    if settings["out"] is None:
        raise ValueError("wanted a folder for the cache, got none; type out=DIR")
    out = str(settings["out"])
    if settings["batch"] < 1:
        raise ValueError(f"wanted batch of at least 1, got {settings['batch']}; type batch=64")
    export = runs.stage1_export(settings["tokenizer"], Path(settings["root"]))
    words = cli.merged(runs.stored_overrides(export.parent), group="data")
    settings["data"] = build.plain(cli.compose("cache_latents", words))["data"]
    world = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    device = build.device(settings["device"])
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if world > 1:
        # only to wait for each other: as long as the last file takes, which may be hours on a CPU
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    tokenizer, _, fingerprint = pipeline.load_tokenizer(export)
    data = build.make(settings["data"], global_batch=1)
    if tuple(data.image_size) != tuple(tokenizer.image_size):
        height, width = tokenizer.image_size
        raise ValueError(
            f"the tokenizer {export} takes images of {tokenizer.image_size}, the data gives "
            f"{tuple(data.image_size)}; type data.size=[{height},{width}]"
        )
    planned = extract.plan(
        data,
        tokenizer.to(device),
        fingerprint=fingerprint,
        path=str(export),
        crops=settings["crops"],
        shard_images=settings["shard_images"],
        typed=[w for w in cli.typed_overrides() if not w.startswith(("tokenizer=", "out="))],
    )
    started, first = time.monotonic(), int(os.environ.get("RANK", 0)) == 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: leave nothing half
    try:
        done = extract.extract(planned, data, tokenizer, out, batch=settings["batch"])
    except KeyboardInterrupt:
        if first:
            print(f"stopped, finished files are kept; to go on type: {planned.command(out)}")
        return 128 + signal.SIGINT
    if first:
        shards = [shard for listed in done.shards.values() for shard in listed]
        words = [commands.override("data.root", out), commands.override("tokenizer", export)]
        size, rows = sum(shard.bytes for shard in shards), sum(shard.rows for shard in shards)
        print(
            f"{out}: {sum(done.images.values()):,} images, {rows:,} views, "
            f"{size / 2**20:.1f} MiB, {size / rows:.0f} bytes per view, "
            f"{time.monotonic() - started:.1f} s\n"
            + commands.shell(["python", "train_stage2.py"], ["data=cache", *words])
        )
    if world > 1:
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    main()
