"""What the teacher-forced inputs cost in a training step of VAR: python
benchmarks/var_training_step.py

Tokens are read from the cache of stage 1; the canvas of every scale is made again in each step.
Prints the milliseconds of that, of the whole step (forward, backward, AdamW), and the share.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from vqgen.contracts import Condition, TokenSpec
from vqgen.priors.var import VAR
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi
from vqgen.training.optimizer import adamw

EMOJI = (1, 2, 4, 8)  # scales, width and batch of conf/stage2/experiment/emoji_var.yaml
PUBLISHED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, float32, median of {arguments.steps} steps")
    for name, sides, channels, codes, width, batch in (
        ("emoji, width 192, batch 16", EMOJI, 8, 256, 192, 16),
        ("published scales, width 384, batch 4", PUBLISHED, 32, 4096, 384, 4),
    ):
        inputs, step = measure(sides, channels, codes, width, batch, arguments.steps)
        share = inputs / step
        print(f"{name:<38} inputs {1e3 * inputs:7.1f} ms  step {1e3 * step:8.1f} ms  {share:6.1%}")


def measure(
    sides: Sequence[int], channels: int, codes: int, width: int, batch: int, steps: int
) -> tuple[float, float]:
    """-> median seconds of the teacher-forced inputs, and of a whole step."""
    torch.manual_seed(0)
    spec = TokenSpec(codes, tuple((side, side) for side in sides))
    pyramid = FrozenPyramid(
        scales=spec.scales, codes=torch.randn(1, codes, channels), phi=Phi(channels, count=4)
    )
    model = VAR(spec, pyramid=pyramid, depth=6, width=width, num_classes=9)
    optimizer = adamw(model, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    tokens = torch.randint(codes, (batch, spec.length))
    labels = Condition.of_labels(torch.arange(batch) % 9)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(tokens, labels).total.backward()
        optimizer.step()

    step()  # warm-up
    pairs = [(seconds(lambda: model.teacher_maps(tokens)), seconds(step)) for _ in range(steps)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
