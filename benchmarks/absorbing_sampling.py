"""Images per second of an absorbing prior's samplers against LlamaGen of the same size, in one run:
python benchmarks/absorbing_sampling.py

Both are untrained: the time depends on sizes alone. LlamaGen runs with its cache."""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vqgen.contracts import Condition, Prior, TokenSpec
from vqgen.priors.absorbing import Absorbing
from vqgen.priors.llamagen import LlamaGen
from vqgen.sampling.guidance import constant

SAMPLERS = ("ancestral", "confidence", "halton")


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    spec = TokenSpec(arguments.codes, ((arguments.side, arguments.side),))
    sizes = {"width": arguments.width, "depth": arguments.depth, "heads": arguments.width // 64}
    ordered = LlamaGen(spec, **sizes, num_classes=10).eval()
    masked = Absorbing(spec, **sizes, num_classes=10).eval()
    for model in (ordered.head, masked.net.head):
        torch.nn.init.normal_(model.weight, std=0.02)  # a new head is zero: all tokens would tie
    counts = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (ordered, masked)]
    print(f"LlamaGen {counts[0]:.1f}M, absorbing {counts[1]:.1f}M parameters")
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    ordered, masked = ordered.to(dtype), masked.to(dtype)
    print(
        f"{spec.length} tokens, batch {arguments.batch}, guidance {arguments.guidance}, "
        f"{arguments.threads} threads, {str(dtype)[6:]}"
    )
    labels = Condition.of_labels(torch.arange(arguments.batch) % 10)

    def draw(prior: Prior, **knobs: object) -> Callable[[], Tensor]:
        seeds, scale = list(range(arguments.batch)), constant(arguments.guidance)
        return lambda: prior.sample(labels, prior.Knobs(**knobs), scale, seeds)

    base = arguments.batch / seconds(draw(ordered), arguments.repeats)
    print(f"LlamaGen                  {base:8.2f} images/s   1.00x")
    for sampler in SAMPLERS:
        for steps in arguments.steps:
            took = seconds(draw(masked, sampler=sampler, steps=steps), arguments.repeats)
            speed = arguments.batch / took
            print(f"{sampler:10} {steps:3d} steps      {speed:8.2f} images/s {speed / base:6.2f}x")


def seconds(work: Callable[[], Tensor], repeats: int) -> float:
    """The fastest of some runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--side", type=int, default=8, help="tokens per side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bf16", action="store_true", help="weights and sums in bfloat16")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
