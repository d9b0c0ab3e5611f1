"""data=folder: layouts, splits, files that cannot be used."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.data.pictures import picture, write_bomb, write_classes, write_flat
from vqgen.data.folders import folder
from vqgen.data.images import ImageData


def build(root: Path, **options: Any) -> ImageData:
    return folder(root=str(root), **{"size": 16, "global_batch": 2, "seed": 0, **options})


def shown(data: ImageData) -> tuple[set[bytes], set[bytes]]:
    parts = [
        {part[i]["images"].numpy().tobytes() for i in range(len(part))}
        for part in (data.train, data.val)
    ]
    return parts[0], parts[1]


def test_class_folders(tmp_path: Path) -> None:
    data = build(write_classes(tmp_path / "pets", {"dog": 4, "ant": 3, "cat": 5}))
    assert data.class_names == ("ant", "cat", "dog")
    labels = torch.stack(
        [part[i]["labels"] for part in (data.train, data.val) for i in range(len(part))]
    )
    assert torch.bincount(labels).tolist() == [3, 5, 4]


def test_flat_folder_is_unconditional(tmp_path: Path) -> None:
    data = build(write_flat(tmp_path, 8))
    assert data.num_classes == 0
    assert data.class_names == ()
    assert set(next(iter(data.train_dataloader()))) == {"images"}
    assert set(next(iter(data.val_dataloader()))) == {"images"}


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "test"])
def test_train_and_val_folders_are_the_split(tmp_path: Path, validation: str) -> None:
    write_classes(tmp_path / "train", {"ant": 3, "bee": 4})
    write_classes(tmp_path / validation, {"bee": 2})
    data = build(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert (len(data.train), len(data.val)) == (7, 2)
    assert data.val[0]["labels"] == 1


def test_train_folder_alone_is_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"ant": 6, "bee": 4})
    data = build(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert (len(data.train), len(data.val)) == (9, 1)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = build(write_classes(tmp_path, {"train": 3, "plane": 3}))
    assert data.class_names == ("plane", "train")


def test_split_is_disjoint_stable_and_not_the_runs_seed(tmp_path: Path) -> None:
    write_flat(tmp_path, 20)
    train, val = shown(build(tmp_path, val_fraction=0.25))
    assert (len(train), len(val)) == (15, 5)
    assert not train & val
    assert shown(build(tmp_path, val_fraction=0.25, seed=1)) == (train, val)
    assert shown(build(tmp_path, val_fraction=0.25, split_seed=1)) != (train, val)
    picture(99).save(tmp_path / "new.png")
    train_then, val_then = shown(build(tmp_path, val_fraction=0.25))
    assert len(val_then - val) <= 1  # one more image moves one other over the border at most
    assert len(train_then | val_then) == 21


@pytest.mark.parametrize(("fraction", "held_out"), [(0.001, 1), (0.999, 3)])
def test_split_leaves_an_image_on_each_side(tmp_path: Path, fraction: float, held_out: int) -> None:
    data = build(write_flat(tmp_path, 4), val_fraction=fraction, global_batch=1)
    assert len(data.val) == held_out


def test_hidden_and_system_files_are_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 3, "bee": 3})
    for name in (".DS_Store", "Thumbs.db", "ant/.hidden.png", "ant/desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    data = build(tmp_path)
    assert len(data.train) + len(data.val) == 6
    assert data.describe()["skipped_files"] == 0


def test_nested_class_folders_and_odd_names(tmp_path: Path) -> None:
    (tmp_path / "ant" / "deep down").mkdir(parents=True)
    picture(0).save(tmp_path / "ant" / "deep down" / "no extension", "PNG")
    picture(1).save(tmp_path / "ant" / "b.JPEG")
    data = build(tmp_path, global_batch=1)
    assert len(data.train) + len(data.val) == 2


def spoil(root: Path, what: str) -> str:
    """Add a file that cannot be used -> its name."""
    whole = (root / "0.png").read_bytes()
    if what == "text":
        (root / "notes.txt").write_text("hello")
        return "notes.txt is not an image"
    if what == "empty":
        (root / "empty.png").touch()
        return "empty.png is not an image"
    if what == "truncated":
        (root / "half.png").write_bytes(whole[: len(whole) // 2])
        return "half.png cannot be decoded"
    if what == "tiny":
        picture(0, width=8, height=8).save(root / "tiny.png")
        return "tiny.png is 8 x 8 pixels, smaller than data.min_size=16"
    write_bomb(root / "bomb.png")
    return "bomb.png has more than 178 million pixels"


@pytest.mark.parametrize("cache_mb", [0, 2000], ids=["checked", "decoded"])
@pytest.mark.parametrize("what", ["text", "empty", "truncated", "tiny", "bomb"])
def test_file_that_cannot_be_used(tmp_path: Path, what: str, cache_mb: int) -> None:
    write_flat(tmp_path, 8)
    sentence = spoil(tmp_path, what)
    with pytest.raises(ValueError, match=r"cannot be used: .*data\.on_error=skip") as error:
        build(tmp_path, cache_mb=cache_mb)
    assert sentence in str(error.value)
    with pytest.warns(UserWarning, match="skipped: 1 of the"):
        data = build(tmp_path, cache_mb=cache_mb, on_error="skip")
    assert len(data.train) + len(data.val) == 8
    assert data.describe()["skipped_files"] == 1


def test_files_beside_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 3, "bee": 3})
    picture(9).save(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png has no class"):
        build(tmp_path)
    with pytest.warns(UserWarning, match=r"stray\.png has no class"):
        data = build(tmp_path, on_error="skip")
    assert len(data.train) + len(data.val) == 6


def test_damage_that_shows_while_training(tmp_path: Path) -> None:
    write_flat(tmp_path, 8)
    for name in ("1.png", "4.png"):  # whole to the end, but for the pixels
        file = bytearray((tmp_path / name).read_bytes())
        start = file.index(b"IDAT") + 4
        file[start : start + 20] = bytes(20)
        (tmp_path / name).write_bytes(file)
    stop = build(tmp_path, cache_mb=0, workers=0)
    with pytest.raises(ValueError, match=r"png cannot be decoded .* type data\.on_error=skip"):
        [next(batches) for batches in [iter(stop.train_dataloader())] for _ in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        goes_on = build(tmp_path, cache_mb=0, on_error="skip", workers=0)
        batches = iter(goes_on.train_dataloader())
        assert all(len(next(batches)["images"]) == 2 for _ in range(8))
    assert goes_on.describe()["skipped_files"] > 0


# what the user did -> the sentence
BAD = {
    "root=null": r"wanted a folder of images, got none; type data\.root=DIR",
    "root=imgaes": r"imgaes, where there is nothing; type data\.root=DIR",
    "root=0.png": r"0\.png, where there is a file; type data\.root=DIR",
    "root=void": r"void, which is empty; put images there or type data\.root=DIR",
    "root=one": r"wanted at least two images, one to train and one to validate, got 1; add",
    "val_fraction=0": r"wanted data\.val_fraction between 0 and 1 .* got 0; type data\.val_fra",
    "val_fraction=1.0": r"got 1\.0; type data\.val_fraction=0\.1",
    "size=0": r"wanted data\.size as a positive number .* got 0; type data\.size=64",
    "size=big": r"wanted data\.size .* got big; type data\.size=64 or data\.size=\[96,128\]",
    "size=[8,8,8]": r"wanted data\.size .* got \[8, 8, 8\]; type data\.size=64",
    "size=null": r"wanted data\.size .* got None; type data\.size=64",
    "global_batch=99": r"no larger than the training set .* got 99; type train\.global_batch=5",
    "global_batch=0": r"a positive multiple of .* got 0; type train\.global_batch=1",
    "accumulate=0": r"wanted an accumulation of at least 1, got 0",
    "crop=centre": r"wanted data\.crop to be center or random, got centre; type data\.crop=",
    "on_error=ignore": r"wanted data\.on_error to be error or skip, got ignore; type data\.on_e",
    "workers=-1": r"wanted data\.workers of at least 0, got -1; type data\.workers=0",
    "seed=-1": r"wanted a seed of at least 0, got -1; type seed=0",
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input(tmp_path: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flat(tmp_path, 6)
    write_flat(tmp_path.parent / f"{tmp_path.name}_one", 1).rename(tmp_path / "one")
    (tmp_path / "void").mkdir()
    monkeypatch.chdir(tmp_path)
    usual = {"root": "pictures", "size": 16, "global_batch": 2, "seed": 0}
    write_flat(tmp_path / "pictures", 6)
    option, value = typed.split("=")
    with pytest.raises(ValueError, match=BAD[typed]):
        folder(**{**usual, option: yaml.safe_load(value)})


def test_empty_class_folder(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 3, "bee": 0})
    with pytest.raises(ValueError, match=r"wanted images in every class folder, got .*bee without"):
        build(tmp_path)


def test_validation_class_that_training_lacks(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"ant": 3})
    write_classes(tmp_path / "val", {"bee": 3})
    with pytest.raises(ValueError, match=r"\['ant'\], in .*val, got \['bee'\]; give both parts"):
        build(tmp_path)


def test_no_image_left(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text("text")
    with pytest.raises(ValueError, match="No image is left"):
        build(tmp_path, on_error="skip")
