"""LlamaGen VQ and taming VQGAN, from the published systems' recorded numbers."""

import pytest
import torch
from torch import Tensor

from tests.parity import golden, peer

IMAGES = ("image", "image_rect", "image_faint")


class Case:
    """One peer model, its recorded outputs, and ours with the same weights."""

    def __init__(self, fixture: golden.Fixture, variant: str) -> None:
        self.fixture, self.variant = fixture, variant
        self.config = fixture.config
        self.inputs = fixture.tensors("inputs")
        self.outputs = fixture.tensors(f"outputs_{variant}" if variant else "outputs")
        self.grad_norms = self.config["grad_norms"]
        if variant:
            self.grad_norms = self.grad_norms[variant]

    def imported(self, images: Tensor) -> peer.Imported:
        """Our tokenizer for images of this size."""
        more = self.config["variants"][self.variant] if self.variant else {}
        return peer.load(self.fixture, more, size=(images.shape[2], images.shape[3]))


def _cases() -> list:
    cases = []
    for parameter in golden.fixtures("llamagen_vq", "taming_vqgan"):
        (fixture,) = parameter.values
        if fixture is None:
            return [parameter]
        for variant in fixture.config.get("variants", {"": None}):
            name = f"{fixture.folder.name}-{variant}" if variant else fixture.folder.name
            cases.append(pytest.param(Case(fixture, variant), id=name))
    return cases


CASES = pytest.mark.parametrize("case", _cases())


@CASES
@pytest.mark.parametrize("name", IMAGES)
def test_encode_and_decode(case: Case, name: str) -> None:
    images = case.inputs[name]
    prefix = {"image": "", "image_rect": "rect.", "image_faint": "faint."}[name]
    model = case.imported(images).module
    with torch.no_grad():
        hidden = model.encoder(images)
        prequant = model.quant_conv(hidden)
        tokens = model.encode(images)
        quantized, _ = model.bottleneck(prequant)
        for got, key in ((hidden, "encoder_out"), (prequant, "prequant")):
            if prefix + key in case.outputs:
                golden.assert_matches(got, case.outputs[prefix + key], key)
        golden.assert_matches(tokens.flatten(), case.outputs[prefix + "indices"], "indices")
        golden.assert_matches(quantized, case.outputs[prefix + "quant"], "quant")
        entry = model.bottleneck.embed(tokens, model.latent_size)
        golden.assert_matches(entry, case.outputs[prefix + "codebook_entry"], "codebook_entry")
        decoded = model.decode(tokens)
        for key in ("decoded", "decoded_from_codes", "decoded_from_codebook_entry"):
            if prefix + key in case.outputs:
                golden.assert_matches(decoded, case.outputs[prefix + key], key)


@CASES
def test_losses_and_gradients(case: Case) -> None:
    images = case.inputs["image"]
    imported = case.imported(images)
    model = imported.module.train()
    prequant = model.quant_conv(model.encoder(images))
    prequant.retain_grad()
    quantized, losses = model.bottleneck(prequant)
    quantized.retain_grad()
    decoded = model.decoder(model.post_quant_conv(quantized))
    pixel = _check_losses(case, losses, decoded, images)
    (pixel + sum(losses.values())).backward()

    gradients = imported.gradients() | {"prequant": prequant.grad, "quant": quantized.grad}
    for key, want in case.outputs.items():
        if key.startswith("train.grad."):
            got = gradients[key.removeprefix("train.grad.")]
            assert got is not None
            # relative to the gradient's own size, not to 1; the entropy term, a softmax at
            # temperature 0.01, costs a digit
            assert (got - want).abs().max() <= 10 * golden.TOLERANCE * want.abs().max(), key
    for name, norm in case.grad_norms.items():
        got = gradients[name]
        assert got is not None
        # some are zero in exact arithmetic, for which the recorded norms are rounding noise
        assert float(got.norm()) == pytest.approx(norm, rel=2e-3, abs=1e-5), name


def _check_losses(case: Case, losses: dict[str, Tensor], decoded: Tensor, images: Tensor) -> Tensor:
    """Compare each recorded loss; returns the pixel loss that the gradients were recorded with."""
    if not case.variant:
        pixel = (images - decoded).abs().mean()
        golden.assert_matches(pixel, case.outputs["train.rec_l1"], "rec_l1")
        total = torch.stack(list(losses.values())).sum()
        golden.assert_matches(total, case.outputs["loss_legacy"], "loss_legacy")
        golden.assert_matches(total, case.outputs["train.quant_loss"], "quant_loss")
        return pixel
    pixel = (images - decoded).square().mean()
    golden.assert_matches(pixel, case.outputs["train.rec_mse"], "rec_mse")
    golden.assert_matches(losses["codebook"], case.outputs["train.codebook_loss"], "codebook")
    golden.assert_matches(losses["commitment"], case.outputs["train.commit_loss"], "commitment")
    entropy = losses.get("entropy", torch.zeros(()))  # not computed at weight 0
    golden.assert_matches(entropy, case.outputs["train.entropy_loss"], "entropy")
    total = float((pixel + sum(losses.values())).detach())
    assert total == pytest.approx(case.config["losses"][case.variant]["total"], rel=1e-4)
    return pixel


@CASES
def test_export_gives_the_peers_file_back(case: Case) -> None:
    imported = case.imported(case.inputs["image"])
    peer.assert_round_trip(imported, case.fixture.tensors("weights"))
