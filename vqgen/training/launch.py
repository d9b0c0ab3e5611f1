"""Open a run folder (new, or to be resumed), train in it, and leave with an exit code. Both stages
start here."""

import logging
import math
import sys
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from lightning import LightningDataModule
from torch import nn

from vqgen import checkpoint, commands, runs
from vqgen.training import devices, switches
from vqgen.training.callbacks import Console, SaveRun
from vqgen.training.logs import Board, FileBoard
from vqgen.training.module import TrainingModule
from vqgen.training.optimizer import Schedule
from vqgen.training.recipe import Budget, Counters, Recipe

# settings that a resumed run may change without becoming another experiment
FREE = (
    *("train.max_", "train.resume", "train.log_every", "train.validate_every", "train.save_every"),
    *("logger.", "trainer.", "run.", "preview.", "plan", "small_fd."),
    # how the same batches reach the devices; a smaller machine needs other ones
    *("train.accumulate", "data.workers", "data.cache_mb", "data.verify"),
)
# numbers of the `train` node that have to be given, and the least that they may be
LEAST = {
    **dict.fromkeys(("log_every", "validate_every", "save_every", "accumulate"), 1),
    **dict.fromkeys(("lr", "lr_end", "warmup_steps", "weight_decay", "ema", "seed"), 0),
}
LARGEST_SEED = 2**32 - 1  # that numpy takes
SLOW_ON_CPU = 30_000_000  # trained parameters; the emoji recipes have fewer than 20 million


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


def recipe(train: dict[str, Any]) -> Recipe:
    """The `train` node as the recipe both stages share. Raises ValueError for numbers out of
    range."""
    for name, least in LEAST.items():
        if not isinstance(train[name], int | float) or not least <= train[name] < math.inf:
            raise ValueError(
                f"wanted train.{name} as a number of at least {least}, got {train[name]}; leave "
                f"it out for the recipe's own"
            )
    if not isinstance(train["seed"], int) or train["seed"] > LARGEST_SEED:
        raise ValueError(
            f"wanted train.seed as a whole number from 0 to {LARGEST_SEED}, got {train['seed']}; "
            "type train.seed=0"
        )
    betas: Any = train["betas"]
    betas = tuple(betas) if isinstance(betas, list) else (betas,)  # two, or it is refused
    return Recipe(
        budget=Budget(train["max_steps"], train["max_minutes"]),
        schedule=Schedule(train["lr"], train["lr_end"], train["warmup_steps"]),
        betas=betas,
        weight_decay=train["weight_decay"],
        clip=train["clip"],
        ema=train["ema"],
        accumulate=train["accumulate"],
        log_every=train["log_every"],
    )


