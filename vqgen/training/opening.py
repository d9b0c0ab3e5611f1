"""Which run folder is trained in: a new one, or one to go on in, if its checkpoint is whole and
it was the same experiment on the same data."""

import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from vqgen import checkpoint, commands, runs
from vqgen.training import devices
from vqgen.training.recipe import Counters

# settings that a resumed run may change without becoming another experiment
FREE = (
    *("train.max_", "train.resume", "train.log_every", "train.validate_every", "train.save_every"),
    *("logger.", "trainer.", "run.", "preview.", "plan", "small_fd."),
    # how the same batches reach the devices; a smaller machine needs other ones
    *("train.accumulate", "data.workers", "data.cache_mb", "data.verify"),
)


@dataclass(frozen=True)
class Run:
    """A run folder; `checkpoint` and `counters` say where to go on (None and zeros for a new run),
    `script` and `words` what has to be typed for it beside train.resume."""

    folder: Path
    checkpoint: Path | None = None
    counters: Counters = field(default_factory=Counters)
    script: str = "train_stage1.py"
    words: tuple[str, ...] = ()

    def again(self, trainer: dict[str, Any], *more: str) -> str:
        """The command that goes on, with `more` overrides; `trainer`: the node of that name."""
        resume = commands.override("train.resume", self.folder)
        start = [*devices.launcher(trainer), self.script]
        return commands.shell(start, [*self.words, resume, *more])


def find_resumed(settings: dict[str, Any], *, stage: str, name: str) -> Path | None:
    """The run folder that train.resume names, or None for a new run.

    The same on every process of a distributed run. name: used unless run.name is given
    Raises ValueError if there is no such run."""
    devices.join(settings["trainer"])
    return devices.once(lambda: _find_resumed(settings, stage, name))


def _find_resumed(settings: dict[str, Any], stage: str, name: str) -> Path | None:
    resume = settings["train"]["resume"]
    if resume is None:
        return None
    made = f"{'tokenizer' if stage == 'stage1' else 'prior'}={name.partition('-')[0]}"
    root, name = Path(settings["run"]["root"]), settings["run"]["name"] or name
    if resume == "auto":
        for run in runs.newest_first(root, stage, name):
            if runs.has_checkpoint(run):
                print(f"resuming {run}")
                return run
            print(f"passing over {run}, which was stopped before its first checkpoint")
            _clear_if_left(run)
        print(f"nothing named {name} to resume under {root / stage}: starting a new {made} run")
        return None
    if not (Path(resume) / "config.yaml").is_file():
        raise ValueError(
            f"wanted train.resume=auto or a run folder, got {resume}, which holds no config.yaml; "
            f"look for one with: ls {root / stage}"
        )
    return Path(resume)


def open_run(
    settings: dict[str, Any], typed: Sequence[str], resumed: Path | None, *, stage: str, name: str
) -> Run:
    """Make a new run folder and store config and overrides in it, or go on in `resumed`; on one
    process for all.

    settings  the resolved config; typed: the overrides as typed; name: used unless run.name is
              given
    Raises ValueError if the run to resume has no readable checkpoint or was another experiment."""
    return devices.once(lambda: _open_run(settings, typed, resumed, stage, name))


def _open_run(
    settings: dict[str, Any], typed: Sequence[str], resumed: Path | None, stage: str, name: str
) -> Run:
    script = f"train_{stage}.py"
    script = sys.argv[0] if Path(sys.argv[0]).name == script else script  # from another folder
    if resumed is not None:
        _check_same_experiment(resumed, settings)
        stored = runs.stored_overrides(resumed)  # is read again; what was added is not in it
        words = [word for word in typed if word not in stored and not word.startswith("run.")]
        return Run(resumed, *read_counters(resumed), script=script, words=tuple(words))
    folder = runs.new(Path(settings["run"]["root"]), stage, settings["run"]["name"] or name)
    checkpoint.write_text(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    checkpoint.write_text(folder / "overrides.txt", "".join(f"{word}\n" for word in typed))
    return Run(folder, script=script)


def check_data(run: Run, data: Any) -> None:
    """A new run remembers the data that it trains on; raises ValueError if a resumed one was
    trained on other data than now."""
    content = data.content()
    if run.counters.facts.setdefault("data", content) != content:
        raise ValueError(
            f"{run.folder} was trained on other data than {data.describe()['name']} holds now "
            "(number, classes or pixels of the images differ), so that it cannot go on where it "
            "was; put the old ones back, or begin a run on the new ones from its weights: leave "
            f"out train.resume and type init='{run.folder}'"
        )


def read_counters(run: Path) -> tuple[Path, Counters]:
    """The newest readable checkpoint and its counters; a damaged last one falls back to the one
    before."""
    problems = []
    for name in runs.CHECKPOINTS:
        path = run / "checkpoints" / name
        if not path.is_file():
            continue
        try:
            if zipfile.ZipFile(path).testzip():  # its checksums, which torch.load passes over
                raise ValueError("checksum")
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return path, Counters(**saved["vqgen"]["counters"])
        except Exception as error:  # whatever torch raises for a cut-off or foreign file
            problems.append(f"{path} is damaged ({type(error).__name__})")
            print(f"{problems[-1]}; trying the one before it")
            path.rename(path.with_suffix(".damaged"))  # else the next save would keep it as good
    listed = "; ".join(problems) or f"{run / 'checkpoints'} holds no checkpoint"
    raise ValueError(f"cannot resume: {listed}. {runs.start_anew(run)}")


def _check_same_experiment(run: Path, settings: dict[str, Any]) -> None:
    before = flatten(yaml.safe_load((run / "config.yaml").read_text()))
    now = flatten(yaml.safe_load(yaml.safe_dump(settings)))
    changed = [
        f"  {key}: {before.get(key)} -> {now.get(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE)
    ]
    if changed:
        listed = "\n".join(changed)
        raise ValueError(
            f"{run} was started with other settings:\n{listed}\n"
            "Type the old ones, or leave out train.resume"
        )


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}; empty nodes stay."""
    rows: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        rows |= flatten(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return rows


def hold(lock: FileLock, folder: Path) -> None:
    """Take the folder for this run, and clear away what a killed one left half written."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"{folder} is being trained by another process; wait for it, stop it, or start a run "
            "of another name with run.name=NAME"
        ) from None
    except OSError as error:
        raise OSError(
            f"cannot write in the run folder {folder} ({error.strerror}); make it writable, or "
            "copy it to a place that is and type train.resume=COPY"
        ) from error
    _clear(folder)


def _clear_if_left(folder: Path) -> None:
    """The same for a folder of others, if none trains in it and it may be written."""
    with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what a killed process had half written; only for who holds the folder's lock."""
    for half in folder.glob(f"**/{checkpoint.HALF_WRITTEN}"):
        half.unlink()
