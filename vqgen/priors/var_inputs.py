"""What VAR's transformer reads: for every token, the image so far and where it stands."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqgen.contracts import Size
from vqgen.nn.linear import Linear


class ScaleInputs(nn.Module):
    """Embeddings of positions, coarse to fine (Tian et al. 2024, section 3.2).

    The positions of the first scale read the condition and a start of their own; those of a later
    scale read the canvas of the scales before, reduced to their size. To all, what scale and what
    position they are is added. The tables are embeddings, so that they do not decay."""

    levels: Tensor  # Long [length], the scale of each position

    def __init__(self, scales: Sequence[Size], channels: int, width: int) -> None:
        super().__init__()
        self.lengths = [height * w for height, w in scales]
        levels = [k for k, (height, w) in enumerate(scales) for _ in range(height * w)]
        self.start = nn.Embedding(scales[0][0] * scales[0][1], width)
        self.word = Linear(channels, width)
        self.level = nn.Embedding(len(scales), width)
        self.position = nn.Embedding(len(levels), width)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    def forward(self, condition: Tensor | None, maps: Sequence[Tensor], start: int) -> Tensor:
        """-> [batch, positions, width], from position `start` on, in at least float32: what the
        blocks add to must not be rounded, even if their weights are.

        condition  [batch, width] of the first scale; None where `start` is behind it
        maps       of the later scales, in order, the pyramid's next_input [batch, h_k w_k,
                   channels]
        """
        parts = [] if condition is None else [condition[:, None] + self.start.weight]
        if maps:
            parts.append(self.word(torch.cat(list(maps), dim=1)))
        x = torch.cat(parts, dim=1)
        stop = start + x.shape[1]
        places = self.level(self.levels[start:stop]) + self.position.weight[start:stop]
        return (x + places).to(torch.promote_types(x.dtype, torch.float32))

    def mask(self) -> Tensor:
        """-> Bool [length, length], True where a position (row) sees another: its own scale and all
        smaller ones."""
        return self.levels[:, None] >= self.levels
