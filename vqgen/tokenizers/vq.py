"""Vector quantization: each position of the hidden map becomes the index of its nearest code."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqgen.contracts import Bottleneck, Size, TokenSpec
from vqgen.tokenizers.codebook import Codebook


class VectorQuantizer(Bottleneck):
    """Nearest code, with the straight-through gradient (van den Oord et al. 2017).

    codebook               its size, width, normalization and way of learning
    commitment_weight      of mean (z - stopgrad(code))^2, which moves the encoder
    codebook_weight        of mean (stopgrad(z) - code)^2, which moves the codes; an EMA codebook
                           moves by itself and has no such term
    entropy_weight         of mean H(p) - H(mean p), p = softmax(-distance^2 / temperature) over
                           the codes: sharp choices, all codes in use. Makes an N x K matrix;
                           not computed at weight 0
    entropy_temperature    that temperature

    z is the hidden vector, divided by its length if the codebook is normalized. The "legacy" loss
    of published taming models is commitment_weight=1, codebook_weight=0.25.
    """

    def __init__(
        self,
        *,
        codebook: Codebook,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.codebook = codebook
        self.in_channels = self.out_channels = codebook.dim
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature

    def spec(self, size: Size) -> TokenSpec:
        return TokenSpec(vocab_size=self.codebook.size, scales=(size,))

    def forward(self, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As the contract says. Statistics for `after_step` are gathered where gradients are on."""
        size = (hidden.shape[2], hidden.shape[3])
        with torch.autocast(hidden.device.type, enabled=False):
            z = self._vectors(hidden)
            if torch.is_grad_enabled():
                self.codebook.start(z)
            rows = self.codebook.rows()
            indices = self.codebook.nearest(z)
            code = F.embedding(indices, rows)
            if torch.is_grad_enabled():
                self.codebook.observe(z, indices)
            losses = self._losses(z, code, rows)
            # z - stopgrad(z) is exactly 0: the value is the code to the last bit, and the gradient
            # goes to z alone
            quantized = code.detach() + (z - z.detach())
        return _to_map(quantized, size), losses

    def after_step(self) -> dict[str, float]:
        return self.codebook.after_step()

    def encode(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            indices = self.codebook.nearest(self._vectors(hidden))
        return rearrange(indices, "(b n) -> b n", b=hidden.shape[0])

    def embed(self, latents: Tensor, size: Size) -> Tensor:
        height, width = size
        if latents.shape[-1] != height * width:
            raise ValueError(
                f"a {height} x {width} map has {height * width} tokens, got {latents.shape[-1]} "
                "per image; use tokens of this very tokenizer and image size"
            )
        rows = self.codebook.rows()
        undecided = len(rows)  # the mean code stands for a token that is not there yet
        rows = torch.cat((rows, rows.mean(dim=0, keepdim=True)))
        indices = latents.flatten()
        return _to_map(F.embedding(indices.where(indices >= 0, undecided), rows), size)

    def _vectors(self, hidden: Tensor) -> Tensor:
        """hidden [batch, dim, h, w] -> float32 [batch h w, dim], in token order."""
        vectors = rearrange(hidden.float(), "b c h w -> (b h w) c")
        return F.normalize(vectors, dim=-1) if self.codebook.normalize else vectors

    def _losses(self, z: Tensor, code: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """z [N, dim], code [N, dim], rows [K, dim], with their gradients -> weighted terms."""
        losses = {"commitment": self.commitment_weight * F.mse_loss(z, code.detach())}
        if self.codebook.learned:
            losses["codebook"] = self.codebook_weight * F.mse_loss(code, z.detach())
        if self.entropy_weight:
            losses["entropy"] = self.entropy_weight * _entropy(z, rows, self.entropy_temperature)
        return losses


def _to_map(vectors: Tensor, size: Size) -> Tensor:
    # contiguous: else the strides say channels_last, and a model in the other format would follow
    return rearrange(vectors, "(b h w) c -> b c h w", h=size[0], w=size[1]).contiguous()


def _entropy(z: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Mean entropy of the soft choices minus entropy of the mean choice, in nats (LlamaGen)."""
    squared = z.square().sum(1, keepdim=True) + rows.square().sum(1) - 2 * z @ rows.T
    log_p = F.log_softmax(-squared / temperature, dim=-1)
    p = log_p.exp()
    mean_p = p.mean(0)
    each = -(p * log_p).sum(-1).mean()
    together = -(mean_p * (mean_p + 1e-5).log()).sum()
    return each - together
