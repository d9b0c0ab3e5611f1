"""The comparison: names, ranks, ticks and files; and one command over two real runs."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from matplotlib import pyplot
from PIL import Image

from scripts import compare
from tests.evaluation import runs
from vqgen import build, cli, demo, overrides
from vqgen.evaluation import comparison, plots
from vqgen.evaluation.card import Card
from vqgen.evaluation.comparison import Row, plain_name
from vqgen.evaluation.protocol import Protocol

ROOT = Path(__file__).resolve().parents[2]


def row(family: str, fd: float, recall: float, seconds: float, **more: Any) -> Row:
    numbers = {"FD": fd, "recall": recall, "seconds per image": seconds, "precision": 0.5}
    numbers |= more.pop("numbers", {})
    options: dict[str, Any] = {"run": family, "path": family, "tokenizer": "one", "steps": None}
    options |= {"likelihood": "exact", "n": 12, "ceiling": False}
    return Row(family=family, numbers=numbers, **{**options, **more})


ROWS = [
    row("diffusion", 10.0, 0.8, 1.0),
    row("flow", 20.0, 0.5, 0.1),
    row("flow", 15.0, 0.5, 0.4, steps=8),
    row("tokenizer", 5.0, 0.9, 0.0, ceiling=True),
]


def test_names_lose_what_cards_add() -> None:
    assert plain_name("ceiling FD-efficientnet_lite0@2000") == "FD"
    assert plain_name("FID") == plain_name("FID@50") == "FD"
    assert plain_name("sFD-timm:resnet50@9") == "sFD-timm:resnet50@9"
    held_out = "samples nearer than 99 % of held-out images-x@500"
    distance = ["nearest training distance-x@500", "nearest training distance-x of held-out images"]
    for whole in (held_out, *distance):
        assert plain_name(whole) == whole
    assert plain_name("bits per dimension (exact)") == "bits per dimension"
    assert plain_name("full bound, bits per dimension (exact + decoder)").startswith("full bound")


def test_ranks_are_among_priors_only() -> None:
    ranks = comparison.ranks(ROWS)
    assert ranks["diffusion"] == {"quality": 1, "coverage": 1, "speed": 3}
    assert ranks["flow"] == {"quality": 3, "coverage": 2, "speed": 1}
    assert ranks["flow, 8 steps"]["coverage"] == 2 and ranks["tokenizer"] == {}


def test_ticks_stand_beside_ranks() -> None:
    text = comparison.markdown(ROWS)
    line = next(x for x in text.splitlines() if x.startswith("| diffusion | ✓"))
    assert line.startswith("| diffusion | ✓ 1. | ? 1. | ✗ 3. | ✗ |")
    table = list(csv.DictReader(comparison.as_csv(ROWS).splitlines()))
    assert [r["run"] for r in table] == [r.name for r in ROWS] and table[1]["FD"] == "20.0"


def test_the_table_says_what_was_measured() -> None:
    """The network and the count stay in the heads; different ones are not put into one column."""

    def card(name: str, prefix: str = "", **model: Any) -> dict[str, Any]:
        numbers = {f"{prefix}{name}": {"value": 3.0}, "recall-x@500": {"value": 0.5}}
        numbers["bits per dimension (exact)"] = {"value": 1.0, "n": 128}
        costs = {"seconds per image": {"value": 1.0}, "peak memory": {"value": 1.1}}
        protocol = {"name": "emoji-1k", "samples": 500, "guidance": "2.0", "knobs": {}}
        model = {"path": "runs/a_b_flow", **model}
        return {"model": model, "numbers": numbers, "costs": costs, "protocol": protocol}

    rows = [comparison.row_of(card("FD-x@500", family="flow"), None)]
    rows.append(comparison.row_of(card("FD-x@500", "ceiling ", path="t"), None))
    text = comparison.markdown(rows)
    for part in ("| run | FD-x@500 | recall |", "| peak memory, GiB |", "emoji-1k, guidance 2.0."):
        assert part in text
    assert "of 128 validation images" in text and "quality by FD-x@500" in text and "✗ weak" in text
    table = list(csv.DictReader(comparison.as_csv(rows).splitlines()))
    assert [line["FD-x@500"] for line in table] == ["3.0", "3.0"] and "recall-x@500" in table[0]
    figure, axis = pyplot.subplots()
    plots._front(axis, rows[:1], rows)
    pyplot.close(figure)
    assert axis.get_ylabel() == "FD-x@500, lower is better"
    published = comparison.row_of(card("FID", family="var"), None)
    assert comparison.markdown([published]).count("| FID |") == 1
    with pytest.raises(ValueError, match="one kind of FD to compare runs by, got FD-x@500, FID"):
        comparison.markdown([*rows, published])


def test_bits_of_latents_rank_over_one_tokenizer_only() -> None:
    """A density's bits may be negative: beside bits of tokens they would always win."""
    full = "full bound, bits per dimension"
    discrete = {"bits per dimension": 0.1, full: 4.3}
    density = {"bits per dimension": -0.1, full: 4.5}
    one = row("llamagen", 1, 1, 1, numbers=discrete)
    two = row("flow", 1, 1, 1, numbers=density)
    ranked = comparison.ranks([one, two])
    assert ranked["flow"]["likelihood"] == 1 and "likelihood by bits" in comparison.markdown([one])
    other = replace(two, tokenizer="two")
    assert comparison.ranks([one, other])["flow"]["likelihood"] == 2
    assert f"likelihood by {full}" in comparison.markdown([one, other])


