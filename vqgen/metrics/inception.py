"""The Inception network of published FIDs, as torch-fidelity ported it, with its own TF1 resize."""

from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from einops import rearrange
from torch import Tensor

from vqgen.metrics.features import Extracted, Features

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
PATIENCE = 10.0  # seconds for the server's first answer
SPATIAL_CHANNELS = 7  # of the 17 x 17 map that sFID reads


class Inception(Features):
    """The 2015 Inception-v3 graph: pooled 2048 (FID), 7 channels of mixed_6/conv (sFID), logits
    without bias (Inception Score).

    weights  file of torch-fidelity's weights; None: the torch hub cache, else a download
    Raises ValueError if they cannot be had."""

    name = "inception"
    is_fid = True
    preprocessing = {  # noqa: RUF012 (never changed)
        "resize": "bilinear as TensorFlow 1 does it, no antialias, not rounded, whole image",
        "size": [299, 299],
        "range": "0..255",
        "mean": [128.0] * 3,
        "std": [128.0] * 3,
        "color": "RGB",
    }

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                "features=inception needs torch-fidelity; type: pip install vqgen[fid]"
            ) from error
        path = find_weights(weights)
        try:  # torch-fidelity unpickles anything: let only plain tensors come that far
            torch.load(path, map_location="cpu", weights_only=True)
            self.network: Any = FeatureExtractorInceptionV3(
                "vqgen", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except Exception as error:
            raise ValueError(
                f"{path} does not hold torch-fidelity's Inception weights "
                f"({type(error).__name__}); download {URL}"
            ) from error

    def forward(self, images: Tensor) -> Extracted:
        """pooled [n, 2048], spatial [n, 2023], probabilities [n, 1008]."""
        kept: list[Tensor] = []
        # TensorFlow counts the mixed blocks from 5b: its mixed_6 is 6d
        hook = self.network.Mixed_6d.branch1x1.register_forward_hook(
            lambda module, given, made: kept.append(made[:, :SPATIAL_CHANNELS])
        )
        pooled, logits = self.network(images)
        hook.remove()
        spatial = rearrange(kept[0], "n c h w -> n (h w c)")  # the layout of ADM's mu_s, sigma_s
        return Extracted(pooled, spatial, logits.softmax(dim=1))


def find_weights(weights: str | None) -> Path:
    """The file to read: the one given, the one in the torch hub cache, or a fresh download."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if weights is not None:
        if not Path(weights).is_file():
            what = "is no file" if Path(weights).exists() else "does not exist"
            raise ValueError(f"wanted weights=PATH of {FILE}, but {weights} {what}")
        return Path(weights)
    if cached.is_file():
        return cached
    try:
        with urlopen(Request(URL, method="HEAD"), timeout=PATIENCE):
            pass
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(cached), hash_prefix="6726825d", progress=False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot get the Inception weights ({error}). Put {FILE} (from {URL}) into "
            f"{cached.parent} or type weights=PATH; without a network type "
            "features=efficientnet_lite0"
        ) from error
    return cached
