"""Unshared convolution, the product of a locally connected layer, in blocks that fit the cache.

The weights, P O J, are far larger than anything else, and each is used once for each image: fast code reads
them once, in order. The patch of a position is copied out of the map for a few rows of the output at a time,
into one buffer; all patches together (`F.unfold`) would be a tensor B/O times as large as the weights.
Neither forward nor backward makes one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1 << 23
"""Bytes of patches at a time; at least a row of the output. Measured on DeepFace's L4 and L5."""
FEW = 12
"""In smaller batches the numbers of a patch are adjacent, in others those of all images. Measured likewise.
"""


def unshared_convolution(x: Tensor, weight: Tensor, kernel: tuple[int, int], stride: int) -> Tensor:
    """A convolution without padding that has its own kernel at each position.

    Runs in the precision of the weights, also under autocast: a cast would read and write all of them.

    Args:
        x: B C H W.
        weight: P O J, positions row by row, J = C·kh·kw.

    Returns:
        B O Hout Wout.
    """
    y: Tensor = _Unshared.apply(x.to(weight.dtype), weight, kernel, stride)
    return y


class _Unshared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: tuple[int, int], stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = kernel, stride
        windows = _windows(x.permute(1, 2, 3, 0).contiguous(), kernel, stride)
        y = weight.new_empty(*weight.shape[:2], len(x))  # P O B
        for at, seen, patches in _blocks(windows):
            torch.bmm(weight[at], _by_position(patches.copy_(seen)).mT, out=y[at])
        return y.permute(2, 1, 0).reshape(len(x), weight.shape[1], *windows.shape[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        g = grad.flatten(2).permute(2, 0, 1).contiguous()  # P B O
        of_x = _to_input(g, weight, x.shape, *ctx.geometry) if ctx.needs_input_grad[0] else None
        of_weight = _to_weight(g, weight, x, *ctx.geometry) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


def _to_weight(g: Tensor, weight: Tensor, x: Tensor, kernel: tuple[int, int], stride: int) -> Tensor:
    """dL/dW[p] = Σ_b g[b,p] ⊗ patch[b,p], P O J."""
    of_weight = torch.empty_like(weight)
    for at, seen, patches in _blocks(_windows(x.permute(1, 2, 3, 0).contiguous(), kernel, stride)):
        torch.bmm(g[at].mT, _by_position(patches.copy_(seen)), out=of_weight[at])
    return of_weight


def _to_input(g: Tensor, weight: Tensor, shape: torch.Size, kernel: tuple[int, int], stride: int) -> Tensor:
    """Add each position's g·W where its patch was taken, B C H W."""
    B, C, H, W = shape
    of_x = g.new_zeros(C, H, W, B)
    for at, seen, patches in _blocks(_windows(of_x, kernel, stride)):
        torch.bmm(g[at], weight[at], out=_by_position(patches))
        for i in range(kernel[0]):  # patches overlap, but not at the same part of the kernel
            for j in range(kernel[1]):
                seen[..., i, j] += patches[..., i, j]
    return of_x.permute(3, 0, 1, 2).contiguous()


def _windows(x: Tensor, kernel: tuple[int, int], stride: int) -> Tensor:
    """Return the patch of each output as a view: contiguous C H W B → Hout Wout B C kh kw."""
    C, H, W, B = x.shape
    c, h, w, b = x.stride()
    height, width = ((size - k) // stride + 1 for size, k in zip((H, W), kernel, strict=True))
    return x.as_strided((height, width, B, C, *kernel), (stride * h, stride * w, b, c, h, w))


def _blocks(windows: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a few rows at a time: positions, their windows, and one shared buffer of the same shape."""
    height, width, B = windows.shape[:3]
    row = windows[0].numel() * windows.element_size()
    rows = max(1, min(height, BLOCK // max(1, row)))
    if B < FEW:
        buffer = windows.new_empty(rows, *windows.shape[1:])
    else:
        buffer = windows.new_empty(rows, width, *windows.shape[3:], B).movedim(5, 2)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        yield slice(start * width, end * width), windows[start:end], buffer[: end - start]


def _by_position(patches: Tensor) -> Tensor:
    """Return rows Wout B C kh kw as positions B J, a view."""
    return patches.flatten(0, 1).flatten(2)
