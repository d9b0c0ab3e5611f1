"""How much of a codebook is in use, counted over a whole pass through a data set."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class CodeUsage:
    """A histogram of the codes of all images seen since the start or the last `reset`.

    usage() is the share of the codebook that was chosen at least once, at any position of any of
    these images, on any rank: used codes / vocab_size. No window, no threshold, nothing counted
    beforehand. It grows with the number of tokens, so state `bound()` with it: N tokens cannot show
    more than N / vocab_size. perplexity() is exp of the entropy of the same histogram: vocab_size
    when all codes are equally frequent, 1 when one code does everything.

    All of it speaks about all ranks together and has to be asked for on every one of them."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self._counts = torch.zeros(vocab_size, dtype=torch.long, device=device)

    def update(self, tokens: Tensor) -> None:
        """Count tokens, Long of any shape, in [0, vocab_size). Raises ValueError for others."""
        self._counts = self._counts.to(tokens.device)
        seen = torch.bincount(tokens.flatten(), minlength=self.vocab_size)
        if len(seen) > self.vocab_size:
            raise ValueError(
                f"tokens have to be below vocab_size={self.vocab_size}; got {len(seen) - 1}: "
                "these tokens come from another tokenizer"
            )
        self._counts += seen

    def reset(self) -> None:
        """Forget everything."""
        self._counts.zero_()

    @property
    def counts(self) -> Tensor:
        """Long [vocab_size]: how often each code was chosen, on all ranks together."""
        total = self._counts.clone()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        return total

    def usage(self) -> float:
        """Share of codes chosen at least once, in [0, 1]."""
        return (self.counts > 0).double().mean().item()

    def bound(self) -> float:
        """The largest usage of so many tokens: min(tokens, vocab_size) / vocab_size."""
        return min(int(self.counts.sum()), self.vocab_size) / self.vocab_size

    def perplexity(self) -> float:
        """exp(entropy of the histogram), in [1, vocab_size]; 1 if nothing was counted."""
        counts = self.counts.double()
        shares = counts / counts.sum().clamp_min(1)
        return torch.special.entr(shares).sum().exp().item()


class ScaleUsage:
    """A `CodeUsage` for each scale of a token pyramid: the collapse of a small scale does not show
    in the histogram of all tokens, of which it has few.

    scales  (height, width) per scale, in the tokens' order"""

    def __init__(self, vocab_size: int, scales: Sequence[tuple[int, int]]) -> None:
        self.names = [f"{k}_{height}x{width}" for k, (height, width) in enumerate(scales)]
        self._lengths = [height * width for height, width in scales]
        self._parts = [CodeUsage(vocab_size) for _ in scales]

    def update(self, tokens: Tensor) -> None:
        """Count tokens, Long [batch, length], the scales one after the other."""
        for part, some in zip(self._parts, tokens.split(self._lengths, dim=1), strict=True):
            part.update(some)

    def reset(self) -> None:
        """Forget everything."""
        for part in self._parts:
            part.reset()

    def shares(self) -> dict[str, float]:
        """Per scale, by name: codes in use / codes that so many tokens could use."""
        named = zip(self.names, self._parts, strict=True)
        return {name: part.usage() / max(part.bound(), 1e-9) for name, part in named}

    def summary(self) -> str:
        """The same for people: "0_1x1 300/526 1_2x2 ...", codes in use / codes that could be."""
        named = zip(self.names, self._parts, strict=True)
        counts = [(name, part.usage(), part.bound(), part.vocab_size) for name, part in named]
        return "  ".join(f"{name} {used * n:.0f}/{most * n:.0f}" for name, used, most, n in counts)

    def numbers(self) -> dict[str, float]:
        """Usage, its bound and perplexity per scale, under the names that logs use."""
        result = {}
        for name, part in zip(self.names, self._parts, strict=True):
            result[f"codebook/usage/{name}"] = part.usage()
            result[f"codebook/usage_bound/{name}"] = part.bound()
            result[f"codebook/perplexity/{name}"] = part.perplexity()
        return result
