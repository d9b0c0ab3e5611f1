"""A progress bar with the time left, for sampling loops."""

import sys
import time

from torch import Tensor


class Progress:
    """An `on_step` for all batches of a sampling call; nothing is drawn where stderr is no
    terminal."""

    def __init__(self, total: int, batch: int) -> None:
        self.batches, self.batch = -(-total // batch), 0
        self.started = time.monotonic()

    def __call__(self, done: int, steps: int, latents: Tensor) -> None:
        share = (self.batch + done / steps) / self.batches
        left = (time.monotonic() - self.started) / share * (1 - share)
        bar = "#" * int(30 * share)
        if sys.stderr.isatty():
            end = "\n" if share >= 1 else ""
            print(
                f"\r[{bar:<30}] {share:4.0%}  {left:5.1f} s left",
                end=end,
                file=sys.stderr,
                flush=True,
            )
        self.batch += done == steps
