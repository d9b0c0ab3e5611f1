"""From painted pixels to kept latents, at every scale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgen import editing
from vqgen.contracts import FeatureSpec, TokenSpec


def test_a_touched_square_is_given_up_and_a_coarse_one_only_if_mostly_painted() -> None:
    paint = torch.zeros(1, 8, 12, dtype=torch.bool)
    paint[0, 0, 0] = True  # one pixel
    spec = TokenSpec(vocab_size=4, scales=((1, 1), (2, 3)))
    assert editing.keep_mask(spec, paint).tolist() == [[True, False, True, True, True, True, True]]
    paint[0, :4] = True  # the upper half
    kept = [[True, False, False, False, True, True, True]]
    assert editing.keep_mask(spec, paint).tolist() == kept
    paint[0, :6] = True  # three quarters
    assert not editing.keep_mask(spec, paint).any()


def test_features_are_kept_by_place_in_every_channel() -> None:
    paint = torch.zeros(2, 8, 8, dtype=torch.bool)
    paint[1, 7, 7] = True
    keep = editing.keep_mask(FeatureSpec(channels=3, height=2, width=4), paint)
    assert keep.shape == (2, 3, 2, 4) and bool(keep[0].all())
    assert [(c, y, x) for c, y, x in (~keep[1]).nonzero().tolist()] == [(c, 1, 3) for c in range(3)]


def test_box_and_mask_say_the_same(tmp_path: Path) -> None:
    box = editing.box_mask([0.25, 0, 0.75, 0.5], (8, 12))
    assert int(box.sum()) == 4 * 6 and bool(box[2:6, :6].all())
    big = box.repeat_interleave(5, 0).repeat_interleave(5, 1)
    Image.fromarray((big.numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    mask = editing.read_mask(tmp_path / "mask.png", (8, 12), image=tmp_path / "photo.png")
    assert torch.equal(mask, box)
    Image.new("RGB", (60, 41)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"60 x 41 pixels .*got 60 x 40"):
        editing.read_mask(tmp_path / "mask.png", (8, 12), image=tmp_path / "photo.png")


@pytest.mark.parametrize("box", [[0, 0, 1], "abcd", [0, 0, 0, 1], [0.5, 0, 0.2, 1], [0, 0, 1, 2]])
def test_a_box_that_is_none(box: object) -> None:
    with pytest.raises(ValueError, match=r"wanted a box.*got.*box=\[0\.25,0,0\.75,1\]"):
        editing.box_mask(box, (8, 8))  # type: ignore[arg-type]


def test_a_box_between_the_pixels_leaves_nothing() -> None:
    with pytest.raises(ValueError, match="leaves nothing to paint at 8 x 8"):
        editing.box_mask([0.5, 0.5, 0.501, 0.501], (8, 8))
