"""plan=true: what a run will take, told before anything is loaded."""

from typing import Any

from torch import nn

from vqgen.training import launch, trial

# bytes per trained parameter, all in float32: weight, gradient, two moments of Adam, average
WEIGHT = GRADIENT = AVERAGE = 4
MOMENTS = 8


def plan(
    settings: dict[str, Any],
    model: nn.Module,
    *,
    devices: int,
    micro: int,
    others: nn.Module | None = None,
    images: int | None = None,
    make: trial.Trial | None = None,
    device: str = "cpu",
    precision: str = "32-true",
) -> dict[str, str]:
    """Rows of a table: parameters, memory per device, steps, disk.

    model   what is trained, on the meta device; others: trained beside it (a discriminator)
    micro   images per device and micro-batch
    images  of the training set, if known without loading it
    make    builds model and loss for the steps that are timed on `device`; None: no time is told
    Activations are not counted: they grow with the micro-batch, and trainer.recompute=true cuts
    them down to one input per block.
    Raises ValueError for a budget or schedule that training would refuse."""
    train, trainer = settings["train"], settings["trainer"]
    recipe = launch.recipe(train)
    own, beside = count(model), count(others) if others is not None else 0
    sharded = trainer["strategy"] == "fsdp"
    state = (own + beside) * (WEIGHT + GRADIENT + MOMENTS) + own * AVERAGE
    saved = (own + beside) * (WEIGHT + MOMENTS) + own * AVERAGE
    steps, minutes = recipe.budget.max_steps, recipe.budget.max_minutes
    rows = {
        "parameters": f"{own:,}" + (f" and {beside:,} of the discriminator" if beside else ""),
        "devices": f"{devices}, strategy {trainer['strategy']}",
        "memory per device": f"{gib(state / devices if sharded else state)} of weights, gradients, "
        "Adam and average (DDP exchanges the gradients in place); activations come on top",
        "micro-batch": f"{micro} images per device, {train['accumulate']} per step",
        "budget": " or ".join(
            f"{limit:,} {unit}" for limit, unit in ((steps, "steps"), (minutes, "minutes")) if limit
        ),
        "disk": f"{gib(2 * saved)} for two checkpoints, "
        f"half as much again while one is written, {gib(own * WEIGHT)} for the export",
    }
    if steps:
        seen = steps * train["global_batch"]
        epochs = f", {seen / images:.1f} epochs of {images:,}" if images else ""
        rows["images seen"] = f"{seen:,}{epochs}"
    if make is not None:
        options: Any = {"device": device, "precision": precision, "state": state, "micro": micro}
        rows["time"] = trial.time_row(settings, make, **options)
    return rows


def show(rows: dict[str, str]) -> int:
    """Print the table; returns the exit code 0."""
    print("\n".join(f"  {name:<18} {value}" for name, value in rows.items()))
    print("  the config is sound; leave out plan=true to start")
    return 0


def count(model: nn.Module) -> int:
    """Trained parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def gib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
