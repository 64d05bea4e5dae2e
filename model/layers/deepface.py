"""DeepFace (Taigman et al., CVPR 2014): the known network with locally connected layers.

C1 32@11×11 → 142², M2 max 3×3 stride 2 → 71², C3 16@9×9 → 63², L4 16@9×9 → 55², L5 16@7×7 stride 2 → 25², L6
16@5×5 → 21², F7 4096; F8 separates the classes. L4 to L6 have weights for each position, which suits aligned
images: warped faces, a fixed camera, a dash-cam.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError
from model.layers.connections import Convolution, FullyConnected, build_connection

INPUT_SIZE = 152
CHANNELS = 4096
"""D of its map, which is 1×1."""
MAPS = 16
"""Channels into and out of L4, L5 and L6."""
LOCAL_LAYERS = {"L4": (63, 9, 1), "L5": (55, 7, 2), "L6": (25, 5, 1)}
"""By name: size of the input, kernel, stride."""
CONNECTIONS = ("local", "tiled", "convolution")


class DeepFace(nn.Module):
    """C1 to F7 as a backbone. Input: B 3 H W. Output: B 4096 1 1.

    Images of another size are resampled to 152×152, whatever their shape: use images with the same framing.
    As in the paper, a ReLU follows each layer, also F7, and half of F7's outputs are dropped in training.
    Unlike the paper, weights start as in He et al. and biases at 0, for inputs of about unit variance (`mean`
    and `std` of `ModelConfig`).

    Args:
        connection: of L4, L5 and L6: "local", the paper's; "tiled" or "convolution" share weights.
        tile: t of the tiled.
        generator: random generator of the weights; None is PyTorch's own.

    Raises:
        ModelError: another connection, or images of another shape than B×3×H×W.
    """

    def __init__(
        self, connection: str = "local", *, tile: int = 2, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if connection not in CONNECTIONS:
            raise ModelError(f"DeepFace's L4 to L6 are one of {', '.join(CONNECTIONS)}, got {connection!r}")
        l4, l5, l6 = (
            build_connection(
                *(connection, MAPS, MAPS, size, kernel), stride=stride, tile=tile, generator=generator
            )
            for size, kernel, stride in LOCAL_LAYERS.values()
        )
        self.c1 = Convolution(3, 32, INPUT_SIZE, 11, generator=generator)
        self.c3 = Convolution(32, MAPS, 71, 9, generator=generator)
        self.l4, self.l5, self.l6 = l4, l5, l6
        self.f7 = FullyConnected(MAPS, CHANNELS, 21, 21, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ModelError(f"DeepFace expects images B×3×H×W, got {tuple(images.shape)}")
        x = images
        if x.shape[2:] != (INPUT_SIZE, INPUT_SIZE):
            x = _resample(x)
        x = F.relu(self.c1(x))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)  # M2, 142 → 71
        for layer in (self.c3, self.l4, self.l5, self.l6, self.f7):
            x = F.relu(layer(x))
        return F.dropout(x, 0.5, self.training)


class DeepFaceClassifier(nn.Module):
    """F8 on a `DeepFace`, for training. Input: B 3 H W. Output: logits, B classes.

    Raises:
        ModelError: fewer than one class.
    """

    def __init__(self, backbone: DeepFace, classes: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if classes < 1:
            raise ModelError(f"DeepFace needs 1 class at least, got {classes}")
        self.backbone = backbone
        self.f8 = FullyConnected(CHANNELS, classes, 1, 1, generator=generator)
        nn.init.normal_(
            self.f8.weight, std=0.01, generator=generator
        )  # the paper's: no class is favoured yet

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.f8(self.backbone(images))  # B classes 1 1
        return logits.flatten(1)


def _resample(images: Tensor) -> Tensor:
    """Resize each image to 152×152, in at least fp32, which the filter needs."""
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    x = F.interpolate(x, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True)
    return x.to(images.dtype)
