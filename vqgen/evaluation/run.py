"""One evaluation from beginning to end: samples or reconstructions, distances, bits; a card."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqgen import checkpoint, pictures
from vqgen.contracts import OnStep
from vqgen.evaluation import generator, likelihood, quality, reconstruction, sets
from vqgen.evaluation.card import Card
from vqgen.evaluation.protocol import Protocol
from vqgen.evaluation.quality import Extractor
from vqgen.evaluation.sets import Images
from vqgen.evaluation.subject import Subject
from vqgen.metrics.features import Features


@dataclass
class Evaluated:
    """A card, the images it is about (None: no samples were made), and pictures by name."""

    card: Card
    samples: Images | None
    pictures: dict[str, np.ndarray]

    def write(self, folder: Path, npz: bool) -> None:
        """card.json, card.md, a PNG per picture and, if asked for, samples.npz (ADM layout)."""
        self.card.write(folder)
        for name, picture in self.pictures.items():
            with checkpoint.atomic(folder / f"{name}.png") as temporary:
                Image.fromarray(picture).save(temporary, format="PNG")
        if npz and self.samples is not None:
            sets.write_npz(folder / "samples.npz", self.samples.images, self.samples.labels)


class Evaluation:
    """Measures a subject by one protocol.

    features  the network of the distances
    cache     folder for features of reference sets
    batch     images sampled at once: changes the speed, not the numbers"""

    def __init__(
        self,
        protocol: Protocol,
        subject: Subject,
        features: Features,
        *,
        cache: Path,
        batch: int,
        on_step: OnStep | None = None,
    ) -> None:
        self.protocol, self.subject = protocol, subject
        self.batch, self.on_step = batch, on_step
        self.extractor = Extractor(features, cache)
        self.card = Card(subject.described(), protocol.as_dict(given=subject.given is not None))
        self.pictures: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def run(self) -> Evaluated:
        """Measure everything that the subject and the protocol allow."""
        subject, samples = self.subject, self.subject.given
        if samples is None:
            samples = self._sampled() if subject.has_prior else self._reconstructed()
            self._likelihood()
        if samples is not None:
            self._distances(samples)
            self.card.details["samples"] = f"{samples.source}, {len(samples):,} images"
            self.card.details["samples_sha256"] = samples.sha256
        self.card.details |= {
            "features": self.extractor.stated(),
            "reference": f"{subject.reference.source}, {len(subject.reference):,} images",
            "reference_sha256": subject.reference.sha256,
            "dtype": "float32 models and features, float64 statistics",
            "KID": "unbiased, over all pairs: near 0 for equal laws, then below it as often as "
            "above; a little below 0 for a set with itself",
            "intervals": "95 %: percentile bootstrap of what each image contributes, 1000 "
            "resamples; the reference counts as fixed",
            "device": str(subject.pipeline.device) if subject.pipeline else "cpu",
        }
        return Evaluated(self.card, samples, self.pictures)

    def _sampled(self) -> Images:
        pipeline, protocol = self.subject.pipeline, self.protocol
        assert pipeline is not None
        labels = self.subject.train().labels if self.subject.data is not None else None
        with self._timed("sampling"):
            samples, costs = generator.sample(
                pipeline, protocol, labels, batch=self.batch, on_step=self.on_step
            )
        self.card.costs |= costs
        self.card.details["sampler"] = generator.knobs_of(pipeline, protocol)
        self.card.details["images at once"] = self.batch  # the speed hangs on it
        self.pictures["samples"] = pictures.grid(samples.images[:64], 8)
        return samples

    def _reconstructed(self) -> Images | None:
        """Numbers of reconstructed validation images; then the ceiling's images, if asked for."""
        pipeline, protocol, subject = self.subject.pipeline, self.protocol, self.subject
        assert pipeline is not None
        held_out = subject.held_out()
        with self._timed("reconstruction"):
            made = reconstruction.reconstruct(pipeline, held_out)
            found, left_out = reconstruction.measure(pipeline, held_out, made, protocol.perceptual)
        self.card.numbers |= found
        self.card.left_out |= left_out
        self.pictures["reconstructions"] = pictures.pairs(held_out.images[:24], made.images[:24])
        with self._timed("features"):
            ours = self.extractor.features.extract(made.images)
            real = self.extractor.remembered(held_out)
        with self._timed("metrics"):
            self.card.numbers |= quality.reconstruction_distance(ours, real, self.extractor)
        self.card.details["reconstructed"] = f"{held_out.source}, {len(held_out):,} images"
        self.card.details["reconstructed_sha256"] = held_out.sha256
        if not protocol.ceiling:
            return None
        with self._timed("reconstruction"):
            chosen = subject.split("train", protocol.samples, protocol.seed)
            return reconstruction.reconstruct(pipeline, chosen)

    def _likelihood(self) -> None:
        card, subject, pipeline = self.card, self.subject, self.subject.pipeline
        assert pipeline is not None
        if self.protocol.validation_images == 0 or subject.data is None:
            card.left_out["likelihood"] = "no validation images: protocol.validation_images=0, or "
            card.left_out["likelihood"] += "no data=NAME beside an export"
            return
        held_out = subject.held_out()
        with self._timed("likelihood"):
            kind, bits = likelihood.latent_bits(pipeline, held_out)
            if bits is None:
                card.left_out["likelihood"] = "continuous latents have one with a prior only"
                return
            n = min(likelihood.FITTED_ON, len(subject.data.train))
            train = subject.split("train", n, self.protocol.seed)
            bound = likelihood.full_bound(pipeline, bits, train, held_out)
        if bound is None:
            card.left_out["full bound"] = "the latents are continuous and no posterior spreads them"
        else:
            card.details["decoder_likelihood"] = (
                f"discrete Laplace of {bound.width:.3g} gray levels, fitted on {n} training images"
            )
        card.numbers |= likelihood.numbers(bits, kind, bound, pipeline)

    def _distances(self, samples: Images) -> None:
        subject, reference = self.subject, self.subject.reference
        with self._timed("features"):
            made = self.extractor.features.extract(samples.images)
        with self._timed("features and statistics of the reference"):
            real = self.extractor.reference(reference, self.protocol.neighbors)
        with self._timed("metrics"):
            rows = quality.distances(made, real, self.extractor, self.protocol)
        ceiling = subject.given is None and not subject.has_prior
        prefix = "ceiling " if ceiling else ""
        self.card.numbers |= {f"{prefix}{name}": number for name, number in rows.items()}
        if ceiling or subject.data is None or not self.protocol.memorization:
            return
        with self._timed("memorization"):
            train, held_out = subject.train(), subject.split("val")
            found, distance, index = generator.memorization(
                made.pooled, train, held_out, self.extractor
            )
        self.card.numbers |= found
        shown = generator.nearest_picture(samples, train, distance, index)
        self.pictures["nearest_training_images"] = shown

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.card.seconds[part] = self.card.seconds.get(part, 0.0) + spent
