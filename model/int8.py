"""VGG16's convolutions in int8: ranges measured on photos, and the network run by OpenVINO.

Weights are rounded to 8 bits, scaled by output channel. Inputs of a convolution are rounded to 256 steps from
0 (the image: from −r) to r, the largest activation there on photos of the collection (Jacob et al., CVPR
2018). Sums are exact integers, so a photo's maps do not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.layers.backbone import MIDDLE, VGG16

_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
_STEPS = 256


def computes_int8() -> bool:
    """Whether this processor adds 8-bit products in 32 bits; on others they overflow and maps are wrong."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in _INSTRUCTIONS)


def has_runtime() -> bool:
    """Whether OpenVINO is installed."""
    return find_spec("openvino") is not None


@torch.inference_mode()
def activation_ranges(backbone: nn.Module, batches: Iterable[Tensor]) -> tuple[float, ...]:
    """Return the largest input of each convolution, by magnitude.

    Args:
        batches: B 3 H W each, as the backbone takes them.
    """
    convolutions = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]  # type: ignore[attr-defined]
    largest = dict.fromkeys(convolutions, 0.0)

    def measure(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        least, most = inputs[0].aminmax()
        largest[layer] = max(largest[layer], -float(least), float(most))  # type: ignore[index]

    hooks = [layer.register_forward_pre_hook(measure) for layer in convolutions]
    try:
        for batch in batches:
            backbone(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(largest.values())


class Int8VGG16(nn.Module):
    """`VGG16` in int8 on a CPU. Input: B 3 H W, any sizes. Output: B 512 H/16 W/16, fp32."""

    def __init__(self, backbone: VGG16, ranges: tuple[float, ...], *, threads: int) -> None:
        """Build it from the backbone and its `activation_ranges`."""
        super().__init__()
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._network = openvino.Core().compile_model(_graph(backbone, ranges), "CPU", settings)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[1]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return conv4_3 after its ReLU, B 512 H/8 W/8, and conv5_3."""
        found = self._network(images.float().contiguous().numpy())
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _graph(backbone: VGG16, ranges: tuple[float, ...]) -> Any:
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([-1, 3, -1, -1], np.float32)
    left = iter(ranges)
    x, middle = _rounded(ops, images, next(left), signed=True), None
    for number, layer in enumerate(backbone, 1):
        if isinstance(layer, nn.Conv2d):
            x = _convolution(ops, layer, x)
        elif isinstance(layer, nn.MaxPool2d):
            x = ops.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        else:
            x = ops.relu(x).output(0)
            middle = x if number == MIDDLE else middle
            # rounded before pooling: the result is the same, and pooling runs in 8 bits
            x = _rounded(ops, x, next(left), signed=False)
    return openvino.Model([middle, x], [images])


def _rounded(ops: Any, x: Any, largest: float, *, signed: bool) -> Any:
    bound = max(largest, 1e-6)  # its ends must be constants, or OpenVINO multiplies in bf16
    low, high = (ops.constant(np.full((1, 1, 1, 1), end, np.float32)) for end in (-bound * signed, bound))
    return ops.fake_quantize(x, low, high, low, high, _STEPS).output(0)


def _convolution(ops: Any, layer: nn.Conv2d, x: Any) -> Any:
    weight = layer.weight.detach().float().cpu().numpy()
    scale = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True) / 127, 1e-12).astype(np.float32)
    codes = ops.constant(np.rint(weight / scale).astype(np.int8))
    weights = ops.multiply(ops.convert(codes, np.float32), ops.constant(scale))
    sums = ops.convolution(x, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    bias = cast(Tensor, layer.bias).detach().float().cpu().numpy()
    return ops.add(sums, ops.constant(bias.reshape(1, -1, 1, 1))).output(0)
