"""Cached against uncached sampling of one LlamaGen, in one run: python
benchmarks/cached_sampling.py

Prints the time of a batch with the cache, without it (every token recomputes the whole prefix),
their ratio, and the cost of a token early and late, which may grow only by attention.
"""

import argparse
import time

import torch
from torch import Tensor

from vqgen.contracts import Condition, TokenSpec
from vqgen.priors.llamagen import LlamaGen
from vqgen.sampling.guidance import constant


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = LlamaGen(
        TokenSpec(arguments.codes, ((arguments.side, arguments.side),)),
        width=arguments.width,
        depth=arguments.depth,
        heads=arguments.width // 64,
        num_classes=10,
    ).eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)  # a new head is zero: all tokens would tie
    labels = Condition.of_labels(torch.arange(arguments.batch) % 10)
    count = sum(parameter.numel() for parameter in model.parameters())
    length = model.spec.length
    print(f"{count / 1e6:.1f}M parameters, {length} tokens, batch {arguments.batch}")
    print(f"{arguments.threads} threads, float32, greedy")

    sample_cached(model, labels)  # warm-up
    marks, cached = sample_cached(model, labels)
    print(f"cached    {marks[-1]:8.2f} s  {arguments.batch * length / marks[-1]:8.0f} tokens/s")
    for start, stop in ((0.02, 0.12), (0.45, 0.55), (0.9, 1.0)):
        first, last = round(start * length), round(stop * length) - 1
        cost = (marks[last] - marks[first]) / (last - first)
        print(f"  tokens {first:4d} to {last:4d}: {1000 * cost:7.2f} ms each")
    seconds, uncached = sample_uncached(model, labels)
    print(f"uncached  {seconds:8.2f} s  {arguments.batch * length / seconds:8.0f} tokens/s")
    print(f"ratio     {seconds / marks[-1]:8.1f}")
    print(f"same tokens: {(cached == uncached).float().mean():.2%}")


def sample_cached(model: LlamaGen, condition: Condition) -> tuple[list[float], Tensor]:
    """-> (seconds since the start at every token, tokens)."""
    marks: list[float] = []
    start = time.perf_counter()

    def choose(logits: Tensor, step: int) -> Tensor:
        marks.append(time.perf_counter() - start)
        return logits.argmax(dim=-1)

    tokens = model.generate(condition, choose, constant(1.0))
    return marks, tokens


@torch.no_grad()
def sample_uncached(model: LlamaGen, condition: Condition) -> tuple[float, Tensor]:
    """-> (seconds, tokens); token i recomputes the i tokens before it, nothing behind it."""
    tokens = torch.zeros(condition.batch, 0, dtype=torch.long)
    start = time.perf_counter()
    for _ in range(model.spec.length):
        padded = torch.cat((tokens, tokens.new_zeros(condition.batch, 1)), dim=1)  # last: not read
        following = model.logits(padded, condition)[:, -1].argmax(dim=-1, keepdim=True)
        tokens = torch.cat((tokens, following), dim=1)
    return time.perf_counter() - start, tokens


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--side", type=int, default=16, help="tokens per side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
