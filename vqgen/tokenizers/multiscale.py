"""Multi-scale residual quantization: token maps coarse to fine, each for what is still missing."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqgen.contracts import Bottleneck, Size, TokenSpec
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.lookup import nearest_code
from vqgen.tokenizers.pyramid import FrozenPyramid, Phi, advance, enlarge, reduce
from vqgen.tokenizers.scales import at_grid, checked

PUBLISHED_PHI = 4  # the default, which pyramids of fewer scales may have too: some are never used


class MultiScaleQuantizer(Bottleneck):
    """The quantizer of VAR (Tian et al. 2024, algorithm 1), with what its training needs.

    codebook            its size, width and way of learning
    scales              "auto" (a rule from the latent grid, scales.py), or a list, coarse to fine,
                        of sides or of [height, width]; the last is the latent grid
    own_codebooks       a codebook of this size per scale, not one for all: a token of scale k is a
                        row of book k, and no scale can crowd another out
    distance            of the nearest code: "l2", or "cosine"; what is added is the code as it is
    phi_count           3x3 convolutions after the enlargement, shared by neighboring scales; 0: one
                        per scale
    phi_strength        share of the convolution in phi; 0: no phi
    commitment_weight   of the mean over scales of mean (hidden - stopgrad(canvas))^2, which moves
                        the encoder
    codebook_weight     of the mean over scales of mean (stopgrad(hidden) - canvas)^2, which moves
                        codes and phi; phi alone if the codebook is an EMA one, and there is no
                        such term if nothing learns by it
    scale_dropout       chance of a training image to be given a random number of leading scales
                        only, losses and picture too (after Zeghidour et al. 2021, section III-C)

    The picture's gradient goes straight through to `hidden`, unchanged, and nowhere else.
    """

    def __init__(
        self,
        *,
        codebook: Codebook,
        scales: Literal["auto"] | Sequence[int | Sequence[int]] = "auto",
        own_codebooks: bool = False,
        distance: Literal["l2", "cosine"] = "l2",
        phi_count: int = 4,
        phi_strength: float = 0.5,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        scale_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_options(distance, phi_count, scale_dropout)
        per_scale = own_codebooks or phi_count == 0
        self.scales = checked(scales, fixed=per_scale)  # None: auto
        books = len(self.scales or ()) if own_codebooks else 1
        self.codebooks = nn.ModuleList(copy.deepcopy(codebook) for _ in range(books))
        count = phi_count or len(self.scales or ())
        self.phi = Phi(codebook.dim, count=count, strength=phi_strength)
        self.in_channels = self.out_channels = codebook.dim
        self.vocab_size, self.cosine = codebook.size, distance == "cosine"
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.scale_dropout = scale_dropout

    def spec(self, size: Size) -> TokenSpec:
        scales = at_grid(self.scales, size)
        most = max(PUBLISHED_PHI, len(scales))
        if len(self.phi.convolutions) > most:
            raise ValueError(
                f"wanted tokenizer.bottleneck.phi_count from 0 (one per scale) to {most}, for "
                f"{len(scales)} scales, got {len(self.phi.convolutions)}; type "
                f"tokenizer.bottleneck.phi_count={PUBLISHED_PHI}"
            )
        return TokenSpec(vocab_size=self.vocab_size, scales=scales)

    def pyramid(self, size: Size) -> FrozenPyramid:
        return FrozenPyramid(scales=at_grid(self.scales, size), codes=self._codes(), phi=self.phi)

    def forward(self, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As the contract says. Statistics for `after_step` are gathered where gradients are on;
        the law holds for images that no scale was dropped from."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.float()
            if torch.is_grad_enabled():
                self._start(hidden.detach())
            steps = self._steps(hidden)
            if torch.is_grad_enabled():
                self._observe(steps)
            canvases = torch.stack([step.canvas for step in steps])
            depth = self._depth(len(steps), hidden)
            losses = self._losses(hidden, canvases, depth)
            shown = canvases.detach()[depth - 1, torch.arange(len(hidden), device=hidden.device)]
            # hidden - stopgrad(hidden) is exactly 0: the value is the canvas to the last bit
            quantized = shown + (hidden - hidden.detach())
        return quantized, losses

    def after_step(self) -> dict[str, float]:
        revived = [book.after_step()["codebook/revived"] for book in self._books]
        return {"codebook/revived": sum(revived)}

    @torch.no_grad()
    def encode(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            steps = self._steps(hidden.float())
        return torch.cat([step.tokens for step in steps], dim=1)

    def embed(self, latents: Tensor, size: Size) -> Tensor:
        scales, codes = at_grid(self.scales, size), self._codes()
        lengths = [height * width for height, width in scales]
        if latents.shape[-1] != sum(lengths):
            raise ValueError(
                f"the scales {scales} have {sum(lengths)} tokens, got {latents.shape[-1]} per "
                "image; use tokens of this very tokenizer and image size"
            )
        canvas = codes.new_zeros(len(latents), self.out_channels, *size)
        for scale, tokens in enumerate(latents.split(lengths, dim=1)):
            canvas = advance(canvas, tokens, scale, scales=scales, codes=codes, phi=self.phi)
        return canvas

    @property
    def _books(self) -> list[Codebook]:
        return [cast(Codebook, book) for book in self.codebooks]

    def _codes(self) -> Tensor:
        """[books, vocab_size, channels], with the gradient of learned codebooks."""
        return torch.stack([book.rows() for book in self._books])

    def _steps(self, hidden: Tensor) -> list["_Step"]:
        """hidden [batch, channels, h, w] -> what each scale finds, coarse to fine."""
        scales, codes = at_grid(self.scales, _size(hidden)), self._codes()
        canvas = hidden.new_zeros(hidden.shape)
        steps = []
        for scale, size in enumerate(scales):
            vectors = _to_vectors(reduce((hidden - canvas).detach(), size))
            found = self._nearest(vectors, codes[scale % len(codes)])
            tokens = rearrange(found, "(b n) -> b n", b=len(hidden))
            canvas = advance(canvas, tokens, scale, scales=scales, codes=codes, phi=self.phi)
            steps.append(_Step(vectors, tokens, canvas))
        return steps

    def _nearest(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """vectors [N, channels] -> Long [N]."""
        if self.cosine:  # among vectors of length 1 the nearest is the one of the largest cosine
            vectors, rows = F.normalize(vectors, dim=-1), F.normalize(rows, dim=-1)
        return nearest_code(vectors, rows)

    def _depth(self, scales: int, hidden: Tensor) -> Tensor:
        """How many of the scales each image is given, Long [batch]."""
        batch, device = len(hidden), hidden.device
        if not (self.training and self.scale_dropout):
            return torch.full((batch,), scales, device=device)
        dropped = torch.rand(batch, device=device) < self.scale_dropout
        return torch.randint(1, scales + 1, (batch,), device=device).where(dropped, scales)

    def _losses(self, hidden: Tensor, canvases: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """Weighted terms: the mean over images of the mean over the scales that an image has.

        canvases [scales, batch, channels, h, w], with the gradients of codes and phi."""
        number = torch.arange(len(canvases), device=hidden.device).unsqueeze(1)
        weights = (number < depth) / depth / len(hidden)  # [scales, batch], sum 1
        error = (canvases.detach() - hidden).square().mean(dim=(2, 3, 4))
        losses = {"commitment": self.commitment_weight * (weights * error).sum()}
        if canvases.requires_grad:
            error = (canvases - hidden.detach()).square().mean(dim=(2, 3, 4))
            losses["codebook"] = self.codebook_weight * (weights * error).sum()
        return losses

    # ---- the upkeep of the codebooks

    def _start(self, hidden: Tensor) -> None:
        """Codes from the first batch: what each scale finds missing if those before it were
        exact."""
        if all(book.is_started for book in self._books):
            return
        canvas, found = torch.zeros_like(hidden), []
        for size in at_grid(self.scales, _size(hidden)):
            maps = reduce(hidden - canvas, size)
            found.append(_to_vectors(maps))
            canvas = canvas + enlarge(maps, _size(hidden))
        for book, vectors in zip(self._books, self._by_book(found), strict=True):
            book.start(vectors)

    def _observe(self, steps: list["_Step"]) -> None:
        vectors = self._by_book([step.vectors for step in steps])
        tokens = self._by_book([step.tokens.flatten() for step in steps])
        for book, some, codes in zip(self._books, vectors, tokens, strict=True):
            book.observe(some, codes)

    def _by_book(self, per_scale: list[Tensor]) -> list[Tensor]:
        """One tensor per scale -> one per codebook."""
        return per_scale if len(self.codebooks) > 1 else [torch.cat(per_scale)]


@dataclass(frozen=True)
class _Step:
    """One scale: the missing vectors [batch h_k w_k, channels], tokens Long [batch, h_k w_k], and
    the canvas [batch, channels, h, w] with it."""

    vectors: Tensor
    tokens: Tensor
    canvas: Tensor


def _size(hidden: Tensor) -> Size:
    return hidden.shape[2], hidden.shape[3]


def _to_vectors(maps: Tensor) -> Tensor:
    return rearrange(maps, "b c h w -> (b h w) c")


def _check_options(distance: str, phi_count: int, scale_dropout: float) -> None:
    if distance not in ("l2", "cosine"):
        raise ValueError(
            f"wanted tokenizer.bottleneck.distance to be l2 or cosine, got {distance}; type "
            "tokenizer.bottleneck.distance=l2"
        )
    if phi_count < 0:
        raise ValueError(
            f"wanted tokenizer.bottleneck.phi_count of at least 0 (one per scale), got {phi_count};"
            " type tokenizer.bottleneck.phi_count=4"
        )
    if not 0 <= scale_dropout <= 1:
        raise ValueError(
            f"wanted tokenizer.bottleneck.scale_dropout in [0, 1], got {scale_dropout}; type "
            "tokenizer.bottleneck.scale_dropout=0.1"
        )
