"""DeepFace against the paper's numbers."""

import pytest
import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.layers.connections import Connection
from model.layers.deepface import CONNECTIONS, DeepFace, DeepFaceClassifier


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shared() -> DeepFace:
    """With convolutions for L4 to L6; tests only read it."""
    return DeepFace("convolution", generator=generator()).eval()


def test_weights_are_the_papers() -> None:
    with torch.device("meta"):
        network = DeepFaceClassifier(DeepFace(), 4030)
    layers = {name.split(".")[-1]: m for name, m in network.named_modules() if isinstance(m, Connection)}
    assert {name: layer.weights for name, layer in layers.items()} == {
        "c1": 11_616,
        "c3": 41_472,
        "l4": 62_726_400,
        "l5": 7_840_000,
        "l6": 2_822_400,
        "f7": 28_901_376,
        "f8": 16_506_880,
    }
    sizes = [layers[name].output_size for name in ("c1", "c3", "l4", "l5", "l6", "f7")]
    assert sizes == [(142, 142), (63, 63), (55, 55), (25, 25), (21, 21), (1, 1)]
    biases = {name: layer.biases for name, layer in layers.items()}
    assert biases == {"c1": 32, "c3": 16, "l4": 48_400, "l5": 10_000, "l6": 7_056, "f7": 4096, "f8": 4030}
    assert sum(parameter.numel() for parameter in network.parameters()) == 118_923_774


@pytest.mark.parametrize(
    ("connection", "weights"), [("convolution", [20_736, 12_544, 6_400]), ("tiled", [82_944, 50_176, 25_600])]
)
def test_sharing_leaves_the_multiplications_as_they_are(connection: str, weights: list[int]) -> None:
    with torch.device("meta"):
        network, paper = DeepFace(connection), DeepFace()
    assert [layer.weights for layer in (network.l4, network.l5, network.l6)] == weights
    for name in ("l4", "l5", "l6"):
        assert (
            getattr(network, name).multiplies
            == getattr(paper, name).multiplies
            == getattr(paper, name).weights
        )


def test_the_whole_network_runs() -> None:
    network = DeepFace(generator=generator()).eval()
    with torch.inference_mode():
        y = network(torch.randn(1, 3, 152, 152, generator=generator()))
    assert y.shape == (1, 4096, 1, 1)
    assert 0.2 < float((y > 0).double().mean()) < 0.8
    assert 0.1 < float(y.std()) < 10  # neither dies out nor explodes over the layers


@pytest.mark.parametrize("size", [(152, 152), (120, 160), (300, 200), (1, 1)])
def test_images_of_any_size(shared: DeepFace, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=generator())
    with torch.inference_mode():
        y = shared(images)
    assert y.shape == (2, 4096, 1, 1)


def test_image_of_the_right_size_is_not_resampled(shared: DeepFace) -> None:
    images = torch.randn(1, 3, 304, 304, generator=generator())
    small = nn.functional.interpolate(images, (152, 152), mode="bilinear", antialias=True)
    with torch.inference_mode():
        torch.testing.assert_close(shared(images), shared(small))


@pytest.mark.slow
def test_half_precision_is_resampled_too() -> None:
    network = DeepFace("convolution", generator=generator()).bfloat16().eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 60, 80, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_half_of_f7_is_dropped_in_training_alone(shared: DeepFace) -> None:
    images = torch.randn(1, 3, 152, 152, generator=generator())
    training = DeepFace("convolution", generator=generator()).train()
    with torch.inference_mode():
        torch.testing.assert_close(shared(images), shared(images), rtol=0, atol=0)
        whole, dropped = shared(images), training(images)
    kept = dropped > 0
    assert 0.4 < float(kept.sum() / (whole > 0).sum()) < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


@pytest.mark.slow
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_it_trains(connection: str) -> None:
    torch.manual_seed(0)  # of the dropout
    network = DeepFaceClassifier(DeepFace(connection, generator=generator()), 4, generator=generator(1))
    images, classes = torch.randn(4, 3, 152, 152, generator=generator(2)), torch.arange(4)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(network(images), classes)

    network.eval()
    before = float(loss().detach())
    optimiser = torch.optim.SGD(network.train().parameters(), 3e-4)
    for _ in range(3):
        optimiser.zero_grad()
        torch.autograd.backward(loss())
        optimiser.step()
    for layer in (network.backbone.l4, network.backbone.l5, network.backbone.l6):
        assert layer.weight.grad is not None
        assert layer.weight.grad.any()
    network.eval()
    assert float(loss().detach()) < 0.8 * before


@pytest.mark.parametrize("shape", [(3, 152, 152), (1, 1, 152, 152)])
def test_wrong_images(shared: DeepFace, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError) as caught:
        shared(torch.zeros(shape))
    assert str(caught.value) == f"DeepFace expects images B×3×H×W, got {shape}"


def test_wrong_connection() -> None:
    with pytest.raises(ModelError) as caught:
        DeepFace("full")
    assert str(caught.value) == "DeepFace's L4 to L6 are one of local, tiled, convolution, got 'full'"


def test_no_class(shared: DeepFace) -> None:
    with pytest.raises(ModelError, match="DeepFace needs 1 class at least, got 0"):
        DeepFaceClassifier(shared, 0)
