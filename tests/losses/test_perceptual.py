"""LPIPS: always in eval mode, frozen, float32; where its weights come from, and errors."""

import logging
import threading
import time
from pathlib import Path

import lpips
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import squeezenet1_1

from vqgen.losses import backbone
from vqgen.losses.perceptual import PerceptualDistance


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return squeezenet1_1(weights=None).state_dict()


def random_squeeze() -> PerceptualDistance:
    return PerceptualDistance(net="squeeze", missing="random")


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
    )


def test_stays_in_eval_mode_inside_a_module_that_trains(pair) -> None:
    outer = torch.nn.ModuleList([random_squeeze()])
    outer.train()
    measure = outer[0]
    assert not any(module.training for module in measure.modules())
    assert torch.equal(measure(*pair), measure(*pair))


def test_dropout_would_show(pair) -> None:
    """The test above can fail: with the package's dropout on, two calls differ."""
    measure = random_squeeze()
    measure.distance.train()
    assert not torch.equal(measure(*pair), measure(*pair))


def test_gradient_reaches_the_reconstruction_only(pair) -> None:
    made, images = (image.requires_grad_() for image in pair)
    measure = random_squeeze()
    measure(made, images).sum().backward()
    assert made.grad.abs().sum() > 0 and images.grad is None
    assert all(p.grad is None and not p.requires_grad for p in measure.parameters())


def test_is_a_distance_per_image(pair) -> None:
    made, images = pair
    measure = random_squeeze()
    values = measure(made, images)
    assert values.shape == (2,) and (values > 0).all()
    torch.testing.assert_close(measure(made[1:], images[1:]), values[1:])
    assert not measure(images, images).any()


def test_is_computed_in_float32_under_autocast(pair) -> None:
    measure = random_squeeze()
    expected = measure(*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(measure(*pair), expected)
    low = measure(*(image.bfloat16() for image in pair))
    assert low.dtype == torch.float32


@pytest.mark.filterwarnings("ignore")  # lpips calls torchvision in the old way
def test_file_cache_and_package_agree(weights, pair, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "mine.pth")
    save_file(weights, tmp_path / "mine.safetensors")
    cached = backbone.BACKBONES["squeeze"].cached
    cached.parent.mkdir(parents=True)
    torch.save(weights, cached)
    reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for name, value in reference.net.state_dict().items():
        value.copy_(weights["features." + name.split(".", 1)[1]])
    expected = reference(*pair).flatten()
    for path in (None, tmp_path / "mine.pth", tmp_path / "mine.safetensors"):
        measure = PerceptualDistance(net="squeeze", weights=path and str(path))
        torch.testing.assert_close(measure(*pair), expected)
        assert not measure.random


def test_missing_weights_are_an_error_that_says_what_to_type() -> None:
    with pytest.raises(ValueError) as caught:
        PerceptualDistance(net="vgg")
    said = str(caught.value)
    known = backbone.BACKBONES["vgg"]
    for part in (
        known.file_name,
        str(known.cached.parent),
        "loss.perceptual.missing=random",
        "loss.perceptual.weights=PATH",
        "loss.perceptual.net=",
        "loss.perceptual=none",
    ):
        assert part in said


def test_random_backbone_is_seeded_announced_once_and_leaves_the_random_state(caplog) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = random_squeeze()
        torch.manual_seed(6)
        second = random_squeeze()
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.random and second.random
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    (record,) = caplog.records
    assert "RANDOM BACKBONE" in record.message and record.message == record.message.upper()
    assert "\n" not in record.message


def test_building_reads_no_random_numbers() -> None:
    state = torch.random.get_rng_state()
    random_squeeze()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_everything_travels_in_the_state_dict(weights, pair, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "mine.pth")
    measure, other = (
        PerceptualDistance(net="squeeze", weights=str(tmp_path / "mine.pth")),
        random_squeeze(),
    )
    assert not torch.equal(measure(*pair), other(*pair))
    other.load_state_dict(measure.state_dict())
    assert torch.equal(measure(*pair), other(*pair)) and not other.random


def test_files_that_cannot_be_used(weights, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*nothing\.pth.*loss\.perceptual\.weights"):
        PerceptualDistance(net="squeeze", weights=str(tmp_path / "nothing.pth"), missing="random")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="cannot be read"):
        PerceptualDistance(net="squeeze", weights=str(damaged))
    torch.save(weights, tmp_path / "squeeze.pth")
    with pytest.raises(ValueError, match="do not fit LPIPS net=alex"):
        PerceptualDistance(net="alex", weights=str(tmp_path / "squeeze.pth"))


@pytest.mark.parametrize(
    ("setting", "wrong", "right"), [("net", "vgg16", "vgg"), ("missing", "rand", "random")]
)
def test_wrong_names(setting: str, wrong: str, right: str) -> None:
    with pytest.raises(ValueError, match=rf"Try loss\.perceptual\.{setting}={right}"):
        PerceptualDistance(**{setting: wrong})


@pytest.mark.parametrize("net", backbone.BACKBONES)
def test_smallest_size_is_the_smallest(net: str) -> None:
    measure = PerceptualDistance(net=net, missing="random")
    size = backbone.BACKBONES[net].smallest_size
    measure.check_size((size, 40))
    image = torch.rand(1, 3, size, 40)
    assert measure(image, -image).isfinite().all()
    with pytest.raises(RuntimeError):
        measure(image[:, :, 1:], -image[:, :, 1:])
    with pytest.raises(ValueError, match=rf"at least {size} pixels per side; got {size - 1}x40"):
        measure.check_size((size - 1, 40))


def test_a_server_that_never_answers_costs_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def never(request, timeout: float) -> None:
        released.wait(5)
        raise OSError

    monkeypatch.undo()  # the real check, with a server that hangs
    monkeypatch.setattr(backbone, "PATIENCE", 0.1)
    monkeypatch.setattr(backbone, "urlopen", never)
    start = time.monotonic()
    assert not backbone._answers("https://example.invalid/weights.pth")
    assert time.monotonic() - start < 2
    released.set()
