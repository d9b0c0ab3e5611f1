"""AdamW with decay groups, and the learning rate as a function of progress."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up over `warmup_steps`, then a cosine from `lr` to `lr_end` over the run.

    The cosine follows the run's progress in [0, 1], so it fits a budget in steps and one in minutes
    alike."""

    lr: float  # the learning rate itself: nothing multiplies it by batch size or devices
    lr_end: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.lr_end < 0 or self.warmup_steps < 0:
            raise ValueError(
                "wanted train.lr > 0, train.lr_end >= 0 and train.warmup_steps >= 0, got "
                f"{self.lr}, {self.lr_end} and {self.warmup_steps}; type train.lr=1e-4, say"
            )

    def at(self, step: int, progress: float) -> float:
        """The learning rate of generator step `step` (from 0) at this progress."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return warmup * (self.lr_end + (self.lr - self.lr_end) * cosine)


def adamw(
    model: nn.Module, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW in which matrices and kernels decay; biases, norms and embeddings (1-D or looked up) do
    not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)
