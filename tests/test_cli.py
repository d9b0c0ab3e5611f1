"""What a user typed: misspelt overrides are one sentence that names the nearest valid word."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from torch import nn

from vqgen import build, cli, overrides
from vqgen.training import launch

STAGE1, STAGE2 = ("stage1", "train_stage1"), ("stage2", "train_stage2")


@pytest.mark.parametrize(
    ("entry", "word", "sentence"),
    [
        (STAGE1, "train.lrr=1e-4", r"no setting 'train.lrr'; did you mean train.lr\?"),
        (STAGE1, "loss.gan.strat=0.3", r"did you mean loss.gan.start\?"),
        (STAGE1, "lodger=files", r"no setting 'lodger'; did you mean logger\?"),
        (STAGE1, "tokenizer=vqgn", r"tokenizer=vqgn is not known; did you mean vqgan\?"),
        (STAGE1, "data=emojis", r"did you mean emoji\?; there are .*cifar10"),
        (STAGE1, "gan.start=0.3", r"did you mean loss.gan.start\?"),
        (STAGE1, "data.sise=64", r"did you mean data.size\?"),
        (STAGE1, "train.lr=fast", r"train.lr wants a number like .*, got fast"),
        (STAGE1, "train.global_batch=true", r"train.global_batch wants a number"),
        (STAGE1, "loss.gan.adaptive=7", r"loss.gan.adaptive wants true or false, got 7"),
        (STAGE1, "data.flip=yep", r"data.flip wants true or false, got yep"),
        (STAGE1, "prior.width=64", r"prior is a setting of train_stage2.py"),
        (STAGE2, "loss.gan.start=0.3", r"loss is a setting of train_stage1.py"),
        (STAGE1, "foo", r"wanted settings like train.lr=1e-4, got 'foo' without a value"),
        (STAGE1, "tokenizer.bottleneck.scales=[1,4]", r"belongs to tokenizer=var: type tokenizer"),
        (STAGE1, "tokenizer.phi_count=4", r"tokenizer.bottleneck.phi_count belongs to tokenizer=v"),
        (STAGE2, "prior.shared_modulation=true", r"belongs to prior=var"),
        (STAGE2, "prior=lamagen", r"did you mean llamagen\?"),
        (STAGE2, "prior.widht=64", r"did you mean prior.width\?"),
        (STAGE2, "train.max_step=5", r"did you mean train.max_steps\?"),
        (STAGE2, "prior.lr=1e-4", r"did you mean train.lr\?"),
        (STAGE2, "prior.path=vp", r"did you mean path\?"),
        ((".", "sample"), "temprature=0.9", r"did you mean temperature\?"),
        ((".", "sample"), "topk=100", r"did you mean top_k\?"),
    ],
)
def test_typos_name_the_nearest_word(entry: tuple[str, str], word: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        overrides.check(*entry, [word])


@pytest.mark.parametrize(
    "words",
    [
        ["prior=flow", "path=ot", "prior.path.sigma_max=5"],
        ["prior=flow", "prior.path.beta_max=3"],
        ["prior=diffusion", "prior.pairing=optimal"],
    ],
)
def test_settings_of_another_choice_are_no_typos(words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        overrides.check(*STAGE2, words)
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (STAGE1, ["train.lr=2e-4", "train.max_minutes=3", "train.resume=auto", "run.name=x"]),
        (STAGE1, ["data=folder", "data.root=some/where", "data.size=[96,128]"]),
        (STAGE1, ["tokenizer=vqvae", "logger=files", "trainer.precision=32-true", "debug=fast"]),
        (STAGE1, ["loss.perceptual=none", "loss.gan=none"]),
        (STAGE2, ["tokenizer=runs/stage1/x", "prior=llamagen_l", "train.ema=0"]),
        ((".", "sample"), ["classes=[flags,2]", "guidance=linear:4", "top_p=0.9", "out=a.png"]),
    ],
)
def test_what_is_right_passes(entry: tuple[str, str], words: list[str]) -> None:
    overrides.check(*entry, words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: {max_step: 5}", r"no setting 'train.max_step'; did you mean train.max_steps\?"),
        ("trian: {lr: 1e-3}", r"no setting 'trian'; did you mean train\?"),
        ("train: {lr: 1e-3}", None),
    ],
)
def test_typos_in_an_experiment_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, sentence: str | None
) -> None:
    """A user's own recipe: a misspelt key of it would else be read by nobody."""
    copied = tmp_path / "conf"
    shutil.copytree(cli.CONF, copied)
    recipe = copied / "stage1" / "experiment" / "mine.yaml"
    recipe.write_text(f"# @package _global_\n{text}\n")
    for module in (cli, overrides):
        monkeypatch.setattr(module, "CONF", copied)
    with pytest.raises(ValueError, match=sentence) if sentence else nullcontext():
        overrides.check(*STAGE1, ["experiment=mine"])


