"""Both stages through launch.train: learning, logs, export, exact resume, bad losses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from vqgen import checkpoint
from vqgen.contracts import Prior, Tokenizer
from vqgen.data.encoded import EncodedImages
from vqgen.priors.diffusion import Diffusion
from vqgen.priors.flow import Flow
from vqgen.training import launch, opening
from vqgen.training.logs import FileBoard
from vqgen.training.module import TrainingModule
from vqgen.training.opening import Run
from vqgen.training.stage1 import Stage1
from vqgen.training.stage2 import Stage2


def stage1(folder: Path, steps: int, **more: Any) -> tuple[Stage1, Any]:
    """A stage-1 module with a GAN that starts at 40 %, and its data."""
    accumulate = more.pop("accumulate", 1)
    made = more.pop("tokenizer", None) or tiny.tokenizer(**more)
    recipe = tiny.recipe(steps, accumulate=accumulate)
    module = Stage1(made, tiny.loss(), recipe, architecture={}, facts={})
    return module, tiny.data(accumulate=accumulate)


def stage2(
    folder: Path,
    steps: int,
    classes: int = 3,
    accumulate: int = 1,
    tokenizer: Tokenizer | None = None,
    family: Callable[[Tokenizer], Prior] | None = None,
) -> tuple[Stage2, Any]:
    """A stage-2 module and its data; the tokenizer is exported beside it."""
    tokenizer = (tokenizer or tiny.tokenizer()).eval()
    export = folder / "tokenizer"
    checkpoint.save_model(export, tokenizer, kind="tokenizer", architecture={}, facts={})
    module = Stage2(
        family(tokenizer) if family else tiny.prior(classes),
        tiny.recipe(steps, accumulate=accumulate),
        image_size=tiny.SIZE,
        preview=lambda prior: torch.zeros(8, 8, 3, dtype=torch.uint8).numpy(),
        tokenizer=export,
        architecture={},
        facts={"num_classes": classes},
    )
    return module, EncodedImages(tiny.data(accumulate=accumulate, classes=classes), tokenizer)


STAGES = {
    "learned": lambda folder, steps: stage1(folder, steps),
    "ema": lambda folder, steps: stage1(folder, steps, update="ema"),
    "kl": lambda folder, steps: stage1(folder, steps, tokenizer=tiny.kl()),
    "accumulated": lambda folder, steps: stage1(folder, steps, accumulate=2),
    "pyramid": lambda folder, steps: stage1(
        folder, steps, tokenizer=tiny.multiscale("ema", own_codebooks=True, scale_dropout=0.5)
    ),
    "llamagen": lambda folder, steps: stage2(folder, steps),
    "llamagen-accumulated": lambda folder, steps: stage2(folder, steps, accumulate=2),
    "var": lambda folder, steps: stage2(
        folder, steps, tokenizer=tiny.multiscale(), family=tiny.var
    ),
    "absorbing": lambda folder, steps: stage2(
        folder, steps, family=lambda tokenizer: tiny.absorbing_for(tokenizer.spec)
    ),
    "flow": lambda folder, steps: stage2(
        folder, steps, tokenizer=tiny.kl(), family=partial(tiny.continuous, Flow)
    ),
    "diffusion": lambda folder, steps: stage2(
        folder, steps, tokenizer=tiny.kl(), family=partial(tiny.continuous, Diffusion)
    ),
}


def run(
    folder: Path, module: TrainingModule, data: Any, resume: Run | None = None, **more: Any
) -> int:
    """Train in `folder` with the file board."""
    folder.mkdir(exist_ok=True)
    opened = resume or Run(folder)
    data.samples_seen = opened.counters.samples
    settings = more.pop("settings", None) or tiny.settings(**more)
    return launch.train(module, data, opened, settings, boards=[], precision="32-true")


def weights(folder: Path) -> dict[str, Tensor]:
    """Everything in the last checkpoint that decides how training goes on, flat."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    flat = dict(saved["state_dict"])
    for i, optimizer in enumerate(saved["optimizer_states"]):
        for j, state in optimizer["state"].items():
            flat |= {f"optimizer{i}.{j}.{name}": value for name, value in state.items()}
    flat["random"] = saved["vqgen"]["random"]["torch"]
    return flat


