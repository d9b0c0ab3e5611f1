"""Encoder and decoder: sizes, the patchify stem, memory format, and what users can get wrong."""

from functools import partial

import pytest
import torch

from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.nn.convolutional import Downsample

SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1}


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_round_trip_of_sizes(patch: int, size: tuple[int, int]) -> None:
    encoder = Encoder(out_channels=5, patch=patch, **SMALL)
    decoder = Decoder(in_channels=5, patch=patch, **SMALL)
    assert encoder.factor == decoder.factor == 2 * patch
    images = torch.randn(2, 3, *size)
    hidden = encoder(images)
    assert hidden.shape == (2, 5, size[0] // encoder.factor, size[1] // encoder.factor)
    assert decoder(hidden).shape == images.shape


@pytest.mark.parametrize("patch", [1, 2])
def test_every_pixel_is_read_and_made(patch: int) -> None:
    torch.manual_seed(0)
    encoder = Encoder(out_channels=4, patch=patch, **SMALL)
    decoder = Decoder(in_channels=4, patch=patch, **SMALL)
    images = torch.randn(1, 3, 8, 12, requires_grad=True)
    made = decoder(encoder(images))
    made.square().sum().backward()
    assert images.grad is not None
    assert images.grad.ne(0).all()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name


def test_options_place_their_modules() -> None:
    def count(model: torch.nn.Module, word: str) -> int:
        return sum(type(part).__name__ == word for part in model.modules())

    plain = partial(Encoder, out_channels=4, channels=32, multipliers=(1, 1, 2))
    model = plain(blocks=(1, 2, 3), attention_levels=(0, -1), middle_attention=False)
    assert count(model, "ResidualBlock") == 1 + 2 + 3 + 2
    assert count(model, "AttentionBlock") == 1 + 3
    assert count(plain(blocks=1, attention_levels=()), "AttentionBlock") == 1
    decoder = Decoder(
        in_channels=4, channels=32, multipliers=(1, 1, 2), blocks=(1, 2, 3), attention_levels=(0,)
    )
    counts = [count(level, "ResidualBlock") for level in decoder.levels]
    assert counts == [3, 2, 1]  # coarsest first
    assert count(decoder.levels[-1], "AttentionBlock") == 1


def test_downsample_pads_right_and_bottom_only() -> None:
    model = Downsample(1)
    torch.nn.init.ones_(model.conv.weight)
    model.conv.bias = None
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0] = 1.0
    assert model(corner).flatten().tolist() == [1, 0, 0, 0]
    assert model(corner.flip(-1, -2)).flatten().tolist() == [0, 0, 0, 1]
    assert model(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 6, 6, 4]


@pytest.mark.parametrize("patch", [1, 2])
def test_memory_format_changes_nothing_and_is_kept(patch: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        Encoder(out_channels=32, patch=patch, **SMALL),
        Decoder(in_channels=32, patch=patch, **SMALL),
    )
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        want = model(images)
        model.to(memory_format=torch.channels_last)
        got = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    hidden = model[0](images.contiguous(memory_format=torch.channels_last))
    assert hidden.is_contiguous(memory_format=torch.channels_last)


def test_dropout_is_the_only_thing_that_reads_the_mode() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 8, 8)
    for dropout, same in ((0.0, True), (0.5, False)):
        model = Encoder(out_channels=4, dropout=dropout, **SMALL)
        assert torch.equal(model.train()(images), model.eval()(images)) == same


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 48}, "multiple of 32.*got 48.*32 or 64"),
        ({"channels": 16}, "got 16.*32 or 64"),
        ({"blocks": (1, 1, 1)}, "2 numbers.*got \\[1, 1, 1\\]"),
        ({"blocks": 0}, "at least 1; got \\[0, 0\\]"),
        ({"attention_levels": (2,)}, "0 \\(finest\\) .. 1 .*got \\[2\\]"),
    ],
)
def test_impossible_options_are_refused(change: dict, words: str) -> None:
    options = {**SMALL, **change}
    with pytest.raises(ValueError, match=words):
        Encoder(out_channels=4, **options)
    with pytest.raises(ValueError, match=words):
        Decoder(in_channels=4, **options)


def test_sizes_that_do_not_divide_are_refused() -> None:
    model = Encoder(out_channels=4, patch=2, **SMALL)
    with pytest.raises(ValueError, match="multiples of 4, got 16 x 18"):
        model(torch.zeros(1, 3, 16, 18))
