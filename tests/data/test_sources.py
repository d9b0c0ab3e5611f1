"""The embedded emoji, torchvision's sets out of tiny folders in their formats, no network."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchvision import datasets

from tests.data.pictures import picture, write_classes
from vqgen.data.images import ImageData
from vqgen.data.sources import celeba, cifar10, emoji, fashion_mnist, imagenet, mnist

CONF = Path(__file__).parents[2] / "conf" / "data"
OPTIONS: dict[str, Any] = {"size": 32, "global_batch": 2, "seed": 0}


@pytest.fixture(scope="module")
def emojis() -> ImageData:
    return instantiate(OmegaConf.load(CONF / "emoji.yaml"), global_batch=64, accumulate=1, seed=0)


def test_emoji_counts_and_classes(emojis: ImageData) -> None:
    assert (len(emojis.train), len(emojis.val)) == (4757, 526)
    assert emojis.class_names[0] == "Smileys & Emotion"
    assert emojis.class_names[8] == "Flags"
    assert emojis.num_classes == 9
    assert emojis.image_size == (32, 32)
    labels = torch.cat([batch["labels"] for batch in emojis.val_dataloader()])
    assert torch.bincount(labels).tolist() == [51, 102, 48, 39, 66, 24, 76, 66, 54]


def test_emoji_are_pictures_on_white(emojis: ImageData) -> None:
    images = torch.cat([batch["images"] for batch in emojis.val_dataloader()]).float()
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.9
    assert abs(images.mean() / 255 - 0.77) < 0.02


def test_emoji_at_32_px_are_means_of_four_pixels(emojis: ImageData) -> None:
    whole = emoji(**{**OPTIONS, "size": 64})
    for index in range(0, 526, 50):
        exact = whole.val[index]["images"].float()
        means = torch.nn.functional.avg_pool2d(exact, 2)
        assert (emojis.val[index]["images"] - means).abs().max() <= 0.5


def test_emoji_of_any_shape() -> None:
    assert emoji(**{**OPTIONS, "size": [24, 40]}).val[0]["images"].shape == (3, 24, 40)


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, part: str) -> None:
    """Yann LeCun's format: MNIST and Fashion-MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, len(labels))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.mark.parametrize("source", [mnist, fashion_mnist])
def test_mnist_family(tmp_path: Path, source: Any) -> None:
    name = {mnist: "MNIST", fashion_mnist: "FashionMNIST"}[source]
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("t10k", 5)):
        images = draw.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(tmp_path / name / "raw", images, np.arange(count).astype(np.uint8) % 10, part)
    data = source(root=str(tmp_path), **{**OPTIONS, "size": 28})
    assert (len(data.train), len(data.val)) == (12, 5)
    assert data.num_classes == 10
    assert data.val[4]["labels"] == 4
    assert torch.equal(data.val[4]["images"], torch.from_numpy(images[4]).expand(3, 28, 28))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072)).astype(np.uint8)
    sums = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        names = [f"class {i}" for i in range(10)]
        content = pickle.dumps({"data": pixels, "labels": [0, 9, 4], "label_names": names})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    # torchvision compares checksums; ours are those of the tiny files
    trains = [[name, sums[name]] for name in sums if name.startswith("data")]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", trains)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    data = cifar10(root=str(tmp_path), **OPTIONS)
    assert (len(data.train), len(data.val)) == (15, 3)
    assert data.class_names[9] == "class 9"
    assert torch.equal(data.val[1]["images"].flatten(), torch.from_numpy(pixels[1]))
    assert data.val[1]["labels"] == 9


def test_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{index:06d}.jpg" for index in range(1, 9)]
    for index, name in enumerate(names):
        picture(index, width=178, height=218).save(folder / "img_align_celeba" / name)
    parts = [0, 0, 0, 0, 0, 1, 1, 2]
    rows = {
        "list_eval_partition.txt": "",
        "identity_CelebA.txt": "",
        "list_bbox_celeba.txt": "8\nimage_id x y w h\n",
        "list_landmarks_align_celeba.txt": "8\nlefteye_x lefteye_y\n",
        "list_attr_celeba.txt": "8\nSmiling Young\n",
    }
    for file, head in rows.items():
        values = parts if "eval" in file else [1] * 8
        width = {"": 1}.get(head, len(head.split("\n")[1].split()) if head else 1)
        width -= "image_id" in head
        lines = [f"{n} {' '.join([str(v)] * width)}" for n, v in zip(names, values, strict=True)]
        (folder / file).write_text(head + "\n".join(lines) + "\n")
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
    data = celeba(root=str(tmp_path), **OPTIONS)
    assert (len(data.train), len(data.val)) == (5, 2)
    assert data.num_classes == 0


def test_imagenet(tmp_path: Path) -> None:
    words = {"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}
    torch.save((words, ["n01"]), tmp_path / "meta.bin")
    for split, count in (("train", 3), ("val", 1)):
        for wnid in words:
            (tmp_path / split / wnid).mkdir(parents=True)
            for index in range(count):
                picture(index).save(tmp_path / split / wnid / f"{index}.JPEG")
    data = imagenet(root=str(tmp_path), **OPTIONS)
    assert (len(data.train), len(data.val)) == (6, 2)
    assert data.class_names == ("tench", "goldfish")
    assert data.val[1]["labels"] == 1


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name resolves to an error, also where there is a network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.parametrize("source", [cifar10, mnist, fashion_mnist, celeba])
@pytest.mark.usefixtures("no_network")
def test_no_network(tmp_path: Path, source: Any) -> None:
    sentence = f"wanted {source.__name__} in {tmp_path}, got no complete copy .* type data.root=DIR"
    with pytest.raises(ValueError, match=sentence):
        source(root=str(tmp_path), **OPTIONS)


def test_imagenet_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ILSVRC2012_img_train\.tar .* type data=folder data\.root"
    ):
        imagenet(root=str(tmp_path), **OPTIONS)


NEEDS_DATA = sorted(set(CONF.glob("*.yaml")) - {CONF / "emoji.yaml"})  # emoji: above


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", NEEDS_DATA, ids=lambda file: file.stem)
def test_yaml_names_only_arguments(file: Path, tmp_path: Path) -> None:
    """A folder without data: every yaml gets as far as its own sentence, past its arguments."""
    config = OmegaConf.load(file)
    config.update({key: str(tmp_path / "none") for key in ("root", "path") if key in config})
    with pytest.raises(Exception, match=r"wanted .*; |Put them there") as error:
        instantiate(config, global_batch=2, accumulate=1, seed=0)
    assert isinstance(error.value.__cause__ or error.value, ValueError)


def test_what_a_user_types_is_flat(tmp_path: Path) -> None:
    write_classes(tmp_path, {"ant": 5, "bee": 5}, width=40, height=30)
    typed = ["data.size=[24,16]", "data.crop=center", "data.flip=false", "data.val_fraction=0.2"]
    with initialize_config_dir(str(CONF.parent), version_base=None):
        config = compose(overrides=["+data=folder", f"data.root={tmp_path}", *typed])
    data = instantiate(config.data, global_batch=2, accumulate=1, seed=0)
    assert data.describe() == {
        "name": f"folder {tmp_path}",
        "train_images": 8,
        "val_images": 2,
        "image_size": [24, 16],
        "class_names": ["ant", "bee"],
        "crop": "center",
        "flip": False,
        "in_memory": True,
        "skipped_files": 0,
    }
