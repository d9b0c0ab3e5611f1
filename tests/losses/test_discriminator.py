"""The patch discriminator: sizes, patches, starts, and the data-dependent start of ActNorm."""

import pytest
import torch
from torch import nn

from vqgen.losses.discriminator import NORMS, ActNorm, PatchDiscriminator


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_smallest_size_is_the_smallest(norm: str, layers: int) -> None:
    net = PatchDiscriminator(width=4, layers=layers, norm=norm).train()
    size = net.smallest_size
    net.check_size((size, 2 * size))
    assert net(torch.randn(1, 3, size, 2 * size)).shape[:3] == (1, 1, 1)
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 3, size - 1, 2 * size))
    with pytest.raises(ValueError, match=rf"at least {size} pixels per side; got {size - 1}x64"):
        net.check_size((size - 1, 64))


def test_too_small_an_image_is_told_how_many_layers_fit() -> None:
    with pytest.raises(ValueError, match=r"loss\.gan\.layers=2.*data\.size.*loss\.gan=none"):
        PatchDiscriminator(width=4, layers=3).check_size((16, 16))
    with pytest.raises(ValueError, match=r"Try a larger data\.size"):
        PatchDiscriminator(width=4, layers=3).check_size((4, 4))


def test_published_shape() -> None:
    assert PatchDiscriminator(width=4)(torch.randn(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    widths = [
        m.out_channels
        for m in PatchDiscriminator(width=4, layers=5).main[::1]
        if isinstance(m, nn.Conv2d)
    ]
    assert widths == [4, 8, 16, 32, 32, 32, 1]


def test_biases_only_where_the_norm_does_not_remove_them() -> None:
    for norm in NORMS:
        biases = [
            module.bias is not None
            for module in PatchDiscriminator(width=4, layers=2, norm=norm).main
            if isinstance(module, nn.Conv2d)
        ]
        assert biases == [True, norm != "batch", norm != "batch", True]


def test_start() -> None:
    torch.manual_seed(0)
    net = PatchDiscriminator(width=32, layers=3)
    convolution, norm = net.main[8], net.main[9]
    assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert norm.weight.mean().item() == pytest.approx(1.0, abs=0.01)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not norm.bias.any()


def test_act_norm_starts_from_the_first_training_batch_only() -> None:
    torch.manual_seed(0)
    norm = ActNorm(3)
    batch = 2 + 3 * torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(norm.eval()(batch), batch)  # nothing is measured outside training
    made = norm.train()(batch)
    torch.testing.assert_close(made.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.std(dim=(0, 2, 3)), torch.ones(3))  # unbiased, over b, h, w
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(10 * batch)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    assert before["initialized"].dtype == torch.uint8 and before["initialized"] == 1


def test_act_norm_loaded_from_a_file_does_not_start_again() -> None:
    norm, other = ActNorm(2), ActNorm(2)
    norm.train()(torch.randn(2, 2, 3, 3))
    other.load_state_dict(norm.state_dict())
    batch = 5 * torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(other.train()(batch), norm(batch))


def test_group_norm_does_not_mix_images() -> None:
    net = PatchDiscriminator(width=8, layers=2, norm="group").train()
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(net(images)[1:2], net(images[1:2]))


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"loss\.gan\.norm=batch"):
        PatchDiscriminator(norm="bach")
    with pytest.raises(ValueError, match="at least one layer"):
        PatchDiscriminator(layers=0)
