"""Run folders: runs/<stage>/<date_time>_<name>/, how a new one is named and how the newest fitting
one is found.

config.yaml  overrides.txt  metrics.csv  checkpoints/  samples/  and tokenizer/ (stage 1) or
pipeline/ (stage 2)
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import yaml

NAME = re.compile(r"(\d{8}_\d{6})(?:-\d\d)?_(.+)")  # the ending is of older versions
STAMP = "%Y%m%d_%H%M%S"

EXPORT = {
    "stage1": "tokenizer",
    "stage2": "pipeline",
}  # the folder inside a run that later steps read
CHECKPOINTS = ("last.ckpt", "previous.ckpt")


def new(root: Path, stage: str, name: str) -> Path:
    """Make the folder of a new run. Its time is that of the clock, or where a clock was set back
    the second after the newest run: the names stay in the order in which the runs were started."""
    if not name or any(letter in name for letter in "/\\ "):
        raise ValueError(
            f"wanted a plain word as run.name, got {name!r}; type for example run.name=first"
        )
    while True:
        times = [datetime.now(), *(_time(run) + timedelta(seconds=1) for run in _runs(root, stage))]
        folder = root / stage / f"{max(times).strftime(STAMP)}_{name}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another process was faster
            continue
        except OSError as error:
            raise OSError(
                f"cannot make the run folder {folder} ({error.strerror}); "
                "type run.root=DIR for a folder you may write"
            ) from error


def newest_first(root: Path, stage: str, name: str | None = None) -> Iterator[Path]:
    """The runs of a stage, newest first; with `name`, only those of that name."""
    return (run for run in _runs(root, stage) if name is None or _parts(run)[1] == name)


def newest_begun(root: Path, stage: str, name: str) -> Path | None:
    """The newest run of this name that can be resumed; None if there is none."""
    begun = (run for run in newest_first(root, stage, name) if has_checkpoint(run))
    return next(begun, None)


def has_checkpoint(run: Path) -> bool:
    """Whether the run was saved at least once."""
    return any((run / "checkpoints" / name).is_file() for name in CHECKPOINTS)


def stored_overrides(run: Path) -> list[str]:
    """What was typed when the run was started."""
    path = run / "overrides.txt"
    return path.read_text().splitlines() if path.is_file() else []


def start_anew(run: Path) -> str:
    """What to type where a run cannot be resumed: its export, if there is one, is as good as it
    was."""
    for export in EXPORT.values():
        if list((run / export).glob("**/model.safetensors")):
            return (
                f"The exported {export} still works: to train on from it type init={run} instead "
                "of train.resume"
            )
    return "Leave out train.resume to start anew"


def check_resumed(run: Path, stage: str) -> None:
    """Raise ValueError for a run to resume that is of the other stage, or whose files about its
    start are damaged or gone."""
    path = run / "config.yaml"
    if not path.is_file():  # whoever reads the run will say so
        return
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} is damaged, which holds all settings of the run; copy it back from a backup. "
            f"Without one the run cannot be resumed. {start_anew(run)}"
        )
    if not (run / "overrides.txt").is_file():
        raise ValueError(
            f"{run} has lost its overrides.txt, which held what was typed to start it; write these "
            "settings into it again, one a line (config.yaml beside it lists all there are)"
        )
    found = "stage2" if "prior" in config else "stage1"
    if found != stage:
        raise ValueError(
            f"{run} is a run of {found}, and this is train_{stage}.py; type "
            f"python train_{found}.py train.resume={run}"
        )


def _runs(root: Path, stage: str) -> list[Path]:
    """All runs of a stage, newest first; folders of other names are none."""
    named = (path for path in (root / stage).glob("*") if NAME.fullmatch(path.name))
    return sorted(named, key=lambda run: run.name.split("_", 2)[:2], reverse=True)


def _parts(run: Path) -> tuple[str, str]:
    found = NAME.fullmatch(run.name)
    assert found is not None
    return found[1], found[2]


def _time(run: Path) -> datetime:
    try:
        return datetime.strptime(_parts(run)[0], STAMP)
    except ValueError:  # digits, but no time
        return datetime.min


def stage1_export(
    given: str,
    root: Path,
    refusal: Callable[[Path], str | None] = lambda folder: None,
    command: str = "python train_stage1.py",
) -> Path:
    """The tokenizer folder of tokenizer=PATH, or of the newest run that fits where `given` is auto.

    Raises ValueError if there is none."""
    if given == "auto":
        return newest_export(root, "stage1", refusal, command)
    for folder in (Path(given) / "tokenizer", Path(given)):
        if (folder / "model.safetensors").is_file():
            return folder
    raise ValueError(
        f"wanted tokenizer=PATH of a finished stage-1 run, got {given}, which "
        f"{'holds none' if Path(given).exists() else 'does not exist'}; look for one with: "
        f"ls {root}/stage1, or leave tokenizer out for the newest that fits"
    )


def newest_export(
    root: Path, stage: str, refusal: Callable[[Path], str | None], command: str
) -> Path:
    """The export folder of the newest run for which `refusal(folder)` is None.

    Raises ValueError with what each newer run was refused for and the command that makes a fitting
    one."""
    reasons = []
    for run in newest_first(root, stage):
        export = run / EXPORT[stage]
        finished = (export / "model.safetensors").is_file() or (export / "prior").is_dir()
        reason = refusal(export) if finished else "it has no finished export"
        if reason is None:
            for passed_over in reasons:
                print(f"passing over a newer run: {passed_over}")
            return export
        reasons.append(f"{run}: {reason}")
    found = "\n".join(f"  {reason}" for reason in reasons[:5]) or f"  there is none under {root}"
    raise ValueError(f"no {stage} run fits:\n{found}\nType: {command}")
