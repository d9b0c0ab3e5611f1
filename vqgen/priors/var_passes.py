"""The passes of a guided sampling loop through VAR's network: one per scale, reading only what is
new."""

from collections.abc import Sequence

from torch import Tensor

from vqgen.priors.var_transformer import ScaleTransformer
from vqgen.sampling.branches import Branches


class CachedPasses:
    """Logits of one scale after another; keys and values of those before are kept, and go when this
    object goes.

    An unguided scale costs no second pass, not even if guidance comes later: at the first guided
    scale the null branch comes in, and that one pass reads all scales so far, for both branches
    (with a ramp over ten scales: five positions in place of four).

    vectors  of the conditional branch and, if any step is guided, of the null one: [batch, width]
    """

    def __init__(
        self, net: ScaleTransformer, branches: Branches, vectors: Sequence[Tensor]
    ) -> None:
        self.net, self.branches, self.vectors = net, branches, vectors
        self.maps: list[Tensor] = []  # of scale 1, 2, ...
        self.lengths = net.inputs.lengths

    def hear(self, next_input: Tensor) -> None:
        """What the next scale reads: [batch, h_k w_k, channels]."""
        self.maps.append(next_input)

    def logits(self, scale: int) -> Tensor:
        """-> [rows of this step, h_k w_k, vocab]; to be called for each scale, in order."""
        if scale in (0, self.branches.joins):
            self._start(scale)
        rows, device = self.branches.rows(scale), self.vector.device
        if rows < len(self.vector):  # the null branch has done its work
            self.vector, self.cache = self.vector[:rows], self.cache.first(rows)
        start, stop = self.cache.filled, sum(self.lengths[: scale + 1])
        images = self.branches.images(scale, device)
        new = self.maps[-1:] if start else self.maps
        x = self.net.inputs(None if start else self.vector, [part[images] for part in new], start)
        several = x.shape[1] > self.lengths[scale]
        mask = self.net.mask[None, None, start:stop, :stop] if several else None
        x = self.net.through_blocks(x, self.vector, mask, self.cache)
        return self.net.head(x[:, -self.lengths[scale] :], self.vector)

    def _start(self, scale: int) -> None:
        """An empty cache for the rows of this step, of the size that will be filled."""
        until = len(self.lengths) if scale == self.branches.joins else self.branches.joins
        self.vector = self.branches.stack(self.vectors, scale)
        self.cache = self.net.empty_cache(len(self.vector), sum(self.lengths[:until]))
