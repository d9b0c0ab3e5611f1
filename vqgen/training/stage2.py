"""Stage 2: train a prior over the frozen latents of a tokenizer; whatever the family, the loop is
this one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vqgen import checkpoint
from vqgen.contracts import Condition, Prior, TokenSpec
from vqgen.metrics.units import bits_per_dimension, bits_per_token, uniform_bits
from vqgen.training import sharding
from vqgen.training.module import TrainingModule
from vqgen.training.optimizer import adamw
from vqgen.training.recipe import Recipe


class Stage2(TrainingModule[Prior]):
    """Trains `prior` on batches of latents; validates (code length) and exports the averaged copy.

    image_size    (height, width) of the images, for bits per dimension
    preview       averaged prior -> a picture, uint8 [height, width, 3]: the sample sheet made at
                  each validation
    tokenizer     folder of the tokenizer's export, copied beside the prior so that one folder
                  samples
    architecture  what build.py makes the prior from; facts: class names, recipe ... for the export
    small_fd      averaged prior -> (name, distance of few samples); the best is kept in best/
    """

    some_unused: ClassVar[bool] = False  # every loss reaches the whole prior

    def __init__(
        self,
        prior: Prior,
        recipe: Recipe,
        *,
        image_size: tuple[int, int],
        preview: Callable[[Prior], np.ndarray],
        tokenizer: Path,
        architecture: dict[str, Any],
        facts: dict[str, Any],
        small_fd: Callable[[Prior], tuple[str, float]] | None = None,
    ) -> None:
        super().__init__(prior, recipe)
        self.small_fd = small_fd
        self.image_size, self.preview, self.tokenizer_folder = image_size, preview, tokenizer
        self.architecture, self.facts = architecture, facts
        self._blueprint: list[Prior] = []  # in a list, as it is no part of this module
        self._bits: dict[str, Tensor] = {}  # by part of the code length: (sum, images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return adamw(
            self.model, lr=recipe.schedule.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )

    def configure_model(self) -> None:
        """Under trainer=fsdp: shard model and average, once."""
        if self._device_mesh is None or self._blueprint:
            return
        self._blueprint = [sharding.blueprint(self.average.model)]
        mesh = self._device_mesh["data_parallel"]
        for prior in (self.model, self.average.model):
            sharding.shard_(prior, mesh, ("loss", "bits_by_part"))

    def assembled_average(self) -> Prior:
        """The averaged prior, whole; every process has to call it."""
        if not self._blueprint:
            return self.average.model
        return sharding.assemble(self.average.model, self._blueprint[0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        latents = batch["latents"]
        losses = self.model.loss(latents, condition_of(batch))
        parts = dict(losses.parts, total=losses.total.detach())
        if self.is_usable(losses.total, parts, batch):
            self.manual_backward(losses.total / self.recipe.accumulate)
        if not self.count_batch(latents.shape[0]):
            return
        optimizer: Any = self.optimizers()
        rate = self.set_learning_rate(optimizer)
        norm = self.finish_step(optimizer, list(self.model.parameters()), batch)
        self.count_step()
        if self.is_log_step:
            named = {f"train/{name}": value for name, value in self.over_ranks(parts).items()}
            self.record({**named, "train/norm": norm, "train/lr": rate})

    # ---- validation: code length of the validation set under the averaged copy

    def on_validation_epoch_start(self) -> None:
        self._bits = {}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            parts = self.average.model.bits_by_part(batch["latents"], condition_of(batch))
        for name, bits in parts.items():
            sums = torch.stack([bits.double().sum(), bits.new_tensor(len(bits)).double()])
            self._bits[name] = self._bits.get(name, 0) + sums

    def on_validation_epoch_end(self) -> None:
        parts = {}
        for name, sums in self._bits.items():
            total, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
            parts[name] = total / count
        bits, spec, kind = sum(parts.values()), self.model.spec, self.model.likelihood
        if isinstance(spec, TokenSpec):
            uniform = uniform_bits(spec)
            numbers = {
                "val/bits_per_dimension": float(bits_per_dimension(bits, self.image_size)),
                "val/bits_per_token": float(bits_per_token(bits, spec.length)),
                "val/bits_per_token_uniform": uniform / spec.length,
                "val/bits_per_dimension_uniform": float(
                    bits_per_dimension(uniform, self.image_size)
                ),
            }
            numbers |= {
                f"val/bits_per_token/{name}": float(bits_per_token(parts[name], length))
                for name, length in spec.lengths.items()
                if name in parts  # a prior that tells the scales apart
            }
        else:  # bits of a density: pixels have no part in them, and they may be negative
            kind = f"density {kind}"
            size = spec.channels * spec.height * spec.width
            numbers = {"val/bits_per_latent_dimension": float(bits / size)}
        if len(parts) > 1:
            numbers |= {f"val/bits/{name}": float(value) for name, value in parts.items()}
        self.record(numbers)
        self.facts["validation"] = {**numbers, "likelihood": kind, "step": self.counters.step}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        prior = self.assembled_average()
        if self.trainer.is_global_zero:
            print(f"validation at step {self.counters.step} ({kind} likelihood): {shown}")
            self._log_preview(prior)
            self.export(prior, "pipeline")
            if self.is_best(self.small_fd, prior):
                self.export(prior, "best")

    def _log_preview(self, prior: Prior) -> None:
        try:
            picture = self.preview(prior)
        except ValueError as error:  # samples that are not finite: no reason to lose the run
            print(f"ALARM step {self.counters.step}: no sample sheet: {error}")
            return
        for board in self.boards:
            board.log_picture("samples/by_class", picture, self.counters.step)

    def export(self, prior: Prior, name: str) -> None:
        """Write the run's pipeline/ (or best/) folder: the tokenizer as it was given and the
        averaged prior."""
        folder = Path(self.trainer.default_root_dir) / name
        checkpoint.copy_model(self.tokenizer_folder, folder / "tokenizer")
        facts = {**self.facts, "steps": self.counters.step, "images": self.counters.samples}
        checkpoint.save_model(
            folder / "prior",
            prior,
            kind="prior",
            architecture=self.architecture,
            facts=facts,
        )


def condition_of(batch: dict[str, Tensor]) -> Condition:
    """The condition that a batch of the data module carries: its labels, or none."""
    if "labels" in batch:
        return Condition.of_labels(batch["labels"])
    return Condition(batch=batch["latents"].shape[0])
