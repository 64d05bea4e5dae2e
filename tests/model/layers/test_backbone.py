"""VGG16 up to conv5_3 with the shipped ImageNet convolutions."""

import pytest
import torch
from torch import nn

from model.layers.backbone import CHANNELS, STRIDE, imagenet_backbone, imagenet_state, vgg16_conv5
from model.layers.poolings import ONE_LAYER
from model.modelfile import ModelConfig, PlaceModel

CONVOLUTIONS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
CONVOLUTIONS |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
POOLINGS = (4, 9, 16, 23)


@pytest.fixture(scope="module")
def backbone() -> nn.Sequential:
    return imagenet_backbone()


def test_layers_are_those_of_the_paper() -> None:
    layers = list(vgg16_conv5())
    assert len(layers) == 29
    channels = 3
    for number, layer in enumerate(layers):
        if number in CONVOLUTIONS:
            assert isinstance(layer, nn.Conv2d)
            assert (layer.in_channels, layer.out_channels) == (channels, CONVOLUTIONS[number])
            assert (layer.kernel_size, layer.padding, layer.stride) == ((3, 3), (1, 1), (1, 1))
            channels = layer.out_channels
        else:
            assert isinstance(layer, nn.MaxPool2d if number in POOLINGS else nn.ReLU)


def test_outputs_equal_those_of_plain_layers(backbone: nn.Sequential) -> None:
    layers: list[nn.Module] = []
    channels = 3
    for number in range(29):
        if number in CONVOLUTIONS:
            layers.append(nn.Conv2d(channels, channels := CONVOLUTIONS[number], 3, padding=1))
        else:
            layers.append(nn.MaxPool2d(2, 2) if number in POOLINGS else nn.ReLU(inplace=True))
    plain = nn.Sequential(*layers)
    plain.load_state_dict({name: tensor.float() for name, tensor in imagenet_state().items()})
    images = torch.rand(2, 3, 64, 80) * 255 - 120
    with torch.inference_mode():
        assert torch.equal(backbone(images.clone()), plain(images.clone()))


@pytest.mark.parametrize(
    ("pooling", "fingerprint"), [("average", "2cae380f70d2cbdc"), ("gem", "2465f31b1acf198f")]
)
def test_fingerprints_stay_what_they_were(pooling: str, fingerprint: str) -> None:
    config = ModelConfig(pooling=pooling, clusters=0, layers=ONE_LAYER)
    assert PlaceModel.unfitted(config).fingerprint == fingerprint


def test_cut_is_before_the_relu(backbone: nn.Sequential) -> None:
    assert isinstance(backbone[-1], nn.Conv2d)
    with torch.inference_mode():
        assert float(backbone(torch.randn(1, 3, 48, 48) * 60).min()) < 0


def test_parameter_count(backbone: nn.Sequential) -> None:
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 14_714_688


def test_first_kernel_is_oxfords_for_rgb(backbone: nn.Sequential) -> None:
    """Keras publishes 0.42947057 as its first value: for blue, which comes first there and last here."""
    first = backbone[0]
    assert isinstance(first, nn.Conv2d)
    assert first.bias is not None
    assert first.weight[0, 2, 0, 0].item() == pytest.approx(0.42947057, rel=2**-11)
    assert first.bias[0].item() == pytest.approx(0.7342984, rel=2**-11)


def test_state_is_fp16_and_complete(backbone: nn.Sequential) -> None:
    state = imagenet_state()
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert state.keys() == vgg16_conv5().state_dict().keys()
    for name, tensor in backbone.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, state[name].float(), rtol=0, atol=0)


def test_parameters_can_be_trained(backbone: nn.Sequential) -> None:
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in backbone.parameters())


@pytest.mark.parametrize(("height", "width"), [(32, 48), (16, 16), (47, 33), (64, 17)])
def test_shape_and_stride(backbone: nn.Sequential, height: int, width: int) -> None:
    with torch.inference_mode():
        maps = backbone(torch.zeros(2, 3, height, width))
    assert maps.shape == (2, CHANNELS, height // STRIDE, width // STRIDE)


def test_maps_tell_images_apart_and_repeat(backbone: nn.Sequential) -> None:
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 60
    images = torch.stack([noise, torch.linspace(-100, 100, 32).expand(3, 32, 32)])
    with torch.inference_mode():
        maps = backbone(images)
        again = backbone(images.flip(0)).flip(0)
    assert torch.isfinite(maps).all()
    assert float(maps.abs().mean()) > 0.1
    torch.testing.assert_close(maps, again, rtol=1e-4, atol=1e-3)
    assert float((maps[0] - maps[1]).norm()) > 0.5 * float(maps[0].norm())
