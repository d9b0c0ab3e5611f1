"""Cached against recomputed sampling of one VAR, in one run: python benchmarks/var_sampling.py

Prints the time of a batch with the cache, without it (every step asks for the logits of all scales
so far), and their ratio. With --memory, alone in its
process: the resident memory of guided sampling at its peak, beside weights and cache.
"""

import argparse
import resource
import time

import torch
from torch import Tensor

from vqgen.contracts import Condition, TokenSpec
from vqgen.nn.cache import KVCache
from vqgen.priors.var import VAR
from vqgen.sampling.guidance import constant, linear
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi

SCALES = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))  # as published
MIB = 2**20


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    depth = arguments.depth or (16 if arguments.memory else 6)
    codes = torch.randn(1, 4096, 32)
    pyramid = FrozenPyramid(scales=SCALES, codes=codes, phi=Phi(32, count=4))
    spec = TokenSpec(4096, SCALES)
    model = VAR(spec, pyramid=pyramid, depth=depth, num_classes=10).eval().requires_grad_(False)
    labels = Condition.of_labels(torch.arange(arguments.batch) % 10)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"depth {depth}: {count / 1e6:.1f}M parameters, {spec.length} tokens in {len(SCALES)}")
    print(f"scales, batch {arguments.batch}, {arguments.threads} threads, float32")
    (print_memory if arguments.memory else print_speed)(model, labels)


def print_speed(model: VAR, labels: Condition) -> None:
    sample_cached(model, labels)  # warm-up
    cached, tokens = sample_cached(model, labels)
    recomputed, same = sample_recomputed(model, labels)
    print(f"cached      {cached:8.2f} s")
    print(f"recomputed  {recomputed:8.2f} s")
    print(f"ratio       {recomputed / cached:8.2f}")
    print(f"same tokens: {(tokens == same).float().mean():.2%}")


def print_memory(model: VAR, labels: Condition) -> None:
    """Sample with a guidance ramp and print resident memory: before, at the peak, and of what."""
    sizes: list[int] = []
    make = model.transformer.empty_cache

    def measured(batch: int, length: int) -> KVCache:
        cache = make(batch, length)
        sizes.append(sum(2 * layer.keys.nbytes for layer in cache.layers))
        return cache

    model.transformer.empty_cache = measured  # type: ignore[method-assign]
    weights = sum(p.nbytes for p in model.parameters())
    before = resident()
    model.sample(labels, model.Knobs(), linear(4.0), list(range(labels.batch)))
    print(f"weights     {weights / MIB:8.0f} MiB")
    print(f"caches      {' then '.join(f'{size / MIB:.1f}' for size in sizes):>8} MiB")
    print(f"before      {before:8.0f} MiB resident at most")
    print(f"sampling    {resident():8.0f} MiB resident at most")


def resident() -> float:
    """The largest resident memory of this process so far, in MiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def greedy(logits: Tensor, scale: int) -> Tensor:
    return logits.argmax(dim=-1)


def sample_cached(model: VAR, condition: Condition) -> tuple[float, Tensor]:
    start = time.perf_counter()
    tokens = model.generate(condition, greedy, constant(1.0))
    return time.perf_counter() - start, tokens


@torch.no_grad()
def sample_recomputed(model: VAR, condition: Condition) -> tuple[float, Tensor]:
    start = time.perf_counter()
    tokens = torch.zeros(condition.batch, model.spec.length, dtype=torch.long)
    for scale in range(len(SCALES)):
        logits = model.logits(tokens, condition, scale + 1)  # reads the tokens before this scale
        places = model.places(scale)
        tokens[:, places] = greedy(logits[:, places], scale)
    return time.perf_counter() - start, tokens


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, help="blocks; 6, with --memory 16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
