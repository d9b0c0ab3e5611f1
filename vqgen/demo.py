"""What scripts/compare.py demo=true trains before it compares: tokenizers and priors, each by the
command that a user would type for it."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqgen import build, overrides, runs
from vqgen.training import opening

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[list[Any], dict[str, str]], None]  # (script and words, environment variables)


def check(settings: dict[str, Any]) -> None:
    """Raise ValueError for a demo that would stop at one of its trainings."""
    for name in ("demo_tokenizers", "demo_priors", "demo_words"):
        words = settings[name]
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"wanted {name} as a list of texts, got {words}; type {name}=[A,B]")
        if not words and name != "demo_words":
            raise ValueError(f"wanted at least one of {name}, got none; leave it out for the usual")
    if type(settings["demo_jobs"]) is not int or settings["demo_jobs"] < 1:
        raise ValueError(
            f"wanted demo_jobs of at least 1, got {settings['demo_jobs']}; type demo_jobs=1"
        )
    for name in ("demo_tokenizer_minutes", "demo_prior_minutes"):
        minutes = settings[name]
        if type(minutes) not in (int, float) or not 0 < minutes < math.inf:
            raise ValueError(f"wanted {name} above 0, got {minutes}; type {name}=16")
    specs = []
    for typed in settings["demo_tokenizers"]:
        words = command("stage1", typed, settings)[1]
        config = build.plain(overrides.composed("stage1", "train_stage1", words))
        with torch.device("meta"):
            size = config["data"]["size"]
            specs.append(build.make({**config["tokenizer"], "image_size": [size, size]}).spec)
    for typed in settings["demo_priors"]:
        words = command("stage2", typed, settings)[1]
        config = build.plain(overrides.composed("stage2", "train_stage2", words))
        if config["tokenizer"] != "auto":
            continue
        if not any(_fits(config["prior"], spec) for spec in specs):
            raise ValueError(
                f"demo_priors={typed} can read the latents of none of demo_tokenizers="
                f"{','.join(settings['demo_tokenizers'])}; add one of kl, var, vqgan that it can"
            )


def _fits(prior: dict[str, Any], spec: Any) -> bool:
    """Whether the prior of this config node reads latents of this kind."""
    try:
        build.check_pair(prior, spec)
    except ValueError:
        return False
    return True


def command(stage: str, typed: str, settings: dict[str, Any]) -> tuple[str, list[str]]:
    """-> (name of the run, words behind train_<stage>.py) of a demo's `diffusion path=vp`."""
    kind = {"stage1": "tokenizer", "stage2": "prior"}[stage]
    choice, *more = f"{kind}={typed}".split()
    wrong = [word for word in more if "=" not in word]
    if wrong or choice.endswith("="):
        raise ValueError(
            f"wanted demo_{kind}s as names, with settings behind them where needed, got {typed!r}; "
            "type for instance \"demo_priors=[flow,'diffusion path=vp']\""
        )
    name = "-".join(word.split("=")[1] for word in (choice, *more))
    where = [f"run.name={name}", f"run.root='{settings['demo_root']}'", "train.resume=auto"]
    budget = [f"train.max_minutes={settings[f'demo_{kind}_minutes']}", "train.max_steps=null"]
    return name, [choice, *more, *where, *budget, *settings["demo_words"]]


def train(settings: dict[str, Any], run: Run) -> list[Path]:
    """Train the tokenizers, then every prior for equally long, with `run`; returns their runs.

    `demo_jobs` trainings at once, each with its share of the cores: small models gain more from a
    core each than from all cores together."""
    root, jobs = Path(settings["demo_root"]), settings["demo_jobs"]
    share = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // jobs, 1))} if jobs > 1 else {}

    def trained(stage: str, minutes: float, typed: str) -> Path:
        name, words = command(stage, typed, settings)
        done = next(runs.newest_first(root, stage, name), None)
        if done is None or (minutes_of(done) or 0) < 0.98 * minutes:  # a run may end a step early
            run([ROOT / f"train_{stage}.py", *words], share)
            done = next(runs.newest_first(root, stage, name))
        return done

    made = []
    for stage, kind in (("stage1", "tokenizer"), ("stage2", "prior")):
        work = partial(trained, stage, settings[f"demo_{kind}_minutes"])
        with ThreadPoolExecutor(jobs) as pool:
            made += pool.map(work, settings[f"demo_{kind}s"])
    return made


def minutes_of(model: Path) -> float | None:
    """Training time by the run's checkpoint; None where there is no checkpoint."""
    try:
        return opening.read_counters(model)[1].seconds / 60
    except ValueError:
        return None
