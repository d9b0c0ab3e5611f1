"""The small distance during training: the best model is kept, training itself is not disturbed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from tests import tiny
from tests.evaluation import runs
from tests.test_bad_input import ARCHITECTURE, PRIOR
from vqgen import checkpoint, pipeline
from vqgen.data.encoded import EncodedImages
from vqgen.evaluation.small import SmallDistance, measure
from vqgen.preview import Preview
from vqgen.training import launch, opening
from vqgen.training.stage1 import Stage1
from vqgen.training.stage2 import Stage2


def settings(tmp_path: Path, samples: int = 8) -> dict[str, Any]:
    return {"samples": samples, "features": "efficientnet_lite0", "cache": str(tmp_path / "cache")}


def trained(tmp_path: Path, small_fd: Any) -> Stage2:
    """Two steps of stage 2, validated after each."""
    seed_everything(0, verbose=False)
    tokenizer, data = tiny.tokenizer(), tiny.data()
    export = runs.stage1(tmp_path) / "tokenizer"
    mark = checkpoint.read_header(export)["fingerprint"]
    names = tuple(data.class_names)
    module = Stage2(
        tiny.prior(),
        tiny.recipe(2),
        image_size=tiny.SIZE,
        preview=Preview({"per_class": 1, "guidance": 1.0}, tokenizer, tiny.prior(), names),
        tokenizer=export,
        architecture=PRIOR,
        facts={"class_names": [], "num_classes": 3, "tokenizer_fingerprint": mark},
        small_fd=small_fd,
    )
    (tmp_path / "run").mkdir()
    run = opening.Run(tmp_path / "run")
    options: dict[str, Any] = {"boards": [], "precision": "32-true"}
    launch.train(module, EncodedImages(data, tokenizer), run, tiny.settings(1), **options)
    return module


def test_the_same_distance_twice_and_a_larger_one_for_noise(tmp_path: Path) -> None:
    found = SmallDistance(tiny.data(), settings(tmp_path, 6))
    tokenizer = tiny.tokenizer()
    name, value = found.of_tokenizer(tokenizer)
    assert name == "val/rfd_efficientnet_lite0_n6" and value > 0
    assert found.of_tokenizer(tokenizer) == (name, value)
    for parameter in tokenizer.decoder.parameters():
        parameter.data.mul_(3)
    assert found.of_tokenizer(tokenizer)[1] > value


def test_it_is_off_by_default_and_refuses_one_image(tmp_path: Path) -> None:
    assert measure(tiny.data(), settings(tmp_path, 0)) is None
    with pytest.raises(ValueError, match=r"small_fd.samples of at least 2"):
        measure(tiny.data(), settings(tmp_path, 1))


def test_the_best_prior_is_kept_and_samples(tmp_path: Path) -> None:
    """The recorded best is the smallest of the logged values, and best/ holds that step."""
    found = SmallDistance(tiny.data(), settings(tmp_path))
    of_prior = partial(found.of_prior, tokenizer=tiny.tokenizer(), guidance=1.0)
    values: list[float] = []

    def worse_and_worse(prior: Any) -> tuple[str, float]:
        name, value = of_prior(prior)
        values.append(value + 1000 * len(values))
        return name, values[-1]

    module = trained(tmp_path, worse_and_worse)
    best: Any = module.counters.facts["best_small_fd"]
    assert len(values) == 2 and best["value"] == min(values) and best["step"] == 1
    assert pipeline.load(tmp_path / "run" / "best").facts["steps"] == 1
    assert pipeline.load(tmp_path / "run").facts["steps"] == 2
    logged = (tmp_path / "run" / "metrics.csv").read_text()
    assert logged.count("val/fd_efficientnet_lite0_n8") == 2
    plain = trained(tmp_path / "plain", None)
    for one, other in zip(module.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "plain" / "run" / "best").exists()


def test_the_best_tokenizer_is_kept(tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    found = SmallDistance(tiny.data(), settings(tmp_path, 6))
    module = Stage1(
        tiny.tokenizer(),
        tiny.loss(gan=False),
        tiny.recipe(1),
        architecture=ARCHITECTURE,
        facts={},
        small_fd=found.of_tokenizer,
    )
    (tmp_path / "run").mkdir()
    run = opening.Run(tmp_path / "run")
    options: dict[str, Any] = {"boards": [], "precision": "32-true"}
    launch.train(module, tiny.data(), run, tiny.settings(1), **options)
    assert pipeline.load(tmp_path / "run" / "best").facts["steps"] == 1
