"""data=cache: training batches of latents out of a cache that scripts/cache_latents.py wrote."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqgen import commands
from vqgen.contracts import FeatureSpec, LatentSpec, Size, Tokenizer
from vqgen.data import manifest as manifests
from vqgen.data.cache_folder import Folder
from vqgen.data.images import check_batch, rank_and_world
from vqgen.data.manifest import COMMAND, Manifest
from vqgen.data.order import GlobalBatches, Key, chances, in_order, micro_batch_size
from vqgen.data.store import Batch


def cache(
    *,
    root: str | None,
    verify: bool = True,  # read every byte once and compare its hash before training
    workers: int = 0,  # loader processes; reading needs none
    global_batch: int,  # images per optimizer step, over all ranks and micro-batches
    accumulate: int = 1,  # micro-batches per optimizer step
    seed: int = 0,  # of order and views
) -> "CachedLatents":
    """The cache in folder `root`, a local or fsspec path.

    Raises ValueError: none there, not complete, altered, or a batch larger than the set."""
    folder, found = _found(root)
    if not found.complete:
        raise ValueError(
            f"the cache in {root} is not complete; the command that began it goes on: "
            f"{found.command(str(root))}"
        )
    tables = {split: _opened(folder, found, split, verify) for split in found.images}
    options = {"global_batch": global_batch, "accumulate": accumulate, "seed": seed}
    return CachedLatents(str(root), found, tables, workers=workers, **options)


def made_from(node: dict[str, Any]) -> Manifest | None:
    """The manifest of the cache of a data node, which knows its tokenizer; None for any other node.

    Raises ValueError if there is no cache."""
    if node.get("_target_") != f"{__name__}.cache":
        return None
    return _found(node["root"])[1]


def _found(root: str | None) -> tuple[Folder, Manifest]:
    if root is None:
        raise ValueError(
            f"data=cache wants a latent cache, got none; type data.root=DIR, made by: {COMMAND}"
        )
    folder = Folder(root)
    found = manifests.read(folder)
    if found is None:
        what = "holds no manifest.json" if folder.exists("") else "does not exist"
        raise ValueError(
            f"wanted a latent cache, got data.root={root}, which {what}; type data.root=DIR of "
            f"one, or make it: {COMMAND.replace('DIR', str(root))}"
        )
    return folder, found


class CachedLatents(LightningDataModule):
    """What EncodedImages gives, read instead of encoded: latents (as the manifest's spec says) and
    labels.

    An epoch shows every image once, in one of its views. Order and flips are those of the images
    themselves under the same seed. Latents with a deviation are drawn anew each time, from
    (seed, position) alone."""

    def __init__(
        self,
        root: str,
        manifest: Manifest,
        tables: dict[str, datasets.Dataset],
        *,
        workers: int,
        global_batch: int,
        accumulate: int,
        seed: int,
    ) -> None:
        super().__init__()
        check_batch(f"cache {root}", global_batch, accumulate, manifest.images["train"], seed)
        self.root, self.manifest, self.workers = root, manifest, workers
        self.global_batch, self.accumulate, self.seed = global_batch, accumulate, seed
        self.sets = {split: _Rows(tables[split], manifest, split, seed) for split in tables}
        self.samples_seen = 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index; empty: unconditional."""
        return self.manifest.class_names

    @property
    def num_classes(self) -> int:
        """0: unconditional."""
        return len(self.manifest.class_names)

    @property
    def image_size(self) -> Size:
        """(height, width) of the images that were encoded."""
        return self.manifest.image_size

    @property
    def spec(self) -> LatentSpec:
        """Of the latents."""
        return self.manifest.spec

    def stored(self, images: int) -> Iterator[Tensor]:
        """Latents of at most so many training images, evenly spaced, in batches."""
        total = self.manifest.images["train"]
        chosen = np.linspace(0, total - 1, min(images, total)).round().astype(int).tolist()
        for start in range(0, len(chosen), 64):
            keys = [(index, index) for index in chosen[start : start + 64]]
            yield self.sets["train"].__getitems__(keys)["latents"]

    def describe(self) -> dict[str, Any]:
        """Plain facts for the recipe table and the checkpoint: those of the images, and the
        cache's."""
        found = self.manifest
        views = found.views("train")
        return {**found.data, "cache": self.root, "views": views, "data_hash": found.data_hash}

    def content(self) -> str:
        """sha256 over what was encoded, which a cache of other data does not share."""
        return self.manifest.data_hash

    def latents(self, tokenizer: Tokenizer, fingerprint: str) -> "CachedLatents":
        """This data, for a prior over the latents of that tokenizer.

        Raises ValueError if another one made the cache."""
        if fingerprint != self.manifest.tokenizer or tokenizer.spec != self.manifest.spec:
            path = self.manifest.tokenizer_path
            raise ValueError(
                f"the cache in {self.root} was made by another tokenizer (fingerprint "
                f"{self.manifest.tokenizer}) than the one given ({fingerprint}); type "
                f"{commands.override('tokenizer', path)}, where it was then, or make a new "
                f"cache: {COMMAND}"
            )
        return self

    def train_dataloader(self) -> DataLoader[Batch]:
        """Endless micro-batches of this rank, from `samples_seen` on."""
        rank, world = rank_and_world()
        order = GlobalBatches(
            size=self.manifest.images["train"],
            global_batch=self.global_batch,
            accumulate=self.accumulate,
            rank=rank,
            world=world,
            seed=self.seed,
            samples_seen=self.samples_seen,
        )
        return self._loader("train", order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every validation image once over all ranks, in a fixed order."""
        rank, world = rank_and_world()
        micro = micro_batch_size(self.global_batch, self.accumulate, world)
        pieces = in_order(self.manifest.images["val"], micro, rank, world)
        return self._loader("val", [[(index, index) for index in piece] for piece in pieces])

    def _loader(self, split: str, batches: Any) -> DataLoader[Batch]:
        return DataLoader(
            self.sets[split],
            batch_sampler=batches,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
        )


class _Rows(Dataset[Batch]):
    """Latents of a split by (image, position in training)."""

    def __init__(self, table: datasets.Dataset, manifest: Manifest, split: str, seed: int) -> None:
        self.table = table.with_format("numpy")
        self.spec, self.seed, self.flip = manifest.spec, seed, manifest.flip and split == "train"
        self.views = manifest.views(split)

    def __len__(self) -> int:
        return len(self.table) // self.views

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        images, positions = np.array(keys).T
        drawn = chances(self.seed, positions.tolist())
        flips = 1 + self.flip
        crop = (drawn[:, 0] * (self.views // flips)).astype(int)
        # the draw that mirrors an image on the fly (images.Augmented) picks the mirrored view here
        view = crop * flips + (self.flip & (drawn[:, 2] < 0.5))
        rows: Any = self.table[images * self.views + view]
        labels = {"labels": torch.from_numpy(rows["label"]).long()} if "label" in rows else {}
        return {"latents": self._latents(rows, positions.tolist()), **labels}

    def _latents(self, rows: dict[str, np.ndarray], positions: list[int]) -> Tensor:
        if "tokens" in rows:
            return torch.from_numpy(rows["tokens"].astype(np.int64))
        assert isinstance(self.spec, FeatureSpec)
        values = torch.from_numpy(rows["mean"].astype(np.float32))
        if "deviation" in rows:
            drawn = [_noise(self.seed, position, values.shape[1]) for position in positions]
            values = values + torch.from_numpy(rows["deviation"].astype(np.float32)) * torch.stack(
                drawn
            )
        spec = self.spec
        return rearrange(values, "b (c h w) -> b c h w", c=spec.channels, h=spec.height)


def _noise(seed: int, position: int, length: int) -> Tensor:
    """Standard normal numbers that depend on (seed, position) alone: the same on any machine."""
    key = np.array([seed, position], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(length, dtype=np.float32))


def _opened(folder: Folder, found: Manifest, split: str, verify: bool) -> datasets.Dataset:
    """The memory-mapped table of a split. Raises ValueError if a file is missing or altered."""
    shards = found.shards[split]
    with ThreadPoolExecutor() as pool:  # hashing and reading leave Python's lock alone
        tables = list(pool.map(lambda shard: _read(folder, found, shard, verify), shards))
    return datasets.concatenate_datasets(tables)


def _read(
    folder: Folder, found: Manifest, shard: manifests.Shard, verify: bool
) -> datasets.Dataset:
    again = "the command that made the cache replaces what is damaged: " + found.command(
        folder.root
    )
    if not folder.exists(shard.file):
        raise ValueError(f"{folder.root}/{shard.file} is missing; {again}")
    if manifests.is_whole(folder, shard, verify):
        with contextlib.suppress(pa.ArrowException, OSError, ValueError):
            table = datasets.Dataset.from_file(folder.here(shard.file))
            if table.features == manifests.features(found) and len(table) == shard.rows:
                return table
    raise ValueError(f"{folder.root}/{shard.file} is not what was written; {again}")


def _as_it_is(batch: Any) -> Any:
    return batch
