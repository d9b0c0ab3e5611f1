"""What a latent cache says about itself: manifest.json."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from datasets import Features, Value
from datasets import Sequence as Repeated

from vqgen import commands
from vqgen.contracts import FeatureSpec, LatentSpec, Size, TokenSpec
from vqgen.data.cache_folder import Folder

FORMAT = 2  # 1 had no hash of itself
SHARD_NAME = re.compile(r"(train|val)/\d{5}\.arrow")  # nothing else is ever opened
COMMAND = "python scripts/cache_latents.py tokenizer=RUN out=DIR"


@dataclass(frozen=True)
class Shard:
    """One Arrow file: `rows` views of consecutive images; `sha256` of its `bytes` bytes, `pixels`
    of the uint8 images it was made from."""

    file: str
    rows: int
    bytes: int
    sha256: str
    pixels: str


@dataclass(frozen=True)
class Manifest:
    """What was cached, by which tokenizer, of which images; `shards` by split, empty until all are
    there.

    Row i * views + v of a split is view v of image i: with flips crop v // 2, mirrored if v is odd;
    without, crop v."""

    tokenizer: str  # fingerprint of the tokenizer that made it
    tokenizer_path: str  # where that one was, for messages
    spec: LatentSpec
    deviation: bool  # whether features have a deviation beside the mean
    image_size: Size
    class_names: tuple[str, ...]
    data: dict[str, Any]  # as ImageData.describe() told
    content: str  # sha256 of the classes of all images, in order, and of some images' pixels
    images: dict[str, int]  # by split
    crops: int  # of each training image
    flip: bool  # every crop of a training image mirrored as well
    shard_images: int  # images per shard
    shards: dict[str, tuple[Shard, ...]]
    data_hash: str = ""  # sha256 over the pixels of every view
    typed: tuple[str, ...] = ()  # the command's overrides, but for tokenizer= and out=

    @property
    def complete(self) -> bool:
        """Whether every shard was written."""
        return bool(self.shards)

    def views(self, split: str) -> int:
        """Rows per image: the training part's crops and flips; 1 for the validation part."""
        return self.crops * (1 + self.flip) if split == "train" else 1

    def file(self, split: str, number: int) -> str:
        """Name of a shard inside the cache's folder."""
        return f"{split}/{number:05d}.arrow"

    def shard_count(self, split: str) -> int:
        """Shards of a split."""
        return -(-self.images[split] // self.shard_images)

    def shard_range(self, split: str, number: int) -> range:
        """The images of a shard."""
        start = number * self.shard_images
        return range(start, min(start + self.shard_images, self.images[split]))

    @property
    def plan(self) -> dict[str, Any]:
        """What is cached, paths, progress and where the images are kept meanwhile aside."""
        progress = ("shards", "data_hash", "tokenizer_path", "typed")
        plan = {name: value for name, value in _plain(self).items() if name not in progress}
        data = {name: value for name, value in self.data.items() if name != "in_memory"}
        return {**plan, "data": data}

    def command(self, out: str) -> str:
        """What to type to make it, or to go on with it, in folder `out`."""
        tokenizer = commands.override("tokenizer", self.tokenizer_path)
        words = [tokenizer, *self.typed, commands.override("out", out)]
        return commands.shell(["python", "scripts/cache_latents.py"], words)

    def differences(self, other: "Manifest") -> list[str]:
        """What two plans do not agree on: `name: here -> there`, one line each."""
        return _differences(self.plan, other.plan)

    def finished(self, shards: dict[str, tuple[Shard, ...]]) -> "Manifest":
        """The manifest of the complete cache."""
        digest = hashlib.sha256()
        for split in sorted(shards):
            for shard in shards[split]:
                digest.update(shard.pixels.encode())
        return replace(self, shards=shards, data_hash=digest.hexdigest())


def read(folder: Folder) -> Manifest | None:
    """The manifest in a folder, or None if there is none.

    Raises ValueError for one that is damaged, of another format, or that names files outside."""
    if not folder.exists("manifest.json"):
        return None
    try:
        given = json.loads(folder.read("manifest.json"))
        if given.pop("format") != FORMAT:
            raise ValueError("another format number")
        if given.pop("sha256") != digest(given):
            raise ValueError("it was edited")
        shards = {
            split: tuple(Shard(**shard) for shard in listed)
            for split, listed in given.pop("shards").items()
        }
        spec = _spec(given.pop("spec"))
        size = tuple(given.pop("image_size"))
        names, typed = tuple(given.pop("class_names")), tuple(given.pop("typed", ()))
        facts = {"spec": spec, "image_size": size, "class_names": names, "typed": typed}
        found = Manifest(**given, **facts, shards=shards)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder.root}/manifest.json cannot be read ({error}); make the cache again: {COMMAND}"
        ) from None
    for shard in (shard for listed in found.shards.values() for shard in listed):
        if not SHARD_NAME.fullmatch(shard.file):
            raise ValueError(
                f"{folder.root}/manifest.json names {shard.file!r}, which is no file of a cache; "
                f"do not use it, make the cache again: {COMMAND}"
            )
    return found


def write(folder: Folder, manifest: Manifest) -> None:
    """Write manifest.json."""
    plain = _plain(manifest)
    marked = {"format": FORMAT, "sha256": digest(plain), **plain}
    folder.write("manifest.json", json.dumps(marked, indent=2))


def digest(plain: dict[str, Any]) -> str:
    """sha256 of plain facts."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def is_whole(folder: Folder, shard: Shard, verify: bool = True) -> bool:
    """Is the shard's file there and what was written? Without `verify` its size has to do."""
    if not folder.exists(shard.file) or folder.size(shard.file) != shard.bytes:
        return False
    return not verify or shard == describe_shard(folder, shard.file, shard.rows, shard.pixels)


def describe_shard(folder: Folder, file: str, rows: int, pixels: str) -> Shard:
    """The entry of a shard that was just written, or is checked."""
    with open(folder.here(file), "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return Shard(file, rows, opened.tell(), digest, pixels)


def columns(spec: LatentSpec, deviation: bool) -> dict[str, tuple[str, int]]:
    """Column name -> (type, numbers per row) of a cache of such latents: tokens as uint16, or
    uint32 where the vocabulary needs it; features as mean and deviation in float16."""
    if isinstance(spec, TokenSpec):
        return {"tokens": ("uint16" if spec.vocab_size <= 2**16 else "uint32", spec.length)}
    length = spec.channels * spec.height * spec.width
    names = ("mean", "deviation") if deviation else ("mean",)
    return dict.fromkeys(names, ("float16", length))


def features(manifest: Manifest) -> Features:
    """The columns of its Arrow files."""
    kept = {
        name: Repeated(Value(kind), length=length)
        for name, (kind, length) in columns(manifest.spec, manifest.deviation).items()
    }
    return Features({**kept, **({"label": Value("int32")} if manifest.class_names else {})})


def _plain(manifest: Manifest) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(manifest)))


def _spec(given: dict[str, Any]) -> LatentSpec:
    return TokenSpec(**given) if "vocab_size" in given else FeatureSpec(**given)


def _differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Of plain facts, down to the entries that differ; of a long list the first one that does."""
    if ours == theirs:
        return []
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = {name: (ours.get(name), theirs.get(name)) for name in ours | theirs}
        return [
            line
            for name, (one, other) in pairs.items()
            for line in _differences(one, other, f"{path}.{name}" if path else name)
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and max(len(ours), len(theirs)) > 4:
        if len(ours) != len(theirs):
            return [f"{path}: {len(ours)} entries -> {len(theirs)}"]
        first = next(i for i, one in enumerate(ours) if one != theirs[i])
        return [f"{path}[{first}]: {ours[first]} -> {theirs[first]}"]
    return [f"{path}: {ours} -> {theirs}"]