@pytest.mark.parametrize("kind", STAGES)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, kind: str) -> None:
    whole, data = STAGES[kind](tmp_path, 8)
    run(tmp_path / "whole", whole, data, save_every=3, validate_every=2)
    interrupted, data = STAGES[kind](tmp_path, 8)
    folder = tmp_path / "cut"
    stop = StopAt(3)
    interrupted.on_train_batch_end = stop.bind(interrupted)  # type: ignore[method-assign]
    run(folder, interrupted, data, save_every=3, validate_every=100)
    assert opening.read_counters(folder)[1].step == 3
    FileBoard(folder).log_metrics({"train/total": 1.0}, step=4)  # by a step that was lost
    torch.manual_seed(12345)  # whatever the new process starts with
    resumed, data = STAGES[kind](tmp_path, 8)
    run(folder, resumed, data, resume=Run(folder, *opening.read_counters(folder)), save_every=3)
    expected, got = weights(tmp_path / "whole"), weights(folder)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    logged = (folder / "metrics.csv").read_text().splitlines()
    assert [line for line in logged if line.startswith("4,train/total")] == [
        line
        for line in (tmp_path / "whole" / "metrics.csv").read_text().splitlines()
        if line.startswith("4,train/total")
    ]


class StopAt:
    """Ends a run after so many steps, as a kill between two steps would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def bind(self, module: TrainingModule):
        def on_train_batch_end(*args: Any) -> None:
            if module.counters.step == self.step:
                module.trainer.should_stop = True

        return on_train_batch_end


def test_stage1_logs_and_exports(tmp_path: Path) -> None:
    module, data = stage1(tmp_path, 6)
    run(tmp_path / "run", module, data, validate_every=3)
    text = (tmp_path / "run" / "metrics.csv").read_text()
    for name in (
        *("train/pixel", "train/commitment", "train/codebook", "train/total", "train/lr"),
        *("train/norm_generator", "train/norm_discriminator", "gan/logits_real", "gan/logits_fake"),
        *("gan/weight", "gan/adaptive_weight", "codebook/usage", "codebook/perplexity"),
        *("codebook/revived", "val/psnr", "val/ssim", "perf/images_per_second", "perf/memory_gib"),
    ):
        assert f",{name}," in text, name
    steps = {int(line.split(",")[0]) for line in text.splitlines()[1:]}
    assert steps == set(range(1, 7)), "counted in generator steps"
    saved = checkpoint.read_model(tmp_path / "run" / "tokenizer", "tokenizer")
    assert saved.facts["steps"] == 6 and saved.facts["images"] == 24
    assert list((tmp_path / "run" / "samples").glob("samples_reconstructions_*.png"))


def test_nothing_to_resume_says_what_is_started(tmp_path: Path, capsys) -> None:
    settings = {
        "train": {"resume": "auto"},
        "run": {"root": str(tmp_path), "name": "b"},
        "trainer": tiny.settings()["trainer"],
    }
    assert opening.find_resumed(settings, stage="stage1", name="vqgan-emoji") is None
    said = f"nothing named b to resume under {tmp_path / 'stage1'}"
    assert f"{said}: starting a new tokenizer=vqgan run" in capsys.readouterr().out


def test_a_pyramid_reports_the_codes_that_each_scale_uses(tmp_path: Path) -> None:
    module, data = stage1(tmp_path, 3, tokenizer=tiny.multiscale("ema", own_codebooks=True))
    run(tmp_path / "run", module, data, validate_every=3)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    last = {name: float(value) for _, name, value in rows[1:]}
    tokens = module.average.model.encode(
        torch.cat([data.on_after_batch_transfer(b, 0)["images"] for b in data.val_dataloader()])
    )
    for name, some in zip(("0_1x1", "1_1x2", "2_2x3"), tokens.split([1, 2, 6], 1), strict=True):
        assert last[f"codebook/usage/{name}"] == pytest.approx(some.unique().numel() / tiny.CODES)
        assert last[f"codebook/usage_bound/{name}"] == min(some.numel(), 32) / tiny.CODES
        assert last[f"codebook/perplexity/{name}"] >= 1
    saved = checkpoint.read_model(tmp_path / "run" / "tokenizer", "tokenizer")
    assert saved.facts["validation"]["codebook/usage/0_1x1"] > 0


def test_a_collapsed_scale_is_an_alarm(tmp_path: Path, capsys) -> None:
    tokenizer = tiny.multiscale("ema", own_codebooks=True)
    tokenizer.bottleneck.codebooks[0].weight[1:] = 1e6
    for book in tokenizer.bottleneck.codebooks:
        book.started.fill_(True)
    module, data = stage1(tmp_path, 2, tokenizer=tokenizer)
    module.usage_alarm = 0.2  # of the six codes that six images can use at 1 x 1
    run(tmp_path / "run", module, data, validate_every=2)
    printed = capsys.readouterr().out
    assert "scale 0_1x1 uses only 16.7% of the codes that it could" in printed
    assert "0_1x1 1/6  1_1x2" in printed


def test_stage2_reports_bits_beside_the_uniform_line(tmp_path: Path) -> None:
    module, data = stage2(tmp_path, 2)
    run(tmp_path / "run", module, data, validate_every=2)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    last = {name: float(value) for _, name, value in rows[1:]}
    assert last["val/bits_per_token_uniform"] == pytest.approx(5.0)
    assert last["val/bits_per_token"] == pytest.approx(5.0, abs=0.2)  # it starts uniform
    dimensions = 3 * tiny.SIZE[0] * tiny.SIZE[1]
    assert last["val/bits_per_dimension"] == pytest.approx(
        last["val/bits_per_token"] * 6 / dimensions, rel=1e-5
    )
    assert (tmp_path / "run" / "pipeline" / "tokenizer" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "pipeline" / "prior" / "model.safetensors").is_file()


def test_a_pyramid_reports_bits_by_scale(tmp_path: Path) -> None:
    """In total and per token of the scale, over the whole validation set."""
    module, data = STAGES["var"](tmp_path, 2)
    run(tmp_path / "run", module, data, validate_every=2)
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    last = {name: float(value) for _, name, value in rows[1:]}
    scales = {"scale_1x1": 1, "scale_1x2": 2, "scale_2x3": 6}
    bits = {name: last[f"val/bits/{name}"] for name in scales}
    for name, length in scales.items():
        assert last[f"val/bits_per_token/{name}"] == pytest.approx(bits[name] / length)
    assert last["val/bits_per_token"] == pytest.approx(sum(bits.values()) / 9)
    assert len(set(bits.values())) == 3


def test_accumulation_is_the_same_gradient(tmp_path: Path) -> None:
    """One step of a batch of 4 has the gradient of two micro-batches of 2 (no GAN, no dropout)."""
    results = []
    for accumulate in (1, 2):
        module = Stage1(
            tiny.tokenizer(),
            tiny.loss(gan=False),
            tiny.recipe(1, accumulate=accumulate),
            architecture={},
            facts={},
        )
        module.model.bottleneck.codebook.started.fill_(True)  # else the first batch decides
        folder = tmp_path / str(accumulate)
        run(folder, module, tiny.data(accumulate=accumulate))
        results.append(weights(folder))
    moments = [name for name in results[0] if name.endswith("exp_avg")]  # 0.1 x the gradient
    assert moments
    for name in moments:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=1e-3)


def test_a_bad_loss_is_skipped_then_stops_the_run(tmp_path: Path, capsys) -> None:
    module, data = stage1(tmp_path, 10)
    generator = module.loss.generator

    def poisoned(images: Tensor, *args: Any) -> Any:
        losses = generator(images, *args)
        if module.counters.step >= 2:
            losses.parts["pixel"].fill_(float("nan"))
            return type(losses)(losses.total * float("nan"), losses.parts)
        return losses

    module.loss.generator = poisoned  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"terms: pixel.*3 times in a row.*train\.lr"):
        run(tmp_path / "run", module, data)
    assert "ALARM" in capsys.readouterr().out
    assert list((tmp_path / "run").glob("bad_batch_step*.pt"))
    assert all(torch.isfinite(p).all() for p in module.model.parameters())


@pytest.mark.parametrize("validate_every", [1, 100])
@pytest.mark.parametrize("kind", ["learned", "llamagen"])
def test_a_run_that_skipped_every_step_exports_nothing(
    tmp_path: Path, kind: str, validate_every: int
) -> None:
    """Two steps: fewer than the patience, which would stop it."""
    module, data = STAGES[kind](tmp_path, 2)
    module.is_usable = lambda total, parts, batch: module._skip(["pixel"], batch)
    with pytest.raises(ValueError, match=r"nothing was learned by step \d.*train\.lr"):
        run(tmp_path / "run", module, data, validate_every=validate_every)
    assert not list((tmp_path / "run").glob("*/**/model.safetensors"))


def test_a_used_up_budget_says_what_to_type(tmp_path: Path, capsys) -> None:
    module, data = stage1(tmp_path, 2)
    run(tmp_path / "run", module, data)
    module, data = stage1(tmp_path, 2)
    again = Run(tmp_path / "run", *opening.read_counters(tmp_path / "run"))
    run(tmp_path / "run", module, data, resume=again)
    printed = capsys.readouterr().out
    assert printed.count("nothing is left to train") == 1
    assert "is at step 2 and has used up its budget" in printed


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_bad_discriminator_stops_the_run(tmp_path: Path, capsys, what: str) -> None:
    """Its loss or gradient is not finite while the generator's is: an alarm, and after three the
    end, instead of a GAN that silently stops learning."""
    module, data = stage1(tmp_path, 10)
    module.loss.gan.lecam_weight = 0.1
    discriminator = module.loss.discriminator

    def poisoned(*args: Any) -> Any:
        losses = discriminator(*args)
        if what == "loss":
            losses.parts["gan/lecam"].fill_(float("nan"))
            return type(losses)(losses.total * float("nan"), losses.parts)
        bias = module.loss.gan.discriminator.main[-1].bias
        return type(losses)(
            losses.total + 0 * (bias - bias.detach()).abs().sqrt().sum(), losses.parts
        )

    module.loss.discriminator = poisoned  # type: ignore[method-assign]
    term = "gan/lecam" if what == "loss" else "gradient of the discriminator"
    with pytest.raises(ValueError, match=rf"step 6: .*terms: {term}\).*3 times in a row"):
        run(tmp_path / "run", module, data)
    assert capsys.readouterr().out.count("ALARM") == 3
    assert len(list((tmp_path / "run").glob("bad_batch_step*.pt"))) == 3
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_bad_steps_count_in_a_row_only(tmp_path: Path, capsys) -> None:
    """A gradient that is not finite in every other step never stops the run, and moves nothing."""
    module, data = stage2(tmp_path, 8)
    loss, before = module.model.loss, {}

    def poisoned(*args: Any) -> Any:
        losses = loss(*args)
        if module.counters.step % 2 == 0:
            return losses
        before[module.counters.step] = module.model.head.weight.clone()
        weight = module.model.head.weight
        return type(losses)(losses.total + 0 * (weight - weight.detach()).abs().sqrt().sum(), {})

    module.model.loss = poisoned  # type: ignore[method-assign]
    assert run(tmp_path / "run", module, data) == 0
    assert capsys.readouterr().out.count("terms: gradient of the model") == 4
    assert module.counters.step == 8 and torch.equal(before[7], module.model.head.weight)


def test_a_discriminator_that_wins_is_an_alarm(tmp_path: Path, capsys) -> None:
    module, data = stage1(tmp_path, 4)
    module.winning_gap = -100.0  # every gap is larger
    run(tmp_path / "run", module, data)
    printed = capsys.readouterr().out
    assert printed.count("the discriminator is winning (logits real") == 2  # from 40 % of 4 on
    module, data = stage1(tmp_path, 4)
    module.winning_gap = 100.0
    run(tmp_path / "quiet", module, data)
    assert "winning" not in capsys.readouterr().out


def test_few_codes_in_use_are_an_alarm(tmp_path: Path, capsys) -> None:
    for share, alarms in ((1.01, 1), (0.0, 0)):
        module, data = stage1(tmp_path, 2)
        module.usage_alarm = share
        run(tmp_path / str(share), module, data)
        assert capsys.readouterr().out.count("could use are used; try") == alarms


def test_clipping_can_be_switched_off(tmp_path: Path) -> None:
    """Adam's first moment is 0.1 times the gradient: with a tiny limit it is that limit."""
    norms = {}
    for clip in (None, 1e-4):
        module, data = stage2(tmp_path, 1)
        object.__setattr__(module.recipe, "clip", clip)
        run(tmp_path / str(clip), module, data)
        moments = [v for k, v in weights(tmp_path / str(clip)).items() if k.endswith("exp_avg")]
        norms[clip] = float(torch.stack([moment.norm() for moment in moments]).norm())
    assert norms[1e-4] == pytest.approx(1e-5, rel=1e-2) and norms[None] > 1e-3


