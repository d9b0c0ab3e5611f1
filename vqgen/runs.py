"""Run folders: runs/<stage>/<date_time>_<name>/, how a new one is named and how the newest fitting
one is found.

config.yaml  overrides.txt  metrics.csv  checkpoints/  samples/  and tokenizer/ (stage 1) or
pipeline/ (stage 2)
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXPORT = {
    "stage1": "tokenizer",
    "stage2": "pipeline",
}  # the folder inside a run that later steps read


def new(root: Path, stage: str, name: str) -> Path:
    """Make the folder of a new run; two runs started in the same second get different names."""
    if not name or any(letter in name for letter in "/\\ "):
        raise ValueError(
            f"wanted a plain word as run.name, got {name!r}; type for example run.name=first"
        )
    stamp = time.strftime("%Y%m%d_%H%M%S")
    for ending in ("", *(f"-{number:02}" for number in range(2, 100))):
        folder = root / stage / f"{stamp}{ending}_{name}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OSError(
                f"cannot make the run folder {folder} ({error.strerror}); "
                "type run.root=DIR for a folder you may write"
            ) from error
        return folder
    raise ValueError(f"could not find a free name for a run in {root / stage}")


def newest_first(root: Path, stage: str, name: str | None = None) -> Iterator[Path]:
    """The runs of a stage, newest first; with `name`, only those of that name."""
    folders = sorted(
        (root / stage).glob("*_*_*"), key=lambda path: path.name.split("_", 2)[:2], reverse=True
    )
    return (folder for folder in folders if name is None or folder.name.split("_", 2)[2] == name)


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
