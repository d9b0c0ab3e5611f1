"""Units of likelihood: bits per dimension, bits per token, and what a uniform prior would reach."""

from math import log2
from typing import Protocol, TypeVar

from torch import Tensor

Bits = TypeVar("Bits", float, Tensor)

COLORS = 3


class Tokens(Protocol):
    """What is needed of a token spec."""

    @property
    def vocab_size(self) -> int: ...  # codes to choose from

    @property
    def length(self) -> int: ...  # tokens per image


def bits_per_dimension(bits: Bits, image_size: tuple[int, int]) -> Bits:
    """Code length in bits per image -> bits per number of the image: / (height * width * 3)."""
    height, width = image_size
    return bits / (height * width * COLORS)


def bits_per_token(bits: Bits, length: int) -> Bits:
    """Code length in bits per image -> bits per token."""
    return bits / length


def uniform_bits(spec: Tokens) -> float:
    """Bits per image under a prior that has learned nothing: length * log2(vocab_size)."""
    return spec.length * log2(spec.vocab_size)
