"""VGG16 (Simonyan and Zisserman, 2014) up to conv5_3, and its ImageNet convolutions."""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load
from torch import Tensor, nn

CHANNELS = 512
STRIDE = 16
MIDDLE = 23
"""Layers to conv4_3 and its ReLU."""

# The layers of configuration D up to conv5_3; "M" is a 2×2 max-pool.
_CONFIGURATION: tuple[int | str, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, "M"),
    *(512, 512, 512, "M", 512, 512, 512),
)


class VGG16(nn.Sequential):
    """VGG16's layers up to conv5_3; see `vgg16_conv5`."""

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """conv4_3 after its ReLU, B 512 H/8 W/8, and conv5_3, B 512 H/16 W/16."""
        middle = self[:MIDDLE](images)
        return middle, self[MIDDLE:](middle)


def vgg16_conv5() -> VGG16:
    """VGG16 to conv5_3, before its ReLU and pool, as NetVLAD cuts it (Arandjelović et al., 2016).

    The layers are numbered like torchvision's `vgg16().features`, 0 to 28.
    Input: B 3 H W, RGB 0–255 minus the ImageNet mean. Output: B 512 H/16 W/16.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in _CONFIGURATION:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return VGG16(*layers[:-1])


def imagenet_state() -> dict[str, Tensor]:
    """The shipped ImageNet convolutions (Oxford's, CC BY 4.0): a state dict of `vgg16_conv5`, fp16."""
    data = resources.files("model").joinpath("data/vgg16-imagenet-fp16.safetensors").read_bytes()
    return {name.removeprefix("features."): tensor for name, tensor in load(data).items()}


def imagenet_backbone() -> VGG16:
    """`vgg16_conv5` with the ImageNet convolutions, fp32."""
    with torch.device("meta"):
        backbone = vgg16_conv5()
    backbone.load_state_dict({k: v.float() for k, v in imagenet_state().items()}, assign=True)
    return backbone