def test_an_unknown_key_of_a_node_names_the_nearest_argument() -> None:
    node = {"_target_": "vqgen.losses.gan.PatchGAN", "weigth": 1.0}
    with pytest.raises(
        ValueError, match=r"PatchGAN has no setting 'weigth'; did you mean weight\?"
    ):
        build.make({"_target_": "vqgen.losses.stage1.Stage1Loss", "gan": node})


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "vqgen.checkpoint.os.system", "vqgen.data.listing.os.system"),
        *("vqgen.build.make", "vqgen.tokenizers.vq.torch.load", "vqgen.nn.nowhere.Thing", "vqgen"),
    ],
)
def test_a_saved_model_may_only_name_classes_of_vqgen(target: str, tmp_path: Path) -> None:
    """Neither another library's, nor what a module of vqgen has imported itself."""
    harm = {"_target_": target, "command": f"mkdir {tmp_path}/harm"}
    with pytest.raises(ValueError, match="only classes of vqgen"):
        build.model({"_target_": "vqgen.tokenizers.vq.VectorQuantizer", "x": harm})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "word",
    [
        *("data._target_=os.system", "++data.size={_target_: os.getcwd}"),
        *("data=../../../evil", "hydra.searchpath=[file:///evil]"),
    ],
)
def test_a_run_folder_cannot_bring_its_own_code(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "typed_overrides", lambda: ["train.lr=1e-4"])
    with pytest.raises(ValueError, match=r"overrides\.txt.*type it yourself"):
        cli.merged([word])
    monkeypatch.setattr(cli, "typed_overrides", lambda: [word])
    assert cli.merged([word]) == [word]


def test_what_a_run_was_started_with_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "typed_overrides", lambda: ["data.size=64"])
    stored = ["data=folder", "data.root=../pictures", "data.size=32", "prior=flow"]
    assert cli.merged(stored) == ["data=folder", "data.root=../pictures", "prior=flow", *TYPED]
    assert cli.merged(["data=emoji", *stored[3:]], group="data") == TYPED
    monkeypatch.setattr(cli, "typed_overrides", lambda: ["tokenizer=vqgan"])
    changed = ["tokenizer=var", "tokenizer.bottleneck.scales=[1,4]", "train.lr=1"]
    assert cli.merged(changed) == ["train.lr=1", "tokenizer=vqgan"]  # scales are the other's
    default = ["tokenizer.bottleneck.codebook.size=64"]
    assert cli.merged(default) == [*default, "tokenizer=vqgan"]  # it was vqgan before


TYPED = ["data.size=64"]


def test_a_big_model_on_a_cpu_brings_a_hint(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(launch, "SLOW_ON_CPU", 10)
    for model, device in ((nn.Linear(3, 2), "cpu"), (nn.Linear(3, 3), "cuda")):
        launch.hint_at_size(model, device, "experiment=emoji_var")
    assert not capsys.readouterr().out
    launch.hint_at_size(nn.Linear(3, 3), "cpu", "experiment=emoji_var")
    assert "for a small model type experiment=emoji_var; plan=true" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["vqgan", "vqgan_f8", "vqvae", "var", "kl"])
