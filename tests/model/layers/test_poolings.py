"""NetVLAD against its formula, written out in loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.layers.poolings import NetVLAD

VERSIONS = pytest.mark.parametrize("version", [1, 2])


def unit(x: Tensor) -> Tensor:
    length = float(x.norm())
    return x / max(length, 1e-12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_layer(clusters: int, channels: int, version: int, seed: int = 0) -> NetVLAD:
    """Every parameter drawn by itself, as after training."""
    layer = NetVLAD(clusters, channels, version=version).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed), dtype=torch.float64))
            seed += 1
    return layer


def naive_netvlad(maps: Tensor, weight: Tensor, bias: Tensor | None, centres: Tensor) -> Tensor:
    B, D, H, W = maps.shape
    K = len(centres)
    descriptors = []
    for b in range(B):
        V = torch.zeros(K, D, dtype=maps.dtype)
        for i in range(H):
            for j in range(W):
                x = unit(maps[b, :, i, j])
                logits = [float(weight[k] @ x) + (0.0 if bias is None else float(bias[k])) for k in range(K)]
                top = max(logits)
                total = sum(math.exp(logit - top) for logit in logits)
                for k in range(K):
                    V[k] += math.exp(logits[k] - top) / total * (x - centres[k])
        for k in range(K):
            V[k] = unit(V[k])
        descriptors.append(unit(torch.cat(list(V))))
    return torch.stack(descriptors)


@VERSIONS
@pytest.mark.parametrize(("K", "D", "H", "W"), [(5, 7, 3, 4), (1, 6, 2, 3), (4, 3, 1, 1), (2, 16, 5, 2)])
def test_equals_the_formula(version: int, K: int, D: int, H: int, W: int) -> None:
    layer = random_layer(K, D, version)
    maps = torch.randn(3, D, H, W, generator=generator(9), dtype=torch.float64) * 20
    bias = None if layer.bias is None else layer.bias.detach()
    want = naive_netvlad(maps, layer.weight.detach(), bias, layer.centres.detach())
    torch.testing.assert_close(layer(maps).detach(), want, rtol=1e-10, atol=1e-12)


@VERSIONS
def test_gradients(version: int) -> None:
    layer = random_layer(3, 4, version)
    maps = torch.randn(2, 4, 2, 3, generator=generator(5), dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in layer.parameters())

    def pool(maps: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (maps,))
        return output

    assert torch.autograd.gradcheck(pool, (maps, *parameters))


def test_version_1_starts_by_the_published_rule() -> None:
    centres = torch.randn(4, 6, generator=generator()) * torch.tensor([[0.5], [1.0], [2.0], [0.1]])
    layer = NetVLAD.from_centres(centres, 12.5)
    assert layer.bias is None
    assert torch.equal(layer.centres, centres)  # un-normalised
    for k in range(4):
        torch.testing.assert_close(layer.weight[k].detach(), 12.5 * centres[k] / centres[k].norm())


def test_version_2_starts_by_the_published_rule() -> None:
    centres = torch.randn(4, 6, generator=generator()) * 3
    layer = NetVLAD.from_centres(centres, 12.5, version=2)
    assert layer.bias is not None
    assert torch.equal(layer.centres, centres)
    for k in range(4):
        torch.testing.assert_close(layer.weight[k].detach(), 25 * centres[k])
        assert layer.bias[k].item() == pytest.approx(-12.5 * float(centres[k].norm()) ** 2, rel=1e-5)


def test_version_2_assigns_by_distance_to_the_centres() -> None:
    """softmax(2αc·x − α‖c‖²) = softmax(−α‖x − c‖²), so that a centre's own assignment is its largest."""
    centres = torch.randn(5, 6, generator=generator()) * torch.tensor([[0.5], [1.0], [0.9], [0.1], [0.7]])
    layer = NetVLAD.from_centres(centres, 8.0, version=2)
    x = unit(torch.randn(6, generator=generator(1)))
    assert layer.bias is not None
    got = (layer.weight @ x + layer.bias).softmax(0)
    torch.testing.assert_close(got.detach(), (-8.0 * (centres - x).square().sum(1)).softmax(0))


@VERSIONS
def test_shape_length_and_order(version: int) -> None:
    layer = random_layer(6, 5, version).float()
    maps = torch.randn(4, 5, 3, 2, generator=generator(2))
    output = layer(maps)
    assert output.shape == (4, 30)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.norm(dim=1), torch.ones(4))
    # Intra-normalised: each of the six clusters weighs the same.
    torch.testing.assert_close(output.view(4, 6, 5).norm(dim=2), torch.full((4, 6), 6**-0.5))


