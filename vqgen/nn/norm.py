"""Root-mean-square normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019, eq. 4).

    The statistics are at least float32 and the result returns to x's type *before* the weight comes
    in, as in Llama; torch's own module rounds after the weight, which differs in bfloat16."""

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape."""
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight
