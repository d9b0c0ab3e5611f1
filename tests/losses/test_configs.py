"""The yaml files of the losses, and what users type, reach the classes."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vqgen.losses.stage1 import Stage1Loss

CONF = Path(__file__).resolve().parents[2] / "conf" / "stage1"


def loss(name: str, *overrides: str) -> Stage1Loss:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=[f"+loss={name}", *overrides])
    return instantiate(config.loss, _convert_="all")


def test_vqvae_is_squared_error_alone() -> None:
    made = loss("vqvae")
    assert made.perceptual is None and made.gan is None
    assert made.pixel.__name__ == "l2"


def test_vqgan_is_the_constructors_defaults() -> None:
    """Nothing is written twice with two values."""
    made = loss("vqgan", "loss.perceptual=none")
    fresh = type(made.gan)()
    numbers = {k: v for k, v in vars(made.gan).items() if isinstance(v, float | bool)}
    assert numbers and all(getattr(fresh, name) == value for name, value in numbers.items())
    assert made.gan.game is fresh.game and str(made.gan) == str(fresh)


def test_what_users_type() -> None:
    made = loss(
        "vqgan",
        "loss.gan.start=0.3",
        "loss.gan.norm=group",
        "loss.gan.loss=non_saturating",
        "loss.perceptual.net=squeeze",
        "loss.perceptual.missing=random",
        "loss.pixel={l1: 1.0, l2: 0.2}",
    )
    assert made.gan.start == 0.3 and "GroupNorm" in str(made.gan)
    assert made.perceptual.net == "squeeze" and made.perceptual.random
    for word in ("none", "null"):
        assert (
            loss(
                "vqgan",
                "loss.perceptual.missing=random",
                "loss.perceptual.net=squeeze",
                f"loss.gan={word}",
            ).gan
            is None
        )
        assert loss("vqgan", f"loss.perceptual={word}").perceptual is None


def test_a_missing_backbone_stops_with_what_to_type() -> None:
    with pytest.raises(Exception, match=r"loss\.perceptual\.missing=random"):
        loss("vqgan")
