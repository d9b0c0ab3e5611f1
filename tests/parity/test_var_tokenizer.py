"""The multi-scale tokenizer of VAR, from the published system's recorded numbers."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from tests.parity import golden, peer, peer_var_tokenizer
from vqgen.contracts import Pyramid
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.multiscale import MultiScaleQuantizer

SHARE = 2e-5  # of the largest reference value; float32 itself is off by 5e-6 (FACTS 7)
GRADIENT_SHARE = 1e-4
QUANTIZERS = pytest.mark.parametrize("fixture", golden.fixtures("quantizer"))
NOT_SQUARE = pytest.mark.parametrize("fixture", golden.fixtures("quantizer_nonsquare"))
TOKENIZERS = pytest.mark.parametrize("fixture", golden.fixtures("vqvae"))


def _matches(got: Tensor, reference: Tensor, what: str) -> None:
    golden.assert_matches(got, reference, what, share=SHARE)


def _per_scale(io: dict[str, Tensor], what: str) -> list[Tensor]:
    """out/what_0, out/what_1 ... of a fixture."""
    return [io[f"out/{what}_{k}"] for k in range(sum(key.startswith("out/idx_") for key in io))]


def _check_quantizer(model: MultiScaleQuantizer, hidden: Tensor, io: dict[str, Tensor]) -> None:
    """Tokens of every scale, the running sum after each, and what the prior is given to read."""
    size = (hidden.shape[2], hidden.shape[3])
    tokens = model.encode(hidden)
    _matches(tokens, torch.cat(_per_scale(io, "idx"), dim=1), "idx")
    _matches(model.embed(tokens, size), _per_scale(io, "fhat")[-1], "embed")
    pyramid: Pyramid = model.pyramid(size)
    canvas, inputs = pyramid.blank(len(tokens)), []
    for scale, (some, want) in enumerate(
        zip(_per_scale(io, "idx"), _per_scale(io, "fhat"), strict=True)
    ):
        canvas = pyramid.advance(canvas, some, scale)
        _matches(canvas, want, f"fhat_{scale}")
        if scale + 1 < len(model.spec(size).scales):
            inputs.append(pyramid.next_input(canvas, scale + 1))
    assert torch.equal(canvas, model.embed(tokens, size))
    if "out/var_input" in io:
        _matches(torch.cat(inputs, dim=1), io["out/var_input"], "var_input")


@QUANTIZERS
def test_quantizer(fixture: golden.Fixture) -> None:
    model, _ = peer_var_tokenizer.loaded_bottleneck(fixture)
    io = fixture.tensors("io")
    with torch.no_grad():
        _check_quantizer(model, io["in/f"], io)


@NOT_SQUARE
def test_quantizer_that_is_not_square(fixture: golden.Fixture) -> None:
    other, io = fixture.beside(fixture.config["uses"]), fixture.tensors("io")
    other.config["model"]["v_patch_nums"] = fixture.config["v_patch_nums_override"]
    with torch.no_grad():
        _check_quantizer(peer_var_tokenizer.loaded_bottleneck(other)[0], io["in/f"], io)


@QUANTIZERS
def test_quantizer_loss_and_gradients(fixture: golden.Fixture) -> None:
    model, links = peer_var_tokenizer.loaded_bottleneck(fixture)
    io = fixture.tensors("io")
    hidden = io["in/f"].requires_grad_()
    quantized, losses = model(hidden)
    _matches(quantized, io["out/fwd_fhat"], "fwd_fhat")
    total = sum(losses.values())
    assert isinstance(total, Tensor)
    _matches(total.reshape(1), io["out/fwd_vq_loss"], "fwd_vq_loss")
    total.backward()
    gradients = peer_var_tokenizer.gradients(model, links)
    _check_gradients({**gradients, "f": hidden.grad}, io, "out/grad_vq_loss/")


def _check_gradients(
    gradients: Mapping[str, Tensor | None], io: dict[str, Tensor], prefix: str
) -> None:
    """Compare every recorded gradient."""
    recorded = {
        key.removeprefix(prefix): value for key, value in io.items() if key.startswith(prefix)
    }
    assert recorded
    for name, want in recorded.items():
        got = gradients[name]
        assert got is not None, name
        golden.assert_matches(got, want, name, share=GRADIENT_SHARE)


def _tokenizer(fixture: golden.Fixture, size: tuple[int, int]) -> Autoencoder:
    return peer_var_tokenizer.load(fixture, size).module


@TOKENIZERS
def test_encode_and_decode(fixture: golden.Fixture) -> None:
    io = fixture.tensors("io")
    images = io["in/img"]
    model = _tokenizer(fixture, (images.shape[2], images.shape[3])).eval()
    with torch.no_grad():
        encoded = model.encoder(images)
        hidden = model.quant_conv(encoded)
        _matches(encoded, io["out/enc"], "enc")
        _matches(hidden, io["out/f"], "f")
        assert isinstance(model.bottleneck, MultiScaleQuantizer)
        _check_quantizer(model.bottleneck, io["out/f"], io)
        tokens = model.encode(images)
        _matches(tokens, torch.cat(_per_scale(io, "idx"), dim=1), "idx")
        _matches(model.decode(tokens).clamp(-1, 1), io["out/rec_last"], "rec_last")
        lengths = [part.shape[1] for part in _per_scale(io, "idx")]
        for scale, want in enumerate(_per_scale(io, "rec")):
            film = tokens.clone()
            film[:, sum(lengths[: scale + 1]) :] = -1  # not yet decided
            _matches(model.decode(film).clamp(-1, 1), want, f"rec_{scale}")


@TOKENIZERS
def test_training_forward_and_gradients(fixture: golden.Fixture) -> None:
    io = fixture.tensors("io")
    images = io["in/img"]
    imported = peer_var_tokenizer.load(fixture, (images.shape[2], images.shape[3]))
    model = imported.module.train()
    hidden = io["out/f"].clone().requires_grad_()
    quantized, losses = model.bottleneck(hidden)
    _matches(quantized, io["out/fwd_fhat"], "fwd_fhat")
    total = sum(losses.values())
    assert isinstance(total, Tensor)
    _matches(total.reshape(1), io["out/fwd_vq_loss"], "fwd_vq_loss")
    total.backward()
    inside = {n.removeprefix("quantize."): g for n, g in imported.gradients().items()}
    _check_gradients({**inside, "f": hidden.grad}, io, "out/grad_vq_loss/")
    model.zero_grad()
    made = model(images)
    _matches(made.images, io["out/fwd_rec_unclamped"], "fwd_rec_unclamped")
    objective = (made.images - images).square().mean() + sum(made.losses.values())
    _matches(objective.reshape(1), io["out/fwd_loss_mse_plus_vq"], "fwd_loss_mse_plus_vq")
    objective.backward()
    _check_gradients(imported.gradients(), io, "out/grad_mse_plus_vq/")


@TOKENIZERS
def test_export_gives_the_peers_file_back(fixture: golden.Fixture) -> None:
    images = fixture.tensors("io")["in/img"]
    imported = peer_var_tokenizer.load(fixture, (images.shape[2], images.shape[3]))
    peer.assert_round_trip(imported, fixture.tensors("weights"))


@TOKENIZERS
def test_the_epsilon_of_the_norms(fixture: golden.Fixture) -> None:
    """With nearly nothing coming in, 1e-6 and 1e-5 differ."""
    io, scale = fixture.tensors("io"), fixture.config["eps_probe"]["scale"]
    images = io["in/img"]
    model = _tokenizer(fixture, (images.shape[2], images.shape[3])).eval()
    with torch.no_grad():
        for part in (model.encoder.conv_in, model.decoder.conv_in):
            assert isinstance(part, torch.nn.Conv2d) and part.bias is not None
            part.weight.mul_(scale)
            part.bias.mul_(scale)
        _matches(model.encoder(images), io["out/eps_probe_enc"], "eps_probe_enc")
        last = _per_scale(io, "fhat")[-1]
        decoded = model.decoder(model.post_quant_conv(last)).clamp(-1, 1)
        _matches(decoded, io["out/eps_probe_rec"], "eps_probe_rec")
