"""The published VAR's guidance in ours and its outputs by scale, for the parity tests."""

import re

import torch
from torch import Tensor

from vqgen.contracts import Guidance
from vqgen.sampling.guidance import linear


def guidance(cfg: float) -> Guidance:
    """The peer's t = cfg k / (K - 1) with (1 + t) c - t u is a ramp from 1 to 1 + cfg."""
    return linear(1 + cfg)


def by_scale(outputs: dict[str, Tensor], run: str, what: str) -> Tensor:
    """The outputs RUN/WHAT_0, _1, ... joined along the tokens."""
    pattern = re.compile(rf"out/{re.escape(run)}/{what}_(\d+)")
    found = {int(m[1]): outputs[name] for name in outputs if (m := pattern.fullmatch(name))}
    return torch.cat([found[scale] for scale in sorted(found)], dim=1)
