"""A protocol: the frozen recipe of an evaluation, one small yaml in conf/evaluate/protocol/."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vqgen.sampling import guidance as guidances

LPIPS = ("vgg", "alex", "squeeze")
MOST = 2**62  # of a whole number: seed + i has to fit into 63 bits
USED_BY_GIVEN = ("name", "reference", "features", "weights", "neighbors", "splits", "memorization")
TRUSTED = 10_000  # images; under it the name of a distance says how many there were


@dataclass(frozen=True)
class ReferenceRecipe:
    """What samples are compared with: a split of the run's own data, or an ADM-style npz."""

    split: Literal["train", "val"] = "train"
    npz: str | None = None  # instead of the split: arr_0, and mu, sigma, mu_s, sigma_s if there
    sha256: str | None = None  # of that file; another file is refused
    n: int | None = None  # images, drawn with `seed`; None: all
    seed: int = 0
    needs_npz: str | None = None  # the file that the protocol cannot do without, for the message


@dataclass(frozen=True)
class Protocol:
    """Everything that decides the numbers, down to the seed of every image."""

    name: str
    samples: int  # images to make; of a tokenizer: training images to reconstruct as its ceiling
    classes: Literal["data", "balanced"]  # shares of the training set, or equally many per class
    per_class: int | None  # with balanced: how many; a model of another class count is refused
    reference: ReferenceRecipe
    features: str  # see metrics/features.py
    weights: str | None  # a file for that network, instead of the usual place
    neighbors: int  # of precision, recall, density and coverage
    splits: int  # of the Inception Score
    guidance: float | str
    knobs: dict[str, Any] = field(default_factory=dict)  # of the sampler; null in a yaml is {}
    seed: int = 0  # image i has seed + i
    validation_images: int | None = None  # for likelihood and reconstruction; None: all, 0: none
    bound_samples: int | None = None  # draws per image of a prior's bound; None: as it was trained
    memorization: bool = True  # nearest training images; reads the whole training set
    ceiling: bool = False  # of a tokenizer: also reconstructed training images against reference
    perceptual: str | None = "vgg"  # LPIPS network for a tokenizer; None: left out

    def __post_init__(self) -> None:
        if not isinstance(self.reference, dict | ReferenceRecipe):
            raise ValueError(
                f"wanted protocol.reference as its settings, got {self.reference!r}; type for "
                "instance protocol.reference.npz=PATH"
            )
        if not isinstance(self.knobs, dict | None):
            raise ValueError(
                f"wanted protocol.knobs as settings of the sampler, got {self.knobs!r}; type for "
                "instance protocol.knobs={temperature:0.9}"
            )
        if isinstance(self.reference, dict):
            object.__setattr__(self, "reference", ReferenceRecipe(**self.reference))
        object.__setattr__(self, "knobs", dict(self.knobs or {}))
        if self.classes not in ("data", "balanced"):
            raise ValueError(
                f"wanted protocol.classes=data or balanced, got {self.classes}; type "
                "protocol.classes=data"
            )
        if self.reference.split not in ("train", "val"):
            raise ValueError(
                "wanted protocol.reference.split=train or val, got "
                f"{self.reference.split}; type protocol.reference.split=train"
            )
        for name, least in (("samples", 2), ("neighbors", 1), ("splits", 1), ("seed", 0)):
            _check_whole(name, getattr(self, name), least)
        for name, least in (("per_class", 1), ("validation_images", 0), ("bound_samples", 1)):
            _check_whole(name, getattr(self, name), least, or_null=True)
        _check_whole("reference.n", self.reference.n, 1, or_null=True)
        _check_whole("reference.seed", self.reference.seed, 0)
        check_texts(vars(self), "name", "features", optional=["weights"], of="protocol.")
        check_texts(vars(self.reference), optional=["npz", "sha256"], of="protocol.reference.")
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"wanted protocol.name as a plain word, the name of a folder, got {self.name!r}; "
                "type for instance protocol.name=mine"
            )
        if self.perceptual not in (None, *LPIPS):
            raise ValueError(
                f"wanted protocol.perceptual={', '.join(LPIPS)} or null, got {self.perceptual!r}"
            )
        if self.reference.sha256 is not None and self.reference.npz is None:
            raise ValueError(
                "protocol.reference.sha256 is that of protocol.reference.npz, and there is none; "
                "type protocol.reference.npz=PATH, or leave the hash out"
            )
        guidances.parse(self.guidance)  # a mistake in it is better found before any work

    def as_dict(self, given: bool = False) -> dict[str, Any]:
        """Plain values, for the card (of given samples: what decides their numbers);
        `bound_samples` only where it is set, so that cards from
        before there was such a setting are of the same recipe."""
        unset = {"bound_samples"} if self.bound_samples is None else set()
        used = USED_BY_GIVEN if given else self.__dataclass_fields__.keys() - unset
        return {name: value for name, value in asdict(self).items() if name in used}


def chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a composed config, with the features= and weights= typed beside it."""
    beside = {name: settings[name] for name in ("features", "weights")}
    if not isinstance(settings.get("protocol"), dict):
        raise ValueError(
            f"wanted protocol=NAME, got {settings.get('protocol')!r}; type protocol=emoji-2k"
        )
    unknown = settings["protocol"].keys() - Protocol.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(
            f"a protocol has no {', '.join(sorted(unknown))}; it has "
            f"{', '.join(Protocol.__dataclass_fields__)}"
        )
    return {**settings["protocol"], **{k: value for k, value in beside.items() if value}}


def _check_whole(name: str, value: Any, least: int, or_null: bool = False) -> None:
    if value is None and or_null:
        return
    if type(value) is not int or not least <= value < MOST:
        raise ValueError(
            f"wanted protocol.{name} of at least {least}{', or null' if or_null else ''}, got "
            f"{value!r}; type a whole number under 2^62"
        )


def check_batch(batch: Any) -> None:
    """Raise ValueError for what is no number of images at once."""
    if type(batch) is not int or batch < 1:
        raise ValueError(f"wanted batch of at least 1, got {batch}; type batch=32")


def check_texts(
    settings: dict[str, Any], *names: str, optional: Sequence[str] = (), of: str = ""
) -> None:
    """Raise ValueError for a setting that is no text (an optional one: nor null)."""
    for name in (*names, *optional):
        value = settings.get(name)
        if not isinstance(value, str) and (value is not None or name in names):
            raise ValueError(f"wanted {of}{name} as a text, got {value!r}")


def titled(name: str, n: int) -> str:
    """FD-x -> FD-x@2000: under 10,000 images the number's own name says so."""
    return name if n >= TRUSTED else f"{name}@{n}"
