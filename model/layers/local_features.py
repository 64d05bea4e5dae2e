"""Local features of a photo for verification: the strongest cells of conv4_3.

conv4_3 after its ReLU is computed on the way to conv5_3, one cell every 8 pixels. A feature is a cell's
position and its activations, L2-normalised and projected to 64 numbers of a byte each. The projection is the
same for every collection: principal directions of conv4_3 on the demo's photos, without the first, which all
cells share. On other sets it matches as well as their own directions do.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 512
STRIDE = 8
LOCAL_FEATURES = 500
"""Most features of a photo."""
DIM = 64
_SCALE = 254.0  # a unit vector of 64 numbers has few above ½; those are cut
_NO_CELL = 0xFFFF

Packed = NDArray[np.void]
"""Local features of one photo, a record of `packed_type`."""
Floats = NDArray[np.float32]


def packed_type(count: int) -> np.dtype[Any]:
    """Return the type of a record: height and width of the map, row and column of each cell, codes."""
    return np.dtype([("size", "<u2", (2,)), ("cells", "<u2", (count, 2)), ("codes", "i1", (count, DIM))])


class LocalFeatures(nn.Module):
    """Chooses and describes the cells of conv4_3 with the longest activations.

    Input: B 512 H W, after the ReLU. Output: their numbers in the map, row by row (B M, M ≤ `count`), and
    their codes (B M 64, int8), which `pack` turns into records.
    """

    projection: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("projection", torch.zeros(CHANNELS, DIM))

    @classmethod
    def shipped(cls, count: int) -> LocalFeatures:
        """Use the projection of the package."""
        features = cls(count)
        data = resources.files("model").joinpath("data/conv4-projection-fp16.safetensors").read_bytes()
        features.projection = load(data)["projection"].float()
        return features

    def forward(self, middle: Tensor) -> tuple[Tensor, Tensor]:
        cells = middle.flatten(2).float()  # B 512 N
        strength = torch.linalg.vector_norm(cells, dim=1)  # B N
        count = min(self.count, cells.shape[2])
        # by index if equal, so that the choice is the same on every machine
        chosen = strength.argsort(dim=1, descending=True, stable=True)[:, :count]  # B M
        kept = cells.gather(2, chosen[:, None].expand(-1, CHANNELS, -1)).mT  # B M 512
        codes = F.normalize(F.normalize(kept, dim=2, eps=1e-12) @ self.projection, dim=2, eps=1e-12)
        return chosen, (codes * _SCALE).round().clamp(-127, 127).to(torch.int8)


def pack(chosen: Tensor, codes: Tensor, count: int, height: int, width: int) -> Packed:
    """Return the output of `LocalFeatures(count)` for maps of `height` and `width` as B records of
    `packed_type`.
    """
    found = chosen.shape[1]
    packed = np.zeros(len(chosen), packed_type(count))
    packed["size"] = height, width
    packed["cells"] = _NO_CELL
    packed["cells"][:, :found] = torch.stack([chosen // width, chosen % width], 2).cpu().numpy()
    packed["codes"][:, :found] = codes.cpu().numpy()
    return packed


def unpack(packed: Packed) -> tuple[Floats, Floats]:
    """Return positions (M 2: x, y in pixels of the network's image, cell middles) and unit codes (M 64)."""
    there = packed["cells"][:, 0] != _NO_CELL
    positions = (packed["cells"][there][:, ::-1].astype(np.float32) + 0.5) * STRIDE
    codes = packed["codes"][there].astype(np.float32)
    return positions, codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-12)


def extent(packed: Packed) -> tuple[float, float]:
    """Return width and height in pixels of the network's image, to a cell."""
    height, width = packed["size"]
    return float(width * STRIDE), float(height * STRIDE)
