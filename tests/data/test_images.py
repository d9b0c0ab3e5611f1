"""Batches of a run: exact resume with augmentation and workers, validation once, ranges, memory."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed

from tests.data.pictures import write_classes
from vqgen.data.decode import cut
from vqgen.data.folders import folder
from vqgen.data.images import ImageData, all_alike
from vqgen.data.store import Batch

OPTIONS: dict[str, Any] = {"size": [16, 20], "crop": "random", "flip": True, "global_batch": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide pictures, so that crops have a choice."""
    root = tmp_path_factory.mktemp("pets")
    return write_classes(root / "pets", {"cat": 9, "dog": 8}, width=60, height=20)


@pytest.mark.parametrize("how", ["error", "skip"])
def test_without_verify_no_file_is_opened_before_training(tmp_path: Path, how: str) -> None:
    """A small set with a file that is cut short starts, and shows it when its turn comes."""
    root = write_classes(tmp_path / "pets", {"cat": 9, "dog": 8}, width=60, height=20)
    file = root / build(root, cache_mb=0).train.pixels.listing.names[5]  # type: ignore[attr-defined]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=file.name):
        build(root)
    data = build(root, verify=False, workers=0, on_error=how)
    if how == "error":
        with pytest.raises(ValueError, match=rf"{file.name} .*data\.on_error=skip"):
            first(data, 9)
        return
    with pytest.warns(UserWarning, match="the next image replaces it"):
        assert len(first(data, 9)) == 9
    assert data.describe()["skipped_files"] >= 1


def build(root: Path, seed: int = 3, **options: Any) -> ImageData:
    return folder(root=str(root), seed=seed, **{**OPTIONS, **options})


def first(data: ImageData, steps: int) -> list[Batch]:
    return list(islice(data.train_dataloader(), steps))


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("cache_mb", [0, 2000], ids=["decoded on access", "in memory"])
def test_resume_is_exact(root: Path, cache_mb: int) -> None:
    whole = first(build(root, cache_mb=cache_mb, workers=0), 12)
    resumed = build(root, cache_mb=cache_mb, workers=0)
    resumed.samples_seen = 5 * 4
    assert_same(first(resumed, 7), whole[5:])


def test_memory_workers_and_accumulation_do_not_change_the_images(root: Path) -> None:
    alone = first(build(root), 6)
    assert_same(first(build(root, cache_mb=0, workers=2), 6), alone)
    micro = first(build(root, accumulate=2), 12)
    pairs = zip(micro[::2], micro[1::2], strict=True)
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in pairs]
    assert_same(joined, alone)


def test_augmentation_belongs_to_the_position_and_the_seed(root: Path) -> None:
    data = build(root)
    steps = first(data, 60)
    images = torch.cat([batch["images"] for batch in steps])
    views = {images[i].numpy().tobytes() for i in range(len(images))}
    assert len(views) > 3 * len(data.train)  # the same image is seen in several crops, both ways
    other = torch.cat([batch["images"] for batch in first(build(root, seed=4), 60)])
    assert not torch.equal(images, other)


def spoil(data: ImageData, root: Path, index: int) -> str:
    """Damage a training image in its middle, where a check of its two ends does not look."""
    name = data.train.pixels.listing.names[index]  # type: ignore[attr-defined]
    file = bytearray((root / name).read_bytes())
    file[60:80] = bytes(20)
    (root / name).write_bytes(file)
    return name


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_in_the_middle_of_an_epoch_is_named(tmp_path: Path, workers: int) -> None:
    root = write_classes(tmp_path / "pets", {"cat": 9, "dog": 8}, width=60, height=20)
    data = build(root, cache_mb=0, workers=workers)
    epoch = iter(data.train_dataloader())
    assert next(epoch)["images"].shape[0] == 4
    name = spoil(data, root, 5)
    with pytest.raises(
        ValueError, match=r"^\S*png cannot be decoded .*data\.on_error=skip"
    ) as error:
        list(islice(epoch, 40))  # more than a loader has read ahead
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_corrupt_image_in_the_middle_of_an_epoch_is_replaced(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "pets", {"cat": 9, "dog": 8}, width=60, height=20)
    data = build(root, cache_mb=0, workers=0, on_error="skip")
    epoch = iter(data.train_dataloader())
    next(epoch)
    assert data.describe()["skipped_files"] == 0
    spoil(data, root, 5)
    with pytest.warns(UserWarning, match=r"png cannot be decoded .*; the next image replaces it"):
        batches = list(islice(epoch, 8))
    assert all(len(batch["images"]) == len(batch["labels"]) == 4 for batch in batches)
    assert data.describe()["skipped_files"] >= 1
    with pytest.warns(UserWarning, match="replaces it"):
        spoilt, following = data.train[5], data.train[6]
    assert all(torch.equal(spoilt[name], following[name]) for name in spoilt)