@VERSIONS
def test_image_does_not_depend_on_its_batch(version: int) -> None:
    layer = random_layer(6, 5, version)
    maps = torch.randn(4, 5, 3, 2, generator=generator(2), dtype=torch.float64)
    for b in range(4):
        torch.testing.assert_close(layer(maps)[b], layer(maps[b : b + 1])[0])


@VERSIONS
def test_local_descriptors_have_no_order_and_no_scale(version: int) -> None:
    layer = random_layer(3, 5, version)
    maps = torch.randn(1, 5, 4, 4, generator=generator(2), dtype=torch.float64)
    shuffled = maps.flatten(2)[:, :, torch.randperm(16, generator=generator())].view_as(maps)
    torch.testing.assert_close(layer(maps), layer(shuffled))
    scales = torch.rand(1, 1, 4, 4, generator=generator(), dtype=torch.float64) + 0.1
    torch.testing.assert_close(layer(maps), layer(maps * scales))


@VERSIONS
def test_layout_of_memory_is_no_matter(version: int) -> None:
    layer = random_layer(3, 8, version)
    maps = torch.randn(2, 8, 4, 5, generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(layer(maps), layer(maps.to(memory_format=torch.channels_last)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_pooled_in_fp32(dtype: torch.dtype) -> None:
    layer = random_layer(3, 8, 1).float()
    maps = (torch.randn(2, 8, 4, 5, generator=generator(2)) * 100).to(dtype)
    output = layer(maps)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, layer(maps.float()))


@pytest.mark.parametrize("shape", [(2, 6, 3, 3), (2, 5, 9), (5, 3, 3)])
def test_wrong_maps(shape: tuple[int, ...]) -> None:
    layer = NetVLAD(3, 5)
    with pytest.raises(ModelError) as caught:
        layer(torch.zeros(shape))
    assert str(caught.value) == f"NetVLAD expects maps B×5×H×W, got {shape}"


def test_wrong_version() -> None:
    with pytest.raises(ModelError, match="NetVLAD has versions 1 and 2, got 3"):
        NetVLAD(version=3)


@VERSIONS
@pytest.mark.parametrize("clusters", [1, 4])
def test_blank_map_has_a_finite_descriptor_and_gradient(version: int, clusters: int) -> None:
    layer = random_layer(clusters, 5, version)
    maps = torch.zeros(1, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    output = layer(maps)
    assert torch.isfinite(output).all()
    output.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_unfitted_layer_and_exact_centres_give_no_nan() -> None:
    maps = torch.randn(1, 5, 2, 2, generator=generator())
    assert torch.isfinite(NetVLAD(3, 5)(maps)).all()
    centre = nn.functional.normalize(torch.ones(1, 5), dim=1)
    at_centre = NetVLAD.from_centres(centre, 1.0)(torch.ones(1, 5, 2, 2))
    assert torch.isfinite(at_centre).all()  # every residual is zero


def test_very_sharp_assignment_is_finite() -> None:
    centres = nn.functional.normalize(torch.randn(4, 6, generator=generator()), dim=1)
    layer = NetVLAD.from_centres(centres, 1e6, version=2)
    assert torch.isfinite(layer(torch.randn(1, 6, 3, 3, generator=generator(1)))).all()


@VERSIONS
def test_parameters_are_trained_separately(version: int) -> None:
    centres = nn.functional.normalize(torch.randn(4, 6, generator=generator()), dim=1)
    layer = NetVLAD.from_centres(centres, 5.0, version=version)
    names = ["weight", "centres"] if version == 1 else ["weight", "bias", "centres"]
    assert [name for name, _ in layer.named_parameters()] == names
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    (layer(torch.randn(2, 6, 3, 3, generator=generator(1))) @ torch.randn(24)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0, name
    with torch.no_grad():
        layer.centres.add_(1)
    assert torch.equal(layer.weight, before["weight"])
    assert torch.equal(centres, before["centres"])  # the k-means result is not shared


@VERSIONS
def test_state_round_trip(version: int) -> None:
    layer = random_layer(3, 5, version)
    other = NetVLAD(3, 5, version=version).double()
    other.load_state_dict(layer.state_dict())
    maps = torch.randn(2, 5, 3, 3, generator=generator(2), dtype=torch.float64)
    torch.testing.assert_close(other(maps), layer(maps), rtol=0, atol=0)


def test_versions_do_not_load_each_other() -> None:
    with pytest.raises(RuntimeError, match="bias"):
        NetVLAD(3, 5, version=2).load_state_dict(NetVLAD(3, 5, version=1).state_dict())


def test_no_tensor_of_residuals_is_made() -> None:
    """Backward keeps the forward's tensors: none is larger than the maps, so none is B×K×D×N."""
    layer = NetVLAD(16, 32)
    largest = 0

    def watch(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(watch, lambda tensor: tensor):
        layer(torch.randn(2, 32, 10, 10, requires_grad=True))
    assert largest == 2 * 32 * 100
