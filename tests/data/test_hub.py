"""data=hf: Parquet, image folders, webdataset; columns, classes, splits; bad input, no network."""

import io
import tarfile
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from tests.data.pictures import picture, write_bomb, write_classes
from vqgen.data.hub import hf
from vqgen.data.images import ImageData


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps goes to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def build(**options: Any) -> ImageData:
    return hf(**{"size": 16, "global_batch": 2, "seed": 0, **options})


def write_parquet(path: Path, count: int = 10, *, features: Any = None, **columns: list) -> str:
    images = [picture(index) for index in range(count)]
    columns = {"image": images, **columns}
    features = datasets.Features({"image": datasets.Image(), **(features or {})})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return str(path)


def labels_of(data: ImageData) -> list[int]:
    return sorted(
        int(part[i]["labels"]) for part in (data.train, data.val) for i in range(len(part))
    )


def test_parquet_with_named_classes(tmp_path: Path) -> None:
    kinds = datasets.ClassLabel(names=["ant", "bee", "cat"])
    file = write_parquet(
        tmp_path / "a.parquet", features={"kind": kinds}, kind=[0, 1, 2, 2, 2, 1, 1, 0, 0, 0]
    )
    data = build(path="parquet", files=file)
    assert data.class_names == ("ant", "bee", "cat")
    assert labels_of(data) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (len(data.train), len(data.val)) == (9, 1)
    assert build(path="parquet", files=file, label_column="none").num_classes == 0


def test_parquet_with_its_own_validation_split(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", 6)
    test = write_parquet(tmp_path / "test.parquet", 3)
    data = build(path="parquet", files={"train": train, "test": test})
    assert (len(data.train), len(data.val)) == (6, 3)
    assert data.num_classes == 0
    part = build(path="parquet", files={"train": train, "test": test}, split="train[:4]")
    assert len(part.train) + len(part.val) == 4


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        ("string", ["b", "a", "c", "a"], ("a", "b", "c")),
        ("int64", [0, 3, 1, 0], ("0", "1", "2", "3")),
    ],
)
def test_classes_without_names(tmp_path: Path, kind: str, values: list, names: tuple) -> None:
    features = {"label": datasets.Value(kind)}
    file = write_parquet(tmp_path / "a.parquet", 4, features=features, label=values)
    data = build(path="parquet", files=file)
    assert data.class_names == names
    assert labels_of(data) == sorted(names.index(str(value)) for value in values)


def test_images_as_plain_bytes(tmp_path: Path) -> None:
    files = []
    for index in range(4):
        files.append(io.BytesIO())
        picture(index).save(files[-1], "PNG")
    table = datasets.Dataset.from_dict({"img": [file.getvalue() for file in files]})
    table.to_parquet(tmp_path / "a.parquet")
    data = build(path="parquet", files=str(tmp_path / "*.parquet"))
    assert len(data.train) + len(data.val) == 4


def test_imagefolder(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "pets", {"ant": 5, "bee": 4})
    for given in ({"path": "imagefolder", "files": f"{root}/**"}, {"path": str(root)}):
        data = build(**given)
        assert data.class_names == ("ant", "bee")
        assert labels_of(data) == [0] * 5 + [1] * 4


def test_webdataset(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard-0.tar", "w") as shard:
        for index in range(6):
            image = io.BytesIO()
            picture(index).save(image, "JPEG")
            parts = {"jpg": image.getvalue(), "cls": str(index % 3).encode()}
            for ending, content in parts.items():
                entry = tarfile.TarInfo(f"{index:04d}.{ending}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    data = build(path="webdataset", files=str(tmp_path / "*.tar"))
    assert data.class_names == ("0", "1", "2")
    assert labels_of(data) == [0, 0, 1, 1, 2, 2]


def test_larger_tables_are_decoded_by_workers(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", 8)
    kept, read = build(path="parquet", files=file), build(path="parquet", files=file, cache_mb=0)
    assert not read.train.pixels.in_memory
    batches = zip(kept.train_dataloader(), read.train_dataloader(), strict=False)
    for _, (one, other) in zip(range(5), batches, strict=False):
        assert torch.equal(one["images"], other["images"])


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    kinds = datasets.ClassLabel(names=["ant", "bee"])
    table = {
        "image": [{"bytes": b"none", "path": None}, None, *[picture(i) for i in range(6)]],
        "label": [0, 0, -1, 1, 0, 1, 0, 1],
    }
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    files = {"train": str(tmp_path / "a.parquet"), "test": str(tmp_path / "a.parquet")}
    with pytest.raises(
        ValueError, match=r"train\[0\] is not an image; train\[1\] is empty; train\[2\] has"
    ):
        build(path="parquet", files=files)
    with pytest.warns(UserWarning, match="skipped: 3 of the 8"):
        data = build(path="parquet", files=files, on_error="skip")
    assert (len(data.train), len(data.val)) == (5, 5)


@pytest.mark.parametrize("cache_mb", [0, 2000], ids=["checked", "decoded"])
def test_a_decompression_bomb_in_parquet(tmp_path: Path, cache_mb: int) -> None:
    write_bomb(tmp_path / "bomb.png")
    bomb = {"bytes": (tmp_path / "bomb.png").read_bytes(), "path": None}
    features = datasets.Features({"image": datasets.Image()})
    images = [picture(0), bomb, *[picture(i) for i in range(1, 6)]]
    table = datasets.Dataset.from_dict({"image": images}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    files = {name: str(tmp_path / "a.parquet") for name in ("train", "test")}
    sentence = r"train\[1\] has more than 178 million pixels.*data\.on_error=skip"
    with pytest.raises(ValueError, match=sentence):
        build(path="parquet", files=files, cache_mb=cache_mb)
    with pytest.warns(UserWarning, match="skipped: 1 of the 7"):
        data = build(path="parquet", files=files, cache_mb=cache_mb, on_error="skip")
    assert (len(data.train), data.describe()["skipped_files"]) == (6, 2)


BAD = {
    "no path": ({}, r"got no data\.path; type data\.path=parquet"),
    "no files": ({"path": "parquet"}, r"got no data\.files; type data\.path=parquet 'data\.files="),
    "wrong file": (
        {"path": "parquet", "files": "no.parquet"},
        r"wanted images from data\.path=par",
    ),
    "wrong folder": ({"path": "/no/such/folder"}, r"wanted images from data\.path=/no/such/folder"),
    "wrong column": (
        {"image_column": "picture"},
        r"wanted data\.image_column=picture, got columns",
    ),
    "wrong label": ({"label_column": "kind"}, r"wanted data\.label_column=kind, got columns"),
    "no images": ({"image_column": "size"}, r"wanted images in column size, got Value"),
    "no classes": ({"label_column": "size"}, r"wanted classes as integers or texts in column size"),
    "wrong split": ({"split": "dev"}, r"wanted images from .*dev.*; check data\.path"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path: Path, name: str) -> None:
    features = {"size": datasets.Value("float32")}
    file = write_parquet(tmp_path / "a.parquet", 4, features=features, size=[0.5, 1, 2, 3])
    options, sentence = BAD[name]
    usual = (
        {"path": None} if "path" in options or not options else {"path": "parquet", "files": file}
    )
    with pytest.raises(ValueError, match=sentence):
        build(**{**usual, **options})


def test_no_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"data\.path=nobody/nothing-here.* no connection .* data=emoji"
    ):
        build(path="nobody/nothing-here")
    assert time.monotonic() - start < 10