def test_views_are_the_cut_and_mirrored_images_bit_for_bit(root: Path) -> None:
    images = build(root).train
    rng = np.random.default_rng(0)
    places, flips = rng.random((6, 2)), rng.random(6) < 0.5
    got = images.views(range(6), places, flips)["images"].permute(0, 2, 3, 1).numpy()
    assert got.flags.c_contiguous and 0 < flips.sum() < 6
    for row in range(6):
        crop = cut(images.pixels.fetch(row)[0], images.size, *places[row])
        assert np.array_equal(got[row], crop[:, ::-1] if flips[row] else crop)


def test_flip_mirrors_half_of_the_images(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(0, 255, 16).astype(np.uint8)[None], 16, axis=0)
    for name in "abcdefgh":
        Image.fromarray(ramp).save(tmp_path / f"{name}.png")
    rises = []
    for flip in (True, False):
        data = build(tmp_path, size=16, flip=flip)
        images = torch.cat([batch["images"] for batch in first(data, 100)])
        rises.append((images[:, 0, 0, -1] > images[:, 0, 0, 0]).float().mean())
    assert abs(rises[0] - 0.5) < 0.1
    assert rises[1] == 1


def test_validation_shows_every_image_once_centered(root: Path) -> None:
    data = build(root, val_fraction=0.4)
    batches = list(data.val_dataloader())
    assert_same(batches, list(data.val_dataloader()))
    images = torch.cat([batch["images"] for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert len(images) == len(data.val) == 7
    assert max(len(batch["images"]) for batch in batches) <= 4
    for index in range(7):
        assert torch.equal(images[index], data.val[index]["images"])
        assert labels[index] == data.val[index]["labels"]
    stored = data.val.pixels.fetch(0)[0]  # kept at the center crop already
    assert stored.shape == (16, 20, 3)


def test_batches_after_transfer(root: Path) -> None:
    data = build(root)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].dtype == torch.uint8
    assert batch["labels"].dtype == torch.long
    moved = data.on_after_batch_transfer(batch, 0)["images"]
    assert moved.shape == (4, 3, 16, 20)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, 2 * (batch["images"].float() / 255) - 1)
    ends = {"images": torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)}
    assert data.on_after_batch_transfer(ends, 0)["images"].flatten().tolist() == [-1, 1]


def test_loaders_draw_nothing_from_the_global_generators(root: Path) -> None:
    data = build(root)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first(data, 2), list(data.val_dataloader())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_describe(root: Path) -> None:
    data = build(root)
    facts = data.describe()
    assert facts["class_names"] == ["cat", "dog"]
    assert (facts["train_images"], facts["val_images"]) == (15, 2)
    assert facts["image_size"] == [16, 20] == list(data.image_size)
    assert data.num_classes == 2


@pytest.fixture
def rank_of_two(tmp_path: Path) -> Iterator[None]:
    """A process group that says "rank 1 of 2": the loaders only ask, and never talk."""
    distributed.init_process_group("fake", store=distributed.HashStore(), rank=1, world_size=2)
    yield
    distributed.destroy_process_group()


def test_ranks_share_the_global_batch_and_the_validation_set(
    root: Path, request: pytest.FixtureRequest
) -> None:
    data = build(root, val_fraction=0.4)
    alone = first(data, 5)
    every = torch.cat([data.val[index]["images"][None] for index in range(len(data.val))])
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  # registers "fake"

    request.getfixturevalue("rank_of_two")
    for batch, whole in zip(first(data, 5), alone, strict=True):
        assert torch.equal(batch["images"], whole["images"][2:])
    mine = torch.cat([batch["images"] for batch in data.val_dataloader()])
    assert len(list(data.val_dataloader())) == 2  # as on rank 0
    assert 0 < len(mine) < len(every)
    assert all(any(torch.equal(image, other) for other in every) for image in mine)
    with pytest.raises(ValueError, match="accumulation x ranks = 1 x 2, got 5"):
        build(root, global_batch=5).train_dataloader()


@pytest.mark.parametrize("cache_mb", [0, 2000], ids=["decoded on access", "in memory"])
def test_images_that_are_all_the_same_are_told_from_others(tmp_path: Path, cache_mb: int) -> None:
    for i in range(6):
        Image.new("RGB", (20, 16), (7, 8, 9)).save(tmp_path / f"{i}.png")
    assert all_alike(build(tmp_path, cache_mb=cache_mb).train)
    Image.new("RGB", (20, 16), (7, 8, 10)).save(tmp_path / "6.png")
    data = build(tmp_path, cache_mb=cache_mb, val_fraction=0.2)
    alike = {data.train.pixels.fetch(i)[0].sum() for i in range(len(data.train))}
    assert all_alike(data.train) == (len(alike) == 1)
