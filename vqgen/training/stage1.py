"""Stage 1: train a tokenizer with its losses, and against a patch discriminator if the loss has
one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqgen import checkpoint, pictures
from vqgen.contracts import Tokenizer, TokenSpec
from vqgen.losses.stage1 import Stage1Loss
from vqgen.metrics.codebook import CodeUsage, ScaleUsage
from vqgen.metrics.reconstruction import psnr, ssim
from vqgen.training import latents
from vqgen.training.module import TrainingModule
from vqgen.training.optimizer import adamw
from vqgen.training.recipe import Recipe


class Stage1(TrainingModule[Tokenizer]):
    """Trains `tokenizer` with `loss`; validates and exports the averaged copy.

    architecture  what build.py makes the tokenizer from; facts: class names, data, image size ...
                  for the export
    usage_alarm   share of codes in use under which an alarm is printed after a validation pass
    winning_gap   mean logit of real minus fake patches above which the discriminator is winning
    small_fd      averaged tokenizer -> (name, distance of few reconstructions); the best export is
                  kept in best/
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        loss: Stage1Loss,
        recipe: Recipe,
        *,
        architecture: dict[str, Any],
        facts: dict[str, Any],
        usage_alarm: float = 0.1,
        winning_gap: float = 8.0,
        small_fd: Callable[[Tokenizer], tuple[str, float]] | None = None,
    ) -> None:
        super().__init__(tokenizer, recipe)
        self.small_fd = small_fd
        self.loss = loss
        self.architecture, self.facts = architecture, facts
        self.usage_alarm, self.winning_gap = usage_alarm, winning_gap
        spec = tokenizer.spec
        self.usage = CodeUsage(spec.vocab_size) if isinstance(spec, TokenSpec) else None
        self.scale_usage = (
            ScaleUsage(spec.vocab_size, spec.scales)
            if isinstance(spec, TokenSpec) and len(spec.scales) > 1
            else None
        )
        self._gauges: dict[str, list[float]] = {}  # of the steps since the last log line
        self._latents: dict[
            str, float
        ] = {}  # gauges of continuous latents, standardized for export
        self._sums: dict[str, Tensor] = {}
        self._shown: tuple[Tensor, Tensor] | None = None

    def configure_optimizers(self) -> list[torch.optim.AdamW]:
        recipe = self.recipe
        options = {
            "lr": recipe.schedule.lr,
            "betas": recipe.betas,
            "weight_decay": recipe.weight_decay,
        }
        optimizers = [adamw(self.model, **options)]
        if self.loss.gan is not None:
            options["weight_decay"] = 0.0
            optimizers.append(adamw(self.loss.gan, **options))
        return optimizers

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images, progress = batch["images"], self.progress
        optimizers = self.optimizers(use_pl_optimizer=True)
        generator, *discriminator = optimizers if isinstance(optimizers, list) else [optimizers]
        reconstruction = self.model(images)
        losses = self.loss.generator(images, reconstruction, self.model.last_layer, progress)
        parts = dict(losses.parts, total=losses.total.detach())
        gan = bool(discriminator) and self.loss.gan_active(progress)
        if self.is_usable(losses.total, parts, batch):
            self.manual_backward(losses.total / self.recipe.accumulate)
            if gan:
                against = self.loss.discriminator(images, reconstruction.images.detach(), progress)
                parts |= against.parts
                if self.is_usable(against.total, against.parts, batch):
                    self.manual_backward(against.total / self.recipe.accumulate)
        if not self.count_batch(images.shape[0]):
            return
        rate = self.set_learning_rate(generator, *discriminator)
        parameters = {"generator": list(self.model.parameters())}
        if gan:
            parameters["discriminator"] = self.loss.discriminator_parameters()
        norms = {
            f"norm/{name}": self.finish_step(optimizer, parameters[name], batch, name)
            for name, optimizer in zip(parameters, [generator, *discriminator], strict=False)
        }
        for name, value in self.model.after_step().items():
            self._gauges.setdefault(name, []).append(value)
        self.count_step()
        if self.is_log_step:
            self.log_step(parts, norms, rate)

    def log_step(self, parts: dict[str, Tensor], norms: dict[str, Tensor], rate: float) -> None:
        """Log losses (train/), GAN gauges (gan/), gradient norms, and the tokenizer's gauges as
        their mean per step since the last log line."""
        parts = self.over_ranks(parts)
        named = {name if "/" in name else f"train/{name}": value for name, value in parts.items()}
        named |= {f"train/{name.replace('/', '_')}": value for name, value in norms.items()}
        gauges = {name: sum(values) / len(values) for name, values in self._gauges.items()}
        self.record({**named, **gauges, "train/lr": rate})
        self._gauges = {}
        real, fake = named.get("gan/logits_real"), named.get("gan/logits_fake")
        if real is not None and fake is not None and float(real - fake) > self.winning_gap:
            self.say(
                f"ALARM step {self.counters.step}: the discriminator is winning (logits real "
                f"{float(real):.2f}, fake {float(fake):.2f}); try loss.gan.lecam_weight=0.001 or a "
                "smaller loss.gan.weight"
            )

    # ---- validation: the averaged copy, through encode and decode as users will call them

    def on_validation_epoch_start(self) -> None:
        self._sums, self._shown = {}, None
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._latents = latents.standardize_(self.average.model, data, self.device)
        if self.usage is not None:
            self.usage.reset()
        if self.scale_usage is not None:
            self.scale_usage.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images, tokenizer = batch["images"], self.average.model
        with torch.autocast(images.device.type, enabled=False):
            codes = tokenizer.encode(images)
            decoded = tokenizer.decode(codes).clamp(-1, 1)
        numbers = {"psnr": psnr(decoded, images), "ssim": ssim(decoded, images)}
        if self.loss.perceptual is not None:
            numbers["lpips"] = self.loss.perceptual(decoded, images)
        if self.usage is not None:
            self.usage.update(codes)
        if self.scale_usage is not None:
            self.scale_usage.update(codes)
        for name, values in numbers.items():
            sums = torch.stack([values.double().sum(), values.new_tensor(len(values)).double()])
            self._sums[name] = self._sums.get(name, 0) + sums
        if batch_idx == 0:
            self._shown = (pictures.to_uint8(images[:24]), pictures.to_uint8(decoded[:24]))

    def on_validation_epoch_end(self) -> None:
        numbers = {}
        for name, sums in self._sums.items():
            total, count = self.trainer.strategy.reduce(sums, reduce_op="sum")
            numbers[f"val/{name}"] = float(total / count)
        numbers |= self._latents
        if self.usage is not None:
            numbers["codebook/usage"] = self.usage.usage()
            numbers["codebook/perplexity"] = self.usage.perplexity()
            share = numbers["codebook/usage"] / max(self.usage.bound(), 1e-9)
            if share < self.usage_alarm:
                self.say(
                    f"ALARM step {self.counters.step}: only {share:.1%} of the codes that the "
                    "validation images could use are used; try a smaller "
                    "tokenizer.bottleneck.codebook.dim"
                )
        scales = self._scale_numbers()
        self.record({**numbers, **scales})
        self.facts["validation"] = {**numbers, **scales, "step": self.counters.step}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.say(f"validation at step {self.counters.step}: {shown}")
        for board in self.boards:
            if self._shown:
                board.log_picture(
                    "samples/reconstructions", pictures.pairs(*self._shown), self.counters.step
                )
            if self.usage is not None:
                board.log_counts(
                    "codebook/histogram", self.usage.counts.cpu().numpy(), self.counters.step
                )
        if self.trainer.is_global_zero:
            self.export("tokenizer")
            if self.is_best(self.small_fd, self.average.model):
                self.export("best")
        if self.average.model.standardizer is not None:  # training is the same without validation
            self.average.model.standardizer.reset_()

    def _scale_numbers(self) -> dict[str, float]:
        """What each scale of a pyramid uses, printed; nothing for tokens of one scale."""
        if self.scale_usage is None:
            return {}
        self.say(
            "codes in use / codes that this scale's tokens could use at most: "
            f"{self.scale_usage.summary()}"
        )
        has_own = self.architecture.get("bottleneck", {}).get("own_codebooks")
        cure = "codebook.update=ema" if has_own else "own_codebooks=true"
        for name, share in self.scale_usage.shares().items():
            if share < self.usage_alarm:
                self.say(
                    f"ALARM step {self.counters.step}: scale {name} uses only {share:.1%} of the "
                    f"codes that it could; try tokenizer.bottleneck.{cure}"
                )
        return self.scale_usage.numbers()

    def export(self, name: str) -> None:
        """Write the averaged tokenizer into the run's tokenizer/ (or best/) folder."""
        facts = {**self.facts, "steps": self.counters.step, "images": self.counters.samples}
        folder = Path(self.trainer.default_root_dir) / name
        checkpoint.save_model(
            folder,
            self.average.model,
            kind="tokenizer",
            architecture=self.architecture,
            facts=facts,
        )
