"""The contracts between the two stages. Read this file first.

Stage 1 turns images into latents and back (`Tokenizer`); stage 2 learns a density of the frozen
latents (`Prior`). Latents are always ONE tensor; a small frozen spec says how to read it:

    TokenSpec    Long  [batch, length]                   codes, scales coarse to fine
    FeatureSpec  Float [batch, channels, height, width]  zero mean and unit variance per channel

Conventions, stated here once and used everywhere:

    images     float [batch, 3, H, W] in [-1, 1]; uint8 only at the edges (data in, pipeline out)
    time       t = 0 is noise and t = 1 is data for every continuous path;
               discrete diffusion counts noise steps 1..T
    guidance   u + s (c - u): s = 1 is off, s = 0 is unconditional
    progress   a number in [0, 1]: of a training run, or of a sampling loop (i / (steps - 1))
    bits       code length per image; over 3 H W: bits per dimension; over `length`: bits per token
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # (height, width), always in this order
Guidance = Callable[[float], float]  # progress of the sampling loop in [0, 1] -> guidance scale s
# (steps done, steps in all, latents so far): -1 marks a token not yet decided, continuous latents
# are the present estimate of the clean ones; a tokenizer decodes either, which makes a film
OnStep = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TokenSpec:
    """Discrete latents: Long [batch, length], scales coarse to fine, raster order inside each."""

    vocab_size: int
    scales: tuple[Size, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple((int(h), int(w)) for h, w in self.scales))

    @property
    def length(self) -> int:
        """Tokens per image."""
        return sum(height * width for height, width in self.scales)

    @property
    def grids(self) -> str:
        """The scales in words: "1 x 1, 2 x 3"."""
        return ", ".join(f"{height} x {width}" for height, width in self.scales)

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of each size of scale, by `scale_name`; scales of one size are one entry."""
        sizes = dict.fromkeys(self.scales)
        return {scale_name((h, w)): h * w * self.scales.count((h, w)) for h, w in sizes}


def scale_name(size: Size) -> str:
    """(height, width) of a scale -> its name in code lengths and logs: "scale_2x3"."""
    return f"scale_{size[0]}x{size[1]}"


@dataclass(frozen=True)
class FeatureSpec:
    """Continuous latents: Float [batch, channels, height, width], standardized per channel."""

    channels: int
    height: int
    width: int


LatentSpec = TokenSpec | FeatureSpec


