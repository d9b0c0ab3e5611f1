"""What a latent cache and a checkpoint cost and save, as ratios in one run.

`python benchmarks/latent_cache.py` prints: extraction against plain encoding, bytes per image, a
stage-2 step from the cache against one that encodes on the fly (emoji; `size=256` for 256 px and a
tokenizer of published size with random weights; `prior=llamagen_b` for a larger prior), and the
share of a run spent in saving. With the word `disk`: bytes on disk of 1,000 images of 256 px."""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqgen import build, checkpoint, cli
from vqgen.contracts import Condition, Tokenizer
from vqgen.data import cache, extract
from vqgen.data.images import ImageData
from vqgen.data.store import ImageSet, Kept
from vqgen.training.optimizer import adamw


def config(stage: str, *words: str) -> dict[str, Any]:
    """The resolved config of a command."""
    with cli.hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / stage)):
        return build.plain(cli.compose(f"train_{stage}", list(words)))


def pictures(size: int, count: int) -> ImageData:
    """Random smooth pictures in memory, as a data set."""

    def split(count: int, seed: int) -> ImageSet:
        coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        full = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        pixels = (full * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        return ImageSet(Kept(list(pixels), np.arange(count) % 10), size=(size, size), skipped={})

    names = [str(number) for number in range(10)]
    train, val = split(count, 0), split(2, 1)
    options: Any = {"class_names": names, "global_batch": 2, "seed": 0}
    return ImageData(name="random", train=train, val=val, **options)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.inference_mode()
def encode_all(data: ImageData, tokenizer: Tokenizer, batch: int) -> float:
    """Seconds per image of the bare encoder, over the training images, ready in memory."""
    indices = list(range(len(data.train)))
    ready = [data.train.__getitems__(indices[i : i + batch]) for i in range(0, len(indices), batch)]
    images = [data.on_after_batch_transfer(part, 0)["images"] for part in ready]
    tokenizer.encode(images[0])
    return timed(lambda: [tokenizer.encode(part) for part in images]) / len(indices)


def extraction(data: ImageData, tokenizer: Tokenizer, batch: int, out: Path) -> tuple[float, float]:
    """Seconds per image of the bare encoder and of extraction: the best of three, taken in turns,
    so that a busy machine does not decide. The caches are `out`/0, 1 and 2."""
    planned = extract.plan(data, tokenizer, fingerprint="x", path="x", crops=1)
    rows = sum(planned.images[split] * planned.views(split) for split in planned.images)
    bare, whole = [], []
    for turn in range(3):
        bare.append(encode_all(data, tokenizer, batch))
        folder = str(out / str(turn))
        work = partial(extract.extract, planned, data, tokenizer, folder, batch=batch)
        whole.append(timed(work) / rows)
    return min(bare), min(whole)


def compare(name: str, data: ImageData, tokenizer: Tokenizer, prior: Any, batch: int, steps: int):
    """Print extraction, size and step."""
    tokenizer = tokenizer.eval().requires_grad_(False)
    data.global_batch = batch
    with tempfile.TemporaryDirectory() as out:
        bare, whole = extraction(data, tokenizer, batch, Path(out))
        done = cache.cache(root=f"{out}/2", global_batch=batch)
        shards = [shard for listed in done.manifest.shards.values() for shard in listed]
        rows = sum(shard.rows for shard in shards)
        print(f"{name}: extraction has {bare / whole:.1%} of the encoder's throughput")
        print(f"{name}: {sum(shard.bytes for shard in shards) / rows:.0f} bytes per image and crop")
        optimizer = adamw(prior, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
        took = []
        for source in (data.latents(tokenizer, "x"), done):
            loader = iter(source.train_dataloader())

            def step(source: Any = source, loader: Any = loader) -> None:
                given = source.on_after_batch_transfer(next(loader), 0)
                condition = Condition.of_labels(given["labels"])
                prior.loss(given["latents"], condition).total.backward()
                optimizer.step()
                optimizer.zero_grad()

            step()
            took.append(min(timed(step) for _ in range(steps)))
        fly, cached = took
        print(f"{name}: step on the fly {fly:.3f} s, from the cache {cached:.3f} s")
        print(f"{name}: ratio {fly / cached:.2f}")
        saving(name, prior, optimizer, cached, Path(out))


def saving(name: str, prior: Any, optimizer: Any, step: float, folder: Path) -> None:
    """What a checkpoint of weights, average and optimizer takes, at the default interval."""
    every = config("stage2")["train"]["save_every"]
    state = {"state_dict": prior.state_dict(), "average": prior.state_dict()}

    def save() -> None:
        with checkpoint.atomic(folder / "last.ckpt") as temporary:
            torch.save({**state, "optimizer": optimizer.state_dict()}, temporary)

    seconds = min(timed(save) for _ in range(3))
    size = (folder / "last.ckpt").stat().st_size / 2**20
    share = seconds / (every * step + seconds)
    print(f"{name}: saving {size:.0f} MiB takes {seconds:.2f} s, {share:.2%} of {every} such steps")


def disk() -> None:
    """Print the size of a cache of 1,000 images of random pixels; a small encoder has to do, since
    only grid (16 x 16) and vocabulary (16,384) count."""
    node = config("stage1", "tokenizer=vqgan", "data=folder")["tokenizer"]
    small = {"channels": 32, "blocks": 1, "patch": 16, "multipliers": [1]}
    parts = {part: {**node[part], **small} for part in ("encoder", "decoder")}
    tokenizer = build.make({**node, **parts, "image_size": [256, 256]}).eval()
    random, rng = pictures(256, 1000), np.random.default_rng(0)
    for index in range(len(random.train)):
        image, _ = random.train.pixels.fetch(index)
        image[:] = rng.integers(0, 256, image.shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as out:
        planned = extract.plan(random, tokenizer, fingerprint="x", path="x")
        done = extract.extract(planned, random, tokenizer, out)
        shards = sum(shard.bytes for shard in done.shards["train"]) / 1000
        files = [path.stat() for path in Path(out).rglob("*") if path.is_file()]
        taken = sum(file.st_blocks * 512 for file in files) / 1002
    print(f"disk: {shards:.0f} bytes per image, {taken:.0f} with all files in whole blocks")


def main() -> None:
    """Embedded images; with size=256 published sizes."""
    torch.manual_seed(0)
    if "disk" in sys.argv:
        return disk()
    large = "size=256" in sys.argv
    first = config("stage1", "tokenizer=vqgan", f"data={'folder' if large else 'emoji'}")
    size = 256 if large else 32
    tokenizer = build.make({**first["tokenizer"], "image_size": [size, size]})
    typed = [word for word in sys.argv[1:] if word.startswith("prior=")]
    second = config("stage2", *(typed or ["prior=llamagen_tiny"]))
    data = pictures(256, 8) if large else build.make(first["data"], global_batch=32)
    prior = build.prior(second["prior"], tokenizer, num_classes=data.num_classes)
    batch, steps = (2, 2) if large else (32, 5)
    compare("256 px" if large else "emoji", data, tokenizer, prior, batch, steps)


if __name__ == "__main__":
    main()
