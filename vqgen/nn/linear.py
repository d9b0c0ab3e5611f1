"""A linear layer for sampling: a row's bits do not depend on the batch, and a CPU computes it with
the widest vectors it has."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A CPU's matrix product gives a row the same bits among any rows whose number is a multiple of this
# (measured with AVX2 and AVX-512, 1 to 16 threads; other numbers can differ in the last bits).
ROW_TILE = 4
ONEDNN_TILE = 2  # the same of oneDNN: one row alone is the only exception
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
HAS_BF16 = (  # the processor, and oneDNN, which can be told to leave some of it
    torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
) and (HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported())
PACKED_BYTES = 2**31  # of weights that may be held twice, see `packed_weights`


class Linear(nn.Linear):
    """nn.Linear, the way samplers need it: without gradients on a CPU the rows are filled up to
    whole tiles, so that an image is the same to the last bit in any batch (if widths are multiples
    of 32, else the vectors of elementwise functions end otherwise in another batch), and oneDNN
    multiplies.

    torch leaves float32 products to MKL, which has AVX2 alone for processors that are not Intel's:
    there oneDNN is twice as fast, at many rows and at few (`benchmarks/linear.py`)."""

    packed: Tensor | None = None  # the weight in oneDNN's order, while `packed_weights` lasts

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [..., in_features] -> [..., out_features], in x's precision if the weight has less.
        `bias` [out_features] takes the place of the layer's own."""
        dtype = torch.promote_types(input.dtype, self.weight.dtype)
        bias = self.bias if bias is None else bias
        bias = None if bias is None else bias.to(dtype)
        weight = self.packed
        if weight is None or weight.dtype != input.dtype or not multiplied_by_onednn(input):
            weight = self.weight.to(dtype)
        return linear(input, weight, bias)

    def __getstate__(self) -> dict[str, Any]:
        """Without the packed weight, which cannot be copied or pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "packed"}


class WideLinear(Linear):
    """A `Linear` whose weights stay float32 where a model is turned to half precision: of a head.
    Rounding them alone moves the likeliest of thousands of nearly even logits as often as all
    other rounding together (`benchmarks/published_sizes.py`, VAR-d16)."""

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:
        """As `Linear`, in the wider precision of x and weight."""
        return super().forward(input.to(torch.promote_types(input.dtype, self.weight.dtype)), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "WideLinear":
        def widely(values: Tensor) -> Tensor:
            made = fn(values)
            half = made.dtype in (torch.bfloat16, torch.float16)
            return values.to(made.device, torch.float32) if half else made

        return super()._apply(widely, recurse)


@contextmanager
def packed_weights(net: nn.Module) -> Iterator[None]:
    """Within, `net` multiplies few rows 1.4 times as fast and more (in bf16 twice), in the same
    bits: its `Linear` layers hold their weights on a CPU a second time, in the order in which
    oneDNN reads them. Nothing is done where that would take more than PACKED_BYTES."""
    layers = [layer for layer in net.modules() if isinstance(layer, Linear)]
    weights = [layer.weight.detach() for layer in layers]
    fits = sum(weight.nbytes for weight in weights) <= PACKED_BYTES
    if not (fits and all(multiplied_by_onednn(weight) for weight in weights)):
        layers = []
    try:
        for layer, weight in zip(layers, weights, strict=False):
            layer.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] weight^T [in, out] + bias [out] -> [..., out], as `Linear` says."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows, by_onednn = math.prod(x.shape[:-1]), multiplied_by_onednn(x)
    missing = -rows % (ONEDNN_TILE if by_onednn else ROW_TILE)
    if missing:
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, missing))
        return linear(filled, weight, bias)[:rows].reshape(*x.shape[:-1], -1)
    if by_onednn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def multiplied_by_onednn(x: Tensor) -> bool:
    """Whether `linear` asks oneDNN for the product itself: on a CPU, outside of training and
    autocast, in float32, and in bf16 on hardware that has it (else its bits vary). What is
    compiled has kernels of its own."""
    return (
        HAS_ONEDNN
        and not torch.compiler.is_compiling()
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and HAS_BF16))
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def padded(rows: int) -> int:
    """The next multiple of ROW_TILE."""
    return rows + -rows % ROW_TILE