@final
class Standardize(nn.Module):
    """(x - mean) / deviation per channel: how continuous latents get zero mean and unit variance.

    Both buffers [channels] are measured on training images when a tokenizer is exported, and saved
    with it; until then they change nothing. `encode` applies it, `decode` undoes it."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.register_load_state_dict_post_hook(_check_statistics)

    def forward(self, x: Tensor) -> Tensor:
        """x Float [batch, channels, h, w] -> standardized."""
        return (x - self.mean[:, None, None]) / self.deviation[:, None, None]

    def undo(self, x: Tensor) -> Tensor:
        """The inverse of `forward`."""
        return x * self.deviation[:, None, None] + self.mean[:, None, None]

    def refine_(self, mean: Tensor, deviation: Tensor) -> None:
        """Latents that had this mean and deviation [channels] have 0 and 1 from now on.

        A channel that never changes (deviation 0) keeps its scale."""
        mean, deviation = mean.to(self.mean), deviation.to(self.mean)
        self.mean.add_(self.deviation * mean)
        self.deviation.mul_(deviation.where(deviation > 0, 1.0))

    def reset_(self) -> None:
        """Change nothing again."""
        self.mean.zero_()
        self.deviation.fill_(1.0)


def _check_statistics(standardize: Standardize, _: object) -> None:
    """Raise ValueError for loaded statistics that no latents have."""
    mean, deviation = standardize.mean, standardize.deviation
    if not bool((mean.isfinite() & deviation.isfinite() & (deviation > 0)).all()):
        raise ValueError(
            "wanted finite means and deviations above 0 of the tokenizer's latents, got means "
            f"{mean.tolist()} and deviations {deviation.tolist()}: the file is damaged; copy it "
            "again, or train the tokenizer again"
        )


@dataclass(frozen=True)
class Condition:
    """What each image of a batch should show: nothing, a class, or a text.

    labels   Long [batch], class indices; None for unconditional or text models
    text     Float [batch, T, D], text embeddings; None otherwise
    mask     Bool [batch, T], True at real text tokens; None means that all are real
    dropped  Bool [batch], True where the condition is withheld and the model's null condition
             stands in; None: nowhere
    """

    batch: int
    labels: Tensor | None = None
    text: Tensor | None = None
    mask: Tensor | None = None
    dropped: Tensor | None = None

    @classmethod
    def of_labels(cls, labels: Tensor) -> "Condition":
        """labels Long [batch] -> a class condition."""
        return cls(batch=labels.shape[0], labels=labels)

    @classmethod
    def of_text(cls, text: Tensor, mask: Tensor | None = None) -> "Condition":
        """text Float [batch, T, D], mask Bool [batch, T] -> a text condition."""
        return cls(batch=text.shape[0], text=text, mask=mask)

    @property
    def device(self) -> torch.device:
        """Where the tensors are; the CPU for an empty condition."""
        given = [part for part in (self.labels, self.text) if part is not None]
        return given[0].device if given else torch.device("cpu")

    def null(self) -> "Condition":
        """The same batch with every condition withheld: the second branch of guidance."""
        return replace(self, dropped=torch.ones(self.batch, dtype=torch.bool, device=self.device))

    def drop(self, probability: float) -> "Condition":
        """Withhold each condition with this probability (training for classifier-free guidance)."""
        if probability == 0 or (self.labels is None and self.text is None):
            return self
        return replace(self, dropped=torch.rand(self.batch, device=self.device) < probability)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        """Apply `change` to every tensor (a device move, an index, a repetition); the batch size
        follows."""
        parts = {name: getattr(self, name) for name in ("labels", "text", "mask", "dropped")}
        parts = {name: None if part is None else change(part) for name, part in parts.items()}
        batch = change(torch.empty(self.batch, 0, device=self.device)).shape[0]
        return Condition(batch=batch, **parts)


@dataclass(frozen=True)
class Known:
    """Latents that the sampler has to keep: `latents` as the spec says, `keep` Bool of the same
    shape, True = given.

    whole  the latents are those of an image, kept or not: a token that corrects coarser ones may be
           chosen again where those were made anew, so that the picture is kept, not the token
    """

    latents: Tensor
    keep: Tensor
    whole: bool = False

    def __post_init__(self) -> None:
        if self.keep.dtype != torch.bool or self.keep.shape != self.latents.shape:
            raise ValueError(
                f"wanted keep as a bool tensor of the latents' shape {list(self.latents.shape)}, "
                f"got {self.keep.dtype} {list(self.keep.shape)}"
            )

    def rows(self, which: slice) -> "Known":
        """The same of some of the images."""
        return Known(self.latents[which], self.keep[which], self.whole)


@dataclass(frozen=True)
class Losses:
    """`total` is what backward() is called on; `parts` are detached numbers for the logs, by
    name."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """images [batch, 3, H, W] as decoded, and the bottleneck's loss terms, weighted, by name."""

    images: Tensor
    losses: dict[str, Tensor]


class Pyramid(nn.Module, ABC):
    """How the scales of a multi-scale residual tokenizer add up: frozen, for priors that predict
    scale by scale.

    The canvas [batch, channels, h, w] has the size of the last scale. Beginning blank, each scale's
    tokens are enlarged and added; the sum after the last is what the decoder reads."""

    channels: int

    @abstractmethod
    def blank(self, batch: int) -> Tensor:
        """-> the canvas before the first scale: zeros [batch, channels, h, w]."""

    @abstractmethod
    def advance(self, canvas: Tensor, tokens: Tensor, scale: int) -> Tensor:
        """The canvas with one more scale: tokens Long [batch, h_k w_k] of scale number `scale`
        (from 0); -1 adds nothing."""

    @abstractmethod
    def next_input(self, canvas: Tensor, scale: int) -> Tensor:
        """What a prior reads before it predicts scale number `scale` >= 1: the canvas so far,
        reduced by area to that scale, [batch, h_k w_k, channels]."""

    @abstractmethod
    def refit(self, canvas: Tensor, tokens: Tensor, before: Tensor, scale: int) -> Tensor:
        """The tokens Long [batch, h_k w_k] of scale number `scale` that do to `canvas` what
        `tokens` did to the canvas `before`, and make up for what differs; the same tokens where
        nothing does."""


