"""What a pipeline makes and what that costs: samples, time, network calls, memorization."""

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqgen import pictures
from vqgen.arguments import checked_knobs
from vqgen.contracts import OnStep
from vqgen.evaluation.card import Number
from vqgen.evaluation.protocol import Protocol, titled
from vqgen.evaluation.quality import Extractor, numbered
from vqgen.evaluation.sets import Images, digest
from vqgen.metrics.estimate import mean
from vqgen.metrics.features import CHUNK
from vqgen.metrics.manifold import nearest
from vqgen.pipeline import Pipeline
from vqgen.training.callbacks import peak_memory_gib

COPY_QUANTILE = 0.01  # nearer to training than this share of held-out images: may be a copy


def sample(
    pipeline: Pipeline,
    protocol: Protocol,
    train_labels: Tensor | None,
    *,
    batch: int,
    on_step: OnStep | None = None,
) -> tuple[Images, dict[str, Number]]:
    """-> (samples, their cost). Labels follow the protocol; image i has the seed `seed + i`.

    `batch` changes the speed only: latents are decoded in passes of a fixed size."""
    labels = labels_of(protocol, pipeline.prior.num_classes, train_labels)
    options: dict[str, Any] = {"guidance": protocol.guidance, **knobs_of(pipeline, protocol)}
    evaluations = evaluations_of(pipeline, labels, options)
    seeds = [protocol.seed + i for i in range(protocol.samples)]
    started = time.perf_counter()
    latents = pipeline.sample_latents(labels, seeds=seeds, batch=batch, on_step=on_step, **options)
    images = torch.cat([pipeline.decode(part).cpu() for part in latents.split(CHUNK)])
    seconds = time.perf_counter() - started
    memory = peak_memory_gib()
    n = protocol.samples
    costs = {
        "images per second": Number(n / seconds, n=n),
        "seconds per image": Number(seconds / n, n=n, unit="s"),
        "function evaluations per image": Number(evaluations, unit="network calls"),
        "peak memory": Number(memory, unit="GiB, of the whole process so far"),
    }
    kept = None if labels is None else torch.tensor(labels)
    return Images(images, kept, "samples", digest(images)), costs


def knobs_of(pipeline: Pipeline, protocol: Protocol) -> dict[str, Any]:
    """Every knob of the sampler: the protocol's, else the family's default. A published model's
    own are those of its demo, and do not count."""
    return asdict(checked_knobs(pipeline.prior, protocol.knobs))


def labels_of(protocol: Protocol, classes: int, train_labels: Tensor | None) -> list[int] | None:
    """One class per image: equally many, or drawn from the training labels with the seed.

    Raises ValueError for a model of other classes than the protocol counts on."""
    n = protocol.samples
    if classes == 0 and protocol.per_class:
        raise ValueError(
            f"protocol {protocol.name} wants {protocol.per_class} images per class, and the model "
            "has no classes; type protocol.per_class=null protocol.classes=data"
        )
    if classes == 0:
        return None
    if protocol.classes == "balanced":
        per_class = protocol.per_class or max(1, n // classes)
        if per_class * classes != n:
            raise ValueError(
                f"protocol {protocol.name} wants {n} images, {per_class} per class, but the model "
                f"has {classes} classes; type protocol.samples={per_class * classes}"
            )
        return [label for label in range(classes) for _ in range(per_class)]
    if train_labels is None:
        raise ValueError(
            "the model has classes, but its data has no labels to draw them from; type "
            "protocol.classes=balanced"
        )
    check_classes(train_labels, classes, "the training data")
    generator = torch.Generator().manual_seed(protocol.seed)
    rows = torch.randint(len(train_labels), (n,), generator=generator)
    return train_labels[rows].tolist()


def check_classes(labels: Tensor | None, classes: int, source: str) -> None:
    """Raise ValueError if labels name classes that the model does not have."""
    if labels is not None and len(labels) and int(labels.max()) >= classes:
        raise ValueError(
            f"class mismatch: {source} has class {int(labels.max())}, the model has only "
            f"{classes} (0 to {classes - 1})"
        )


def evaluations_of(pipeline: Pipeline, labels: list[int] | None, options: dict[str, Any]) -> int:
    """How often the network runs for one image: the most common number of calls among its layers.

    Guided sampling runs both branches in one call of twice the rows, and counts once."""
    counts: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: counts.update([name]))
        for name, module in pipeline.prior.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    pipeline.sample_latents(labels[:1] if labels else None, seeds=[0], **options)
    for hook in hooks:
        hook.remove()
    return Counter(counts.values()).most_common(1)[0][0] if counts else 0


def memorization(
    samples: Tensor, train: Images, held_out: Images, extractor: Extractor
) -> tuple[dict[str, Number], Tensor, Tensor]:
    """-> (numbers, distance [n] and index [n] of the nearest training image of each sample).

    samples are features [n, d]. Held-out images are the measure: a model that copies comes nearer
    to training images than they do."""
    known = extractor.remembered(train).pooled
    distance, index = nearest(samples, known)
    honest, _ = nearest(extractor.remembered(held_out).pooled, known)
    copies = distance < torch.quantile(honest, COPY_QUANTILE)
    n, tag = len(samples), f"-{extractor.features.name}"
    found = {
        titled(f"nearest training distance{tag}", n): numbered(mean(distance), n),
        f"nearest training distance{tag} of held-out images": numbered(mean(honest), len(honest)),
        titled(f"samples nearer than 99 % of held-out images{tag}", n): numbered(mean(copies), n),
    }
    return found, distance, index


def nearest_picture(
    samples: Images, train: Images, distance: Tensor, index: Tensor, pairs: int = 16
) -> np.ndarray:
    """The samples nearest to the training set above their nearest training images."""
    rows = distance.argsort()[:pairs]
    return pictures.pairs(samples.images[rows], train.images[index[rows]])
