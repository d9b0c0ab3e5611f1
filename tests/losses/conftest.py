"""No test of the losses may reach for a network or for the real torch hub cache."""

import pytest
import torch

from vqgen.losses import backbone, perceptual


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(backbone, "_answers", lambda url: False)
    perceptual._warn_once.cache_clear()
