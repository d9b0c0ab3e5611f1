"""A pipeline: tokenizer and prior out of one folder; conditions in, uint8 images out."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vqgen import arguments, build, checkpoint, editing, pictures
from vqgen.contracts import Condition, Guidance, Known, OnStep, Prior, Tokenizer, TokenSpec
from vqgen.sampling import guidance as guidances
from vqgen.words import nearest

SHOWN = 20  # classes in a sentence
# Encoder and decoder see pieces of one size: their convolutions round otherwise at another batch
# size (1 against 2, 16 against 8, with the threads). 8 images of 32 px, one from 96 px on.
PIECE_IMAGES, PIECE_PIXELS = 8, 8 * 32 * 32
PRECISIONS = ("float32", "bf16")


class Pipeline:
    """A frozen tokenizer and (after stage 2) a prior over its latents.

    facts  what the files say about themselves: class names, image size, steps, validation numbers,
           data
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: Prior | None = None,
        *,
        facts: dict[str, Any] | None = None,
    ) -> None:
        tokenizer = tokenizer.to(memory_format=torch.channels_last)  # convolutions are faster so
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self._prior = None if prior is None else prior.eval().requires_grad_(False)
        self.facts = facts or {}
        self._halved = False

    @property
    def prior(self) -> Prior:
        """The prior. Raises ValueError for a pipeline of stage 1 only."""
        if self._prior is None:
            raise ValueError(
                "this is a tokenizer without a prior: it can reconstruct, not sample. "
                "Type: python train_stage2.py tokenizer=FOLDER with this one's folder"
            )
        return self._prior

    @property
    def has_prior(self) -> bool:
        """Whether it can sample, or only encode and decode."""
        return self._prior is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index; empty for unconditional models."""
        return tuple(self.facts.get("class_names", ()))

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.tokenizer.parameters()).device

    def to(self, device: str | torch.device) -> "Pipeline":
        """Move both models."""
        self.tokenizer.to(device)
        if self._prior is not None:
            self._prior.to(device)
        return self

    def halve(self) -> "Pipeline":
        """Sample and decode in bfloat16 from now on: faster on hardware that computes in it, half
        the memory for the prior, and not quite the images of float32. Encoding stays as it is."""
        if self._prior is not None:
            self._prior.to(torch.bfloat16)
        self._halved = True
        return self

    def class_indices(self, classes: Sequence[int | str] | Tensor) -> list[int]:
        """Class names (str, case aside) or indices (int, or digits that name no class) -> indices.
        Raises ValueError that lists what there is."""
        names = [name.lower() for name in self.class_names]
        count = self.prior.num_classes
        found = []
        for given in classes.tolist() if isinstance(classes, Tensor) else classes:
            named = isinstance(given, str) and given.lower() in names  # a number is an index
            index = names.index(str(given).lower()) if named else given
            if not str(index).isdigit() or int(index) >= count:
                shown = [f"{i} {name}" for i, name in enumerate(self.class_names)][:SHOWN]
                rest = f" and so on to {count - 1}" if count > SHOWN else ""
                listed = f"{', '.join(shown)}{rest}" if shown else f"0 to {count - 1}"
                kind = (
                    f"classes {listed}"
                    if count
                    else "no classes: it takes captions, hand in text="
                    if self.prior.text_size
                    else "no classes: it is unconditional, leave classes out"
                )
                hint = nearest(str(given).lower(), names)
                raise ValueError(f"class {given!r} is not known; this model has {kind}{hint}")
            found.append(int(index))
        return found

    @torch.no_grad()
    def sample(
        self, labels: Sequence[int | str] | Tensor | None = None, *, batch: int = 32, **options: Any
    ) -> Tensor:
        """Sample images, uint8 [n, 3, H, W]; arguments as for `sample_latents`."""
        latents = self.sample_latents(labels, batch=batch, **options)
        return torch.cat([self.decode(part) for part in latents.split(batch)])

    @torch.no_grad()
    def sample_latents(
        self,
        labels: Sequence[int | str] | Tensor | None = None,
        *,
        n: int | None = None,
        seeds: Sequence[int] | None = None,
        guidance: float | str | Guidance = 1.0,
        batch: int = 32,
        known: Known | None = None,
        on_step: OnStep | None = None,
        text: Condition | None = None,
        **knobs: Any,
    ) -> Tensor:
        """Sample latents, as the prior's spec says; number i depends on labels[i] and seeds[i]
        alone.

        labels    one class (index or name) per image; None: the null condition
        n         images, where neither labels nor seeds tell (default 1)
        seeds     one integer from 0 to 2**63 - 1 per image; 0, 1, 2, ... unless given
        guidance  u + s (c - u): a scale s (1 is off), "linear:4", "interval:4:0.1:0.8", or a
                  function of progress
        batch     images sampled at once
        known     latents to keep (inpainting)
        on_step   called with (steps done, steps in all, latents so far) of the batch under way
        text      one caption per image, as vqgen.text embeds them
        knobs     the prior's own, for instance temperature=0.9, top_k=100, top_p=0.95 (None is off)

        Raises ValueError for arguments that do not fit the model or each other.
        """
        prior = self.prior.eval()  # whatever was done to it since
        arguments.check_whole(n=1 if n is None else n, batch=batch)
        arguments.check_text(text)
        total = arguments.count(labels, n if text is None else text.batch, seeds)
        if known is not None and not isinstance(known, Known):
            raise ValueError(f"wanted known=vqgen.Known(latents, keep), got {type(known).__name__}")
        if on_step is not None and not callable(on_step):
            raise ValueError(f"wanted on_step=f for f(done, steps, latents), got {on_step!r}")
        seeds = arguments.checked_seeds(range(total) if seeds is None else seeds)
        scale = guidances.parse(guidance)
        settings = arguments.checked_knobs(prior, {**self.facts.get("knobs", {}), **knobs})
        condition = (text or self._condition(labels, total)).map(lambda part: part.to(self.device))
        done = []
        for start in range(0, total, batch):
            rows = slice(start, start + batch)
            part = condition.map(lambda values, rows=rows: values[rows])
            kept = None if known is None else known.rows(rows)
            done.append(prior.sample(part, settings, scale, seeds[rows], kept, on_step))
        return torch.cat(done)

    @torch.no_grad()
    def film(
        self,
        labels: Sequence[int | str] | Tensor | None = None,
        *,
        frames: int = 12,
        batch: int = 32,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample images and keep up to `frames` moments of it, evenly spread, the last one the
        result: uint8 [frames, n, 3, H, W]. Other arguments as for `sample_latents`."""
        if not isinstance(frames, int) or frames < 1:
            raise ValueError(f"wanted frames as a whole number of at least 1, got {frames}")
        taken: list[list[Tensor]] = []  # by batch, then by frame

        def keep(done: int, steps: int, latents: Tensor) -> None:
            if done == 1:
                taken.append([])
            wanted = {-(-steps * frame // frames) for frame in range(1, frames + 1)}
            if done in wanted:
                taken[-1].append(self._unfinished(latents))
            if on_step is not None:
                on_step(done, steps, latents)

        self.sample_latents(labels, batch=batch, on_step=keep, **options)
        return torch.cat([torch.stack(part) for part in taken], dim=1)

    @torch.no_grad()
    def edit(
        self,
        images: Tensor,
        paint: Tensor,
        labels: Sequence[int | str] | Tensor | None = None,
        *,
        paste: bool = True,
        **options: Any,
    ) -> Tensor:
        """Paint parts of images anew, with another class if wanted: uint8 [n, 3, H, W].

        images  uint8 or float [n, 3, H, W] (floats in [-1, 1]); paint: Bool [n, H, W], True = new
        paste   put the other pixels back as they were, instead of as the tokenizer renders them
        options as for `sample`"""
        known = self.known(images, paint)
        drawn = self.sample(labels, n=len(images), known=known, **options)
        original = pictures.to_uint8(images) if images.is_floating_point() else images
        return drawn.where(
            paint[:, None].to(drawn.device), original.to(drawn.device) if paste else drawn
        )

    @torch.no_grad()
    def known(self, images: Tensor, paint: Tensor) -> Known:
        """What a sampler has to keep of images (as for `edit`) so that only `paint` is new."""
        images = self._floats(images)
        size = tuple(images.shape[-2:])
        if size != self.tokenizer.image_size:
            raise ValueError(
                f"wanted images of {list(self.tokenizer.image_size)} (height, width), got "
                f"{list(size)}; resize images and paint"
            )
        if paint.dtype != torch.bool or paint.shape != (len(images), *self.tokenizer.image_size):
            wanted = [len(images), *self.tokenizer.image_size]
            raise ValueError(
                f"wanted paint as a bool tensor {wanted} (True = new), got {paint.dtype} "
                f"{list(paint.shape)}"
            )
        if not paint.any():
            raise ValueError(
                "wanted paint that is True somewhere (True = new), got nothing to paint; for the "
                "images as they are call reconstruct"
            )
        keep = editing.keep_mask(self.tokenizer.spec, paint.to(self.device))
        return Known(self.encode(images), keep, whole=True)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """uint8 or float images [n, 3, H, W] (floats in [-1, 1]) -> latents, as the tokenizer's
        spec says. Raises ValueError for floats beyond [-1, 1]."""
        return self._in_pieces(self.tokenizer.encode, self._floats(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents, as the tokenizer's spec says -> uint8 images [n, 3, H, W].

        Raises ValueError for latents of another kind, shape or range."""
        arguments.check_latents(self.tokenizer.spec, latents)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._halved):
            return pictures.to_uint8(self._in_pieces(self.tokenizer.decode, latents))

    def _in_pieces(self, part_of: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Encode or decode pieces of one size, the last one filled up: a row has the same bits in
        any batch."""
        self.tokenizer.eval()
        height, width = self.tokenizer.image_size
        size = max(1, min(PIECE_IMAGES, PIECE_PIXELS // (height * width)))
        made = []
        for piece in batch.split(size):
            rows = torch.arange(size, device=batch.device) % len(piece)
            made.append(part_of(piece[rows])[: len(piece)])
        return torch.cat(made)

    def _unfinished(self, latents: Tensor) -> Tensor:
        """`decode`, with squares of undecided tokens in grey where one token is one square."""
        images, spec = self.decode(latents), self.tokenizer.spec
        if not isinstance(spec, TokenSpec):
            return images
        *coarse, size = spec.scales
        if coarse:  # a coarse token shows everywhere: there is a picture from the first scale on
            return images
        undecided = (latents < 0).view(-1, 1, *size)
        squares = functional.interpolate(undecided.float(), images.shape[-2:]) > 0
        return images.masked_fill(squares, pictures.UNDECIDED)

    def _floats(self, images: Tensor) -> Tensor:
        """uint8 or float images -> float32 in [-1, 1] on this device."""
        arguments.check_images(images)
        return arguments.floats(images.to(self.device))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 or float images [n, 3, H, W] (floats in [-1, 1]) -> uint8 images through the
        tokenizer."""
        return self.decode(self.encode(images))

    def _condition(self, labels: Sequence[int | str] | Tensor | None, total: int) -> Condition:
        if labels is not None:
            indices = torch.tensor(self.class_indices(labels), device=self.device)
            return Condition.of_labels(indices)
        if self.prior.num_classes:  # a class model asked for nothing in particular: its null class
            anything = torch.zeros(total, dtype=torch.long, device=self.device)
            return Condition.of_labels(anything).null()
        return Condition(total)


def load(
    path: str | Path, device: str | torch.device = "cpu", precision: str = "float32"
) -> Pipeline:
    """Load a run folder, or the pipeline/ or tokenizer/ folder in it; precision "bf16" is
    `Pipeline.halve`, device "auto" the best there is.

    Raises ValueError if there is no finished export, a file is damaged, the pair does not fit, or
    the precision is another one or the device not there.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            "wanted precision=float32 or precision=bf16 to sample in, got "
            f"{precision!r}{nearest(str(precision), PRECISIONS)}"
        )
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"wanted the path of a run or pipeline folder, got {path!r}")
    place = build.device(str(device))
    loaded = _load(Path(path)).to(place)
    return loaded.halve() if precision == "bf16" else loaded


def _load(path: Path) -> Pipeline:
    """`load` on the CPU, in float32."""
    if (path / "pipeline" / "prior").is_dir():
        path = path / "pipeline"
    if (path / "prior").is_dir():
        tokenizer, facts, mark = load_tokenizer(path / "tokenizer")
        saved = checkpoint.read_model(path / "prior", "prior")
        if saved.facts["tokenizer_fingerprint"] != mark:
            raise ValueError(
                f"{path}: the prior was trained on another tokenizer than the one beside it; take "
                "the folder as training wrote it, or train again: python train_stage2.py"
            )
        count = saved.facts["num_classes"]
        prior = build.prior(saved.architecture, tokenizer, num_classes=count)
        checkpoint.load_strict(prior, saved.tensors, str(path / "prior"))
        return Pipeline(tokenizer, prior, facts={**facts, **saved.facts})
    for folder in (path, path / "tokenizer"):
        if (folder / "model.safetensors").is_file():
            tokenizer, facts, _ = load_tokenizer(folder)
            return Pipeline(tokenizer, facts=facts)
    what = "has no finished export in it" if path.exists() else "does not exist"
    raise ValueError(
        f"wanted a run or pipeline folder, but {path} {what}; "
        "look for one with: ls runs/stage1 runs/stage2"
    )


def load_tokenizer(folder: Path) -> tuple[Tokenizer, dict[str, Any], str]:
    """Load a tokenizer export: (tokenizer in eval mode, facts, fingerprint)."""
    saved = checkpoint.read_model(folder, "tokenizer")
    tokenizer = build.model(saved.architecture)
    checkpoint.load_strict(tokenizer, saved.tensors, str(folder))
    return tokenizer.eval().requires_grad_(False), saved.facts, saved.fingerprint
