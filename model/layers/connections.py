"""Connections between two maps: full, local, tiled, convolution.

Letters: B batch, C in channels, H W in size, O out channels, P = Hout·Wout positions, J = C·kh·kw inputs of
an output, K kernels. The last three kinds differ in K only: a kernel for each position is locally connected
(unshared convolution; LeCun 1989), t×t repeating kernels are tiled (Le et al., NIPS 2010), one kernel is a
convolution. They have equally many multiplications, but differ in shared weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError
from model.layers.unshared import unshared_convolution

Size = int | tuple[int, int]


class Connection(nn.Module):
    """Base of all kinds: sizes, counts, parameters. Input: B C H W. Output: B O Hout Wout.

    Weights are K O J, so a locally connected layer reads them from memory once, position by position; biases
    K O. They start as in He et al. (ICCV 2015) for ReLU: normal, variance 2/J; biases 0.

    Args:
        in_size: H and W, or one number for both; kernel likewise.
        stride: in pixels of the input, the same both ways; padding, with zeros on all four sides, likewise.
        tile: t of the tiled kind; ignored by the others.
        generator: random generator of the weights; None is PyTorch's own.

    Raises:
        ModelError: sizes that do not fit, or maps of another shape than B×C×H×W.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_size: Size,
        kernel: Size,
        *,
        stride: int = 1,
        padding: int = 0,
        tile: int = 2,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.in_size, self.kernel = _pair(in_size), _pair(kernel)
        self.stride, self.padding, self.tile = stride, padding, tile
        self._check_sizes()
        kernels, outputs, inputs = self._shape()
        self.weight = nn.Parameter(torch.empty(kernels, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(kernels, outputs)) if bias else None
        nn.init.normal_(self.weight, std=(2 / inputs) ** 0.5, generator=generator)

    @property
    def output_size(self) -> tuple[int, int]:
        """Hout and Wout; as in `nn.Conv2d`, a remainder of the stride at the lower right is ignored."""
        height, width = (
            (size + 2 * self.padding - kernel) // self.stride + 1
            for size, kernel in zip(self.in_size, self.kernel, strict=True)
        )
        return height, width

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Height and width of the receptive field of one output, in pixels of the input."""
        return self.kernel

    @property
    def weights(self) -> int:
        """Number of weights, without biases."""
        return self.weight.numel()

    @property
    def biases(self) -> int:
        """Number of biases."""
        return 0 if self.bias is None else self.bias.numel()

    @property
    def multiplies(self) -> int:
        """Multiplications for one image, with those of the padding's zeros."""
        height, width = self.output_size
        _, outputs, inputs = self._shape()
        return height * width * outputs * inputs

    def extra_repr(self) -> str:
        (height, width), (kh, kw) = self.in_size, self.kernel
        return (
            f"{self.in_channels}×{height}×{width} → {self.out_channels}, kernel {kh}×{kw}, "
            f"stride {self.stride}, padding {self.padding}"
        )

    def _shape(self) -> tuple[int, int, int]:
        """K, O and J."""
        raise NotImplementedError

    def _check_sizes(self) -> None:
        name = type(self).__name__
        least = min(self.in_channels, self.out_channels, *self.in_size, *self.kernel, self.stride, self.tile)
        if least < 1 or self.padding < 0:
            raise ModelError(
                f"{name} needs channels, sizes, kernel, stride and tile of at least 1 and a padding of at "
                f"least 0, got {self.in_channels} → {self.out_channels} channels, in_size {self.in_size}, "
                f"kernel {self.kernel}, stride {self.stride}, tile {self.tile}, padding {self.padding}"
            )
        if min(self.output_size) < 1:
            raise ModelError(
                f"{name}'s kernel {self.kernel} is larger than its input: "
                f"in_size {self.in_size} with a padding of {self.padding}"
            )

    def _check_maps(self, maps: Tensor) -> Tensor:
        if maps.ndim != 4 or maps.shape[1:] != (self.in_channels, *self.in_size):
            want = "×".join(map(str, (self.in_channels, *self.in_size)))
            raise ModelError(f"{type(self).__name__} expects maps B×{want}, got {tuple(maps.shape)}")
        return maps


class FullyConnected(Connection):
    """Every output sees every input: kernel, stride and padding only set the number of outputs."""

    @property
    def receptive_field(self) -> tuple[int, int]:
        return self.in_size

    @property
    def multiplies(self) -> int:
        return self.weights

    def _shape(self) -> tuple[int, int, int]:
        (height, width), (in_height, in_width) = self.output_size, self.in_size
        return 1, self.out_channels * height * width, self.in_channels * in_height * in_width

    def forward(self, maps: Tensor) -> Tensor:
        x = self._check_maps(maps).flatten(1)  # B C·H·W
        y = F.linear(x, self.weight[0], None if self.bias is None else self.bias[0])  # B O·P
        return y.view(-1, self.out_channels, *self.output_size)


class Repeating(Connection):
    """A kernel for each (r mod down, c mod across) of output (r, c).

    y[o,p] = b[o,k(p)] + Σ_j W[o,k(p),j]·unfold(x)[j,p], k(p) the kernel of position p.

    One kernel runs as one convolution, a kernel for each position as `unshared_convolution`. Otherwise each
    kernel is a convolution with a wider stride: suited to few kernels, because each costs some calls.
    """

    @property
    def kernels(self) -> tuple[int, int]:
        """Number of kernels, down and across."""
        raise NotImplementedError

    def _shape(self) -> tuple[int, int, int]:
        (down, across), (kh, kw) = self.kernels, self.kernel
        return down * across, self.out_channels, self.in_channels * kh * kw

    def forward(self, maps: Tensor) -> Tensor:
        x = self._check_maps(maps)
        if self.kernels == (1, 1):
            return self._convolve(x, 0, (1, 1), self.padding)
        x = F.pad(x, (self.padding,) * 4) if self.padding else x
        return self._local(x) if self.kernels == self.output_size else self._repeated(x)

    def _local(self, x: Tensor) -> Tensor:
        y = unshared_convolution(x, self.weight, self.kernel, self.stride)  # B O Hout Wout
        return y if self.bias is None else y + self.bias.mT.reshape(-1, *self.output_size)

    def _repeated(self, x: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.out_channels, *self.output_size)
        down, across = self.kernels
        for k in range(down * across):
            r, c = divmod(k, across)
            seen = x[:, :, r * self.stride :, c * self.stride :]
            y[:, :, r::down, c::across] = self._convolve(seen, k, (down, across), 0)
        return y

    def _convolve(self, x: Tensor, k: int, step: tuple[int, int], padding: int) -> Tensor:
        weight = self.weight[k].view(-1, self.in_channels, *self.kernel)  # O C kh kw
        bias = None if self.bias is None else self.bias[k]
        stride = step[0] * self.stride, step[1] * self.stride
        return F.conv2d(x, weight, bias, stride=stride, padding=padding)


class Convolution(Repeating):
    """One kernel for all positions: `nn.Conv2d` on maps of one size."""

    @property
    def kernels(self) -> tuple[int, int]:
        return 1, 1


class Tiled(Repeating):
    """t×t kernels that repeat: t = 1 is convolution, t ≥ the output's size is locally connected."""

    @property
    def kernels(self) -> tuple[int, int]:
        height, width = self.output_size
        return min(self.tile, height), min(self.tile, width)


class LocallyConnected(Repeating):
    """A kernel for each position."""

    @property
    def kernels(self) -> tuple[int, int]:
        return self.output_size


_KINDS: dict[str, type[Connection]] = {
    "full": FullyConnected,
    "local": LocallyConnected,
    "tiled": Tiled,
    "convolution": Convolution,
}
CONNECTIONS = tuple(_KINDS)


def build_connection(
    kind: str,
    in_channels: int,
    out_channels: int,
    in_size: Size,
    kernel: Size,
    *,
    stride: int = 1,
    padding: int = 0,
    tile: int = 2,
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> Connection:
    """Return a connection by the name of its kind.

    Raises:
        ModelError: an unknown kind, or sizes that do not fit.
    """
    if kind not in _KINDS:
        raise ModelError(f"unknown connection {kind!r}: one of {', '.join(CONNECTIONS)}")
    return _KINDS[kind](
        *(in_channels, out_channels, in_size, kernel),
        stride=stride,
        padding=padding,
        tile=tile,
        bias=bias,
        generator=generator,
    )


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