def train(
    module: TrainingModule,
    data: LightningDataModule,
    run: Run,
    settings: dict[str, Any],
    *,
    boards: list[Board],
    precision: str,
) -> int:
    """Train to the end of the budget, validate, export.

    boards  where numbers and pictures go besides the files of the run folder
    Returns 0, or 128 + signal if one asked the run to leave."""
    lock = FileLock(run.folder / ".lock")  # the system lets go of it when the process dies
    devices.once(lambda: _begin(lock, run.folder))
    switched = {name: settings["trainer"].get(name, False) for name in devices.SWITCHES}
    switches.apply_(module.model, **switched)
    files = FileBoard(run.folder)
    files.rewind(run.counters.step)
    boards = [files, *boards]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training")  # the EMA
    warnings.filterwarnings("ignore", message=".*does not have many workers")  # data in memory
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # inside Lightning
    options = settings["train"]
    saver = SaveRun(run.folder, options["save_every"], options["validate_every"])
    lightning = devices.trainer(
        settings["trainer"],
        some_unused=module.some_unused,
        precision=precision,
        default_root_dir=run.folder,
        logger=boards,
        callbacks=[Console(), saver],
        max_epochs=-1,
        max_steps=-1,
        val_check_interval=int(options["validate_every"]) * module.recipe.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares batches out itself
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module.counters = run.counters
    if module.progress >= 1 and devices.is_first():
        print(f"nothing is left to train: {_used_up(run, module.recipe.budget)}")
    is_due = module.progress >= 1 or run.counters.step % options["validate_every"] == 0
    stored = {"ckpt_path": run.checkpoint, "weights_only": True}
    try:
        with saver.listening():
            if run.checkpoint and is_due:  # it was stopped in this validation, if not after it
                lightning.validate(module, data, verbose=False, **stored)
            lightning.fit(module, data, **stored)
            if saver.signal is None and module.counters.step != module.validated_step:
                lightning.validate(module, data, verbose=False)
    except (RuntimeError, ConnectionError) as error:
        found = _explained(error, module)
        if found is None:
            raise
        sentence, cure = found
        again = run.again(settings["trainer"], cure)
        raise OSError(f"{sentence}; to go on with {cure} type: {again}") from error
    finally:
        lock.release()
        for board in boards:
            board.close()
    if saver.signal is None:
        return 0
    if lightning.is_global_zero:
        print(
            f"saved and left on signal {saver.signal} at step {module.counters.step}; to go on "
            f"type: {run.again(settings['trainer'])}"
        )
    return 128 + saver.signal


def _used_up(run: Run, budget: Budget) -> str:
    """That the budget is, and what to type to train on."""
    spent = {"max_steps": run.counters.step, "max_minutes": run.counters.seconds / 60}
    limits = {name: limit for name, limit in vars(budget).items() if limit is not None}
    used = [name for name, limit in limits.items() if spent[name] >= limit]
    return (
        f"{run.folder} is at step {run.counters.step} and has used up its budget ("
        f"{', '.join(f'train.{name}={limits[name]}' for name in used)}); it is validated and "
        "exported once more. To train on type "
        f"{' '.join(f'train.{name}={2 * limits[name]}' for name in used)}, say"
    )


def _explained(error: Exception, module: TrainingModule) -> tuple[str, str] | None:
    """What happened and the override that helps; None for an error of another kind."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    # a loader process that dies while it hands over a batch leaves a broken connection
    if "DataLoader worker" in first or isinstance(error, ConnectionError):
        return f"a loader process died ({first}), often for lack of memory", "data.workers=0"
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in first:
        smaller = f"train.accumulate={2 * module.recipe.accumulate}"
        return f"out of memory at step {module.counters.step} ({first})", smaller
    return None


def _begin(lock: FileLock, folder: Path) -> None:
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


def _clear(folder: Path) -> None:
    """Remove what a killed process had half written; only for who holds the folder's lock."""
    for half in folder.glob(f"**/{checkpoint.HALF_WRITTEN}"):
        half.unlink()


def _clear_if_left(folder: Path) -> None:
    """The same for a folder of others, if none trains in it and it may be written."""
    with suppress(Timeout, OSError), FileLock(folder / ".lock", timeout=0):
        _clear(folder)


def print_recipe(settings: dict[str, Any], derived: dict[str, Any]) -> None:
    """The whole resolved recipe as one table, with the derived numbers last."""
    if not devices.is_first():
        return
    rows = _flatten(settings) | derived
    width = max(len(key) for key in rows)
    print("\n".join(f"  {key:<{width}}  {value}" for key, value in rows.items()), flush=True)


def hint_at_size(model: nn.Module, device: str, small: str) -> None:
    """One line where a big model is about to be trained on a CPU. small: what to type for less."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if device == "cpu" and count > SLOW_ON_CPU and devices.is_first():
        print(
            f"hint: {count / 1e6:.0f} million parameters take long on a CPU; for a small model "
            f"type {small}; plan=true tells the time and memory of a run and leaves",
            flush=True,
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
    before = _flatten(yaml.safe_load((run / "config.yaml").read_text()))
    now = _flatten(yaml.safe_load(yaml.safe_dump(settings)))
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


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        rows |= _flatten(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return rows