def test_the_hint_of_stage_1_can_be_typed(kind: str) -> None:
    small = f"experiment=emoji_{kind.partition('_')[0]}"
    words = ["data=folder", "data.root=DIR", f"tokenizer={kind}", "data.size=32", small]
    overrides.check(*STAGE1, words)


@pytest.fixture
def var_run(tmp_path: Path) -> Path:
    """A stage-1 run with a checkpoint, as far as the command line reads it."""
    run = tmp_path / "stage1" / "20260101_000000_res"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").write_text("tokenizer: {}\nloss: {}\n")
    words = ["tokenizer=var", "tokenizer.bottleneck.scales=[1,2,4]", "run.name=res"]
    (run / "overrides.txt").write_text("\n".join(words))
    return run


@pytest.mark.parametrize("named", [True, False])
def test_words_of_a_resume_are_read_as_the_runs_own(var_run: Path, named: bool) -> None:
    auto = ["train.resume=auto", "run.name=res", f"run.root={var_run.parents[1]}"]
    resume = [f"train.resume={var_run}"] if named else auto
    words = [*resume, "tokenizer.bottleneck.phi_count=2"]
    assert overrides.check(*STAGE1, words) == ["tokenizer=var", *words]
    retyped = [*resume, "tokenizer=vqgan"]
    assert overrides.check(*STAGE1, retyped) == retyped
    with pytest.raises(ValueError, match=r"did you mean tokenizer\.bottleneck\.phi_count\?"):
        overrides.check(*STAGE1, [*resume, "tokenizer.bottleneck.phi_cuont=2"])
    (var_run / "overrides.txt").write_text("tokenizer=../../evil")
    with pytest.raises(ValueError, match="could run any program"):
        overrides.check(*STAGE1, resume)


def test_a_recipe_brings_the_choice_that_it_is_named_after() -> None:
    word = "experiment=emoji_var"
    assert overrides.check(*STAGE1, [word]) == ["tokenizer=var", word]
    assert overrides.check(*STAGE2, [word]) == ["prior=var", word]
    for words in (["tokenizer=kl", "experiment=emoji_kl"], ["experiment=emoji_long"]):
        assert overrides.check(*STAGE1, words) == words
    assert overrides.check(*STAGE1, [word, "init=x"]) == [word, "init=x"]


@pytest.mark.parametrize("word", ["~seed", "~precision", "~root"])
def test_a_setting_of_the_command_cannot_be_taken_away(word: str) -> None:
    with pytest.raises(ValueError, match=f"{word[1:]} cannot be taken away; leave {word} out"):
        overrides.check(".", "sample", [word])
    with pytest.raises(ValueError, match="train cannot be taken away"):
        overrides.check(*STAGE2, ["~train"])


def test_a_run_of_the_other_stage_is_refused(var_run: Path) -> None:
    word = f"train.resume={var_run}"
    with pytest.raises(ValueError, match=rf"of stage1.*type python train_stage1\.py {word}"):
        overrides.check(*STAGE2, [word])
    (var_run / "config.yaml").write_text("prior: {}\n")
    with pytest.raises(ValueError, match=rf"of stage2.*type python train_stage2\.py {word}"):
        overrides.check(*STAGE1, [word])


def test_init_brings_the_model_whatever_its_kind(var_run: Path) -> None:
    sentence = r"init=DIR brings the tokenizer.*tokenizer\.bottleneck\.scales=\[1,2\] was typed"
    for words in ([f"init={var_run}"], [f"train.resume={var_run}"]):
        with pytest.raises(ValueError, match=sentence):
            overrides.check(*STAGE1, [*words, "tokenizer.bottleneck.scales=[1,2]"])
        (var_run / "overrides.txt").write_text("init=somewhere")
