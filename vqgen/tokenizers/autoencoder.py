"""Encoder, bottleneck, decoder: the tokenizer of every VQGAN, VQ-VAE, VAR and KL model."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from vqgen.contracts import Bottleneck, Pyramid, Reconstruction, Standardize, Tokenizer


class Autoencoder(Tokenizer):
    """images -> encoder -> quant_conv -> bottleneck -> post_quant_conv -> decoder -> images.

    image_size      (height, width) of the images, multiples of the encoder's factor
    encoder         called with out_channels=z_channels, returns a module with a `factor`
    decoder         called with in_channels=z_channels, returns one with a `factor` and `conv_out`
    bottleneck      sets the widths between quant_conv and post_quant_conv, and the latents' spec
    quant_kernel    side of those two convolutions: 1 in VQGAN and LlamaGen, 3 in VAR
    """

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        bottleneck: Bottleneck,
        z_channels: int = 256,
        quant_kernel: int = 1,
    ) -> None:
        super().__init__()
        height, width = (int(side) for side in image_size)
        self.encoder = encoder(out_channels=z_channels)
        self.decoder = decoder(in_channels=z_channels)
        self.bottleneck = bottleneck
        padding = quant_kernel // 2
        self.quant_conv = nn.Conv2d(
            z_channels, bottleneck.in_channels, quant_kernel, padding=padding
        )
        self.post_quant_conv = nn.Conv2d(
            bottleneck.out_channels, z_channels, quant_kernel, padding=padding
        )
        self.image_size = (height, width)
        self.latent_size = self._latent_size()
        self.spec = bottleneck.spec(self.latent_size)

    @property
    def pyramid(self) -> Pyramid | None:
        """A frozen copy, as the tokenizer is now."""
        return self.bottleneck.pyramid(self.latent_size)

    @property
    def standardizer(self) -> Standardize | None:
        return self.bottleneck.standardizer

    @property
    def last_layer(self) -> nn.Parameter:
        return cast(Any, self.decoder).conv_out.weight

    def forward(self, images: Tensor) -> Reconstruction:
        quantized, losses = self.bottleneck(self.hidden(images))
        return Reconstruction(self.decoder(self.post_quant_conv(quantized)), losses)

    def after_step(self) -> dict[str, float]:
        return self.bottleneck.after_step()

    def encode(self, images: Tensor) -> Tensor:
        return self.bottleneck.encode(self.hidden(images))

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.bottleneck.moments(self.hidden(images))

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.bottleneck.posterior(self.hidden(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(self.bottleneck.embed(latents, self.latent_size)))

    def hidden(self, images: Tensor) -> Tensor:
        """images [batch, 3, H, W] in [-1, 1] -> what the bottleneck reads, [batch, in_channels,
        h, w]. Raises ValueError for other images."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                "wanted float images [batch, 3, H, W] in [-1, 1], got "
                f"{images.dtype} {list(images.shape)}; for uint8: images.float() / 127.5 - 1"
            )
        size = (images.shape[-2], images.shape[-1])
        if size != self.image_size:
            raise ValueError(
                f"this tokenizer reads images of {self.image_size[0]} x {self.image_size[1]} "
                f"(height x width) pixels, got {size[0]} x {size[1]}; resize the images, or train "
                f"a tokenizer with data.size=[{size[0]},{size[1]}], or import published weights "
                f"again with --size {size[0]}x{size[1]}"
            )
        return self.quant_conv(self.encoder(images))

    def _latent_size(self) -> tuple[int, int]:
        """(height, width) of the hidden map; ValueError where parts or sizes do not fit."""
        down, up = cast(Any, self.encoder).factor, cast(Any, self.decoder).factor
        if down != up:
            raise ValueError(
                f"encoder and decoder must change the size by the same factor, got {down} and {up};"
                " give both the same patch and as many multipliers"
            )
        height, width = self.image_size
        if height % down or width % down:
            fit = [max(1, round(side / down)) * down for side in (height, width)]
            raise ValueError(
                f"height and width of the images must be multiples of {down} for this tokenizer, "
                f"got {height} x {width}; try data.size=[{fit[0]},{fit[1]}]"
            )
        return height // down, width // down
