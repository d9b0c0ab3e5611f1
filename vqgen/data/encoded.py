"""Batches of latents for stage 2: the images of a data module, encoded by the frozen tokenizer on
the fly."""

from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule

from vqgen.contracts import Tokenizer

if TYPE_CHECKING:
    from vqgen.data.images import ImageData


class EncodedImages(LightningDataModule):
    """The same batches as `images`, with latents (as tokenizer.spec says) in place of images."""

    def __init__(self, images: "ImageData", tokenizer: Tokenizer) -> None:
        super().__init__()
        self.images = images
        self.tokenizer = tokenizer.eval().requires_grad_(False)

    @property
    def samples_seen(self) -> int:
        """Where the data order goes on after a resume."""
        return self.images.samples_seen

    @samples_seen.setter
    def samples_seen(self, count: int) -> None:
        self.images.samples_seen = count

    def train_dataloader(self) -> Any:
        """Endless training batches, not yet encoded."""
        return self.images.train_dataloader()

    def val_dataloader(self) -> Any:
        """Every validation image once."""
        return self.images.val_dataloader()

    @torch.no_grad()
    def on_after_batch_transfer(
        self, batch: dict[str, torch.Tensor], dataloader_idx: int
    ) -> dict[str, torch.Tensor]:
        """Encode on the training device, in float32: tokens do not depend on the training
        precision."""
        batch = self.images.on_after_batch_transfer(batch, dataloader_idx)
        images = batch.pop("images")
        with torch.autocast(images.device.type, enabled=False):
            return {"latents": self.tokenizer.to(images.device).encode(images), **batch}
