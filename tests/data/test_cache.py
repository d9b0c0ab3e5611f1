"""The latent cache: the same batches as encoding on the fly, whole or refused, resumable."""

import json
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from tests import tiny
from vqgen.contracts import FeatureSpec, Reconstruction, Tokenizer, TokenSpec
from vqgen.data import cache, cache_folder, extract, manifest
from vqgen.data.cache import CachedLatents
from vqgen.data.images import ImageData
from vqgen.data.store import ImageSet, Kept
from vqgen.training import latents


class Means(Tokenizer):
    """Latents that are random: the mean color of each 8 x 8 square, give or take `spread`."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.image_size = tiny.SIZE
        self.spec = FeatureSpec(3, tiny.SIZE[0] // 8, tiny.SIZE[1] // 8)
        self.spread = nn.Parameter(torch.tensor(spread))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.spread

    def forward(self, images: Tensor) -> Reconstruction:
        return Reconstruction(self.decode(self.encode(images)), {})

    def after_step(self) -> dict[str, float]:
        return {}

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        mean = F.avg_pool2d(images, 8)
        return mean, self.spread.detach().expand_as(mean)

    def encode(self, images: Tensor) -> Tensor:
        mean, deviation = self.moments(images)
        return mean + deviation * torch.randn_like(mean)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents, tiny.SIZE)


def wide_data(batch: int = 4, flip: bool = True) -> ImageData:
    """As tiny.data, of images twice as wide as the size, cropped at random."""

    def split(count: int, seed: int) -> ImageSet:
        pixels = torch.cat([tiny.images(count, seed), tiny.images(count, seed + 50)], dim=3)
        kept = Kept(list(pixels.permute(0, 2, 3, 1).numpy()), np.arange(count) % 3)
        return ImageSet(kept, size=tiny.SIZE, skipped={})

    names = [f"class {i}" for i in range(3)]
    parts = {"train": split(12, 1), "val": split(6, 2)}
    options: Any = {"crop": "random", "flip": flip, "global_batch": batch, "seed": 0}
    return ImageData(name="wide", class_names=names, **parts, **options)


def written(out: Path | str, data: ImageData, tokenizer: Tokenizer, **options: Any) -> Any:
    planned = extract.plan(
        data, tokenizer.eval(), fingerprint="abc", path="runs/stage1/x", **options
    )
    return extract.extract(planned, data, tokenizer, str(out), batch=5)


def read(out: Path | str, batch: int = 4, **options: Any) -> CachedLatents:
    return cache.cache(root=str(out), global_batch=batch, **options)


def batches(data: Any, count: int) -> list[dict[str, Tensor]]:
    loader = iter(data.train_dataloader())
    return [data.on_after_batch_transfer(next(loader), 0) for _ in range(count)]


@pytest.mark.parametrize("kind", tiny.TOKENIZERS)
@pytest.mark.parametrize("classes", [0, 3])
def test_law_batches_are_those_of_encoding_on_the_fly(
    tmp_path: Path, kind: str, classes: int
) -> None:
    """Two epochs and a half: same images, same flips, same order, same latents; resumed as well."""
    data, tokenizer = tiny.data(classes=classes), tiny.TOKENIZERS[kind]().eval()
    written(tmp_path, data, tokenizer, shard_images=7)
    cached = read(tmp_path).latents(tokenizer, "abc")
    fly = data.latents(tokenizer, "abc")
    pairs = list(zip(batches(fly, 15), batches(cached, 15), strict=True))
    for expected, got in pairs:
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert got[name].dtype == value.dtype
            torch.testing.assert_close(got[name], value, atol=2e-3, rtol=1e-3)
    resumed = read(tmp_path)
    resumed.samples_seen = 8
    assert torch.equal(batches(resumed, 1)[0]["latents"], pairs[2][1]["latents"])
    for expected, got in zip(fly.val_dataloader(), cached.val_dataloader(), strict=True):
        expected = fly.on_after_batch_transfer(expected, 0)
        torch.testing.assert_close(got["latents"], expected["latents"], atol=2e-3, rtol=1e-3)
    assert cached.num_classes == classes and cached.image_size == tiny.SIZE


def test_ten_crops_are_views_of_the_image_all_equally_likely(tmp_path: Path) -> None:
    data, tokenizer = wide_data(), tiny.tokenizer().eval()
    done = written(tmp_path, data, tokenizer)
    assert done.views("train") == 10 and done.views("val") == 1
    cached = read(tmp_path)
    places = np.nextafter((np.arange(5) + 0.5) / 5, 0)  # of a room of 24 pixels: 2, 7, 12, ...
    pixels = [
        data.train.views([3], np.array([[p, p]]), np.array([flip]))["images"]
        for p in places
        for flip in (False, True)
    ]
    expected = tokenizer.encode(torch.cat(pixels).float() / 127.5 - 1)
    rows = cached.sets["train"].table[list(range(30, 40))]["tokens"]
    assert np.array_equal(rows, expected.numpy())
    assert len({tuple(row) for row in rows}) == 10, "ten different views"
    keys = [(3, position) for position in range(4000)]
    drawn = cached.sets["train"].__getitems__(keys)["latents"]
    counts = [int((drawn == torch.from_numpy(row.astype(int))).all(1).sum()) for row in rows]
    assert sum(counts) == 4000
    assert max(abs(count - 400) for count in counts) < 5 * np.sqrt(4000 * 0.1 * 0.9)


def test_an_epoch_is_of_images_not_of_views(tmp_path: Path) -> None:
    written(tmp_path, wide_data(), tiny.tokenizer())
    cached = read(tmp_path)
    order = [
        index
        for keys, _ in zip(cached.train_dataloader().batch_sampler, range(3), strict=False)
        for index, _ in keys
    ]
    assert sorted(order) == list(range(12)) and len(cached.sets["train"]) == 12


def test_random_latents_keep_their_distribution(tmp_path: Path) -> None:
    """Mean and deviation are stored; each time an image comes it is drawn anew, reproducibly."""
    data, tokenizer = tiny.data(), Means(0.25)
    written(tmp_path, data, tokenizer)
    cached, again = read(tmp_path), read(tmp_path)
    assert cached.manifest.deviation
    first = batches(cached, 1)[0]["latents"]
    assert first.dtype == torch.float32 and first.shape == (4, 3, 2, 3)
    assert torch.equal(first, batches(again, 1)[0]["latents"])
    drawn = cached.sets["train"].__getitems__([(5, position) for position in range(4000)])[
        "latents"
    ]
    plain = data.train[5]["images"].float()[None] / 127.5 - 1
    means = torch.cat([tokenizer.moments(plain)[0], tokenizer.moments(plain.flip(3))[0]])
    torch.testing.assert_close(drawn.mean(0), means.mean(0), atol=0.03, rtol=0)
    half_apart = (means[0] - means[1]).abs() / 2
    expected = (0.25**2 + half_apart.square()).sqrt()
    torch.testing.assert_close(drawn.std(0), expected, atol=0.02, rtol=0)


def test_tokens_take_two_bytes_and_four_where_they_must(tmp_path: Path) -> None:
    assert manifest.columns(TokenSpec(2**16, ((16, 16),)), False) == {"tokens": ("uint16", 256)}
    assert manifest.columns(TokenSpec(2**16 + 1, ((1, 1), (2, 3))), False) == {
        "tokens": ("uint32", 7)
    }
    done = written(tmp_path, tiny.data(), tiny.tokenizer())
    stored = sum(shard.bytes for listed in done.shards.values() for shard in listed)
    assert stored < (24 * 2 + 6) * (6 * 2 + 4) + 2 * 2000, "tokens, labels, and a header per file"


def test_a_cache_of_latents_of_another_scale_is_refused(tmp_path: Path) -> None:
    """As the latents of images are, before training starts."""
    data, tokenizer = tiny.data(), tiny.kl().eval()
    latents.standardize_(tokenizer, data)
    written(tmp_path / "good", data, tokenizer)
    found = latents.check_cached(read(tmp_path / "good"))
    assert found["latents/largest_mean"] < 0.2
    assert 0.8 < found["latents/smallest_deviation"] < found["latents/largest_deviation"] < 1.2
    channels = len(tokenizer.standardizer.mean)  # type: ignore[union-attr]
    tokenizer.standardizer.refine_(torch.zeros(channels), torch.full((channels,), 0.3))  # type: ignore[union-attr]
    written(tmp_path / "bad", data, tokenizer)
    with pytest.raises(ValueError, match=r"near zero mean .* python train_stage1\.py tokenizer=kl"):
        latents.check_cached(read(tmp_path / "bad"))
    written(tmp_path / "tokens", data, tiny.tokenizer().eval())
    assert latents.check_cached(read(tmp_path / "tokens")) == {}


def test_a_killed_extraction_goes_on_and_ends_in_the_same_files(tmp_path: Path) -> None:
    data, tokenizer = tiny.data(), tiny.tokenizer()
    whole = written(tmp_path / "whole", data, tokenizer, shard_images=5)
    cut = tmp_path / "cut"
    killed = Killed(tokenizer, after=4)
    with pytest.raises(KeyboardInterrupt):
        written(cut, data, killed, shard_images=5)
    with pytest.raises(ValueError, match=r"not complete.*cache_latents\.py tokenizer="):
        read(cut)
    before = {path: path.stat().st_mtime_ns for path in cut.rglob("*.arrow")}
    assert 0 < len(before) < 7
    assert written(cut, data, tokenizer, shard_images=5) == whole
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "not done again"
    assert not list(cut.rglob("*.writing"))
    with pytest.raises(
        ValueError, match=r"(?s)holds another cache.*\n  shard_images: 5 -> 6\nType.*out="
    ):
        written(cut, data, tokenizer, shard_images=6)


def test_half_written_files_of_a_killed_run_are_cleared_and_told(tmp_path: Path, capsys) -> None:
    """Here and where those of a remote cache are begun; nothing else is touched."""
    for out in (str(tmp_path / "x"), f"memory://vqgen-test/{uuid.uuid4()}"):
        desk = cache_folder.Folder(out).desk
        (desk / "train").mkdir(parents=True)
        for name in (".manifest.json.7.writing", "train/.00000.arrow.7.writing"):
            (desk / name).write_bytes(b"half")
        (desk / "train" / "mine.writing").write_bytes(b"no file of ours")
        written(out, tiny.data(), tiny.tokenizer())
        names = ".manifest.json.7.writing, train/.00000.arrow.7.writing"
        said = f"removed what a killed run had half written in {out}: {names}\n"
        assert said == capsys.readouterr().out
        assert [path.name for path in desk.rglob("*.writing")] == ["mine.writing"]
        read(out)


def test_a_cache_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    with cache_folder.Folder(str(tmp_path)).alone():
        live = tmp_path / ".manifest.json.7.writing"
        live.write_bytes(b"under way")
        with pytest.raises(ValueError, match=r"another process writes the cache in .*out=DIR"):
            written(tmp_path, tiny.data(), tiny.tokenizer())
        assert live.exists()
    written(tmp_path, tiny.data(), tiny.tokenizer())
    assert not live.exists()


def test_the_command_that_goes_on_has_all_that_was_typed(tmp_path: Path) -> None:
    out, typed = tmp_path / "my cache", ["crops=1", "data.root='my pictures'"]
    options: Any = {"shard_images": 12, "typed": typed}
    with pytest.raises(KeyboardInterrupt):
        written(out, tiny.data(), Killed(tiny.tokenizer(), 4), **options)
    command = (
        "python scripts/cache_latents.py tokenizer=runs/stage1/x crops=1 "
        f"\"data.root='my pictures'\" \"out='{out}'\""
    )
    with pytest.raises(ValueError, match="not complete") as refused:
        read(out)
    assert str(refused.value).endswith(command)
    written(out, tiny.data(), tiny.tokenizer(), **options)
    flip_a_byte(out / "train" / "00000.arrow")
    with pytest.raises(ValueError, match="replaces what is damaged") as refused:
        read(out)
    assert str(refused.value).endswith(command)


def test_a_refusal_names_what_differs_and_nothing_else(tmp_path: Path) -> None:
    """Entries of the images' facts, not all of them; of long lists the first that differs."""
    planned = written(tmp_path, tiny.data(), tiny.tokenizer())
    names = tuple(f"class {number}" for number in range(100))
    facts = {**planned.data, "crop": "random", "class_names": [*names]}
    ours = replace(planned, data={**facts, "class_names": [*names[:60], "x", *names[61:]]})
    assert replace(planned, data=facts).differences(ours) == ["data.class_names[60]: class 60 -> x"]
    assert planned.differences(replace(planned, data={**planned.data, "crop": "random"})) == [
        "data.crop: center -> random"
    ]
    longer = replace(planned, data={**planned.data, "class_names": [*names]})
    assert planned.differences(longer) == ["data.class_names: 3 entries -> 100"]


