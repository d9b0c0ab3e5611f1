"""How a token is drawn from logits: temperature, then top-k, then top-p."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_TEMPERATURE = 1e-5  # LlamaGen's floor: temperature 0 is the likeliest token (ties are drawn)


@dataclass(frozen=True)
class LogitKnobs:
    """The sampling knobs of a prior over tokens, checked; None is off. See `filter_logits`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        if not (_is_number(temperature) and math.isfinite(temperature) and temperature >= 0):
            raise ValueError(
                f"wanted a temperature of at least 0, got {temperature}; "
                "type temperature=1.0, or temperature=0 for the likeliest token"
            )
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(
                f"wanted top_k of at least 1, got {top_k}; type top_k=null to switch it off"
            )
        if top_p is not None and not (_is_number(top_p) and 0 <= top_p <= 1):
            raise ValueError(
                f"wanted top_p from 0 to 1, got {top_p}; type top_p=null to switch it off"
            )

    def filter(self, logits: Tensor) -> Tensor:
        """logits [..., vocab] -> the same shape, filtered."""
        return filter_logits(logits, self.temperature, self.top_k, self.top_p)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """logits [..., vocab] -> the same shape, divided by the temperature, -inf where a filter
    removed a token.

    top_k   keeps the k largest; ties with the k-th all stay; None, or more than there are: off
    top_p   keeps the likeliest tokens until their mass exceeds p (Holtzman et al. 2020): a token
            goes if the mass before it, in falling order of probability after top-k, is already more
            than p; the first always stays; None or 1: off
    """
    logits = logits / max(temperature, MIN_TEMPERATURE)
    if top_k is not None and top_k < logits.shape[-1]:
        edge = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < edge, -math.inf)
    if top_p is not None and top_p < 1:
        falling, order = logits.sort(dim=-1, descending=True, stable=True)
        mass_before = F.pad(falling.softmax(dim=-1).cumsum(dim=-1)[..., :-1], (1, 0))
        remove = torch.zeros_like(mass_before, dtype=torch.bool)
        remove = remove.scatter(-1, order, mass_before > top_p)
        logits = logits.masked_fill(remove, -math.inf)
    return logits