def test_the_average_is_validated_and_has_no_dropout(tmp_path: Path) -> None:
    module, data = stage2(tmp_path, 3)
    run(tmp_path / "run", module, data)
    assert not any(part.training for part in module.average.modules())
    pairs = zip(module.model.parameters(), module.average.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_what_validation_cannot_compute_is_an_alarm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits, sheet and distance that are not finite: said, and the run goes on and exports."""

    def lost(prior: Prior) -> Any:
        raise ValueError("wanted finite latents")

    module, data = stage2(tmp_path, 2)
    module.preview, module.small_fd = lost, lost
    bits = {"all": torch.full((4,), float("nan"))}
    monkeypatch.setattr(module.average.model, "bits_by_part", lambda *_: bits)
    run(tmp_path / "run", module, data)
    alarms = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ALARM")]
    assert alarms[0].startswith("ALARM step 2: val/bits_per_dimension, val/bits_per_token not fin")
    assert [line.split(":")[1] for line in alarms[1:]] == [
        " no sample sheet",
        " no distance of samples",
    ]
    assert (tmp_path / "run" / "pipeline" / "prior").is_dir()


def test_a_distance_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    module, _ = stage2(tmp_path, 2)
    module.record = lambda numbers: None
    values = iter([float("nan"), 3.0, float("nan"), 2.0, 2.5])
    best = [module.is_best(lambda _: ("fd", next(values)), module.model) for _ in range(5)]
    assert best == [False, True, False, True, False]