def test_runs_of_one_name_are_told_apart() -> None:
    first, again = row("flow", 1, 0.1, 1, path="a"), row("flow", 2, 0.2, 1, path="b", steps=4)
    rows = comparison.told_apart([first, again, row("var", 1, 1, 1)])
    assert [r.name for r in rows] == ["flow, a", "flow, b, 4 steps", "var"]
    assert comparison.ranks(rows)["flow, a"]["coverage"] == 3
    assert comparison.told_apart([first, replace(first, steps=4)])[1].name == "flow, 4 steps"


def test_step_counts_of_a_run_share_its_likelihood() -> None:
    bits = {"bits per dimension": 0.1, "decoder term, bits per dimension": 4.0}
    rows = [row("flow", 1, 1, 1, steps=4, numbers=bits), row("flow", 2, 1, 1, steps=8)]
    filled = comparison.with_likelihoods([*rows, row("var", 1, 1, 1)])
    assert filled[1].numbers == {**rows[1].numbers, **bits}
    assert "bits per dimension" not in filled[2].numbers


def test_a_front_joins_the_steps_of_a_run_and_of_no_other() -> None:
    two = [row("diffusion", 9.0, 1, s, run=r, steps=n) for r in "pe" for s, n in ((1, 4), (2, 8))]
    figure, axis = pyplot.subplots()
    plots._front(axis, two, two)
    lines = {line.get_label(): line.get_xdata() for line in axis.get_lines()}
    pyplot.close(figure)
    assert {label: list(x) for label, x in lines.items() if label in "pe"} == {
        "p": [1, 2],
        "e": [1, 2],
    }


def test_the_worst_in_all_is_small_where_the_best_in_all_is_large() -> None:
    """Both are in the middle of the triangle."""
    best, worst = row("var", 1, 0.9, 0.1), row("flow", 9, 0.1, 9)
    figure, axis = pyplot.subplots()
    plots._triangle(axis, [best, worst], [])
    large, small = axis.collections
    pyplot.close(figure)
    places = [part.get_offsets()[0].tolist() for part in (large, small)]
    assert places[0] == pytest.approx(places[1])
    assert large.get_sizes()[0] > 10 * small.get_sizes()[0]


def test_the_likelihood_is_counted_once(tmp_path: Path) -> None:
    run = runs.stage2(tmp_path)
    settings = {"protocol": runs.protocol_settings("emoji-1k"), "steps": [4, 8]}
    assert compare.jobs_of(run, settings) == [(run, {"knobs": {}})]  # one token after the other
    flow = runs.continuous(tmp_path / "flow")
    assert compare.jobs_of(flow, settings) == [
        (flow, {"knobs": {"steps": 4}}),
        (flow, {"knobs": {"steps": 8}, "validation_images": 0}),
    ]


