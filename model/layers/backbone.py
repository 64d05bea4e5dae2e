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
LAYERS = 29
"""Layers to conv5_3, before its ReLU and pool: where NetVLAD cuts VGG16 (Arandjelović et al., 2016)."""


class VGG16(nn.Sequential):
    """The first 29 layers of torchvision's `vgg16().features`.

    Input: B 3 H W, RGB 0–255 minus the ImageNet mean. Output: B 512 H/16 W/16.
    """

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return conv4_3 after its ReLU, B 512 H/8 W/8, and conv5_3, B 512 H/16 W/16."""
        middle = self[:MIDDLE](images)
        return middle, self[MIDDLE:](middle)


def vgg16_conv5() -> VGG16:
    """Return VGG16 up to conv5_3 on the meta device: load a state dict with `assign=True`."""
    from torchvision.models import vgg16  # late: importing torchvision takes about two seconds

    with torch.device("meta"):
        return VGG16(*vgg16(weights=None, init_weights=False).features[:LAYERS])


def imagenet_state() -> dict[str, Tensor]:
    """Return the shipped ImageNet convolutions (Oxford's, CC BY 4.0): a state dict of `vgg16_conv5`, fp16."""
    data = resources.files("model").joinpath("data/vgg16-imagenet-fp16.safetensors").read_bytes()
    return {name.removeprefix("features."): tensor for name, tensor in load(data).items()}


def imagenet_backbone() -> VGG16:
    """Return `vgg16_conv5` with the ImageNet convolutions, fp32."""
    backbone = vgg16_conv5()
    backbone.load_state_dict({k: v.float() for k, v in imagenet_state().items()}, assign=True)
    return backbone
