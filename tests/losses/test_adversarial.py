"""Adversarial losses, adaptive weight, LeCam and R1 against numbers and closed forms."""

from math import exp, log

import pytest
import torch
from torch import nn

from vqgen.losses.adversarial import EPSILON, GAMES, LeCam, adaptive_weight, gradient_penalty

REAL, FAKE = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])


def softplus(x: float) -> float:
    return log(1 + exp(x))


def test_hinge_by_hand() -> None:
    # real: max(0, 1 - .5) = .5 and 0; fake: max(0, 1 - 3) = 0 and 2
    assert GAMES["hinge"].discriminator(REAL, FAKE).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert GAMES["hinge"].generator(FAKE).item() == pytest.approx(1.0)


def test_vanilla_and_non_saturating_by_hand() -> None:
    expected = 0.25 * (softplus(-0.5) + softplus(-2.0) + softplus(-3.0) + softplus(1.0))
    for name in ("vanilla", "non_saturating"):
        assert GAMES[name].discriminator(REAL, FAKE).item() == pytest.approx(expected)
    assert GAMES["vanilla"].generator(FAKE).item() == pytest.approx(1.0)
    expected = 0.5 * (softplus(3.0) + softplus(-1.0))
    assert GAMES["non_saturating"].generator(FAKE).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", GAMES)
def test_each_side_moves_the_logits_its_way(name: str) -> None:
    real = torch.zeros(3, requires_grad=True)
    fake = torch.zeros(3, requires_grad=True)
    to_real, to_fake = torch.autograd.grad(GAMES[name].discriminator(real, fake), (real, fake))
    (generator,) = torch.autograd.grad(GAMES[name].generator(fake), fake)
    assert (to_real < 0).all() and (to_fake > 0).all() and (generator < 0).all()


def test_non_saturating_force_fades_only_where_the_generator_wins() -> None:
    fake = torch.tensor([-10.0, 10.0], requires_grad=True)
    (slope,) = torch.autograd.grad(GAMES["non_saturating"].generator(fake), fake)
    torch.testing.assert_close(slope, torch.tensor([-0.5, 0.0]), atol=1e-4, rtol=0)


def test_adaptive_weight_by_hand() -> None:
    last_layer = nn.Parameter(torch.tensor([3.0, -1.0]))
    visible = (last_layer * torch.tensor([3.0, 4.0])).sum()  # gradient (3, 4), norm 5
    hidden = last_layer.square().sum() / 2  # gradient (3, -1), norm sqrt 10
    weight = adaptive_weight(visible, hidden, last_layer, 1e4)
    assert weight.item() == pytest.approx(5 / (10**0.5 + EPSILON))
    assert not weight.requires_grad and last_layer.grad is None
    (visible + weight * hidden).backward()  # the graph is still there
    assert last_layer.grad is not None


def test_adaptive_weight_is_clamped_and_its_epsilon_holds() -> None:
    last_layer = nn.Parameter(torch.ones(1))
    visible = 5 * last_layer.sum()
    assert adaptive_weight(visible, visible * 1e-3, last_layer, 10.0).item() == 10.0
    assert adaptive_weight(visible, visible * 0, last_layer, 1e9).item() == pytest.approx(5e4)
    assert adaptive_weight(visible * 0, visible, last_layer, 1e4).item() == 0.0


def test_lecam_closed_form_and_averages() -> None:
    lecam = LeCam(decay=0.9)
    lecam.mean_real.fill_(1.0)
    lecam.mean_fake.fill_(-0.5)
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    penalty = lecam(real, fake)
    lecam.update(real, fake)
    # real - (-.5): 1, 2.5; fake - 1: -4, 0
    assert penalty.item() == pytest.approx((1 + 6.25) / 2 + (16 + 0) / 2)
    assert lecam.mean_real.item() == pytest.approx(0.9 * 1.0 + 0.1 * 1.25)
    assert lecam.mean_fake.item() == pytest.approx(0.9 * -0.5 + 0.1 * -1.0)
    penalty.backward()  # the averages have moved meanwhile; the gradient is that of before
    torch.testing.assert_close(real.grad, torch.tensor([1.0, 2.5]))
    torch.testing.assert_close(fake.grad, torch.tensor([-4.0, 0.0]))
    assert set(lecam.state_dict()) == {"mean_real", "mean_fake"}


def test_r1_of_a_linear_critic_is_half_the_squared_norm_of_its_weight() -> None:
    images = torch.randn(4, 3, 5, 5, requires_grad=True)
    critic = nn.Conv2d(3, 1, 5)  # one patch per image
    penalty = gradient_penalty(images, critic(images))
    torch.testing.assert_close(penalty, 0.5 * critic.weight.square().sum())
    (slope,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(slope, critic.weight.detach())


def test_r1_of_a_quadratic_critic() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = 0.5 * images.square().sum(dim=(1, 2, 3), keepdim=True)
    expected = 0.5 * images.detach().square().sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(gradient_penalty(images, logits).detach(), expected)


def test_r1_does_not_grow_with_the_number_of_patches() -> None:
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    one = images.sum(dim=(1, 2, 3)).view(2, 1, 1, 1)
    torch.testing.assert_close(
        gradient_penalty(images, one), gradient_penalty(images, one.expand(2, 1, 6, 6))
    )


def test_lecam_forgets_logits_that_are_not_finite() -> None:
    lecam = LeCam(decay=0.5)
    lecam.update(torch.tensor([2.0]), torch.tensor([-4.0]))
    lecam.update(torch.tensor([float("nan")]), torch.tensor([float("inf")]))
    assert lecam.mean_real.item() == 1.0 and lecam.mean_fake.item() == -2.0