def test_a_card_of_another_recipe_stays_and_its_own_is_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.continuous(tmp_path)
    few = {**runs.protocol_settings("emoji-2k"), "samples": 64}
    settings: dict[str, Any] = {"protocol": few, "reuse": True}
    settings |= dict.fromkeys(("batch", "device", "cache", "features", "weights"))
    started: list[Path] = []

    def evaluated(command: list[Any]) -> None:
        out = Path(next(str(w) for w in command if str(w).startswith("out="))[5:-1])
        started.append(out)
        Card({"path": "m"}, Protocol(**{**few, **changes}).as_dict()).write(out)

    monkeypatch.setattr(compare, "run", evaluated)
    monkeypatch.setattr(compare.cli, "typed_overrides", list)
    monkeypatch.setattr(compare.cli, "choice", lambda group: "emoji-2k")
    changes = {"knobs": {"steps": 16}}
    usual = run / "evaluation" / "emoji-2k_steps16"
    whole = Protocol(**{**few, **changes, "samples": 2000})
    Card({"path": "m"}, whole.as_dict()).write(usual)
    for _ in range(2):
        card = compare.evaluate(run, changes, settings)
        assert card["protocol"]["samples"] == 64 and len(started) == 1
    assert started[0].name.startswith("emoji-2k_steps16_")
    assert comparison.read_card(usual / "card.json")["protocol"]["samples"] == 2000
    settings["protocol"] = {**few, "samples": 2000}
    assert compare.evaluate(run, changes, settings)["protocol"]["samples"] == 2000
    assert len(started) == 1  # the card of the usual name was reused


def test_step_counts_as_typed() -> None:
    assert compare.checked_steps([8, 4, 8]) == [8, 4] and compare.checked_steps(8) == [8]
    assert compare.checked_steps([]) == compare.checked_steps(None) == []
    for wrong in ([0], ["four"], [2.5], True, {"a": 1}, [10**20], [10_001]):
        with pytest.raises(ValueError, match=r"wanted steps as whole numbers from 1 to 10000, got"):
            compare.checked_steps(wrong)


def test_a_run_typed_twice_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = [Path("a"), Path("b"), tmp_path / "a"]
    assert compare.each_once(typed) == typed[:2]
    assert capsys.readouterr().out == f"{tmp_path / 'a'} is the same run as a: compared once\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "delete it$"),
        ("[1]", "no model, numbers, costs, protocol; delete it"),
        ('{"model": {"path": "x"}, "numbers": {"FD": 3}, "costs": {}, "protocol": {}}', "no FD; "),
        ('{"model": {}, "numbers": {}, "costs": {}, "protocol": {}}', "no model path; delete"),
    ],
)
def test_what_is_no_card(text: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=rf"card.json is no card of an evaluation.*{answer}"):
        comparison.read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"card.json is no card of an evaluation \("):
        comparison.read_card(tmp_path / "card.json")


