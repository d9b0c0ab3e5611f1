"""How far the encoder of the emoji tokenizer sees, against PSNR and against what a prior pays for
the tokens.

`python benchmarks/encoder_reach.py` trains each encoder for 1,200 steps of 16 images (squared error
only, one seed), then the same small transformer for 400 steps of 32 on its tokens, and prints
validation PSNR, perplexity of the codes, and validation bits per token of 10. Some minutes a row.
"""

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from vqgen.contracts import Condition
from vqgen.data.images import ImageData
from vqgen.data.sources import emoji
from vqgen.metrics.codebook import CodeUsage
from vqgen.metrics.reconstruction import psnr
from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.priors.llamagen import LlamaGen
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.vq import VectorQuantizer
from vqgen.training.ema import EMA
from vqgen.training.optimizer import Schedule, adamw

SHAPE: dict[str, Any] = {
    "channels": 128,
    "multipliers": (1,),
    "attention_levels": (),
    "middle_attention": False,
    "patch": 4,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "3x3, one block and middle": {"blocks": 1, "kernel": 3},
    "3x3 output only": {"blocks": 0, "middle": False, "kernel": 3},
    "1x1 output only": {"blocks": 0, "middle": False, "kernel": 1},
}


def train_tokenizer(data: ImageData, encoder: dict[str, Any], steps: int = 1200) -> Autoencoder:
    """Squared error and commitment, AdamW 2e-3 with a cosine, averaged weights."""
    torch.manual_seed(0)
    codebook = Codebook(size=1024, dim=8, update="ema", usage_decay=0.985)
    model = Autoencoder(
        image_size=data.image_size,
        encoder=partial(Encoder, **SHAPE, **encoder),
        decoder=partial(Decoder, **SHAPE, blocks=3),
        bottleneck=VectorQuantizer(codebook=codebook),
        z_channels=64,
    )
    average, schedule = EMA(model, 0.99), Schedule(lr=2e-3, warmup_steps=50)
    optimizer = adamw(model, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for step, batch in zip(range(steps), data.train_dataloader(), strict=False):
        images = data.on_after_batch_transfer(batch, 0)["images"].contiguous()
        optimizer.param_groups[0]["lr"] = schedule.at(step, step / steps)
        with torch.autocast("cpu", torch.bfloat16):
            made = model(images)
        error = functional.mse_loss(made.images.float(), images)
        (error + sum(made.losses.values())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        average.update(model, step)
    return average.model


def bits_per_token(
    model: Autoencoder, data: ImageData, val: torch.Tensor, steps: int = 400
) -> float:
    """Validation bits per token of a transformer of three layers of 128."""
    torch.manual_seed(0)
    prior, schedule = (
        LlamaGen(model.spec, width=128, depth=3, heads=4),
        Schedule(lr=3e-3, warmup_steps=30),
    )
    optimizer = adamw(prior, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.05)
    data.samples_seen = 0
    batches = iter(data.train_dataloader())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = schedule.at(step, step / steps)
        pair = [data.on_after_batch_transfer(next(batches), 0)["images"] for _ in range(2)]
        tokens = model.encode(torch.cat(pair))
        prior.loss(tokens, Condition(len(tokens))).total.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        bits = prior.eval().bits(val, Condition(len(val)))
    return float(bits.mean()) / val.shape[1]


def main() -> None:
    """One row per encoder."""
    data = emoji(size=32, flip=True, global_batch=16, seed=0)
    batches = [data.on_after_batch_transfer(b, 0)["images"] for b in data.val_dataloader()]
    images = torch.cat(batches)
    print(f"{'encoder':<28}{'PSNR':>8}{'perplexity':>12}{'bits/token':>12}")
    for name, encoder in ENCODERS.items():
        data.samples_seen = 0
        model = train_tokenizer(data, encoder)
        with torch.no_grad():
            tokens = model.encode(images)
            quality = psnr(model.decode(tokens).clamp(-1, 1), images).mean()
        usage = CodeUsage(1024)
        usage.update(tokens)
        bits = bits_per_token(model, data, tokens)
        print(
            f"{name:<28}{float(quality):>8.2f}{usage.perplexity():>12.0f}{bits:>12.2f}", flush=True
        )


if __name__ == "__main__":
    main()
