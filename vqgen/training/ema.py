"""An exponential moving average of the model alone: what validation, sampling and the export
use."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)


class EMA(nn.Module, Generic[Model]):
    """`model` is a frozen copy whose parameters follow the trained ones; buffers (codebook
    statistics) are copied."""

    def __init__(self, model: Model, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"wanted train.ema in [0, 1), got {decay}; 0 turns averaging off")
        self.decay = decay
        self.model: Model = copy.deepcopy(model).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "EMA[Model]":
        """The copy stays in eval mode: dropout never touches what is validated and sampled."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`. The decay warms up as (1 + step) / (10 + step), so early averages
        are not stale."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = [*self.model.parameters()]
        current: list[Tensor] = [*model.parameters()]
        get_ema_multi_avg_fn(decay)(averaged, current, None)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
