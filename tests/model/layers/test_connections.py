"""Each kind of connection against loops, against the other kinds and against PyTorch's layers."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.layers.connections import CONNECTIONS, Connection, LocallyConnected, Tiled, build_connection

KINDS = pytest.mark.parametrize("kind", CONNECTIONS)
GEOMETRIES = pytest.mark.parametrize(
    ("in_size", "kernel", "stride", "padding"),
    [((6, 5), (3, 2), 1, 0), ((7, 6), (3, 3), 2, 1), ((5, 5), (2, 4), 3, 2), ((3, 4), (3, 4), 1, 0)],
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(kind: str, *sizes: Any, **more: Any) -> Connection:
    """A connection in float64, its biases drawn too."""
    layer = build_connection(kind, *sizes, generator=torch.Generator().manual_seed(1), **more).double()
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(random(*layer.bias.shape, seed=2))
    return layer


def call(layer: Connection, maps: Tensor) -> Tensor:
    y: Tensor = layer(maps)
    return y


def kernel_at(layer: Connection, kind: str, r: int, c: int) -> int:
    width = layer.output_size[1]
    match kind:
        case "local":
            return r * width + c
        case "tiled":
            return r % layer.tile * min(layer.tile, width) + c % layer.tile
    return 0


def naive(layer: Connection, kind: str, maps: Tensor) -> Tensor:
    height, width = layer.output_size
    kh, kw = layer.kernel
    x = nn.functional.pad(maps, (layer.padding,) * 4)
    y = maps.new_zeros(len(maps), layer.out_channels, height, width)
    bias = torch.zeros(layer.weight.shape[:2]).double() if layer.bias is None else layer.bias
    for b in range(len(maps)):
        for o in range(layer.out_channels):
            for r in range(height):
                for c in range(width):
                    if kind == "full":
                        row = o * height * width + r * width + c
                        y[b, o, r, c] = layer.weight[0, row] @ maps[b].flatten() + bias[0, row]
                        continue
                    k = kernel_at(layer, kind, r, c)
                    top, left = r * layer.stride, c * layer.stride
                    patch = x[b, :, top : top + kh, left : left + kw].flatten()
                    y[b, o, r, c] = layer.weight[k, o] @ patch + bias[k, o]
    return y.detach()


@KINDS
@GEOMETRIES
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_loops(
    kind: str, in_size: Any, kernel: Any, stride: int, padding: int, bias: bool
) -> None:
    layer = build(kind, 2, 3, in_size, kernel, stride=stride, padding=padding, bias=bias)
    maps = random(2, 2, *in_size)
    y = call(layer, maps)
    assert y.shape == (2, 3, *layer.output_size)
    torch.testing.assert_close(y.detach(), naive(layer, kind, maps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 2, 12, 13])
def test_local_in_every_layout_of_a_batch(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "model.layers.unshared.BLOCK", 3 * 5 * 12 * 8 * batch
    )  # so that the last block is a short one
    layer = build("local", 2, 3, (9, 6), (3, 2))
    maps = random(batch, 2, 9, 6).requires_grad_()
    y = call(layer, maps)
    torch.testing.assert_close(y.detach(), naive(layer, "local", maps), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(y.square().sum(), [maps, layer.weight])
    unfolded = nn.functional.unfold(maps, (3, 2))  # B J P
    plain = torch.einsum("poj,bjp->bop", layer.weight, unfolded).view_as(y)
    assert layer.bias is not None
    plain = plain + layer.bias.mT.reshape(3, 7, 5)
    want = torch.autograd.grad(plain.square().sum(), [maps, layer.weight])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@KINDS
@pytest.mark.parametrize("batch", [2, 12])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_gradients(kind: str, batch: int, stride: int, padding: int) -> None:
    layer = build(kind, 2, 2, (4, 5), (2, 3), stride=stride, padding=padding)
    names = [name for name, _ in layer.named_parameters()]
    values = [parameter.detach().requires_grad_() for parameter in layer.parameters()]

    def connect(maps: Tensor, *values: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (maps,))
        return y

    maps = random(batch, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(connect, (maps, *values), fast_mode=True)


@GEOMETRIES
def test_equal_kernels_everywhere_are_a_convolution(
    in_size: Any, kernel: Any, stride: int, padding: int
) -> None:
    reference = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding).double()
    maps = random(2, 2, *in_size)
    assert reference.bias is not None
    for kind in ("local", "tiled", "convolution"):
        layer = build(kind, 2, 3, in_size, kernel, stride=stride, padding=padding)
        assert layer.bias is not None
        with torch.no_grad():
            layer.weight.copy_(reference.weight.flatten(1).expand_as(layer.weight))
            layer.bias.copy_(reference.bias.expand_as(layer.bias))
        torch.testing.assert_close(call(layer, maps), reference(maps), rtol=1e-12, atol=1e-12)


@GEOMETRIES
@pytest.mark.parametrize(("kind", "tile"), [("convolution", 1), ("local", 7), ("local", 100)])
def test_tiled_covers_convolution_and_local(
    in_size: Any, kernel: Any, stride: int, padding: int, kind: str, tile: int
) -> None:
    tiled = build("tiled", 2, 3, in_size, kernel, stride=stride, padding=padding, tile=tile)
    other = build(kind, 2, 3, in_size, kernel, stride=stride, padding=padding)
    other.load_state_dict(tiled.state_dict())
    maps = random(2, 2, *in_size)
    torch.testing.assert_close(call(tiled, maps), call(other, maps), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["full", "local", "tiled", "convolution"])
def test_one_output_is_linear(kind: str) -> None:
    layer = build(kind, 2, 5, (3, 4), (3, 4))
    linear = nn.Linear(24, 5).double()
    assert layer.bias is not None
    with torch.no_grad():
        linear.weight.copy_(layer.weight[0])
        linear.bias.copy_(layer.bias[0])
    maps = random(3, 2, 3, 4)
    want = linear(maps.flatten(1))[:, :, None, None]
    torch.testing.assert_close(call(layer, maps), want, rtol=1e-12, atol=1e-12)


def test_a_position_trains_its_own_kernel_alone() -> None:
    maps = random(2, 2, 6, 6)
    for batch in (1, 2):
        layer = build("local", 2, 3, 6, 3)
        layer(maps[:batch])[:, :, 1, 2].sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == [1 * 4 + 2]
    tiled = build("tiled", 2, 3, 6, 3, tile=3)
    tiled(maps)[:, :, 3, 2].sum().backward()  # (3 mod 3, 2 mod 3)
    assert tiled.weight.grad is not None
    assert tiled.weight.grad.abs().sum((1, 2)).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize(
    ("kind", "weights", "biases", "multiplies", "seen"),
    [
        ("full", 3 * 20 * 126, 3 * 20, 3 * 20 * 126, (9, 7)),
        ("local", 3 * 20 * 12, 3 * 20, 3 * 20 * 12, (3, 2)),
        ("tiled", 3 * 4 * 12, 3 * 4, 3 * 20 * 12, (3, 2)),
        ("convolution", 3 * 12, 3, 3 * 20 * 12, (3, 2)),
    ],
)
def test_counts(kind: str, weights: int, biases: int, multiplies: int, seen: tuple[int, int]) -> None:
    layer = build_connection(kind, 2, 3, (9, 7), (3, 2), stride=2, padding=1)
    assert layer.output_size == (5, 4)
    assert (layer.weights, layer.biases, layer.multiplies) == (weights, biases, multiplies)
    assert layer.receptive_field == seen


def test_tiles_beyond_the_output_are_not_kept() -> None:
    assert build_connection("tiled", 1, 1, (4, 9), 3, tile=5).weights == 2 * 5 * 9


def test_nothing_is_cast_under_autocast() -> None:
    """The weights stay as they are; so does what comes out, forward and backward."""
    layer = LocallyConnected(2, 3, 5, 3)
    maps = torch.randn(2, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(maps.bfloat16().requires_grad_())
    assert y.dtype == torch.float32
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_initial_weights_keep_the_size_of_what_passes() -> None:
    layer = LocallyConnected(4, 4, 12, 5, generator=torch.Generator().manual_seed(0))
    assert float(layer.weight.detach().std()) == pytest.approx((2 / 100) ** 0.5, rel=0.02)
    again = LocallyConnected(4, 4, 12, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer.weight, again.weight)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_no_patches_are_kept_for_backward() -> None:
    layer = LocallyConnected(3, 2, 8, 3)
    largest = 0

    def watch(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
        layer(torch.randn(20, 3, 8, 8, requires_grad=True))
    assert largest == max(layer.weights, 20 * 3 * 64)


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_an_empty_batch(kind: str) -> None:
    assert build(kind, 2, 3, 5, 3)(random(0, 2, 5, 5)).shape == (0, 3, 3, 3)


@pytest.mark.parametrize(
    ("sizes", "more", "sentence"),
    [
        (
            (2, 3, 4, 5),
            {},
            "LocallyConnected's kernel (5, 5) is larger than its input: in_size (4, 4) with a padding of 0",
        ),
        (
            (0, 3, 4, 3),
            {"stride": 2},
            "LocallyConnected needs channels, sizes, kernel, stride and tile of at least 1 and a padding of "
            "at least 0, got 0 → 3 channels, in_size (4, 4), kernel (3, 3), stride 2, tile 2, padding 0",
        ),
        ((2, 3, 4, 3), {"stride": 0}, "stride 0, tile 2, padding 0"),
        ((2, 3, 4, 3), {"padding": -1}, "padding -1"),
        ((2, 3, 4, 3), {"tile": 0}, "tile 0, padding 0"),
        ((2, 3, (0, 4), 3), {}, "in_size (0, 4)"),
    ],
)
def test_sizes_that_do_not_fit(sizes: Any, more: Any, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_connection("local", *sizes, **more)
    assert sentence in str(caught.value)


@KINDS
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (2, 2, 5, 6), (2, 5, 5)])
def test_wrong_maps(kind: str, shape: tuple[int, ...]) -> None:
    layer = build_connection(kind, 2, 3, 5, 3)
    with pytest.raises(ModelError) as caught:
        layer(torch.zeros(shape))
    assert str(caught.value) == f"{type(layer).__name__} expects maps B×2×5×5, got {shape}"


def test_unknown_kind() -> None:
    with pytest.raises(ModelError) as caught:
        build_connection("dense", 2, 3, 5, 3)
    assert str(caught.value) == "unknown connection 'dense': one of full, local, tiled, convolution"


def test_layers_say_what_they_are() -> None:
    said = repr(Tiled(2, 3, (5, 6), 3))
    assert said == "Tiled(2×5×6 → 3, kernel 3×3, stride 1, padding 0)"
