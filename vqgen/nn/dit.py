"""A diffusion transformer over feature maps (DiT, Peebles and Xie 2023): patches in, patches out,
time and condition through adaptive layer norms that begin at zero."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from vqgen.nn.linear import Linear
from vqgen.nn.modulated import ModulatedBlock, ModulatedHead
from vqgen.nn.rope import grid_positions, rotary_table

FREQUENCIES = 128  # sines and cosines each of the time embedding
TIME_SCALE = 1000.0  # t in [0, 1] is embedded as DiT's steps 0 ... 1000


class DiT(nn.Module):
    """x_t [batch, channels, height, width], t, a condition vector -> a map like x_t.

    Places are told by two-dimensional sines and cosines, so any (height, width) works. At the start
    the output is 0 and every block the identity (AdaLN-zero).

    Raises ValueError if the patch does not divide the map, or the width not the positions."""

    places: Tensor  # [patches, width]

    def __init__(
        self,
        *,
        channels: int,
        size: tuple[int, int],  # (height, width) of the map
        width: int,  # numbers per token
        depth: int,
        heads: int,
        patch: int = 1,  # side of the square that is one token
        ffn_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        height, columns = size
        if patch < 1 or height % patch or columns % patch:
            raise ValueError(
                f"wanted a patch that divides the latents' {height} x {columns}, got {patch}; "
                "type prior.network.patch=1"
            )
        if width < 4 or width % 4:
            raise ValueError(
                f"2-D positions wanted a width that is a multiple of 4, got {width}; "
                "change prior.network.width"
            )
        if depth < 1:
            raise ValueError(f"wanted at least one block, got {depth}; change prior.network.depth")
        if heads < 1 or width % heads:
            raise ValueError(
                f"wanted heads that divide the width, got width={width}, heads={heads}; "
                "change prior.network.heads"
            )
        self.width, self.patch, self.rows = width, patch, height // patch
        numbers = channels * patch**2
        self.embed = Linear(numbers, width)
        self.embed_time = nn.Sequential(
            Linear(2 * FREQUENCIES, width), nn.SiLU(), Linear(width, width)
        )
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                width,
                heads=heads,
                hidden=int(ffn_ratio * width),
                condition_width=width,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.head = ModulatedHead(width, numbers, condition_width=width)
        # a rotary table of the whole width is the 2-D sine-cosine embedding
        places = rotary_table(grid_positions(self.rows, columns // patch), head_width=width)
        self.register_buffer("places", places.flatten(1), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Xavier for matrices, N(0, 0.02) for the time embedding, zero for gates, scales, shifts
        and the output: the paper's."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.embed_time[0], self.embed_time[2]):
            nn.init.normal_(layer.weight, std=0.02)  # type: ignore[arg-type]
        for block in (*self.blocks, self.head):
            nn.init.zeros_(block.modulation.weight)  # type: ignore[arg-type, union-attr]
        nn.init.zeros_(self.head.out.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x [batch, channels, height, width], t [batch] in [0, 1] on x's device, condition [batch,
        width] -> the shape of x."""
        p = self.patch
        tokens = rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p)
        tokens = self.embed(tokens) + self.places
        condition = condition + self.embed_time(time_features(t).to(x.dtype))
        for block in self.blocks:
            tokens = block(tokens, condition)
        out = self.head(tokens, condition)
        return rearrange(out, "b (h w) (c p q) -> b c (h p) (w q)", h=self.rows, p=p, q=p)


def time_features(t: Tensor) -> Tensor:
    """t [batch] in [0, 1] -> [batch, 256]: cosines and sines at the frequencies 10000^(-j/128)."""
    steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=t.device)
    angles = TIME_SCALE * t.float()[:, None] * torch.exp(-math.log(10000.0) / FREQUENCIES * steps)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
