"""The linear layer of sampling: the plain product, a row's bits at any batch."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from vqgen.nn import linear as room
from vqgen.nn.linear import Linear, packed_weights, padded

ROWS = (1, 2, 3, 5, 9, 18, 25, 50, 170, 338)


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads is as before afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_the_plain_one(
    bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "HAS_ONEDNN", onednn and room.HAS_ONEDNN)
    torch.manual_seed(0)
    layer = Linear(512, 1024, bias=bias)
    assert list(layer.state_dict()) == (["weight", "bias"] if bias else ["weight"])
    for shape in ((1, 512), (4, 1, 512), (3, 5, 512), (512,), (0, 512), (0, 1, 512)):
        x = torch.randn(shape)
        with torch.no_grad():
            exact = F.linear(
                x.double(),
                layer.weight.double(),
                None if layer.bias is None else layer.bias.double(),
            )
            torch.testing.assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        turned = torch.randn(512, 6).T  # not contiguous
        assert torch.equal(layer(turned), layer(turned.contiguous()))


def test_a_gradient_goes_through_the_library_s_own() -> None:
    layer, x = Linear(512, 1024), torch.randn(4, 512)
    y = layer(x)
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert layer.weight.grad is not None


def test_autocast_and_double_keep_their_precision() -> None:
    layer, x = Linear(64, 96), torch.randn(4, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(
            layer.double()(x.double()), F.linear(x.double(), layer.weight, layer.bias)
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(384, 1152), (96, 288), (256, 64), (2048, 768)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_among_any_others(
    bias: bool, sizes: tuple[int, int], dtype: torch.dtype, threads: None
) -> None:
    torch.manual_seed(0)
    layer = Linear(*sizes, bias=bias).to(dtype)
    x = torch.randn(400, sizes[0], dtype=dtype)
    with torch.no_grad():
        whole = layer(x)
        for count in (1, 2):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(layer(x[:rows]), whole[:rows])
                assert torch.equal(layer(x[None, :rows]), whole[None, :rows])
                assert torch.equal(layer(x[-rows:]), whole[-rows:])


def test_padded_is_the_next_whole_tile() -> None:
    assert [padded(rows) for rows in (0, 1, 4, 5)] == [0, 4, 4, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_give_the_same_bits_and_go_again(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(Linear(384, 512), Linear(512, 96, bias=False)).to(dtype)
    x = torch.randn(50, 384).to(dtype)
    with torch.no_grad():
        plain = net(x)
        with packed_weights(net):
            assert torch.equal(copy.deepcopy(net)(x), plain)
            if room.multiplied_by_onednn(x):
                assert all(layer.packed is not None for layer in net)
            assert torch.equal(net(x), plain) and torch.equal(net(x[:3]), plain[:3])
            assert net.float()(x.float()).dtype == torch.float32  # turned meanwhile
            net.to(dtype)
        net[0].weight += 1  # trained meanwhile
        assert not torch.equal(net(x), plain)
    with packed_weights(net):  # gradients go past the copy
        net(x.to(dtype)).sum().backward()
    assert all(layer.packed is None and layer.weight.grad is not None for layer in net)


def test_a_large_net_is_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(64, 64)
    monkeypatch.setattr(room, "PACKED_BYTES", layer.weight.nbytes - 1)
    with torch.no_grad(), packed_weights(layer):
        assert layer.packed is None


@pytest.mark.slow
def test_a_compiled_layer_is_the_same() -> None:
    layer, x = Linear(64, 96), torch.randn(5, 64)
    with torch.no_grad(), packed_weights(layer):
        torch.testing.assert_close(torch.compile(layer)(x), layer(x))
