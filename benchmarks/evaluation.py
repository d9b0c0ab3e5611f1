"""What an evaluation spends its time on once the reference is in the cache, as shares of one run;
and the memory of precision/recall.

    python benchmarks/evaluation.py [images]

Random images: the cost does not depend on what they show.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vqgen.evaluation import sets
from vqgen.evaluation.quality import Extractor, Reference
from vqgen.metrics import features
from vqgen.metrics.distances import frechet, inception_score, kernel_distance
from vqgen.metrics.features import Extracted
from vqgen.metrics.manifold import manifold, nearest

SIZE, NEIGHBORS = 32, 5


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def metrics(made: Extracted, known: Reference) -> dict[str, Callable[[], Any]]:
    """Every distance with its interval, as the evaluator calls them."""
    spatial, probabilities, real = made.spatial, made.probabilities, known.features.pooled
    assert spatial is not None and probabilities is not None

    def shares() -> list[Any]:
        found = manifold(made.pooled, real, NEIGHBORS, real_radii=known.radii)
        return [value.interval() for value in found.values()]

    return {
        "FD": lambda: frechet(made.pooled, known.moments["pooled"]).interval(),
        "sFD": lambda: frechet(spatial, known.moments["spatial"]).interval(),
        "KID": lambda: kernel_distance(made.pooled, real, others=known.kernel).interval(),
        "IS": lambda: inception_score(probabilities).interval(),
        "precision, recall, density, coverage": shares,
        "nearest training images": lambda: nearest(made.pooled, real),
    }


def images(count: int, seed: int) -> sets.Images:
    """Random pictures as a set."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return sets.Images(pixels, None, "random", sets.digest(pixels))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    network = features.load("efficientnet_lite0")
    network.extract(images(64, 2).images)  # libraries loaded, threads started
    print(f"{count:,} samples against {count:,} images, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        extractor, reference = Extractor(network, Path(folder)), images(count, 1)
        once, _ = seconds(lambda: extractor.reference(reference, NEIGHBORS))
        cached, known = seconds(lambda: extractor.reference(reference, NEIGHBORS))
    spent, made = seconds(lambda: network.extract(images(count, 0).images))
    times = {name: seconds(work)[0] for name, work in metrics(made, known).items()}
    for name, value in times.items():
        print(f"  {name:38} {value:7.2f} s")
    total = sum(times.values())
    print(f"  {'all metrics':38} {total:7.2f} s")
    print(f"  {'features of the samples':38} {spent:7.2f} s")
    print(f"  {'the reference, once':38} {once:7.2f} s")
    print(f"  {'the reference, out of the cache':38} {cached:7.2f} s")
    share = total / (total + spent + cached)
    print(f"metrics are {share:.1%} of the time at {count:,} images, the reference cached")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = torch.randn(30_000, 64, generator=torch.Generator().manual_seed(0))
    manifold(many, many.flip(0), NEIGHBORS)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"precision/recall of 30,000 x 30,000: {added:.0f} MiB added, a full matrix has 3433")


if __name__ == "__main__":
    main()
