"""A protocol: the frozen recipe of an evaluation, one small yaml in conf/evaluate/protocol/."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vqgen.sampling import guidance as guidances

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
        if isinstance(self.reference, dict):
            object.__setattr__(self, "reference", ReferenceRecipe(**self.reference))
        if not isinstance(self.knobs, dict | None):
            raise ValueError(
                f"wanted protocol.knobs as names with values, got {self.knobs}; type "
                "'protocol.knobs={steps:16}'"
            )
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
            if getattr(self, name) < least:
                raise ValueError(
                    f"wanted protocol.{name} of at least {least}, got {getattr(self, name)}"
                )
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(
                f"wanted protocol.per_class of at least 1, or null, got {self.per_class}"
            )
        count = self.validation_images
        if count is not None and (type(count) is not int or count < 0):
            raise ValueError(
                "wanted protocol.validation_images of at least 0, or null for all, got "
                f"{self.validation_images}"
            )
        draws = self.bound_samples
        if draws is not None and (type(draws) is not int or draws < 1):
            raise ValueError(
                "wanted protocol.bound_samples as a whole number of at least 1, or null for the "
                f"prior's own, got {draws}; type protocol.bound_samples=32"
            )
        if self.reference.sha256 is not None and self.reference.npz is None:
            raise ValueError(
                "protocol.reference.sha256 is that of protocol.reference.npz, and there is none; "
                "type protocol.reference.npz=PATH, or leave the hash out"
            )
        guidances.parse(self.guidance)  # a mistake in it is better found before any work

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the card; `bound_samples` only where it is set, so that cards from
        before there was such a setting are of the same recipe."""
        unset = {"bound_samples"} if self.bound_samples is None else set()
        return {name: value for name, value in asdict(self).items() if name not in unset}


def chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a composed config, with the features= and weights= typed beside it."""
    beside = {name: settings[name] for name in ("features", "weights")}
    return {**settings["protocol"], **{k: value for k, value in beside.items() if value}}


def titled(name: str, n: int) -> str:
    """FD-x -> FD-x@2000: under 10,000 images the number's own name says so."""
    return name if n >= TRUSTED else f"{name}@{n}"
