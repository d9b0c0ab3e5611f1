"""Stochastic depth: whole samples are dropped, the mean stays, eval passes through."""

import subprocess
import sys

import pytest
import torch

from vqgen.nn.drop_path import DropPath, rates


def test_whole_samples_are_dropped_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(20000, 2, 3)
    y = drop(x)
    assert torch.equal(y.amin(dim=(1, 2)), y.amax(dim=(1, 2)))  # a sample is one number
    torch.testing.assert_close(y.unique(), torch.tensor([0, 4 / 3]))
    assert abs(float(y.mean()) - 1) < 0.02
    assert drop.eval()(x) is x and DropPath(0.0)(x) is x


def test_rates_rise_to_that_of_the_last_block() -> None:
    assert rates(0.5, 3) == [0, 0.25, 0.5] and rates(0.5, 1) == [0]


@pytest.mark.parametrize("drop_path", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_rate_that_drops_all_is_refused(drop_path: float, depth: int) -> None:
    with pytest.raises(ValueError, match=f"prior.drop_path from 0 to below 1, got {drop_path:g}"):
        rates(drop_path, depth)


def test_sampling_does_not_import_torchvision() -> None:
    words = "import sys, vqgen.pipeline, vqgen.priors.var, vqgen.priors.llamagen\n"
    words += "assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", words], check=True)
