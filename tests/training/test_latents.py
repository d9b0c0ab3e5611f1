"""Standardized latents: measured over the data, undone by decode, exported, checked by stage 2."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.test_bad_input import KL_ARCHITECTURE
from tests.training.test_training import run
from vqgen import pipeline
from vqgen.contracts import Tokenizer
from vqgen.training import latents
from vqgen.training.stage1 import Stage1

CONTINUOUS: dict[str, Callable[[], Tokenizer]] = {
    name: make for name, make in tiny.TOKENIZERS.items() if make().standardizer is not None
}


def encoded(tokenizer: Tokenizer) -> Tensor:
    """The latents of every training image of the tiny data, center crop, unflipped."""
    data = tiny.data()
    batches = [data.on_after_batch_transfer(b, 0)["images"] for b in data.in_order(data.train)]
    with torch.no_grad():
        return torch.cat([tokenizer.encode(images) for images in batches])


def test_the_kinds_of_continuous_latents_are_here() -> None:
    assert set(CONTINUOUS) == {"kl", "vq-as-features"}


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_latents_of_the_data_get_mean_0_and_deviation_1(kind: str) -> None:
    tokenizer = CONTINUOUS[kind]().eval()
    raw = encoded(tokenizer)
    with torch.no_grad():
        decoded = tokenizer.decode(raw)
    found = latents.standardize_(tokenizer, tiny.data())
    channels = raw.transpose(0, 1).flatten(1)
    assert found["latents/largest_mean"] == pytest.approx(float(channels.mean(1).abs().max()))
    deviation = channels.std(1, correction=0)
    assert found["latents/smallest_deviation"] == pytest.approx(float(deviation.min()))
    assert found["latents/largest_deviation"] == pytest.approx(float(deviation.max()))
    standard = encoded(tokenizer)
    channels = standard.transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(len(channels)), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(len(channels)))
    assert not torch.allclose(raw, standard)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.decode(standard), decoded, atol=1e-4, rtol=1e-4)
    again = latents.standardize_(tokenizer, tiny.data())
    assert again == pytest.approx(found), "measured anew, not on top of what was there"


def test_tokens_have_nothing_to_standardize() -> None:
    assert latents.standardize_(tiny.tokenizer(), tiny.data()) == {}
    assert latents.check(tiny.tokenizer(), tiny.data()) == {}


def test_a_part_of_the_images_is_spread_over_all() -> None:
    data, tokenizer = tiny.data(), tiny.kl()
    part = latents.measure(tokenizer, data, images=2)
    ends = encoded(tokenizer)[[0, -1]].transpose(0, 1).flatten(1)
    torch.testing.assert_close(part.mean, ends.double().mean(1))


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_the_check_refuses_latents_of_another_scale(kind: str) -> None:
    tokenizer = CONTINUOUS[kind]()
    latents.standardize_(tokenizer, tiny.data())
    found = latents.check(tokenizer, tiny.data())
    assert abs(found["latents/largest_mean"]) < 1e-3
    channels = len(tokenizer.standardizer.mean)  # type: ignore[union-attr]
    for mean, deviation in ((0.0, 2.5), (0.0, 0.4), (1.0, 1.0)):
        wrong = CONTINUOUS[kind]()
        wrong.load_state_dict(tokenizer.state_dict())
        shift = torch.full((channels,), mean), torch.full((channels,), deviation)
        wrong.standardizer.refine_(*shift)  # type: ignore[union-attr]
        with pytest.raises(ValueError, match=r"wanted.*got.*python train_stage1\.py tokenizer=kl"):
            latents.check(wrong, tiny.data())


def test_a_channel_that_never_changes_is_refused_not_divided_by() -> None:
    tokenizer = tiny.kl()
    with torch.no_grad():
        tokenizer.quant_conv.weight[2] = 0
    latents.standardize_(tokenizer, tiny.data())
    assert torch.isfinite(encoded(tokenizer)).all()
    with pytest.raises(ValueError, match=r"deviations from 0\.00"):
        latents.check(tokenizer, tiny.data())


def test_stage1_exports_standardized_latents_and_their_gauges(tmp_path: Path) -> None:
    recipe = tiny.recipe(4)
    module = Stage1(tiny.kl(), tiny.loss(), recipe, architecture=KL_ARCHITECTURE, facts={})
    run(tmp_path / "run", module, tiny.data(), validate_every=2)
    text = (tmp_path / "run" / "metrics.csv").read_text()
    for name in (
        *("train/kl", "latents/kl_nats_per_number", "latents/posterior_deviation", "val/psnr"),
        *("latents/largest_mean", "latents/smallest_deviation", "latents/largest_deviation"),
    ):
        assert f",{name}," in text, name
    assert "codebook/" not in text
    loaded, facts, _ = pipeline.load_tokenizer(tmp_path / "run" / "tokenizer")
    channels = encoded(loaded).transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(channels.std(1, correction=0), torch.ones(4))
    assert facts["validation"]["latents/smallest_deviation"] > 0
    for model in (module.model, module.average.model):  # training knows nothing of it
        assert model.standardizer.deviation.tolist() == [1.0] * 4  # type: ignore[union-attr]
