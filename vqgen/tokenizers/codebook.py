"""A codebook and its upkeep: data-dependent start, EMA updates, revival of dead codes.

All statistics are summed over ranks and all random choices shared, so that every rank of a
distributed run holds the same codebook, bit for bit.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.tokenizers.lookup import nearest_code

SMOOTHING = 1e-5  # epsilon of the Laplace smoothing of EMA counts
JITTER = 0.01  # of the spread of the vectors, where one vector has to start several codes


class Codebook(nn.Module):
    """`size` codes of `dim` numbers.

    normalize      the codes in use are the rows divided by their length; the vectors to look up
                   must then have length 1 as well
    update         "learned": a parameter, trained by the gradient of a codebook loss;
                   "ema": a buffer, each code the running mean of the vectors that chose it
                   (van den Oord et al. 2017, appendix A.1)
    ema_decay      of that running mean, per step
    start          "data": random vectors of the first training batch, of all ranks;
                   "random": uniform in +-1/size
    revive_below   a code with fewer hits than this, in units of the uniform share 1/size, is
                   replaced by a random vector of the latest batch, each used once; 0: never
    usage_decay    of the running mean of the hits, per step

    Training only: `observe` gathers what one forward pass did, `after_step` applies it, called once
    per optimizer step on every rank. All that a resumed run needs is in the state dict.
    """

    weight: Tensor  # [size, dim]
    usage: Tensor  # [size], running mean of the hits, 1 = the uniform share
    started: Tensor  # Bool []
    ema_count: Tensor  # [size], hits per step; EMA codebooks only, as the next one
    ema_sum: Tensor  # [size, dim], sum of the vectors that chose each code, per step

    def __init__(
        self,
        *,
        size: int,
        dim: int,
        normalize: bool = False,
        update: Literal["learned", "ema"] = "learned",
        ema_decay: float = 0.99,
        start: Literal["data", "random"] = "data",
        revive_below: float = 0.03,
        usage_decay: float = 0.98,
    ) -> None:
        super().__init__()
        _check_choice("update", update, ("learned", "ema"))
        _check_choice("start", start, ("data", "random"))
        for name, count in (("size", size), ("dim", dim)):
            _check_range(name, count, "a whole number of at least 1", count >= 1)
        for name, decay in (("ema_decay", ema_decay), ("usage_decay", usage_decay)):
            _check_range(name, decay, "a number from 0 to below 1", 0 <= decay < 1)
        _check_range("revive_below", revive_below, "a number from 0 to 1", 0 <= revive_below <= 1)
        self.size, self.dim, self.normalize = size, dim, normalize
        self.learned = update == "learned"
        self.ema_decay, self.revive_below, self.usage_decay = ema_decay, revive_below, usage_decay
        weight = torch.empty(size, dim).uniform_(-1 / size, 1 / size)
        weight = F.normalize(weight, dim=-1) if normalize else weight
        if self.learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
            self.register_buffer("ema_count", torch.ones(size))
            self.register_buffer("ema_sum", weight.clone())
        self.register_buffer("usage", torch.ones(size))
        self.register_buffer("started", torch.tensor(start == "random"))
        self._start_checked = False  # spares a device synchronization in every forward
        # Not buffers: they differ between ranks, and DDP would overwrite them with those of rank 0.
        self._counts: Tensor | None = None
        self._sums: Tensor | None = None
        self._recent: Tensor | None = None

    def rows(self) -> Tensor:
        """The codes in use, [size, dim], with the gradient of a learned codebook."""
        return F.normalize(self.weight, dim=-1) if self.normalize else self.weight

    def nearest(self, vectors: Tensor) -> Tensor:
        """vectors [N, dim] -> Long [N]."""
        return nearest_code(vectors, self.rows())

    @property
    def is_started(self) -> bool:
        """False as long as `start` is still to be called."""
        self._start_checked = self._start_checked or bool(self.started)
        return self._start_checked

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Take the codes from vectors [N, dim] of all ranks; only the first call ever does so."""
        if not self.is_started:
            everywhere = torch.arange(self.size, device=self.usage.device)
            self._place(everywhere, self._draw(_finite(vectors), self.size))
            self.started.fill_(True)

    @torch.no_grad()
    def observe(self, vectors: Tensor, indices: Tensor) -> None:
        """Gather the statistics of a forward pass: vectors [N, dim], their codes Long [N]."""
        vectors = _finite(vectors)  # a bad batch must not destroy the codebook
        if self._counts is None:
            self._counts = torch.zeros_like(self.usage)
            self._sums = None if self.learned else torch.zeros_like(self.weight)
        self._counts.index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        if self._sums is not None:
            self._sums.index_add_(0, indices, vectors)
        self._recent = vectors

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """Apply what was observed since the last call -> {"codebook/revived": codes replaced}."""
        if self._counts is None or self._recent is None:
            return {"codebook/revived": 0.0}
        counts = _sum_over_ranks(self._counts)
        if self._sums is not None:
            self._follow(counts, _sum_over_ranks(self._sums))
        self.usage.lerp_(counts * self.size / counts.sum(), 1 - self.usage_decay)
        dead = int((self.usage < self.revive_below).sum())  # the same on every rank, as `usage` is
        # A vector revives one code at most: many codes of few vectors (the 1 x 1 scale of a
        # pyramid) would else become copies of one batch, and die together
        revived = min(dead, self._recent.shape[0] * _world_size())
        if revived:
            rarest = self.usage.argsort(stable=True)[:revived]
            self._place(rarest, self._draw(self._recent, revived))
        self._counts = self._sums = self._recent = None
        return {"codebook/revived": float(revived)}

    def _follow(self, counts: Tensor, sums: Tensor) -> None:
        """One EMA update by the counts [size] and sums [size, dim] of this step."""
        self.ema_count.lerp_(counts, 1 - self.ema_decay)
        self.ema_sum.lerp_(sums, 1 - self.ema_decay)
        total = self.ema_count.sum()
        smooth = (self.ema_count + SMOOTHING) / (total + self.size * SMOOTHING) * total
        self.weight.copy_(self.ema_sum / smooth.unsqueeze(1))

    def _place(self, where: Tensor, vectors: Tensor) -> None:
        """Put vectors [n, dim] at the n codes of where, Long [n], with a fresh history."""
        vectors = vectors.to(self.weight.dtype)
        self.weight[where] = vectors
        self.usage[where] = 1.0
        if not self.learned:
            self.ema_count[where] = 1.0
            self.ema_sum[where] = vectors

    def _draw(self, vectors: Tensor, count: int) -> Tensor:
        """`count` random vectors out of those of all ranks, the same on every rank."""
        world = _world_size()
        own = -(-count // world)
        order = torch.randperm(vectors.shape[0], device=vectors.device)
        repeats = -(-own // vectors.shape[0])  # above 1 if there are more codes than vectors
        chosen = vectors[order.repeat(repeats)[:own]]
        if repeats > 1:
            chosen = chosen + JITTER * chosen.std() * torch.randn_like(chosen)
        if world > 1:
            parts = [torch.empty_like(chosen) for _ in range(world)]
            dist.all_gather(parts, chosen)
            chosen = torch.cat(parts)
        return chosen[:count]


def _finite(vectors: Tensor) -> Tensor:
    return vectors.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sum_over_ranks(x: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        setting = f"tokenizer.bottleneck.codebook.{name}"
        listed = " or ".join(choices)
        raise ValueError(
            f"wanted {setting} to be {listed}, got {value}; type {setting}={choices[0]}"
        )


def _check_range(name: str, value: float, wanted: str, is_right: bool) -> None:
    if not is_right:
        setting = f"tokenizer.bottleneck.codebook.{name}"
        raise ValueError(f"wanted {setting} as {wanted}, got {value}; leave it out for its default")
