"""A stand-in for VGG16, for tests of everything around the network."""

import pytest
import torch
from torch import Tensor, nn

from model.layers.backbone import CHANNELS

BACKBONES = ("model.modelfile.imagenet_backbone", "model.modelfile.vgg16_conv5")
"""The functions that make VGG16: with ImageNet's weights, and without."""


class TinyVGG16(nn.Sequential):
    """One convolution. Its output stands for both of VGG16's, twice as large for conv4_3."""

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self(images)
        return nn.functional.interpolate(maps, scale_factor=2.0), maps


def tiny_backbone() -> TinyVGG16:
    """Return a network with VGG16's input, output and stride, and a fortieth of its weights."""
    layer = nn.Conv2d(3, CHANNELS, 16, stride=16)
    with torch.no_grad():
        for parameter in layer.parameters():
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), device="cpu")
            parameter.copy_(values)
    return TinyVGG16(layer)


def use_tiny_network(patch: pytest.MonkeyPatch) -> None:
    for name in BACKBONES:
        patch.setattr(name, tiny_backbone)
