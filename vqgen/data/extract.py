"""Writing a latent cache: every view of every image through the tokenizer, shard by shard, on all
ranks, going on where a killed run stopped."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter
from torch import Tensor, distributed
from torch.utils.data import Dataset
from tqdm import tqdm

from vqgen.contracts import Tokenizer
from vqgen.data import manifest as manifests
from vqgen.data.cache_folder import Folder
from vqgen.data.images import ImageData, rank_and_world
from vqgen.data.manifest import Manifest, Shard, columns
from vqgen.data.store import Batch, ImageSet
from vqgen.together import once

View = tuple[int, int]  # (image, view)


def plan(
    data: ImageData,
    tokenizer: Tokenizer,
    *,
    fingerprint: str,
    path: str,
    crops: int | None = None,
    shard_images: int = 4096,
    typed: Sequence[str] = (),
) -> Manifest:
    """The manifest of a cache that is still to be made.

    fingerprint, path   of the tokenizer
    crops               per training image, spread evenly over the room that the longer side leaves;
                        None: 1 for center crops, 5 for random ones (ten views with flips)
    shard_images        images per file: what a kill loses at most, per rank
    typed               what was typed but for tokenizer= and out=, for the command that goes on

    Raises ValueError for crops of images that leave no room, or numbers under 1."""
    number = (5 if data.crop == "random" else 1) if crops is None else crops
    if number < 1 or shard_images < 1:
        raise ValueError(
            f"wanted crops and shard_images of at least 1, got {number} and {shard_images}"
        )
    if number > 1 and data.crop == "center":
        raise ValueError(
            f"wanted {number} crops of each image, but data.crop=center has one; type "
            "data.crop=random, or crops=1"
        )
    probe = torch.zeros(1, 3, *tokenizer.image_size, device=next(tokenizer.parameters()).device)
    with torch.no_grad():
        _, deviation = tokenizer.moments(probe)
    return Manifest(
        tokenizer=fingerprint,
        tokenizer_path=path,
        spec=tokenizer.spec,
        deviation=deviation is not None,
        image_size=tokenizer.image_size,
        class_names=data.class_names,
        data=json.loads(json.dumps(data.describe())),
        content=data.content(),
        images={"train": len(data.train), "val": len(data.val)},
        crops=number,
        flip=data.flip,
        shard_images=shard_images,
        shards={},
        typed=tuple(typed),
    )


def extract(
    planned: Manifest, data: ImageData, tokenizer: Tokenizer, out: str, *, batch: int = 64
) -> Manifest:
    """Write what is missing of the planned cache into `out` -> the complete manifest.

    What is there of the same plan and whole is kept. Every rank of a distributed run has to call
    it; each takes every world-th shard. `batch` views are encoded at once.
    Raises ValueError if `out` holds the cache of something else, or anything else, or if another
    process writes there."""
    folder = Folder(out)
    with ExitStack() as until_done:
        once(lambda: _begin(planned, folder, until_done))  # the first rank holds the folder for all
        rank, world = rank_and_world()
        mark = manifests.digest(planned.plan)
        for split, images in (("train", data.train), ("val", data.val)):
            missing = [
                number
                for number in range(rank, planned.shard_count(split), world)
                if _written(folder, planned.file(split, number), mark) is None
            ]
            _write_shards(planned, mark, split, missing, data, images, tokenizer, folder, batch)
        if distributed.is_initialized():
            distributed.barrier()
        return once(lambda: _finish(planned, folder))


def _begin(planned: Manifest, folder: Folder, until_done: ExitStack) -> None:
    """Refuse a folder of something else, take this one, clear it and note the plan."""
    before = manifests.read(folder)
    if before is not None:
        changed = before.differences(planned)
        if changed:
            listed = "\n".join(f"  {line}" for line in changed)
            raise ValueError(
                f"{folder.root} holds another cache (there -> asked for):\n{listed}\n"
                "Type another out=DIR, or remove it"
            )
    elif strangers := folder.strangers():
        raise ValueError(
            f"wanted out= as a new or empty folder, but {folder.root} has {strangers[0]} in it; "
            "type another out=DIR"
        )
    left = until_done.enter_context(folder.alone())
    if left:
        print(f"removed what a killed run had half written in {folder.root}: {', '.join(left)}")
    if not (before and before.complete):
        manifests.write(folder, planned)


def _finish(planned: Manifest, folder: Folder) -> Manifest:
    """Note that all is there."""
    complete = planned.finished({split: _notes(planned, split, folder) for split in planned.images})
    manifests.write(folder, complete)
    return complete


class Views(Dataset[Batch]):
    """The views of a split: crops spread over the room there is, as they are and mirrored."""

    def __init__(self, images: ImageSet, *, crops: int, flip: bool) -> None:
        self.images, self.crops, self.flip = images, crops, flip

    def __getitem__(self, key: View) -> Batch:
        return {name: part[0] for name, part in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[View]) -> Batch:
        image, view = np.array(keys).T
        crop, mirrored = np.divmod(view, 1 + self.flip)
        # the middles of equal parts of [0, 1), rounded down: one crop is exactly the center crop
        place = np.nextafter((crop + 0.5) / self.crops, 0)
        return self.images.views(image.tolist(), np.stack([place, place], 1), mirrored == 1)


def _write_shards(
    planned: Manifest,
    mark: str,
    split: str,
    numbers: Sequence[int],
    data: ImageData,
    images: ImageSet,
    tokenizer: Tokenizer,
    folder: Folder,
    batch: int,
) -> None:
    """Encode and write these shards, one after the other, out of one loader; `mark` of the plan."""
    views = planned.views(split)
    flip = planned.flip and split == "train"
    crops = planned.crops if split == "train" else 1
    rows = {
        number: [(i, v) for i in planned.shard_range(split, number) for v in range(views)]
        for number in numbers
    }
    batches = {
        n: [keys[i : i + batch] for i in range(0, len(keys), batch)] for n, keys in rows.items()
    }
    order = [keys for number in numbers for keys in batches[number]]
    loaded = _ahead(iter(data.loader(Views(images, crops=crops, flip=flip), order)))
    bar = tqdm(total=sum(map(len, order)), desc=f"encoding {split}", disable=None, leave=False)
    for number in numbers:
        pixels, file = hashlib.sha256(), planned.file(split, number)
        with folder.writing(file) as temporary, _writer(temporary, planned) as writer:
            for keys in batches[number]:
                given = next(loaded)
                pixels.update(given["images"].numpy().tobytes())
                writer.write_table(_table(planned, given, _encode(data, tokenizer, given)))
                bar.update(len(keys))
            writer.finalize()
        shard = manifests.describe_shard(folder, file, len(rows[number]), pixels.hexdigest())
        folder.write(_note(file), json.dumps({"plan": mark, **asdict(shard)}))
    bar.close()


def _ahead(batches: Iterator[Batch], how_many: int = 2) -> Iterator[Batch]:
    """The same batches, each made in a thread while an earlier one is encoded: images in memory
    have no loader processes."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(how_many))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch


