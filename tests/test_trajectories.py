"""Two moons are learned on every path, and samples travel as the lecture's figure shows."""

import pytest
import torch

from scripts.trajectories import PATHS, WIDTH, detour, learn, off_line, travel, two_moons


def distance_to(places: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Each place's distance to the nearest of the data, both [count, 2]."""
    return torch.cdist(places, data).amin(dim=1)


def test_the_moons_are_standardized() -> None:
    points = two_moons(20000, torch.Generator().manual_seed(3)).flatten(1)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(2), rtol=0, atol=0.06)
    torch.testing.assert_close(points.std(dim=0), torch.full((2,), WIDTH), rtol=0, atol=0.06)


def test_a_straight_way_is_straight() -> None:
    ends = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    line = ends[0] + torch.linspace(0, 1, 11)[:, None, None] * (ends[1] - ends[0])
    assert detour(line) == pytest.approx(0, abs=1e-5)
    assert off_line(line) == pytest.approx(0, abs=1e-5)
    bent = torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 4.0]]])
    assert detour(bent) == pytest.approx(7 / 5 - 1)


@pytest.mark.slow
def test_two_moons_and_their_trajectories() -> None:
    """Samples lie on the moons, both of them; OT is the straightest in space and time."""
    data = two_moons(4000, torch.Generator().manual_seed(7)).flatten(1)
    curved: dict[str, tuple[float, float]] = {}
    for name, (make, pairing) in PATHS.items():
        _, places = travel(learn(make(), pairing, steps=250, batch=128), 400, steps=60)
        end = places[-1]
        assert float(distance_to(end, data).median()) < 0.1 * WIDTH, name
        assert float(distance_to(data, end).median()) < 0.1 * WIDTH, name
        curved[name] = off_line(places), detour(places)
    straight = curved["OT, optimal pairs"]
    assert straight[0] < curved["OT"][0] < min(curved["VP"][0], curved["VE"][0])
    assert straight[1] < curved["OT"][1]
