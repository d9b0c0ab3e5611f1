"""A small Frechet distance for validation during training: cheap, noisy, labelled as small."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgen import pictures
from vqgen.contracts import Prior, Tokenizer
from vqgen.data.images import ImageData
from vqgen.evaluation import likelihood, sets
from vqgen.evaluation.quality import Extractor
from vqgen.metrics import features
from vqgen.metrics.distances import Moments, frechet
from vqgen.metrics.features import CHUNK
from vqgen.pipeline import Pipeline


class SmallDistance:
    """FD between `samples` images and the training set (a prior's), or between reconstructions of
    validation images and their originals (a tokenizer's). The same seeds and images at every call,
    so that checkpoints of one run compare; its name says how few they are."""

    def __init__(self, data: ImageData, settings: dict[str, Any]) -> None:
        network = features.load(settings["features"])  # on the CPU: no memory of the training's
        self.data, self.samples = data, settings["samples"]
        self.extractor = Extractor(network, Path(settings["cache"]))
        if type(self.samples) is not int or self.samples < 2:
            raise ValueError(
                f"wanted small_fd.samples of at least 2 (0 is off), got {self.samples}"
            )

    def of_tokenizer(self, tokenizer: Tokenizer) -> tuple[str, float]:
        """-> ("val/rfd_<features>_n<images>", the distance)."""
        originals = sets.of_split(self.data, "val", min(self.samples, len(self.data.val)))
        made = pictures.to_uint8(likelihood.decoded(Pipeline(tokenizer), originals))
        return self._distance("rfd", made, originals)

    def of_prior(
        self, prior: Prior, *, tokenizer: Tokenizer, guidance: float | str
    ) -> tuple[str, float]:
        """-> ("val/fd_<features>_n<samples>", the distance); classes as often as in training."""
        reference = sets.of_split(self.data, "train")
        labels = None
        if prior.num_classes and reference.labels is not None:
            rows = torch.linspace(0, len(reference) - 1, self.samples).long()
            labels = reference.labels.sort().values[rows].tolist()
        pipeline = Pipeline(tokenizer, prior)
        images = pipeline.sample(labels, n=self.samples, guidance=guidance, batch=CHUNK)
        return self._distance("fd", images.cpu(), reference)

    def _distance(self, kind: str, images: Tensor, reference: sets.Images) -> tuple[str, float]:
        network = self.extractor.features
        real = Moments.of(self.extractor.remembered(reference).pooled)
        value = frechet(network.extract(images).pooled, real).value
        name = network.name.replace(":", "_")
        return f"val/{kind}_{name}_n{len(images)}", value


def measure(data: ImageData, settings: dict[str, Any]) -> SmallDistance | None:
    """The distance that the `small_fd` node asks for; None if it is off (samples=0)."""
    return SmallDistance(data, settings) if settings["samples"] else None
