"""The linear layer of sampling beside torch's own, float32, in one run: python benchmarks/linear.py

Prints seconds of `F.linear` over seconds of ours for the matrices of VAR-d16 and LlamaGen-B, for a
few rows (which wait for the weights: each call reads another one) and for many."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgen.nn.linear import linear

SIZES = ((1024, 4096), (4096, 1024), (1024, 3072), (768, 2304), (2048, 768), (768, 16384))
ROWS = (2, 16, 72, 200, 512, 1360)
WEIGHTS = 200 * 2**20  # bytes that are gone through: more than a cache of the processor holds


def main() -> None:
    """A line for each size of matrix."""
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print("F.linear / ours, rows:" + "".join(f"{rows:8d}" for rows in ROWS))
    for inside, out in SIZES:
        count = -(-WEIGHTS // (4 * inside * out))
        weights = [torch.randn(out, inside) for _ in range(count)]
        ratios = []
        for rows in ROWS:
            x = torch.randn(rows, inside)
            ratios.append(seconds(F.linear, x, weights) / seconds(linear, x, weights))
        print(f"{inside:6d} -> {out:6d}       " + "".join(f"{ratio:8.2f}" for ratio in ratios))


@torch.inference_mode()
def seconds(
    multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor]
) -> float:
    """The shortest of three times through all weights."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for weight in weights:
            multiply(x, weight)
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    main()