@torch.inference_mode()
def _encode(data: ImageData, tokenizer: Tokenizer, batch: Batch) -> list[Tensor]:
    """uint8 images of a batch -> mean and, if latents are random, deviation; in float32."""
    device = next(tokenizer.parameters()).device
    moved = {"images": batch["images"].to(device, non_blocking=True)}
    images = data.on_after_batch_transfer(moved, 0)["images"]
    with torch.autocast(device.type, enabled=False):
        return [part.cpu() for part in tokenizer.moments(images) if part is not None]


def _writer(path: Path, planned: Manifest) -> ArrowWriter:
    return ArrowWriter(path=str(path), features=manifests.features(planned))


def _table(planned: Manifest, batch: Batch, parts: list[Tensor]) -> pa.Table:
    arrays = {}
    layout = columns(planned.spec, planned.deviation)
    for (name, (kind, length)), part in zip(layout.items(), parts, strict=True):
        flat = pa.array(part.flatten().numpy().astype(kind))
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, length)
    if planned.class_names:
        arrays["label"] = pa.array(batch["labels"].numpy().astype("int32"))
    return pa.table(arrays)


def _note(file: str) -> str:
    """The file beside a shard that says what was written, and by which plan."""
    return file.replace(".arrow", ".json")


def _notes(planned: Manifest, split: str, folder: Folder) -> tuple[Shard, ...]:
    files = [planned.file(split, number) for number in range(planned.shard_count(split))]
    return tuple(_read_note(folder, file)[1] for file in files)


def _read_note(folder: Folder, file: str) -> tuple[str, Shard]:
    note = json.loads(folder.read(_note(file)))
    return note.pop("plan"), Shard(**note)


def _written(folder: Folder, file: str, mark: str) -> Shard | None:
    """The shard, if it was written by the plan of this mark and is whole."""
    if not folder.exists(_note(file)):
        return None
    try:
        plan, shard = _read_note(folder, file)
    except (ValueError, KeyError, TypeError, AttributeError):  # edited, or of an older format
        return None
    return shard if plan == mark and manifests.is_whole(folder, shard) else None