@pytest.mark.parametrize("name", ["cat.png", "train/cats/0.png", "notes/a.txt"])
def test_a_folder_with_something_else_in_it_is_no_place_for_a_cache(tmp_path: Path, name) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="wanted out= as a new or empty folder, but"):
        written(tmp_path, tiny.data(), tiny.tokenizer())
    assert not (tmp_path / "manifest.json").exists()


class Killed(Tokenizer):
    """The tokenizer of a process that dies in the middle."""

    def __init__(self, tokenizer: Any, after: int) -> None:
        super().__init__()
        self.inner, self.left = tokenizer, after
        self.spec, self.image_size = tokenizer.spec, tokenizer.image_size

    last_layer, after_step = property(lambda self: None), lambda self: {}
    forward = decode = lambda self, x: x

    def encode(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner.encode(images)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    written(tmp_path, tiny.data(), tokenizer)
    with pytest.raises(ValueError, match=r"another tokenizer.*type tokenizer=runs/stage1/x"):
        read(tmp_path).latents(tokenizer, "def")


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def named(file: str) -> Callable[[dict[str, Any]], None]:
    return lambda plain: plain["shards"]["train"][0].update(file=file)


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one byte": (lambda path: flip_a_byte(path / "train" / "00000.arrow"), "not what was written"),
    "cut short": (
        lambda path: (path / "val" / "00000.arrow").write_bytes(b"ARROW"),
        "not what was written",
    ),
    "a file less": (lambda path: (path / "train" / "00001.arrow").unlink(), "is missing"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "holds no manifest.json"),
    "half a manifest": (
        lambda path: (path / "manifest.json").write_text('{"format": 1, "tok'),
        "cannot be read",
    ),
    "a path that leads outside": (
        lambda path: rewrite(path, marked(named("../../etc/00000.arrow"))),
        r"names '../../etc/00000.arrow', which is no file of a cache",
    ),
    "an absolute path": (
        lambda path: rewrite(path, marked(named("/etc/00000.arrow"))),
        "no file of a cache",
    ),
    "fewer images": (
        lambda path: rewrite(path, lambda text: text.replace('"train": 24', '"train": 20')),
        "it was edited",
    ),
    "other classes": (
        lambda path: rewrite(path, lambda text: text.replace('"class 0"', '"class 9"')),
        "it was edited",
    ),
    "another vocabulary": (
        lambda path: rewrite(
            path, lambda text: text.replace('"vocab_size": 32', '"vocab_size": 9')
        ),
        "it was edited",
    ),
    "another tokenizer's mark": (
        lambda path: rewrite(
            path, lambda text: text.replace('"tokenizer": "abc"', '"tokenizer": "d"')
        ),
        "it was edited",
    ),
}