def test_the_demo_types_what_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every command of demo=true passes the checks of its own entry point; trained runs stay."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "evaluate")):
        settings = build.plain(hydra.compose("compare", [f"demo_root={tmp_path}", "demo_jobs=1"]))
    demo.check(settings)
    commands: list[list[str]] = []
    trained: dict[str, Path] = {}

    def run(command: list[Any], variables: dict[str, str]) -> None:
        commands.append([str(word) for word in command])
        name = next(word for word in commands[-1] if word.startswith("run.name=")).split("=")[1]
        trained[name] = tmp_path / name

    monkeypatch.setattr(demo, "minutes_of", lambda model: 16.0)
    monkeypatch.setattr(
        demo.runs, "newest_first", lambda root, stage, name: iter([trained.get(name)])
    )
    made = demo.train(settings, run)
    assert [path.name for path in made[:3]] == ["kl", "var", "vqgan"] and len(made) == 9
    families = {path.name.split("-")[0] for path in made[3:]}
    assert families == {"llamagen", "var", "absorbing", "flow", "diffusion"}
    for program, *words in commands:
        stage = Path(program).stem
        overrides.check(stage.removeprefix("train_"), stage, words)
        GlobalHydra.instance().clear()
    again = len(commands)
    trained |= {path.name: path for path in made}
    assert demo.train(settings, run) == made and len(commands) == again


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["demo_priors=[llamagenn]"], "prior=llamagenn is not known"),
        (["demo_priors=[]"], "wanted at least one of demo_priors, got none"),
        (["demo_priors=[3]"], "wanted demo_priors as a list of texts"),
        (["demo_prior_minutes=0"], "wanted demo_prior_minutes above 0, got 0"),
        (["demo_tokenizer_minutes=-1"], "wanted demo_tokenizer_minutes above 0, got -1"),
        (["demo_jobs=0"], "wanted demo_jobs of at least 1, got 0"),
        (["demo_tokenizers=[kl]", "demo_priors=[llamagen]"], "llamagen can read .* none of .*=kl;"),
        (["demo_tokenizers=['kl x']"], "wanted demo_tokenizers as names, .* got 'kl x'; type"),
        (["demo_words=['train.lrr=1']"], "there is no setting 'train.lrr'"),
    ],
)
def test_a_demo_that_would_stop_is_refused_before_it_trains(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "evaluate")):
        config = hydra.compose("compare", [f"demo_root={tmp_path}", *words])
        with pytest.raises(ValueError, match=sentence):
            demo.check(build.plain(config))


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["batch=-1"], "wanted batch of at least 1, got -1"),
        (["protocol.samples=3"], "wanted protocol.samples above protocol.neighbors=5, got 3"),
        (["protocol.knobs={steps: 4}", "steps=[4,8]"], "wanted step counts once, got steps="),
        (["cache=file"], "nothing can be written to file .*; type cache=DIR"),
    ],
)
def test_what_no_model_could_be_measured_by(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any run is even looked at."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(cli.CONF / "evaluate")):
        config = hydra.compose("compare", ["models=[none]", *words])
        with pytest.raises(ValueError, match=sentence):
            compare.compared(config)


def test_plots_are_pictures(tmp_path: Path) -> None:
    written = plots.draw(ROWS, tmp_path)
    assert {p.name for p in written} == {
        f"{n}.{e}" for n in ("front", "triangle") for e in ("png", "pdf")
    }
    for path in written:
        if path.suffix == ".png":
            assert len(Image.open(path).convert("RGB").getcolors(10**6) or []) > 10
        else:
            assert path.read_bytes().startswith(b"%PDF")


def test_many_step_counts_stay_legible() -> None:
    """One color and one name per run, not per row; no label of a ceiling in the plot; nothing of
    the legend over the points; plain numbers on the axis."""
    rows = [row(f, 9.0 + n, 0.1, n / 9, steps=n) for f in ("flow", "absorbing") for n in (4, 8, 16)]
    rows += [row("tokenizer", 5.0 + i / 9, 1, 0, run=f"t{i}", ceiling=True) for i in range(3)]
    for plot in (plots._front, plots._triangle):
        figure, axis = pyplot.subplots()
        plot(axis, rows[:6], rows)
        figure.canvas.draw()
        legend = axis.get_legend()
        assert legend is not None
        names = [text.get_text() for text in legend.get_texts()]
        assert names[:2] == ["flow", "absorbing"] and len(names) == len(set(names))
        assert legend.get_window_extent().x0 >= axis.get_window_extent().x1
        steps = [text for text in axis.texts if text.get_text().isdigit()]
        assert sorted(text.get_text() for text in steps) == sorted(["4", "8", "16"] * 2)
        assert len({text.get_color() for text in steps}) == 2
        if plot is plots._front:
            assert names[2:] == [f"reconstructions: t{i}" for i in range(3)]
            assert len(axis.texts) == 6  # step counts alone
            assert "0.5" in [tick.get_text() for tick in axis.get_xticklabels()]
        pyplot.close(figure)


@pytest.mark.slow
def test_one_command_compares_runs(tmp_path: Path) -> None:
    prior, tokenizer = runs.stage2(tmp_path), tmp_path / "stage1" / "20260101_000000_tiny"
    flow = runs.continuous(tmp_path / "continuous")
    words = ["protocol.samples=12", "protocol.neighbors=2", "protocol.perceptual=null"]
    words += [f"out={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}", "steps=[2,4]"]
    command = [sys.executable, str(ROOT / "scripts" / "compare.py")]
    command += [str(prior), str(tokenizer), str(flow)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for printed in ("", "reusing"):
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert printed in done.stdout and "| llamagen (tiny) |" in done.stdout
    card = json.loads((prior / "evaluation" / "emoji-2k" / "card.json").read_text())
    table = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert (
        float(table[0]["FD-efficientnet_lite0@12"])
        == card["numbers"]["FD-efficientnet_lite0@12"]["value"]
    )
    assert table[1]["family"] == "tokenizer"
    assert [line["run"] for line in table[2:]] == ["flow, 2 steps", "flow, 4 steps"]
    assert len({line["full bound, bits per dimension"] for line in table[2:]}) == 1
    assert (tmp_path / "out" / "front.png").is_file()
