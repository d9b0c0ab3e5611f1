"""How long a training step takes on this machine: a few are made of random numbers, and thrown
away."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vqgen.contracts import Condition, LatentSpec, Prior, Size, Tokenizer, TokenSpec
from vqgen.losses.stage1 import Stage1Loss
from vqgen.training import switches

MOST_ON_A_CPU = 8  # images at once: more would prove nothing, and may take hours
STEPS, SECONDS = 4, 20.0  # steps tried; no more are begun after so many seconds

# images -> (what is trained, a function that computes the loss of so many random images)
Trial = Callable[[int], tuple[nn.Module, Callable[[], Tensor]]]


def time_row(
    settings: dict[str, Any], make: Trial, *, device: str, precision: str, state: float, micro: int
) -> str:
    """The row of a plan that tells how long its steps will take, or why that was not measured.

    make    builds model and loss on `device`; called only if the model fits there
    state   bytes of weights, gradients and optimizer; micro: images per device and micro-batch"""
    if settings["trainer"]["accelerator"] in ("gpu", "cuda") and device != "cuda":
        return "not measured: there is no GPU here"
    if state > _free(device) / 2:
        return f"not measured: the whole model does not fit on this machine's {device}"
    images = min(micro, MOST_ON_A_CPU) if device == "cpu" else micro
    try:
        with torch.device(device):
            model, loss = make(images)
        switches.apply_(model, recompute=settings["trainer"]["recompute"])
        seconds = _seconds(model, loss, device, precision) * micro / images
    except torch.OutOfMemoryError:
        return f"not measured: {micro} images at once do not fit on this machine's {device}"
    train = settings["train"]
    step = seconds * train["accumulate"]
    how = (
        f"{step:.3g} s per step, measured just now on this machine's {device} in {precision} with "
        f"random weights and {images} images at once; data, validation and the exchange between "
        "devices come on top"
    )
    if train["max_steps"]:
        return f"{_words(step * train['max_steps'])} for {train['max_steps']:,} steps: {how}"
    return f"about {60 * train['max_minutes'] / step:,.0f} steps: {how}"


def of_tokenizer(
    make_tokenizer: Callable[[], Tokenizer], make_loss: Callable[[], Stage1Loss], size: Size
) -> Trial:
    """A late step of stage 1, in which the discriminator takes part."""

    def make(count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        tokenizer, loss = make_tokenizer(), make_loss()
        images = torch.rand(count, 3, *size) * 2 - 1

        def total() -> Tensor:
            made = tokenizer(images)
            found = loss.generator(images, made, tokenizer.last_layer, 1.0).total
            if loss.gan_active(1.0):
                found = found + loss.discriminator(images, made.images.detach(), 1.0).total
            return found

        return tokenizer, total

    return make


def of_prior(
    make_both: Callable[[], tuple[Tokenizer, Prior]], num_classes: int, encodes: bool
) -> Trial:
    """A step of stage 2, which without a cache `encodes` its images."""

    def make(count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        tokenizer, prior = make_both()
        tokenizer.eval()

        def total() -> Tensor:
            if encodes:
                with torch.no_grad():
                    tokenizer.encode(torch.randn(count, 3, *tokenizer.image_size))
            return prior.loss(_latents(prior.spec, count), _condition(count, num_classes)).total

        return prior, total

    return make


def _latents(spec: LatentSpec, count: int) -> Tensor:
    if isinstance(spec, TokenSpec):
        return torch.randint(spec.vocab_size, (count, spec.length))
    return torch.randn(count, spec.channels, spec.height, spec.width)


def _condition(count: int, num_classes: int) -> Condition:
    if num_classes:
        return Condition.of_labels(torch.randint(num_classes, (count,)))
    return Condition(batch=count)


def _seconds(model: nn.Module, loss: Callable[[], Tensor], device: str, precision: str) -> float:
    """Of one micro-batch and one optimizer step; the first, which warms up, does not count."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    taken: list[float] = []
    while len(taken) < STEPS and sum(taken) < SECONDS:
        started = time.perf_counter()
        with (
            torch.device(device),
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"),
        ):
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:] or taken)


def _free(device: str) -> float:
    """Bytes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _words(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
