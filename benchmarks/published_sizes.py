"""Speed of the published sizes with random weights, beside what the machine itself can do.

`python benchmarks/published_sizes.py` measures LlamaGen-B with its VQ-16 (256 tokens) and VAR-d16
with its tokenizer; `--tiny` is a trial run in seconds. Times compare across machines only as
multiples of the limits printed first.
"""

import argparse
import copy
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from vqgen import build
from vqgen.contracts import Condition, Prior, Tokenizer
from vqgen.nn import linear as layers
from vqgen.sampling.guidance import constant, linear

SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def main() -> None:
    """Limits of the machine, then each model: seconds, milliseconds per step, memory, profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", choices=("llamagen", "var"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    typed = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, random weights")
    limits(1024 if typed.tiny else 4096)
    for name, make, guidance in (
        ("llamagen", llamagen, constant(4.0)),
        ("var", var, linear(5.0)),
    ):
        if typed.only in (None, name):
            tokenizer, prior = make(typed.tiny)
            for dtype in (torch.float32, torch.bfloat16):
                for batch in typed.batches:
                    measure(name, tokenizer, prior.to(dtype), batch, guidance)
            del prior  # its weights are rounded to bf16 by now, which would flatter the agreement
            tokenizer, prior = make(typed.tiny)
            agreement(name, prior)
            profiled(name, tokenizer, prior, guidance)


def limits(side: int) -> None:
    """A large matrix product in both precisions, torch's own and that of our layers (which is what
    the machine can do), and a large copy."""
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        for name, multiply in (("torch's", torch.matmul), ("ours", multiplied)):
            seconds = best(lambda a=a, b=b, multiply=multiply: multiply(a, b))
            rate = 2 * side**3 / seconds / 1e9
            print(f"limit: {side}^2 product {dtype} {name:8s} {rate:8.1f} GFLOP/s")
    source = torch.randn(side * side * 4)
    target = torch.empty_like(source)
    seconds = best(lambda: target.copy_(source))
    print(
        f"limit: copy of {source.nbytes / 2**20:.0f} MiB: {source.nbytes / seconds / 1e9:.1f} GB/s"
    )


@torch.inference_mode()
def multiplied(a: Tensor, b: Tensor) -> Tensor:
    """a [rows, in] b^T [in, out], as the layers multiply that sample."""
    return layers.linear(a, b)


def measure(
    name: str, tokenizer: Tokenizer, prior: Prior, batch: int, guidance: Callable[[float], float]
) -> None:
    """Seconds of sampling and of decoding, with guidance, and the peak memory so far."""
    dtype = next(prior.parameters()).dtype
    started = time.perf_counter()
    tokens = sample(prior, batch, guidance)
    sampled = time.perf_counter() - started
    decoded, last = (
        decoding(tokenizer.to(memory_format=layout), tokens[:1], dtype)
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    tokenizer.to(memory_format=torch.contiguous_format)
    weights = sum(p.nbytes for p in prior.parameters())
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(
        f"{name} {dtype} batch {batch}: {sampled:.2f} s for {tokens.shape[1]} tokens an image "
        f"({1000 * sampled / tokens.shape[1]:.1f} ms a token, weights {weights / 2**30:.2f} GiB), "
        f"decode {decoded:.2f} s an image (channels_last {last:.2f} s), peak so far {peak:.2f} GiB",
        flush=True,
    )


def decoding(tokenizer: Tokenizer, tokens: Tensor, dtype: torch.dtype) -> float:
    """Seconds of one decoding, the second of two."""
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        tokenizer.decode(tokens)
        started = time.perf_counter()
        tokenizer.decode(tokens)
    return time.perf_counter() - started


def agreement(name: str, prior: Any) -> None:
    """Share of places where bf16 has the same likeliest token as float32, given the same tokens
    before (random weights: nearly even chances, so a lower bound for trained ones)."""
    tokens = torch.randint(prior.spec.vocab_size, (1, prior.spec.length))
    condition = Condition.of_labels(torch.zeros(1, dtype=torch.long))
    with torch.inference_mode():
        likeliest = prior.logits(tokens, condition).argmax(dim=-1)
        halved = copy.deepcopy(prior).to(torch.bfloat16)
        same = (halved.logits(tokens, condition).argmax(dim=-1) == likeliest).float().mean()
    print(f"{name}: bf16 and float32 agree on the likeliest token at {same:.1%} of the places")


def profiled(
    name: str, tokenizer: Tokenizer, prior: Prior, guidance: Callable[[float], float]
) -> None:
    """Where the time of one image goes, by kind of operation."""
    with profile(activities=[ProfilerActivity.CPU]) as seen, torch.inference_mode():
        with record_function("sampling"):
            tokens = sample(prior, 1, guidance)
        with record_function("decoding"):
            tokenizer.decode(tokens)
    averages = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    print(f"{name}: share of the time by operation, one image, float32")
    for event in sorted(averages, key=lambda e: -e.self_cpu_time_total)[:12]:
        share, calls = event.self_cpu_time_total / total, event.count
        print(f"  {share:6.1%}  {calls:7d} calls  {event.key}")


def sample(prior: Prior, batch: int, guidance: Callable[[float], float]) -> Tensor:
    """Tokens of `batch` images, one class each."""
    condition = Condition.of_labels(torch.arange(batch) % prior.num_classes)
    with torch.inference_mode():
        return prior.sample(condition, prior.Knobs(), guidance, list(range(batch)))


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest time of a call in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


# ---- the models, as the importer describes them


def llamagen(tiny: bool) -> tuple[Tokenizer, Prior]:
    """LlamaGen-B (110,888,448 parameters) over VQ-16."""
    bottleneck = {
        "_target_": "vqgen.tokenizers.vq.VectorQuantizer",
        "codebook": codebook(256 if tiny else 16384, 8, normalize=True),
    }
    tokenizer = autoencoder(tiny, channels=128, z_channels=256, kernel=1, bottleneck=bottleneck)
    size = (
        {"width": 64, "depth": 2, "heads": 2} if tiny else {"width": 768, "depth": 12, "heads": 12}
    )
    node = {"_target_": "vqgen.priors.llamagen.LlamaGen", "zero_condition_rope": True, **size}
    return tokenizer, filled(build.prior({**node, "_partial_": True}, tokenizer, num_classes=1000))


def var(tiny: bool) -> tuple[Tokenizer, Prior]:
    """VAR-d16 (310,283,520 parameters) over its tokenizer."""
    bottleneck = {
        "_target_": "vqgen.tokenizers.multiscale.MultiScaleQuantizer",
        "codebook": codebook(256 if tiny else 4096, 32),
        "scales": [1, 2, 4] if tiny else list(SCALES),
    }
    tokenizer = autoencoder(tiny, channels=160, z_channels=32, kernel=3, bottleneck=bottleneck)
    node = {"_target_": "vqgen.priors.var.VAR", "_partial_": True, "depth": 2 if tiny else 16}
    return tokenizer, filled(build.prior(node, tokenizer, num_classes=1000))


def codebook(size: int, dim: int, **more: Any) -> dict[str, Any]:
    """The node of a codebook that is not to be started from data."""
    node = {"_target_": "vqgen.tokenizers.codebook.Codebook", "start": "random"}
    return {**node, "size": size, "dim": dim, **more}


def autoencoder(
    tiny: bool, *, channels: int, z_channels: int, kernel: int, bottleneck: dict[str, Any]
) -> Tokenizer:
    """The published autoencoder of factor 16 at 256 pixels; tiny: at 64, a quarter as wide."""
    half = {"_partial_": True, "channels": 32 if tiny else channels}
    node = {
        "_target_": "vqgen.tokenizers.autoencoder.Autoencoder",
        "image_size": [64, 64] if tiny else [256, 256],
        "z_channels": z_channels,
        "quant_kernel": kernel,
        "encoder": {"_target_": "vqgen.nn.autoencoder.Encoder", **half},
        "decoder": {"_target_": "vqgen.nn.autoencoder.Decoder", **half},
        "bottleneck": bottleneck,
    }
    return build.model(node).eval()


def filled(prior: Any) -> Prior:
    """Random numbers where training starts at zero: else every token is equally likely."""
    with torch.no_grad():
        for parameter in prior.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return prior.eval()


if __name__ == "__main__":
    main()
