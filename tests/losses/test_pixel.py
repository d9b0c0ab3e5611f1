"""Pixel losses: values, gradients, and what a wrong name is answered with."""

import pytest
import torch

from vqgen.losses.pixel import HUBER_WIDTH, pixel_loss


def test_values_by_hand() -> None:
    images = torch.zeros(1, 1, 1, 2)
    made = torch.tensor([[[[0.5, -1.0]]]])
    assert pixel_loss("l1")(made, images).item() == pytest.approx(0.75)
    assert pixel_loss("l2")(made, images).item() == pytest.approx(0.625)
    assert pixel_loss("mixed")(made, images).item() == pytest.approx(0.5 * 0.75 + 0.5 * 0.625)
    assert pixel_loss({"l1": 2.0, "l2": 0.1})(made, images).item() == pytest.approx(1.5625)
    assert pixel_loss("huber")(made, images).item() == pytest.approx(0.75 - HUBER_WIDTH / 2)


def test_huber_is_quadratic_inside_its_width_with_the_slope_of_l1_outside() -> None:
    made = torch.tensor([HUBER_WIDTH / 2, 3 * HUBER_WIDTH], requires_grad=True)
    loss = pixel_loss("huber")(made, torch.zeros(2))
    (slope,) = torch.autograd.grad(loss * 2, made)  # * 2: the mean is over two
    torch.testing.assert_close(slope, torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize(("choice", "nearest"), [("hubber", "huber"), ({"l3": 1.0}, "l1|l2")])
def test_wrong_name_is_answered_with_the_nearest(choice, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"loss.pixel=({nearest})"):
        pixel_loss(choice)


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss\.pixel is empty"):
        pixel_loss({})
