"""What keeps the small scales of a pyramid alive: codes in use by scale, remedy by remedy.

    python benchmarks/collapse.py [steps=300]

A small tokenizer of six scales, on the grid of the emoji recipe, is trained on squared error
alone, once per row, same seed and images. Printed are PSNR and, per scale, the codes that the 526
validation images use out of those that its tokens could use at most, min(256, positions x
images)."""

import sys
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from vqgen.data.images import ImageData
from vqgen.data.sources import emoji
from vqgen.metrics.codebook import ScaleUsage
from vqgen.metrics.reconstruction import psnr
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.multiscale import MultiScaleQuantizer
from vqgen.training.ema import EMA
from vqgen.training.optimizer import Schedule, adamw

SIZE, SCALES = 256, [1, 2, 3, 4, 6, 8]
SHAPE: dict[str, Any] = {"channels": 64, "multipliers": (1,), "patch": 4, "attention_levels": ()}
NOTHING: dict[str, Any] = {"start": "random", "revive_below": 0.0}
REVIVAL: dict[str, Any] = {"start": "random", "revive_below": 0.03, "usage_decay": 0.95}
# row -> (what the codebook is, what the quantizer is)
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no remedy": (NOTHING, {}),
    "codes from the first batch": ({**NOTHING, "start": "data"}, {}),
    "revival": (REVIVAL, {}),
    "EMA codebook": ({**NOTHING, "update": "ema"}, {}),
    "scale dropout 0.3": (NOTHING, {"scale_dropout": 0.3}),
    "a codebook per scale": (NOTHING, {"own_codebooks": True}),
    "first batch, revival, EMA": ({**REVIVAL, "start": "data", "update": "ema"}, {}),
    "the same, per scale": (
        {**REVIVAL, "start": "data", "update": "ema"},
        {"own_codebooks": True},
    ),
    "all": (
        {**REVIVAL, "start": "data", "update": "ema"},
        {"own_codebooks": True, "scale_dropout": 0.3},
    ),
}


def train_tokenizer(
    data: ImageData, codebook: dict[str, Any], quantizer: dict[str, Any], steps: int
) -> Autoencoder:
    """Squared error and the quantizer's terms, AdamW 2e-3 with a cosine, averaged weights."""
    torch.manual_seed(0)
    model = Autoencoder(
        image_size=data.image_size,
        encoder=partial(Encoder, **SHAPE, blocks=0, middle=False, kernel=1),
        decoder=partial(Decoder, **SHAPE, blocks=1, middle_attention=False),
        bottleneck=MultiScaleQuantizer(
            codebook=Codebook(size=SIZE, dim=8, **codebook), scales=SCALES, **quantizer
        ),
        z_channels=64,
    )
    average, schedule = EMA(model, 0.98), Schedule(lr=2e-3, warmup_steps=30)
    optimizer = adamw(model, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    data.samples_seen = 0
    for step, batch in zip(range(steps), data.train_dataloader(), strict=False):
        images = data.on_after_batch_transfer(batch, 0)["images"].contiguous()
        optimizer.param_groups[0]["lr"] = schedule.at(step, step / steps)
        made = model(images)
        error = functional.mse_loss(made.images, images)
        (error + sum(made.losses.values())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        average.update(model, step)
    return average.model


def main() -> None:
    """One row per remedy."""
    steps = int(sys.argv[1].removeprefix("steps=")) if len(sys.argv) > 1 else 300
    data = emoji(size=32, flip=True, global_batch=16, seed=0)
    batches = [data.on_after_batch_transfer(b, 0)["images"] for b in data.val_dataloader()]
    images = torch.cat(batches)
    print(f"{steps} steps of 16; codes in use / codes that the scale could use\n")
    print(f"{'remedies':<28}{'PSNR':>7}  scales")
    for name, (codebook, quantizer) in ROWS.items():
        model = train_tokenizer(data, codebook, quantizer, steps)
        with torch.no_grad():
            tokens = model.encode(images)
            quality = psnr(model.decode(tokens).clamp(-1, 1), images).mean()
        usage = ScaleUsage(SIZE, [(side, side) for side in SCALES])
        usage.update(tokens)
        print(f"{name:<28}{float(quality):>7.2f}  {usage.summary()}", flush=True)


if __name__ == "__main__":
    main()