def rewrite(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "manifest.json"
    path.write_text(change(path.read_text()))


def marked(change: Callable[[dict[str, Any]], None]) -> Callable[[str], str]:
    """A change of the manifest that its own hash does not tell."""

    def changed(text: str) -> str:
        plain = json.loads(text)
        header = {name: plain.pop(name) for name in ("format", "sha256")}
        change(plain)
        return json.dumps({**header, "sha256": manifest.digest(plain), **plain})

    return changed


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_cache_is_refused(tmp_path: Path, how: str) -> None:
    written(tmp_path, tiny.data(), tiny.tokenizer(), shard_images=12)
    change, sentence = ALTERED[how]
    change(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path)


def test_a_cache_in_any_fsspec_place(tmp_path: Path) -> None:
    out = "memory://vqgen-test/cache"
    written(out, tiny.data(), tiny.tokenizer())
    written(tmp_path, tiny.data(), tiny.tokenizer())
    for ours, remote in zip(batches(read(tmp_path), 3), batches(read(out), 3), strict=True):
        assert torch.equal(ours["latents"], remote["latents"])


def test_a_cache_made_again_in_the_same_remote_place_is_the_new_one(tmp_path: Path) -> None:
    """What was downloaded of the old one must not count, neither for reading nor for the hashes."""
    out, data = "memory://vqgen-test/again", tiny.data()
    written(out, data, tiny.tokenizer())
    old = batches(read(out), 1)[0]["latents"]
    cache_folder.Folder(out).files.rm("/vqgen-test/again", recursive=True)
    other = tiny.tokenizer()
    torch.nn.init.normal_(other.bottleneck.codebook.weight)  # type: ignore[union-attr]
    written(out, data, other)
    written(tmp_path, data, other)
    new = batches(read(out), 1)[0]["latents"]
    assert torch.equal(new, batches(read(tmp_path), 1)[0]["latents"])
    assert not torch.equal(new, old)


def half(rank: int, folder: Path) -> None:
    """One of two processes that make a cache, and are both refused in a folder of others."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    with pytest.raises(ValueError, match="new or empty folder"):
        written(folder, tiny.data(), tiny.tokenizer())
    other = cache_folder.Folder(str(folder / "taken")).alone() if rank == 0 else nullcontext()
    with other, pytest.raises(ValueError, match="another process writes"):
        written(folder / "taken", tiny.data(), tiny.tokenizer())
    written(folder / "two", tiny.data(), tiny.tokenizer(), shard_images=5)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_make_the_files_of_one(tmp_path: Path) -> None:
    start_processes(half, args=(tmp_path,), nprocs=2, start_method="spawn")
    one = written(tmp_path / "one", tiny.data(), tiny.tokenizer(), shard_images=5)
    assert manifest.read(cache_folder.Folder(str(tmp_path / "two"))) == one
    read(tmp_path / "two")


def test_crops_of_center_cropped_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.crop=random, or crops=1"):
        written(tmp_path, tiny.data(), tiny.tokenizer(), crops=5)


def test_plans_differ_by_their_images(tmp_path: Path) -> None:
    """Other classes for the same images are another cache, as are other images of the same name."""
    planned = written(tmp_path, tiny.data(), tiny.tokenizer())
    assert json.loads((tmp_path / "manifest.json").read_text())["data_hash"] == planned.data_hash
    assert planned.differences(replace(planned, content="0")) == [
        f"content: {planned.content} -> 0"
    ]
    data, other = tiny.data(), tiny.data()
    other.val.pixels.images[5] = 255 - other.val.pixels.images[5]  # type: ignore[attr-defined]
    first, second = (
        extract.plan(each, tiny.tokenizer(), fingerprint="abc", path="x") for each in (data, other)
    )
    assert len(first.differences(second)) == 1


def test_a_plan_is_the_same_wherever_the_images_are_kept(tmp_path: Path) -> None:
    """data.cache_mb and data.verify change no image: a killed extraction may go on with others."""
    planned = written(tmp_path, tiny.data(), tiny.tokenizer())
    read = replace(planned, data={**planned.data, "in_memory": not planned.data["in_memory"]})
    assert planned.data["in_memory"] and not planned.differences(read)
    assert manifest.digest(planned.plan) == manifest.digest(read.plan)


def test_shards_of_another_tokenizer_are_not_adopted(tmp_path: Path) -> None:
    """Where somebody removed the manifest."""
    data, other = tiny.data(), tiny.tokenizer("ema")
    torch.nn.init.normal_(other.bottleneck.codebook.weight)  # type: ignore[union-attr]
    written(tmp_path / "x", data, tiny.tokenizer())
    (tmp_path / "x" / "manifest.json").unlink()
    for name in ("x", "fresh"):
        planned = extract.plan(data, other.eval(), fingerprint="def", path="y")
        extract.extract(planned, data, other, str(tmp_path / name), batch=5)
    ours, fresh = (batches(read(tmp_path / name), 3) for name in ("x", "fresh"))
    for one, two in zip(ours, fresh, strict=True):
        assert torch.equal(one["latents"], two["latents"])


@pytest.mark.parametrize("how", ["one byte", "cut short", "a file less"])
def test_the_same_command_mends_a_damaged_cache(tmp_path: Path, how: str) -> None:
    """As the refusal says; what is whole is not done again."""
    whole = written(tmp_path, tiny.data(), tiny.tokenizer(), shard_images=6)
    ALTERED[how][0](tmp_path)
    with pytest.raises(ValueError, match=r"replaces what is damaged: python scripts/cache_latents"):
        read(tmp_path)
    assert written(tmp_path, tiny.data(), Killed(tiny.tokenizer(), 4), shard_images=6) == whole
    read(tmp_path)


BOMBS: dict[str, dict[str, Any]] = {
    "other columns": {f"column {i}": np.zeros(24, np.int8) for i in range(2000)},
    "more rows": {"tokens": [[0] * 6] * 1000, "label": [0] * 1000},
    "longer rows": {"tokens": [[0] * 60000] * 24, "label": [0] * 24},
}


@pytest.mark.parametrize("what", [*BOMBS, "no Arrow at all"])
def test_a_file_of_other_content_with_the_right_hash_is_refused(tmp_path: Path, what: str) -> None:
    """One sentence, whatever lies inside, and before anything of it is decoded."""
    written(tmp_path, tiny.data(), tiny.tokenizer())
    path = tmp_path / "train" / "00000.arrow"
    if what in BOMBS:
        table = pa.table(BOMBS[what])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    else:
        path.write_bytes(b"ARROW" * 100)
    shard = manifest.describe_shard(cache_folder.Folder(str(tmp_path)), "train/00000.arrow", 24, "")
    facts = {"bytes": shard.bytes, "sha256": shard.sha256}
    rewrite(tmp_path, marked(lambda plain: plain["shards"]["train"][0].update(facts)))
    with pytest.raises(ValueError, match=r"00000\.arrow is not what was written"):
        read(tmp_path)
