"""Nearest-code search against the full distance matrix: time and memory, ratios in one run.

    python benchmarks/code_lookup.py

Each measurement runs in a process of its own, so that its peak memory is its own.
"""

import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor

from vqgen.tokenizers.lookup import nearest_code

DIM = 8
LARGE = (65_536, 262_144)  # vectors, codes: only the chunked way can do it
USUAL = (65_536, 16_384)
REPEATS = 3


def full_matrix(vectors: Tensor, codes: Tensor) -> Tensor:
    """The usual way: all distances at once."""
    squared = vectors.square().sum(1, keepdim=True) + codes.square().sum(1)
    return torch.addmm(squared, vectors, codes.T, alpha=-2).argmin(1)


WAYS = {"chunked": nearest_code, "full": full_matrix}


def measure(way: str, vectors: int, codes: int) -> dict[str, float]:
    """Best time of REPEATS runs in seconds, and the peak memory they added, in MiB."""
    torch.manual_seed(0)
    x, c = torch.randn(vectors, DIM), torch.randn(codes, DIM)
    WAYS[way](x[:128], c[:128])  # libraries loaded, threads started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        WAYS[way](x, c)
        seconds.append(time.perf_counter() - start)
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds), "MiB": added / 1024}  # ru_maxrss is in KiB on Linux


def in_own_process(way: str, size: tuple[int, int]) -> dict[str, float]:
    """`measure` in a fresh interpreter."""
    command = [sys.executable, __file__, way, *map(str, size)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main() -> None:
    print(f"codes of {DIM} numbers, float32, {torch.get_num_threads()} threads")
    chunked, full = (in_own_process(way, USUAL) for way in ("chunked", "full"))
    print(f"{USUAL[0]:,} vectors x {USUAL[1]:,} codes")
    for way, result in (("chunked", chunked), ("full matrix", full)):
        print(f"  {way:12} {result['seconds']:7.3f} s  {result['MiB']:8.1f} MiB added")
    print(f"  time ratio   {full['seconds'] / chunked['seconds']:.1f}x faster")
    print(f"  memory ratio {full['MiB'] / max(chunked['MiB'], 0.1):.0f}x less")
    large = in_own_process("chunked", LARGE)
    print(f"{LARGE[0]:,} vectors x {LARGE[1]:,} codes")
    print(f"  {'chunked':12} {large['seconds']:7.3f} s  {large['MiB']:8.1f} MiB added")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