class Bottleneck(nn.Module, ABC):
    """What varies between tokenizers: the map between the encoder's output and the latents.

    Law: embed(encode(hidden)) equals what forward(hidden) returned as quantized (up to its
    sampling, if any).
    """

    in_channels: int  # of `hidden`, the encoder's output
    out_channels: int  # of what `forward` and `embed` give to the decoder

    @abstractmethod
    def spec(self, size: Size) -> LatentSpec:
        """How to read the latents of a hidden map of this (height, width)."""

    def pyramid(self, size: Size) -> Pyramid | None:
        """A frozen copy of how the scales for that size add up; None for anything but a multi-scale
        bottleneck."""
        return None

    @property
    def standardizer(self) -> Standardize | None:
        """What `encode` applies last and `embed` undoes first; None for tokens."""
        return None

    @abstractmethod
    def forward(self, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """hidden [batch, in_channels, h, w] -> (quantized [batch, out_channels, h, w], weighted
        loss terms).

        Differentiable, for the training of stage 1 only: it may gather statistics for
        `after_step`."""

    @abstractmethod
    def after_step(self) -> dict[str, float]:
        """Called on every rank after each generator step (EMA codebooks, dead-code revival);
        returns gauges of this step."""

    @abstractmethod
    def encode(self, hidden: Tensor) -> Tensor:
        """hidden [batch, in_channels, h, w] -> latents, as `spec((h, w))` says."""

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """hidden -> (mean, deviation) of the latents that `encode` gives; None: not random."""
        return self.encode(hidden), None

    def posterior(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """hidden -> (mean, deviation) of q(latents | image), whatever `encode` takes of it; None:
        it is one point."""
        return self.encode(hidden), None

    @abstractmethod
    def embed(self, latents: Tensor, size: Size) -> Tensor:
        """latents, as `spec(size)` says -> [batch, out_channels, h, w].

        A token of -1 is not yet decided and adds no information (films of a sampling loop)."""


class Tokenizer(nn.Module, ABC):
    """Stage 1: images <-> latents."""

    spec: LatentSpec
    image_size: Size
    pyramid: Pyramid | None = None  # of a multi-scale tokenizer

    @property
    def standardizer(self) -> Standardize | None:
        """What `encode` applies last and `decode` undoes first; None for tokens."""
        return None

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight that makes the pixels: where the adaptive GAN weight compares gradients."""

    @abstractmethod
    def forward(self, images: Tensor) -> Reconstruction:
        """images [batch, 3, H, W] in [-1, 1] -> reconstruction and loss terms, for training."""

    @abstractmethod
    def after_step(self) -> dict[str, float]:
        """Called on every rank after each generator step; returns gauges by name."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """images [batch, 3, H, W] in [-1, 1] -> latents, as self.spec says."""

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images [batch, 3, H, W] in [-1, 1] -> (mean, deviation) of the latents that `encode`
        gives, for caches; None: they are not random, and the mean is what `encode` returns."""
        return self.encode(images), None

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images [batch, 3, H, W] in [-1, 1] -> (mean, deviation) of q(latents | image), whatever
        `encode` takes of it, for likelihoods; None: it is one point."""
        return self.encode(images), None

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents, as self.spec says, -1 = not yet decided -> images [batch, 3, H, W], not
        clamped."""


class Prior(nn.Module, ABC):
    """Stage 2: one family's loss, sampler and likelihood, side by side, over the same schedule or
    path object."""

    likelihood: ClassVar[Literal["exact", "bound", "estimate"]]  # what the number of `bits` is
    Knobs: ClassVar[
        type
    ]  # the family's frozen dataclass of sampling knobs, every field with a default
    spec: LatentSpec
    num_classes: int  # 0: no class condition
    bound_samples: int | None = None  # draws per image of a bound that is drawn; None: no such
    text_size: tuple[int, int] | None = (
        None  # (tokens, width) of its text condition; None: it takes no text
    )

    @classmethod
    @abstractmethod
    def check(cls, spec: LatentSpec) -> None:
        """Raise a ValueError that names need, got and cure if this family cannot read such
        latents."""

    @abstractmethod
    def loss(self, latents: Tensor, condition: Condition) -> Losses:
        """The training loss, condition dropout included (here and nowhere else)."""

    @abstractmethod
    def sample(
        self,
        condition: Condition,
        knobs: Any,
        guidance: Guidance,
        seeds: Sequence[int],
        known: Known | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """-> latents, as self.spec says. `seeds` holds one integer per image: image i depends on
        seeds[i] alone."""

    @abstractmethod
    def bits_by_part(self, latents: Tensor, condition: Condition) -> dict[str, Tensor]:
        """The code length of each image's latents in bits, [batch] per part (scales, terms of a
        bound); the parts add up to `bits`. In float32, in eval mode, without global randomness:
        the same call gives the same numbers."""

    @final
    def bits(self, latents: Tensor, condition: Condition) -> Tensor:
        """-> [batch], the code length of each image's latents in bits; `likelihood` says what the
        number is."""
        return torch.stack(list(self.bits_by_part(latents, condition).values())).sum(dim=0)
