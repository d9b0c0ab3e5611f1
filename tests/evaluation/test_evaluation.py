"""The evaluator on real, tiny runs: the same numbers twice, files in and out, clear refusals."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import tiny
from tests.evaluation import runs
from vqgen import build, checkpoint, cli
from vqgen.evaluation import generator, likelihood, quality, sets
from vqgen.evaluation.card import Card, check_folder
from vqgen.evaluation.comparison import card_folder
from vqgen.evaluation.protocol import Protocol
from vqgen.evaluation.quality import Extractor
from vqgen.evaluation.run import Evaluated, Evaluation
from vqgen.evaluation.subject import Subject, data_of, which
from vqgen.metrics import features
from vqgen.metrics.distances import Moments, frechet, kernel_distance
from vqgen.metrics.features import Features
from vqgen.metrics.manifold import manifold


@pytest.fixture(scope="module")
def network() -> Features:
    return features.load("efficientnet_lite0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluated")


def evaluate(
    root: Path, network: Features, protocol: Protocol, batch: int = 32, **subject: Any
) -> Evaluated:
    chosen = {"model": None, "samples": None, **subject}
    found = Subject(protocol, device="cpu", **chosen)
    return Evaluation(protocol, found, network, cache=root / "cache", batch=batch).run()


@pytest.fixture(scope="module")
def first(root: Path, network: Features) -> Evaluated:
    return evaluate(root, network, runs.protocol(), model=runs.stage2(root))


def test_the_card_says_everything(first: Evaluated, tmp_path: Path) -> None:
    first.write(tmp_path, npz=True)
    card = json.loads((tmp_path / "card.json").read_text())
    name = "FD-efficientnet_lite0@12"
    assert card["numbers"][name]["low"] <= card["numbers"][name]["value"]
    assert not any("FID" in name for name in card["numbers"])
    for metric in ("sFD", "KID", "IS", "precision", "recall", "density", "coverage"):
        assert f"{metric}-efficientnet_lite0@12" in card["numbers"]
    assert {"bits per dimension (exact)", "bits per token (exact)"} <= card["numbers"].keys()
    parts = [
        card["numbers"][n]["value"]
        for n in (
            "bits per dimension (exact)",
            "decoder term, bits per dimension",
            "full bound, bits per dimension (exact + decoder)",
        )
    ]
    assert parts[0] + parts[1] == pytest.approx(parts[2], rel=1e-4)
    assert card["details"]["samples"] == "samples, 12 images"
    assert first.samples is not None
    assert card["details"]["samples_sha256"] == sets.digest(first.samples.images)
    assert card["seconds"]["all of it"] == pytest.approx(sum(first.card.seconds.values()), abs=0.1)
    assert card["details"]["reference_sha256"] and card["details"]["features"]["size"] == [224] * 2
    assert card["model"]["tokenizer_fingerprint"] and card["made_with"]["torch"]
    assert card["protocol"]["seed"] == 0 and card["costs"]["seconds per image"]["value"] > 0
    text = (tmp_path / "card.md").read_text()
    assert name in text and "## protocol" in text
    assert (tmp_path / "nearest_training_images.png").is_file()


@pytest.mark.parametrize("batch", [1, 64])
def test_the_same_numbers_again(
    first: Evaluated, root: Path, network: Features, batch: int
) -> None:
    """To the last digit, at any batch size, with reference features out of the cache."""
    model = root / "stage2" / "20260101_000000_tiny"
    again = evaluate(root, network, runs.protocol(), batch, model=model)
    assert again.card.as_dict()["numbers"] == first.card.as_dict()["numbers"]
    assert again.samples is not None and first.samples is not None
    assert torch.equal(again.samples.images, first.samples.images)


def test_another_seed_gives_other_numbers(first: Evaluated, root: Path, network: Features) -> None:
    model = root / "stage2" / "20260101_000000_tiny"
    other = evaluate(root, network, runs.protocol(seed=100), model=model)
    assert other.card.as_dict()["numbers"] != first.card.as_dict()["numbers"]


def test_samples_go_out_and_come_in(
    first: Evaluated, root: Path, network: Features, tmp_path: Path
) -> None:
    """The npz that one evaluation writes gives another the same distances, likelihood aside."""
    first.write(tmp_path, npz=True)
    arrays = np.load(tmp_path / "samples.npz")
    assert arrays["arr_0"].shape == (12, *tiny.SIZE, 3) and arrays["arr_1"].shape == (12,)
    model = root / "stage2" / "20260101_000000_tiny"
    given: dict[str, Any] = {"samples": tmp_path / "samples.npz", "model": model}
    again = evaluate(root, network, runs.protocol(), **given).card.as_dict()["numbers"]
    before = first.card.as_dict()["numbers"]
    assert again == {name: number for name, number in before.items() if name in again}
    assert len(again) == 11
    card = evaluate(root, network, runs.protocol(), **given).card
    assert card.markdown().startswith(f"# Evaluation: given samples {tmp_path / 'samples.npz'}, ")
    assert not {"samples", "guidance", "knobs", "seed"} & card.protocol.keys()
    assert {"neighbors", "reference", "features"} <= card.protocol.keys()


def test_a_folder_of_samples_has_the_classes_of_the_model(root: Path, first: Evaluated) -> None:
    options: dict[str, Any] = {"model": root / "stage2" / "20260101_000000_tiny", "device": "cpu"}
    folder = runs.pictures(root / "given", 3)
    Subject(runs.protocol(), samples=folder, **options)
    shutil.copytree(folder / "class0", folder / "Bogus")
    with pytest.raises(ValueError, match=r"class mismatch: .*given has the subfolder Bogus, the"):
        Subject(runs.protocol(), samples=folder, **options)


def test_a_file_against_a_file(root: Path, network: Features, tmp_path: Path) -> None:
    """No model at all; a set against itself is perfect."""
    path = runs.npz(tmp_path / "one.npz")
    mark = hashlib.sha256(path.read_bytes()).hexdigest()
    reference = {"npz": str(path), "sha256": mark}
    protocol = runs.protocol(reference=reference)
    numbers = evaluate(root, network, protocol, samples=path).card.numbers
    values = {name.split("-")[0]: number.value for name, number in numbers.items()}
    assert values["FD"] == pytest.approx(0, abs=1e-3)
    assert values["precision"] == values["recall"] == values["coverage"] == 1


def test_what_is_known_of_a_reference_changes_no_number(
    root: Path, first: Evaluated, network: Features, tmp_path: Path
) -> None:
    """Statistics of a reference are kept beside its features, by its number of neighbours; a file
    that cannot be read is named."""
    assert first.samples is not None
    reference = sets.read(runs.npz(tmp_path / "reference.npz", count=30))
    made = network.extract(first.samples.images)
    extractor = Extractor(network, tmp_path / "cache")
    real = network.extract(reference.images).pooled
    for k in (1, 3, 3):
        known = extractor.reference(reference, k)
        values = quality.distances(made, known, extractor, runs.protocol(neighbors=k))
        found = {name.split("-")[0]: number.value for name, number in values.items()}
        alone = manifold(made.pooled, real, k)
        alone |= {"FD": frechet(made.pooled, Moments.of(real))}
        alone |= {"KID": kernel_distance(made.pooled, real)}
        assert {name: found[name] for name in alone} == {
            name: pytest.approx(estimate.value, rel=1e-9) for name, estimate in alone.items()
        }
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 3  # features, and statistics for either k
    kept[-1].write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"_k3\.safetensors cannot be read .*; delete it$"):
        extractor.reference(reference, 3)


def test_a_tokenizer(root: Path, network: Features, first: Evaluated) -> None:
    card = evaluate(
        root, network, runs.protocol(ceiling=True), model=root / "stage1" / "20260101_000000_tiny"
    ).card
    names = {"PSNR", "SSIM", "code usage", "code perplexity", "rate", "rFD-efficientnet_lite0@9"}
    assert names <= card.numbers.keys()
    assert card.details["reconstructed"].startswith("val split of ")
    assert card.details["reconstructed"].endswith(", 9 images")
    assert card.details["reconstructed_sha256"]
    assert card.numbers["rate"].value == 6 * 5  # 6 tokens of 32 codes
    assert card.numbers["rate, entropy"].value <= 30
    assert "ceiling FD-efficientnet_lite0@12" in card.numbers
    assert card.numbers["bits per token (uniform prior)"].value == 5


@pytest.mark.parametrize("latents", ["mean", "sample"])
def test_continuous_latents_repeat_too(tmp_path: Path, network: Features, latents: str) -> None:
    """At another batch size, and where the tokenizer's own latents are random; both terms of the
    full bound are there and their sum is."""
    run = runs.continuous(tmp_path, latents=latents)
    small = runs.protocol(knobs={"steps": 2})
    one = evaluate(tmp_path, network, small, 5, model=run).card
    other = evaluate(tmp_path, network, small, 64, model=run).card
    assert one.as_dict()["numbers"] == other.as_dict()["numbers"]
    values = {name.split(" (")[0]: number.value for name, number in one.numbers.items()}
    parts = [values[f"{name} term, bits per dimension"] for name in ("rate", "decoder")]
    assert sum(parts) == pytest.approx(values["full bound, bits per dimension"])
    assert one.details["sampler"]["steps"] == 2 and "solver" in one.details["sampler"]


def test_the_rate_of_continuous_latents_is_a_divergence(tmp_path: Path) -> None:
    """With q = N(m, s^2) and a prior p = N(0, 1), E_q[-log p] - H(q) is KL(q || p), in closed
    form. One draw per number, and 96 numbers whose entropies alone are about 200 bits."""

    class Normal:
        likelihood, num_classes = "exact", 0

        def bits(self, latents: Tensor, condition: Any) -> Tensor:
            nats = 0.5 * (latents.double().square() + math.log(2 * math.pi))
            return nats.flatten(1).sum(1) / math.log(2)

    class Given:
        tokenizer, prior, has_prior = tiny.kl(), Normal(), True
        device = torch.device("cpu")

    given, pipeline = tiny.images(256), cast(Any, Given())
    images = sets.Images(given, None, "", "")
    with torch.no_grad():
        mean, deviation = Given.tokenizer.posterior(2 * (given.float() / 255) - 1)
        assert deviation is not None
        _, bits = likelihood.latent_bits(pipeline, images)
        assert bits is not None
        bound = likelihood.full_bound(pipeline, bits, images, images)
    assert bound is not None
    nats = (mean.square() + deviation.square() - 1) / 2 - deviation.log()
    expected = nats.flatten(1).sum(1).mean().item() / math.log(2)
    noise = bound.rate.std().item() / 256**0.5
    assert noise < 1 and bound.rate.mean().item() == pytest.approx(expected, abs=4 * noise)


def test_a_tokenizer_needs_validation_images(root: Path, network: Features) -> None:
    model = root / "stage1" / "20260101_000000_tiny"
    with pytest.raises(ValueError, match=r"type protocol.validation_images=null$"):
        evaluate(root, network, runs.protocol(validation_images=0), model=model)


def test_an_unconditional_model(tmp_path: Path, network: Features) -> None:
    run = runs.stage2(tmp_path, classes=0)
    evaluated = evaluate(tmp_path, network, runs.protocol(), model=run)
    assert evaluated.samples is not None and evaluated.samples.labels is None
    assert "bits per token (exact)" in evaluated.card.numbers


def test_every_token_is_one_call_of_the_network(root: Path, first: Evaluated) -> None:
    """Six tokens, one after the other."""
    assert first.card.costs["function evaluations per image"].value == 6


def test_labels_follow_the_protocol() -> None:
    train = torch.tensor([0] * 90 + [1] * 10)
    drawn = generator.labels_of(runs.protocol(samples=2000), 2, train)
    assert drawn is not None and sum(drawn) / 2000 == pytest.approx(0.1, abs=0.03)
    balanced = runs.protocol(samples=6, classes="balanced")
    assert generator.labels_of(balanced, 3, None) == [0, 0, 1, 1, 2, 2]
    assert generator.labels_of(balanced, 0, None) is None
    with pytest.raises(ValueError, match=r"type protocol.samples=50000$"):
        generator.labels_of(runs.protocol("gfid-adm", samples=2000), 1000, None)
    with pytest.raises(ValueError, match="class mismatch"):
        generator.labels_of(runs.protocol(), 1, train)
    with pytest.raises(ValueError, match="wants 50 images per class, and the model has no classes"):
        generator.labels_of(runs.protocol("gfid-adm"), 0, None)


def test_a_published_protocol_on_a_model_of_other_classes(root: Path, first: Evaluated) -> None:
    """gfid-adm counts on 50 of each of 1000 classes, and on a reference with no others."""
    model = root / "stage2" / "20260101_000000_tiny"
    options: dict[str, Any] = {"model": model, "samples": None, "device": "cpu"}

    def reference(classes: int) -> dict[str, Any]:
        file = runs.npz(root / f"adm{classes}.npz", arr_1=np.arange(9) * classes // 9)
        return {"npz": str(file)}

    whole = runs.protocol("gfid-adm", samples=50000, reference=reference(3))
    with pytest.raises(ValueError, match=r"50 per class, but the model has 3 classes"):
        Subject(whole, **options)
    with pytest.raises(ValueError, match=r"class mismatch: .*adm1000.npz has class 888, the model"):
        Subject(replace(whole, reference=reference(1000)), **options)
    with pytest.raises(ValueError, match=r"VIRTUAL_imagenet256_labeled.npz; type"):
        Subject(runs.protocol("gfid-adm"), **options)


def test_a_bound_is_drawn_as_often_as_the_protocol_says(tmp_path: Path) -> None:
    """Without training again; what the prior does not have is refused before any data is read."""
    run = runs.stage2(tmp_path)
    with pytest.raises(ValueError, match=r"bound is drawn \(absorbing\), got 32 with LlamaGen"):
        Subject(runs.protocol(bound_samples=32), model=run, samples=None, device="cpu")
    folder = run / "pipeline" / "prior"
    saved = checkpoint.read_model(folder, "prior")
    prior = tiny.absorbing_for(tiny.tokenizer().spec)
    torch.nn.init.normal_(prior.net.head.weight)  # a new one is zero: no noise in its bound
    node = {"_target_": "vqgen.priors.absorbing.Absorbing", "width": 32, "depth": 2, "heads": 2}
    checkpoint.save_model(folder, prior, kind="prior", architecture=node, facts=saved.facts)
    found = []
    for draws, used in ((None, 4), (64, 64)):
        protocol = runs.protocol(bound_samples=draws)
        subject = Subject(protocol, model=run, samples=None, device="cpu")
        assert subject.pipeline is not None and subject.pipeline.prior.bound_samples == used
        _, bits = likelihood.latent_bits(subject.pipeline, subject.held_out())
        assert bits is not None
        found.append(bits)
        assert ("bound_samples" in protocol.as_dict()) == (draws is not None)
    assert not torch.equal(*found) and float(found[0].mean()) == pytest.approx(
        float(found[1].mean()), rel=0.3
    )
    shutil.rmtree(tmp_path / "pictures3")  # the data cannot be read any more
    with pytest.raises(ValueError, match=r"did you mean halton\?"):
        wrong = runs.protocol(knobs={"sampler": "haltom"})
        Subject(wrong, model=run, samples=None, device="cpu")


def test_every_protocol_is_complete() -> None:
    """Each yaml, with the one it starts from, states every field, so that a card holds the whole
    recipe."""
    paths = list((cli.CONF / "evaluate" / "protocol").glob("*.yaml"))
    for path in paths:
        node = runs.protocol_settings(path.stem)
        assert asdict(Protocol(**node)).keys() == node.keys(), path
        assert node["name"] == path.stem
    assert len(paths) >= 3


def test_moments_of_a_reference_file(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "mu": np.zeros(4),
        "sigma": np.eye(4),
        "mu_s": np.ones(3),
        "sigma_s": np.eye(3),
    }
    found = sets.read(runs.npz(tmp_path / "a.npz", **more)).moments
    assert found is not None and found["pooled"].covariance.dtype == torch.float64
    assert found["spatial"].mean.tolist() == [1, 1, 1]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"mu": np.zeros(4)}, r"\[4\] and None"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"\[4\] and \[3, 3\]"),
    ]
    for mean in (np.full(4, np.nan), np.array(["a"] * 4)):
        with pytest.raises(ValueError, match=r"mu and sigma in .*b\.npz as finite numbers, got"):
            sets.read(runs.npz(tmp_path / "b.npz", mu=mean, sigma=np.eye(4)))
    for given, got in wrong:
        with pytest.raises(ValueError, match=rf"wanted mu \[d\] and sigma \[d, d\] in .*{got}"):
            sets.read(runs.npz(tmp_path / "b.npz", **given))


def test_a_split_is_drawn_by_its_seed(root: Path, first: Evaluated) -> None:
    subject = Subject(
        runs.protocol(), model=root / "stage2" / "20260101_000000_tiny", samples=None, device="cpu"
    )
    some = subject.split("train", 10, seed=1)
    assert some.sha256 == subject.split("train", 10, seed=1).sha256
    assert some.sha256 != subject.split("train", 10, seed=2).sha256
    with pytest.raises(ValueError, match="wanted 1 to 27 images of the train split, got n=28"):
        subject.split("train", 28)


def test_an_imported_folder_is_evaluated_on_typed_data(
    root: Path, first: Evaluated, network: Features, tmp_path: Path
) -> None:
    """A folder without a run's config.yaml; the data is read at the model's size. Another size that
    was typed is refused, not passed over."""
    model = tmp_path / "imported"
    shutil.copytree(root / "stage2" / "20260101_000000_tiny" / "pipeline", model)
    with pytest.raises(ValueError, match="there is no data to compare with"):
        evaluate(root, network, runs.protocol(), model=model)
    words = ["data=folder", f"data.root={root / 'pictures3'}", "data.val_fraction=0.25"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "evaluate")):
        data = {**build.plain(hydra.compose("evaluate", words))["data"], "size": None}
    subject = Subject(runs.protocol(), model=model, samples=None, data=data, device="cpu")
    assert subject.pipeline is not None
    subject.pipeline.facts["knobs"] = {"top_k": 1}  # of a demo: a protocol decides for itself
    again = Evaluation(runs.protocol(), subject, network, cache=root / "cache", batch=32).run()
    assert again.card.numbers == first.card.numbers
    for size in (64, [24, 16]):
        with pytest.raises(
            ValueError, match=r"wanted data.size=\[16, 24\].*; leave data.size out$"
        ):
            evaluate(root, network, runs.protocol(), model=model, data={**data, "size": size})
    assert "bits per dimension (exact)" in again.card.numbers


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        sets.read(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"empty\.npz holds no images; make it again"):
        sets.read(runs.npz(tmp_path / "empty.npz", count=0))
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="no readable npz"):
        sets.read(tmp_path / "text.npz")
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"got float64 \[2, 4, 4, 3\]"):
        sets.read(tmp_path / "float.npz")
    whole = runs.npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "bent.npz").write_bytes(whole[:600] + b"x" * 40 + whole[640:])
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("cut.npz", "bent.npz", "array.npy"):
        with pytest.raises(ValueError, match="no readable npz"):
            sets.read(tmp_path / name)
    with pytest.raises(ValueError, match=r"one class per image, \[9\], got \[8\]"):
        sets.read(runs.npz(tmp_path / "labels.npz", arr_1=np.zeros(8)))
    for name, classes in (("minus", [-1, 0]), ("half", [0.7, 1.0])):
        np.savez(tmp_path / name, arr_0=np.zeros((2, 4, 4, 3), np.uint8), arr_1=classes)
        with pytest.raises(ValueError, match=r"arr_1 in .* as classes from 0, whole numbers, got"):
            sets.read(tmp_path / f"{name}.npz")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "0.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        sets.read(tmp_path / "text")
    (tmp_path / "mixed").mkdir()
    for side in (8, 9):
        Image.new("RGB", (side, 8)).save(tmp_path / "mixed" / f"{side}.png")
    with pytest.raises(ValueError, match="several sizes"):
        sets.read(tmp_path / "mixed")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"per_class": 0}, "protocol.per_class of at least 1, or null, got 0"),
        ({"validation_images": -4}, "protocol.validation_images of at least 0, or null"),
        ({"samples": None}, "protocol.samples of at least 2, got None; type a whole number"),
        ({"samples": 12.0}, r"protocol.samples of at least 2, got 12.0; type a whole number"),
        ({"seed": 2**63}, r"protocol.seed of at least 0, got 9223.*; type a whole number under 2"),
        ({"per_class": "many"}, "protocol.per_class of at least 1, or null, got 'many'"),
        ({"reference": None}, "protocol.reference as its settings, got None"),
        ({"reference": {"n": 0}}, "protocol.reference.n of at least 1, or null, got 0"),
        ({"knobs": 5}, "protocol.knobs as settings of the sampler, got 5"),
        ({"features": None}, "wanted protocol.features as a text, got None"),
        ({"perceptual": "vg"}, "protocol.perceptual=vgg, alex, squeeze or null, got 'vg'"),
        ({"reference": {"sha256": "abc"}}, "sha256 is that of protocol.reference.npz, and there"),
    ],
)
def test_a_recipe_that_cannot_be_followed(changes: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        runs.protocol(**changes)


def test_a_protocol_s_name_stays_in_its_folder() -> None:
    for name in ("../../x", "..", "", "a/b", "/tmp"):
        with pytest.raises(ValueError, match=r"wanted protocol.name as a plain word, the name of"):
            replace(runs.protocol(), name=name)


def test_what_a_reference_or_a_score_cannot_give(root: Path, first: Evaluated) -> None:
    options: dict[str, Any] = {"model": root / "stage2" / "20260101_000000_tiny"}
    options |= {"samples": None, "device": "cpu"}
    small = {"npz": str(runs.npz(root / "nine.npz")), "n": 10}
    with pytest.raises(ValueError, match=r"reference.n=10 images of .*, which holds 9; type"):
        Subject(runs.protocol(reference=small), **options)
    with pytest.raises(ValueError, match="splits=13 parts of the Inception Score need as many"):
        Subject(runs.protocol(splits=13), **options)


def test_what_a_run_was_trained_on(tmp_path: Path) -> None:
    """A config.yaml that cannot be read is one sentence; latents are no images to compare with."""
    for text in ("data: [", "data: 5", "other: 1"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config.yaml does not say what the run was"):
            data_of(tmp_path)
    (tmp_path / "config.yaml").write_text("data: {_target_: vqgen.data.cache.cache, root: x}")
    assert data_of(tmp_path) is None


def test_which_model_of_a_run(tmp_path: Path) -> None:
    assert which(tmp_path) == f"model: {tmp_path}"
    (tmp_path / "best").mkdir()
    assert which(tmp_path).endswith(f"type {tmp_path}/best for that one")


def test_a_folder_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(ValueError, match=r"nothing can be written to .*; type out=DIR"):
            check_folder(out)


def test_another_recipe_does_not_take_the_place_of_a_card(tmp_path: Path) -> None:
    recipe, first = runs.protocol(), tmp_path / "usual"
    Card({"path": "m"}, recipe.as_dict()).write(first)
    assert card_folder(first, recipe.as_dict()) == first
    other = card_folder(first, replace(recipe, samples=64).as_dict())
    assert other != first and other.name.startswith("usual_")
