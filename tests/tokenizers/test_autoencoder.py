"""The convolutional tokenizer: contract, published sizes of the configs, overfitting, errors."""

from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from vqgen.contracts import TokenSpec
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.vq import VectorQuantizer

CONFIGS = Path(__file__).parents[2] / "conf" / "stage1" / "tokenizer"


def _tokenizer(
    image_size: tuple[int, int] = (8, 16), *, patch: int = 2, quant_kernel: int = 1, **codebook
) -> Autoencoder:
    shape = {"channels": 32, "multipliers": (1, 1), "blocks": 1, "patch": patch}
    book = Codebook(**{"size": 16, "dim": 4, **codebook})
    return Autoencoder(
        image_size=image_size,
        encoder=partial(Encoder, **shape),
        decoder=partial(Decoder, **shape),
        bottleneck=VectorQuantizer(codebook=book),
        z_channels=6,
        quant_kernel=quant_kernel,
    )


@pytest.mark.parametrize("quant_kernel", [1, 3])
@pytest.mark.parametrize("update", ["learned", "ema"])
def test_contract(quant_kernel: int, update: str) -> None:
    torch.manual_seed(0)
    model = _tokenizer(quant_kernel=quant_kernel, update=update)
    images = torch.rand(2, 3, 8, 16) * 2 - 1
    result = model(images)
    assert result.images.shape == images.shape
    assert model.spec == TokenSpec(vocab_size=16, scales=((2, 4),))
    tokens = model.encode(images)
    assert tokens.shape == (2, 8) and tokens.dtype == torch.long
    torch.testing.assert_close(model.decode(tokens), result.images)
    assert set(model.after_step()) == {"codebook/revived"}
    assert any(model.last_layer is parameter for parameter in model.parameters())
    assert torch.autograd.grad(result.images.sum(), model.last_layer)[0].any()


def test_validation_leaves_the_codebook_alone() -> None:
    model = _tokenizer(update="ema")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model(torch.rand(2, 3, 8, 16))
    model.after_step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_memory_format_changes_nothing_and_is_kept() -> None:
    torch.manual_seed(0)
    model = _tokenizer(start="random").eval()
    images = torch.rand(2, 3, 8, 16) * 2 - 1
    with torch.no_grad():
        want = model(images).images
        assert want.is_contiguous()
        model.to(memory_format=torch.channels_last)
        got = model(images.contiguous(memory_format=torch.channels_last)).images
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", ["learned", "ema"])
def test_overfits_one_batch(update: str) -> None:
    torch.manual_seed(0)
    model = _tokenizer((16, 8), update=update, size=32, usage_decay=0.8)
    images = F.interpolate(torch.rand(2, 3, 4, 2) * 2 - 1, scale_factor=4.0)  # blocks of one color
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    error = torch.empty(0)
    for _ in range(80):
        result = model(images)
        error = F.mse_loss(result.images, images)
        optimizer.zero_grad()
        (error + sum(result.losses.values())).backward()
        optimizer.step()
        model.after_step()
    assert error < 0.02
    assert model.encode(images).unique().numel() > 8


def test_images_of_another_size_are_refused() -> None:
    model = _tokenizer()
    for call in (model, model.encode):
        with pytest.raises(ValueError, match=r"8 x 16 .*got 16 x 8; .*data.size=\[16,8\]"):
            call(torch.zeros(1, 3, 16, 8))


def test_image_sizes_that_do_not_fit_the_factor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 4 .*got 9 x 15; try data.size=\[8,16\]"):
        _tokenizer((9, 15))


def test_encoder_and_decoder_must_agree() -> None:
    with pytest.raises(ValueError, match="same factor, got 4 and 2"):
        Autoencoder(
            image_size=(8, 8),
            encoder=partial(Encoder, channels=32, multipliers=(1, 1), patch=2),
            decoder=partial(Decoder, channels=32, multipliers=(1, 1)),
            bottleneck=VectorQuantizer(codebook=Codebook(size=4, dim=4)),
        )


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_makes_a_tokenizer(path: Path) -> None:
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    with torch.device("meta"):
        model = hydra.utils.instantiate(config, image_size=(64, 96), _convert_="all")
    assert isinstance(model, Autoencoder)
    height, width = model.latent_size
    assert 64 * width == 96 * height
    # the parameter counts of the released LlamaGen and VAR tokenizers
    published = {"vqgan": 71_883_403, "vqgan_f8": 70_109_835, "var": 108_948_355}
    if path.stem in published:
        assert sum(p.numel() for p in model.parameters()) == published[path.stem]
