"""The network of VAR: blocks with adaptive norms over the positions of all scales."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vqgen.contracts import Size
from vqgen.nn.cache import KVCache
from vqgen.nn.drop_path import rates
from vqgen.nn.linear import Linear
from vqgen.nn.modulated import PARTS, ModulatedBlock, ModulatedHead
from vqgen.priors.var_inputs import ScaleInputs


class ScaleTransformer(nn.Module):
    """What the scales before say, and a condition -> the logits of every token of a scale; see
    `VAR` for the arguments."""

    mask: Tensor  # Bool [length, length], the only one: every layer gets a view of it

    def __init__(
        self,
        scales: Sequence[Size],
        *,
        channels: int,
        vocab_size: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        shared_modulation: bool,
        unit_qk: bool,
        attention_scale: float | None,
        norm_eps: float,
        drop_path: float,
        gate_init: float,
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.inputs = ScaleInputs(scales, channels, width)
        self.modulation = (
            nn.Sequential(nn.SiLU(), Linear(width, PARTS * width), nn.Unflatten(1, (PARTS, -1)))
            if shared_modulation
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(
            ModulatedBlock(
                width,
                heads=heads,
                hidden=hidden,
                condition_width=None if shared_modulation else width,
                norm_eps=norm_eps,
                unit_qk=unit_qk,
                scale=attention_scale,
                drop_path=rate,
            )
            for rate in rates(drop_path, depth)
        )
        self.head = ModulatedHead(width, vocab_size, condition_width=width, norm_eps=norm_eps)
        self.register_buffer("mask", self.inputs.mask(), persistent=False)
        initialize_(self, width, gate_init)

    def forward(self, vector: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """vector [batch, width] of the condition, maps as for `ScaleInputs` -> logits [batch,
        positions, vocab] of the first scale and of those that the maps belong to."""
        x = self.inputs(vector, maps, 0)
        mask = self.mask[: x.shape[1], : x.shape[1]]
        return self.head(self.through_blocks(x, vector, mask), vector)

    def through_blocks(
        self, x: Tensor, vector: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """x [batch, positions, width] -> the same shape, what the head reads. `mask` is Bool,
        [positions, keys] broadcast, None: everywhere; new positions follow what a cache holds."""
        modulation = self.modulation(vector)
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        for block, layer in zip(self.blocks, layers, strict=True):
            x = block(x, modulation, mask=mask, cache=layer)
        return x

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """Room for `length` positions of `batch` sequences."""
        weight = cast(ModulatedBlock, self.blocks[0]).attention.qkv.weight
        return KVCache.empty(
            layers=len(self.blocks),
            batch=batch,
            heads=self.heads,
            length=length,
            head_width=self.head_width,
            dtype=weight.dtype,
            device=weight.device,
        )


def weight_std(width: int) -> float:
    """Of new weights, as published: that of a uniform distribution on +-1 / sqrt(width)."""
    return (3 * width) ** -0.5


@torch.no_grad()
def initialize_(net: ScaleTransformer, width: int, gate_init: float) -> None:
    """As published: N(0, 1 / (3 width)), biases 0; what adds to the stream is smaller the deeper
    the net, the head is almost uniform, and the gates almost shut (`gate_init`)."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=weight_std(width))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    net.head.out.weight *= 0.02
    net.head.modulation.weight *= 0.5
    depth = len(net.blocks)
    for block in cast(Sequence[ModulatedBlock], net.blocks):
        block.attention.out.weight /= (2 * depth) ** 0.5
        block.ffn.down.weight /= (2 * depth) ** 0.5
        if block.shared:
            nn.init.normal_(block.offset.weight, std=width**-0.5)
        # rows: two gates first, then scales and shifts
        modulation = block.offset.weight if block.shared else block.modulation.weight
        gates, others = modulation.unflatten(0, (PARTS, -1)).split((2, PARTS - 2))
        gates *= gate_init
        others *= 0.5
