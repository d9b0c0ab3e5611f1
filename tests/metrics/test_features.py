"""Feature networks: preprocessing against timm's own, weights that know what they see."""

import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from torch import Tensor

from vqgen.metrics import features, inception
from vqgen.metrics.features import Features
from vqgen.metrics.timm_features import EfficientNetLite0, Timm, timm_name


@pytest.fixture(scope="module")
def lite() -> Features:
    return features.load("efficientnet_lite0")


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Scikit-learn's two photographs, uint8 [2, 3, 427, 640]: a Chinese temple, a flower."""
    return torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)


def test_photographs_classify_sensibly(lite: Features, photographs: Tensor) -> None:
    """ImageNet 663 is monastery, 698 palace, 832 stupa; 985 is daisy."""
    probabilities = lite.extract(photographs).probabilities
    assert probabilities is not None
    temple, flower = probabilities.topk(5).indices.tolist()
    assert {663, 698, 832} & set(temple)
    assert 985 in flower
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))


def test_the_names_map_onto_timm_exactly() -> None:
    """All 296 tensors, none twice: the strict load in the constructor says the same with shapes."""
    wanted = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert timm_name("_blocks.3._expand_conv.weight") == "blocks.2.0.conv_pw.weight"
    assert timm_name("_blocks.15._bn2.bias") == "blocks.6.0.bn3.bias"
    assert timm_name("_bn1.weight") == "bn2.weight" and timm_name("_fc.bias") == "classifier.bias"
    assert EfficientNetLite0().network.state_dict().keys() == wanted.keys()
    with pytest.raises(ValueError, match="no tensor of EfficientNet"):
        timm_name("stem.weight")


@pytest.mark.parametrize("size", [(32, 32), (300, 260), (224, 224)])
def test_resizing_of_a_ramp(size: tuple[int, int]) -> None:
    """A linear ramp stays one under any right filter: pixel centers, away from the edges."""
    height, width = size
    ramp = torch.linspace(20, 230, width).round()
    images = ramp.expand(1, 3, height, width).to(torch.uint8)
    ours = EfficientNetLite0().resize(images)[0] * 128 + 127
    centers = (torch.arange(224) + 0.5) * width / 224 - 0.5
    expected = 20 + 210 * centers / (width - 1)
    inner = slice(20, -20)
    torch.testing.assert_close(ours[:, 100, inner], expected[inner].expand(3, -1), atol=1.1, rtol=0)


def test_a_timm_model_is_fed_as_timm_feeds_it(tmp_path) -> None:
    """Our preprocessing against timm's own transform, for a model read from a file."""
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pth")
    made = features.load("timm:resnet10t", weights=str(tmp_path / "weights.pth"))
    assert isinstance(made, Timm) and made.name == "timm:resnet10t"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    described = timm.data.resolve_model_data_config(made.network)
    transform = create_transform(**{**described, "crop_pct": 1.0})
    theirs = transform(Image.fromarray(pixels))
    assert isinstance(theirs, Tensor)
    ours = made.resize(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    got = made.extract(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert got.pooled.shape == (1, 512) and got.spatial is None
    assert got.probabilities is not None and got.probabilities.shape == (1, 1000)


def test_features_do_not_depend_on_the_neighbours(lite: Features, photographs: Tensor) -> None:
    small = photographs[:, :, 100:164, 100:164]
    first = lite.extract(small.repeat(17, 1, 1, 1))  # 34 images: two passes
    assert first.pooled.shape == (34, 1280) and first.spatial is not None
    assert first.spatial.shape == (34, 1372)
    assert torch.equal(first.pooled, lite.extract(small.repeat(17, 1, 1, 1)).pooled)
    torch.testing.assert_close(first.pooled[32:], first.pooled[:2], rtol=1e-4, atol=1e-4)
    assert not first.pooled.requires_grad


def test_inception_reads_a_weights_file(tmp_path, monkeypatch) -> None:
    """The network as torch-fidelity builds it, with seeded weights: shapes, layout, softmax."""
    from torch_fidelity import feature_extractor_inceptionv3 as peer

    class Anything(dict):  # what load_state_dict gets; only here, to have a file of the right keys
        pass

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *a, **k: None)
    monkeypatch.setattr(peer, "load_state_dict_from_url", lambda *a, **k: Anything())
    torch.manual_seed(0)
    blank = peer.FeatureExtractorInceptionV3("blank", ["2048"])
    monkeypatch.undo()
    torch.save(blank.state_dict(), tmp_path / "weights.pth")
    made = features.load("inception", weights=str(tmp_path / "weights.pth"))
    images = torch.randint(0, 256, (2, 3, 20, 24), dtype=torch.uint8)
    got = made.extract(images)
    assert got.pooled.shape == (2, 2048) and got.spatial is not None
    assert got.spatial.shape == (2, 17 * 17 * 7)
    assert got.probabilities is not None and got.probabilities.shape == (2, 1008)
    assert made.is_fid and not Timm.is_fid
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold torch-fidelity's Inception weights"):
        features.load("inception", weights=str(tmp_path / "other.pth"))


def test_without_a_network_there_is_one_clear_error(tmp_path, monkeypatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "urlopen", offline)
    with pytest.raises(ValueError, match="features=efficientnet_lite0"):
        features.load("inception")
    monkeypatch.setattr("vqgen.metrics.timm_features.urlopen", offline)
    monkeypatch.setattr(timm, "create_model", lambda *a, **b: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=r"cannot get the weights of features=dinov2 \(OSError"):
        features.load("dinov2")


def test_refusals(lite: Features) -> None:
    with pytest.raises(ValueError, match="features=vgg is not known; there are"):
        features.load("vgg")
    with pytest.raises(ValueError, match=r"did you mean timm:resnet50\?"):
        features.load("timm:resnet5O")
    for name, call in (("vit_enormous_patch1", "list_models('vit*')"), ("qqq", "list_models()")):
        with pytest.raises(ValueError, match=re.escape(call)) as refused:
            features.load(f"timm:{name}")
        assert "did you mean" not in str(refused.value) or name.startswith("vit")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        features.load("inception", weights="nowhere")
    with pytest.raises(ValueError, match=r"wanted uint8 images \[n, 3, H, W\], got torch.float32"):
        lite.extract(torch.zeros(1, 3, 8, 8))


def test_weights_are_not_passed_over() -> None:
    with pytest.raises(ValueError, match=r"got weights=/nowhere; leave weights out$"):
        features.load("efficientnet_lite0", "/nowhere")
