"""Latent statistics against torch's own of everything at once."""

import torch

from vqgen.metrics.latents import LatentStatistics


def test_statistics_are_those_of_everything_at_once() -> None:
    x = torch.randn(20, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    x = (
        x * torch.tensor([0.01, 1.0, 30.0])[:, None, None]
        + torch.tensor([5.0, 0.0, -9.0])[:, None, None]
    )
    found = LatentStatistics(3)
    for part in x.split(7):
        found.update(part)
    whole = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean, whole.mean(1))
    torch.testing.assert_close(found.deviation, whole.std(1, correction=0))


def test_a_constant_channel_has_no_deviation() -> None:
    found = LatentStatistics(1)
    found.update(torch.full((4, 1, 2, 2), 3.0))
    assert found.mean.tolist() == [3.0] and found.deviation.tolist() == [0.0]
