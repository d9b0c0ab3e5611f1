"""The loss of stage 1: each term reaches what it should, with its weight, on its schedule."""

import math

import pytest
import torch
from torch import Tensor, nn

from vqgen.contracts import Reconstruction
from vqgen.losses.gan import PatchGAN
from vqgen.losses.stage1 import Stage1Loss


class Cubic(nn.Module):
    """A stand-in for LPIPS."""

    def forward(self, made: Tensor, images: Tensor) -> Tensor:
        return (made - images).abs().pow(3).mean(dim=(1, 2, 3))

    def check_size(self, size: tuple[int, int]) -> None:
        if min(size) < 10:
            raise ValueError("too small for the stand-in")


class Toy:
    """Images, a "decoder" that is one convolution, and a bottleneck term on a code of its own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
        self.hidden = torch.randn(2, 4, 16, 16, generator=generator)
        self.layer = nn.Parameter(0.3 * torch.randn(3, 4, 1, 1, generator=generator))
        self.code = nn.Parameter(torch.tensor(2.0))

    def reconstruction(self) -> Reconstruction:
        made = torch.nn.functional.conv2d(self.hidden, self.layer)
        return Reconstruction(made, {"commitment": 0.25 * self.code.square()})


def small_gan(**settings) -> PatchGAN:
    torch.manual_seed(1)
    # no weights by default that would make the numbers equal 1
    defaults = {"width": 4, "layers": 2, "start": 0.4, "warmup": 0.1, "ramp": 0.2, "weight": 0.7}
    return PatchGAN(**(defaults | settings))


def slope(value: Tensor, parameter: Tensor) -> Tensor:
    return torch.autograd.grad(value, parameter, retain_graph=True)[0]


def test_total_is_the_weighted_sum_and_so_is_its_gradient() -> None:
    toy = Toy()
    gan = small_gan(adaptive=True, adaptive_max=1e4)
    loss = Stage1Loss(
        pixel="l2", pixel_weight=3.0, perceptual=Cubic(), perceptual_weight=0.5, gan=gan
    )
    reconstruction = toy.reconstruction()
    losses = loss.generator(toy.images, reconstruction, toy.layer, 1.0)

    pixel = (reconstruction.images - toy.images).square().mean()
    perceptual = (reconstruction.images - toy.images).abs().pow(3).mean()
    visible = 3.0 * pixel + 0.5 * perceptual
    adversarial = -gan.discriminator(reconstruction.images).mean()
    adaptive = slope(visible, toy.layer).norm() / (slope(adversarial, toy.layer).norm() + 1e-4)
    expected = visible + 0.25 * toy.code.square() + 0.7 * adaptive * adversarial
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.parts["gan/adaptive_weight"], adaptive)
    torch.testing.assert_close(losses.parts["gan/generator"], adversarial.detach())
    torch.testing.assert_close(losses.parts["pixel"], pixel.detach())
    torch.testing.assert_close(losses.parts["perceptual"], perceptual.detach())
    torch.testing.assert_close(losses.parts["commitment"], torch.tensor(1.0))

    got = slope(losses.total, toy.layer)
    by_hand = slope(visible, toy.layer) + 0.7 * adaptive * slope(adversarial, toy.layer)
    torch.testing.assert_close(got, by_hand)
    torch.testing.assert_close(slope(losses.total, toy.code), torch.tensor(0.25 * 2 * 2.0))


def test_parts_are_detached_and_named() -> None:
    toy = Toy()
    gan = small_gan(lecam_weight=0.1, r1_weight=0.1)
    loss = Stage1Loss(perceptual=Cubic(), gan=gan)
    reconstruction = toy.reconstruction()
    made = loss.generator(toy.images, reconstruction, toy.layer, 1.0).parts
    judged = loss.discriminator(toy.images, reconstruction.images.detach(), 1.0).parts
    assert set(made) == {
        "pixel", "perceptual", "commitment", "gan/generator", "gan/adaptive_weight", "gan/weight"
    }  # fmt: skip
    assert set(judged) == {
        "gan/discriminator", "gan/logits_real", "gan/logits_fake", "gan/lecam", "gan/r1"
    }  # fmt: skip
    for value in (made | judged).values():
        assert value.shape == () and not value.requires_grad


def test_generator_pass_leaves_the_discriminator_without_gradient() -> None:
    toy, loss = Toy(), Stage1Loss(gan=small_gan())
    losses = loss.generator(toy.images, toy.reconstruction(), toy.layer, 1.0)
    losses.total.backward()
    assert toy.layer.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in loss.discriminator_parameters())


def test_discriminator_pass_reaches_the_discriminator_only() -> None:
    toy, loss = Toy(), Stage1Loss(gan=small_gan(r1_weight=1.0, lecam_weight=1.0))
    images = toy.images.requires_grad_()
    made = toy.reconstruction().images  # even with its graph
    loss.discriminator(images, made, 0.5).total.backward()
    assert images.grad is None and toy.layer.grad is None
    assert all(p.grad is not None for p in loss.discriminator_parameters())
    assert len(loss.discriminator_parameters()) > 0


def test_discriminator_total_holds_its_regularizers_with_their_weights() -> None:
    toy = Toy()
    made = toy.reconstruction().images.detach()
    gan = small_gan(norm="group", lecam_weight=0.3, r1_weight=0.2)
    gan.lecam.mean_real.fill_(0.4)
    losses = Stage1Loss(gan=gan).discriminator(toy.images, made, 1.0)
    expected = (
        losses.parts["gan/discriminator"]
        + 0.3 * losses.parts["gan/lecam"]
        + 0.2 * losses.parts["gan/r1"]
    )
    torch.testing.assert_close(losses.total.detach(), expected)
    assert losses.parts["gan/lecam"] > 0 and losses.parts["gan/r1"] > 0


def test_learning_separates_real_from_fake() -> None:
    torch.manual_seed(0)
    loss = Stage1Loss(gan=small_gan(start=0.0, lecam_weight=0.001, r1_weight=0.01))
    optimizer = torch.optim.Adam(loss.discriminator_parameters(), lr=2e-3)
    real, fake = torch.rand(8, 3, 16, 16), torch.rand(8, 3, 16, 16) * 0.5 - 0.5
    for _ in range(30):
        losses = loss.discriminator(real, fake, 0.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.parts["gan/logits_real"] > losses.parts["gan/logits_fake"] + 1


def test_schedule() -> None:
    gan = small_gan(start=0.4, warmup=0.1, ramp=0.2, weight=0.7)
    loss = Stage1Loss(gan=gan)
    assert [loss.gan_active(p) for p in (0.0, 0.39, 0.4, 0.45, 1.0)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    expected = {0.0: 0, 0.39: 0, 0.45: 0, 0.5: 0, 0.6: 0.35, 0.7: 0.7, 1.0: 0.7}
    for progress, weight in expected.items():
        assert gan.weight_at(progress) == pytest.approx(weight), progress
    sudden = small_gan(start=0.4, warmup=0, ramp=0, weight=0.7)
    assert (sudden.weight_at(0.399), sudden.weight_at(0.4)) == (0, 0.7)


@pytest.mark.parametrize("progress", [0.0, 0.39, 0.45])
def test_before_its_turn_the_discriminator_changes_nothing(progress: float) -> None:
    """Before the start and in the warm-up: the total of a loss without GAN, and no forward pass."""
    toy, gan = Toy(), small_gan()
    before = {name: value.clone() for name, value in gan.state_dict().items()}
    with_gan = Stage1Loss(gan=gan).generator(toy.images, toy.reconstruction(), toy.layer, progress)
    without = Stage1Loss().generator(toy.images, toy.reconstruction(), toy.layer, progress)
    assert torch.equal(with_gan.total, without.total)
    assert with_gan.parts["gan/weight"] == 0 and "gan/generator" not in with_gan.parts
    for name, value in gan.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(AssertionError):
        Stage1Loss(gan=gan).discriminator(toy.images, toy.images, 0.39)


def test_weight_reaches_the_gradient_on_the_ramp() -> None:
    toy = Toy()
    loss = Stage1Loss(gan=small_gan(adaptive=False))
    reconstruction = toy.reconstruction()
    base = slope(
        Stage1Loss().generator(toy.images, reconstruction, toy.layer, 1.0).total, toy.layer
    )
    half, full = (
        slope(loss.generator(toy.images, reconstruction, toy.layer, p).total, toy.layer) - base
        for p in (0.6, 0.7)
    )
    assert full.abs().max() > 0
    torch.testing.assert_close(2 * half, full)


def test_validation_without_gradients_works() -> None:
    toy = Toy()
    loss = Stage1Loss(perceptual=Cubic(), gan=small_gan()).eval()
    with torch.no_grad():
        losses = loss.generator(toy.images, toy.reconstruction(), toy.layer, 1.0)
    assert losses.total.isfinite() and "gan/adaptive_weight" not in losses.parts


def test_all_of_it_is_float32_under_autocast() -> None:
    toy = Toy()
    loss = Stage1Loss(perceptual=Cubic(), gan=small_gan(norm="group"))
    made = toy.reconstruction().images
    low = Reconstruction(made.bfloat16(), {})
    as_seen = Reconstruction(made.bfloat16().float(), {})
    expected = loss.generator(toy.images, as_seen, toy.layer, 1.0)
    judged = loss.discriminator(toy.images, as_seen.images, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss.generator(toy.images, low, toy.layer, 1.0)
        assert torch.equal(losses.total, expected.total) and losses.total.dtype == torch.float32
        assert torch.equal(loss.discriminator(toy.images, low.images, 1.0).total, judged.total)


def test_check_size() -> None:
    loss = Stage1Loss(perceptual=Cubic(), gan=small_gan())
    loss.check_size((12, 40))
    with pytest.raises(ValueError, match="discriminator"):
        loss.check_size((11, 40))
    with pytest.raises(ValueError, match="stand-in"):
        loss.check_size((40, 9))
    Stage1Loss().check_size((1, 1))


@pytest.mark.parametrize("part", ["perceptual", "gan"])
def test_none_is_a_word(part: str) -> None:
    loss = Stage1Loss(**{part: "none"})
    assert getattr(loss, part) is None and loss.discriminator_parameters() == []
    assert not loss.gan_active(1.0)
    with pytest.raises(ValueError, match=rf"loss\.{part}=none"):
        Stage1Loss(**{part: "nonne"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 20000}, r"loss\.gan\.start is a fraction of the run.*20000"),
        ({"ramp": -0.1}, r"loss\.gan\.ramp"),
        ({"weight": -1.0}, r"loss\.gan\.weight"),
        ({"r1_weight": -1.0}, r"loss\.gan\.r1_weight"),
        ({"loss": "hindge"}, r"loss\.gan\.loss=hinge"),
        ({"norm": "grop"}, r"loss\.gan\.norm=group"),
        ({"start": math.nan}, r"loss\.gan\.start"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_gan(**settings)
