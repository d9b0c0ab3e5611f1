"""What an evaluation spends its time on, as shares of one run; and the memory of precision/recall.

    python benchmarks/evaluation.py [images]

Random images and features: the cost does not depend on what they show.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from vqgen.metrics import features
from vqgen.metrics.distances import Moments, frechet, inception_score, kernel_distance
from vqgen.metrics.features import Extracted
from vqgen.metrics.manifold import manifold

SIZE, NEIGHBORS = 32, 5


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def metrics(made: Extracted, real: Extracted) -> dict[str, Callable[[], Any]]:
    """Every distance with its interval, as the evaluator calls them."""
    assert made.spatial is not None and real.spatial is not None
    spatial, probabilities = (made.spatial, real.spatial), made.probabilities
    assert probabilities is not None

    def shares() -> list[Any]:
        found = manifold(made.pooled, real.pooled, NEIGHBORS)
        return [value.interval() for value in found.values()]

    return {
        "FD": lambda: frechet(made.pooled, Moments.of(real.pooled)).interval(),
        "sFD": lambda: frechet(spatial[0], Moments.of(spatial[1])).interval(),
        "KID": lambda: kernel_distance(made.pooled, real.pooled).interval(),
        "IS": lambda: inception_score(probabilities).interval(),
        "precision, recall, density, coverage": shares,
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    network = features.load("efficientnet_lite0")
    generator = torch.Generator().manual_seed(0)
    shape = (2 * count, 3, SIZE, SIZE)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    network.extract(images[:64])  # libraries loaded, threads started
    print(f"{count:,} samples against {count:,} images, {torch.get_num_threads()} threads")
    spent, made = seconds(lambda: network.extract(images[:count]))
    more, real = seconds(lambda: network.extract(images[count:]))
    times = {name: seconds(work)[0] for name, work in metrics(made, real).items()}
    for name, value in times.items():
        print(f"  {name:38} {value:7.2f} s")
    total = sum(times.values())
    print(f"  {'all metrics':38} {total:7.2f} s")
    print(f"  {'features of both sets':38} {spent + more:7.2f} s")
    print(f"metrics are {total / (total + spent + more):.1%} of the time")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many = torch.randn(30_000, 64, generator=generator)
    manifold(many, many.flip(0), NEIGHBORS)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"precision/recall of 30,000 x 30,000: {added:.0f} MiB added, a full matrix has 3433")


if __name__ == "__main__":
    main()
