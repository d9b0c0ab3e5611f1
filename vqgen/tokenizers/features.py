"""A VQ tokenizer seen as continuous: its features before quantization out, quantized on the way
back."""

from torch import Tensor, nn

from vqgen.contracts import FeatureSpec, Reconstruction, Standardize, Tokenizer, TokenSpec
from vqgen.tokenizers.autoencoder import Autoencoder


class AsFeatures(Tokenizer):
    """encode: images -> what the bottleneck reads, standardized; decode: through the codebook.

    So a prior over continuous latents runs on any autoencoder of tokens, of one scale or of many:
    what it samples is rounded to tokens before it is decoded. Where the codes have length 1, the
    length of a feature is part of the latents, and lost in the rounding.

    tokenizer   trained already; its weights stay as they are
    """

    spec: FeatureSpec

    def __init__(self, *, tokenizer: Autoencoder) -> None:
        super().__init__()
        if not isinstance(tokenizer.spec, TokenSpec):
            raise ValueError(
                "as_features=true needs a tokenizer of tokens, got one whose latents are "
                "continuous already; leave as_features out, or take a tokenizer of tokens: "
                "python train_stage1.py tokenizer=vqgan"
            )
        self.tokenizer = tokenizer
        channels = tokenizer.bottleneck.in_channels
        self.scaling = Standardize(channels)
        self.image_size = tokenizer.image_size
        self.spec = FeatureSpec(channels, *tokenizer.latent_size)

    @property
    def standardizer(self) -> Standardize:
        return self.scaling

    @property
    def last_layer(self) -> nn.Parameter:
        return self.tokenizer.last_layer

    def forward(self, images: Tensor) -> Reconstruction:
        """As the wrapped tokenizer: standardization has no part in stage 1."""
        return self.tokenizer(images)

    def after_step(self) -> dict[str, float]:
        return self.tokenizer.after_step()

    def encode(self, images: Tensor) -> Tensor:
        return self.scaling(self.tokenizer.hidden(images).float())

    def decode(self, latents: Tensor) -> Tensor:
        return self.tokenizer.decode(self.tokens(latents))

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents, as self.spec says -> tokens, as the wrapped tokenizer's spec says."""
        wanted = (self.spec.channels, self.spec.height, self.spec.width)
        if latents.shape[1:] != wanted:
            raise ValueError(
                f"wanted latents of shape [batch, {', '.join(map(str, wanted))}], got "
                f"{list(latents.shape)}; use latents of this very tokenizer and image size"
            )
        return self.tokenizer.bottleneck.encode(self.scaling.undo(latents))
