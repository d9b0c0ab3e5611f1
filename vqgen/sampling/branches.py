"""The rows of a guided sampling batch: conditional images first, null images behind them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqgen.sampling.guidance import Guidance, guide


class Branches:
    """Which rows run at which step: the null branch only up to the last step whose scale is not 1.

    batch   images
    steps   of the sampling loop
    late    the null branch comes in at the first step whose scale is not 1, not at step 0
    joins   the step at which it comes in
    guided  the step from which it is gone; 0 where guidance is off or has nothing to withhold
    """

    def __init__(
        self, batch: int, steps: int, guidance: Guidance, *, has_null: bool, late: bool = False
    ) -> None:
        self.batch, self.steps = batch, steps
        self.scales = [guidance(step / max(steps - 1, 1)) for step in range(steps)]
        on = [step for step, scale in enumerate(self.scales) if scale != 1]
        self.guided = on[-1] + 1 if on and has_null else 0
        self.joins = on[0] if self.guided and late else 0

    def rows(self, step: int) -> int:
        """Rows of this step's batch."""
        return 2 * self.batch if self.has_both(step) else self.batch

    def has_both(self, step: int) -> bool:
        """Whether the null branch runs at this step."""
        return self.joins <= step < self.guided

    def images(self, step: int, device: torch.device) -> Tensor:
        """-> Long [rows(step)], the image of each row."""
        return torch.arange(self.rows(step), device=device) % self.batch

    def stack(self, branches: Sequence[Tensor], step: int = 0) -> Tensor:
        """[conditional] or [conditional, null], each [batch, ...] -> [rows(step), ...]: the batch
        of a step."""
        return torch.cat(list(branches)) if self.has_both(step) else branches[0]

    def guide(self, predictions: Tensor, step: int) -> Tensor:
        """Predictions of a step's rows [rows(step), ...] -> the guided ones of the images [batch,
        ...]."""
        if not self.has_both(step):
            return predictions
        conditional, null = predictions.chunk(2)
        return guide(conditional, null, self.scales[step])

    def has_guidance(self, step: int) -> bool:
        """Whether this step's predictions come from two branches, if no step needs another's."""
        return self.guided > 0 and self.scales[step] != 1

    def needed(self, asked: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step for a network that keeps nothing from one step to the next: images
        that ask nothing take no part, nor does the null branch where the scale is 1.

        asked Bool [batch, places], not all False -> (rows Long [n], image i or, of its null branch,
        batch + i; what each asks, Bool [n, places])"""
        rows = asked.any(dim=1).nonzero()[:, 0]
        if self.has_guidance(step):
            rows = torch.cat((rows, rows + self.batch))
        return rows, asked[rows % self.batch]
