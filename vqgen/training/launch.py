"""Train in an open run folder and leave with an exit code. Both stages start here."""

import logging
import math
import warnings
from typing import Any

import torch
from filelock import FileLock
from lightning import LightningDataModule
from torch import nn

from vqgen.training import devices, opening, switches
from vqgen.training.callbacks import Console, SaveRun
from vqgen.training.logs import Board, FileBoard
from vqgen.training.module import TrainingModule
from vqgen.training.opening import Run
from vqgen.training.optimizer import Schedule
from vqgen.training.recipe import Budget, Recipe

# numbers of the `train` node that have to be given, and the least that they may be
LEAST = {
    **dict.fromkeys(("log_every", "validate_every", "save_every", "accumulate"), 1),
    **dict.fromkeys(("lr", "lr_end", "warmup_steps", "weight_decay", "ema", "seed"), 0),
}
LARGEST_SEED = 2**32 - 1  # that numpy takes
SLOW_ON_CPU = 30_000_000  # trained parameters; emoji recipes: 2 to 8 million, usual tokenizer: 72


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
    devices.once(lambda: opening.hold(lock, run.folder))
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


def print_recipe(settings: dict[str, Any], derived: dict[str, Any]) -> None:
    """The whole resolved recipe as one table, with the derived numbers last."""
    if not devices.is_first():
        return
    rows = opening.flatten(settings) | derived
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
