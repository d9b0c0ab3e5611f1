"""Key-value cache: what attention remembers of earlier tokens while it samples (without gradients,
as it is written in place), a value its maker drops."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """One layer's keys and values, [batch, heads, length, head_width] each, of which `filled`
    places are in use, and what it made of a condition that stays the same (`ModulatedBlock`)."""

    keys: Tensor
    values: Tensor
    filled: int = 0
    modulation: Tensor | None = None  # [batch, ...]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [batch, heads, new, head_width] behind what is there, in place; -> views of all
        keys, all values."""
        start, self.filled = self.filled, self.filled + keys.shape[2]
        self.keys[:, :, start : self.filled] = keys
        self.values[:, :, start : self.filled] = values
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def first(self, batch: int) -> "LayerCache":
        """The same memory, its first `batch` sequences only."""
        modulation = None if self.modulation is None else self.modulation[:batch]
        return LayerCache(self.keys[:batch], self.values[:batch], self.filled, modulation)


@dataclass
class KVCache:
    """The caches of all layers, first layer first."""

    layers: list[LayerCache]

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        batch: int,
        heads: int,  # key-value heads: fewer than query heads if these are grouped
        length: int,  # positions that will be written, exactly
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "KVCache":
        """Memory for 2 * layers * batch * heads * length * head_width numbers, nothing filled; one
        piece, which an allocator gives back whole."""
        shape = (layers, 2, batch, heads, length, head_width)
        memory = torch.empty(shape, dtype=dtype, device=device)
        return cls([LayerCache(memory[i, 0], memory[i, 1]) for i in range(layers)])

    @property
    def filled(self) -> int:
        """Positions in use."""
        return self.layers[0].filled

    def first(self, batch: int) -> "KVCache":
        """The same memory, its first `batch` sequences only (a branch of guidance that is no longer
        needed)."""
        return KVCache([layer.first(batch) for layer in self.layers])
