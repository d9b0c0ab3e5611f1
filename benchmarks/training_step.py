"""One stage-1 generator step, forward and backward: bf16 channels_last against float32 contiguous,
in one run.

`python benchmarks/training_step.py` prints images per second of each way and the ratio, for the
emoji tokenizer's shape and for a plain 64-channel VQGAN at 64 px."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from vqgen.nn.autoencoder import Decoder, Encoder
from vqgen.tokenizers.autoencoder import Autoencoder
from vqgen.tokenizers.codebook import Codebook
from vqgen.tokenizers.vq import VectorQuantizer


def tokenizer(size: int, decoder: dict[str, Any], **encoder: Any) -> Autoencoder:
    """A VQ autoencoder of this convolutional shape, 1,024 codes of 8 numbers. The encoder has the
    decoder's settings unless told otherwise."""
    return Autoencoder(
        image_size=(size, size),
        encoder=partial(Encoder, **{**decoder, **encoder}),
        decoder=partial(Decoder, **decoder),
        bottleneck=VectorQuantizer(codebook=Codebook(size=1024, dim=8)),
        z_channels=64,
    )


def step(model: Autoencoder, images: torch.Tensor, bf16: bool) -> None:
    """Forward, loss, backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        reconstruction = model(images)
    loss = functional.l1_loss(reconstruction.images.float(), images)
    (loss + sum(reconstruction.losses.values())).backward()
    model.zero_grad()


def seconds(run: Callable[[], None], repeats: int) -> float:
    """The fastest of some repeats, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def compare(name: str, model: Autoencoder, batch: int, repeats: int = 5) -> None:
    """Print images per second of four ways and their ratio to float32 contiguous."""
    images = torch.rand(batch, 3, *model.image_size) * 2 - 1
    base = None
    for bf16 in (False, True):
        for layout in (torch.contiguous_format, torch.channels_last):
            model = model.to(memory_format=layout)
            given = images.contiguous(memory_format=layout)
            took = seconds(lambda m=model, x=given, b=bf16: step(m, x, b), repeats)
            base = base or took
            kind = f"{'bf16' if bf16 else 'float32'} {str(layout).split('.')[-1]}"
            print(f"{name:<22}{kind:<28}{batch / took:8.1f} images/s   {base / took:5.2f}x")


def main() -> None:
    """Both shapes."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "channels": 128,
        "multipliers": (1,),
        "blocks": 3,
        "patch": 4,
        "attention_levels": (),
    }
    shape["middle_attention"] = False
    emoji = tokenizer(32, shape, blocks=0, middle=False, kernel=1)
    compare("emoji tokenizer", emoji, batch=16)
    plain = {"channels": 64, "multipliers": (1, 1, 2, 2), "blocks": 1}
    compare("64-channel VQGAN", tokenizer(64, plain), batch=8)


if __name__ == "__main__":
    main()
