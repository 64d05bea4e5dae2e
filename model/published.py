"""Published weights as a `PlaceModel`: NetVLAD's .mat, pytorch-NetVlad, Patch-NetVLAD."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.errors import ModelError
from model.layers.backbone import CHANNELS, vgg16_conv5
from model.layers.poolings import NetVLAD
from model.modelfile import ModelConfig, PlaceModel
from model.reduction import Reduction

MATLAB = (".mat",)
PYTORCH = (".tar", ".pth", ".pt", ".ckpt")
TORCHVISION_MEAN = (123.675, 116.28, 103.53)  # (0.485, 0.456, 0.406) × 255
TORCHVISION_STD = (58.395, 57.12, 57.375)  # (0.229, 0.224, 0.225) × 255

Tensors = Mapping[str, Tensor]


def read_published(path: Path) -> PlaceModel:
    """Read published NetVLAD weights, by the file's extension; the model is named after the file.

    Raises:
        ModelError: no such file, damaged, of another kind, unsafe to read, or a tensor missing or misshapen.
    """
    if not path.is_file():
        raise ModelError(f"no file {path}")
    if path.suffix.lower() in MATLAB:
        model = _from_matlab(path)
    elif path.suffix.lower() in PYTORCH:
        model = _from_pytorch(path)
    else:
        endings = ", ".join((*MATLAB, *PYTORCH))
        raise ModelError(f"{path} has none of the endings of published weights: {endings}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    provenance = {"source": path.name, "sha256": digest}
    return model.fitted(weights=path.name.split(".")[0], provenance=provenance).eval()


def _from_matlab(path: Path) -> PlaceModel:
    """Read the struct of the authors' release (Relja Arandjelović's netvlad).

    `net.layers` 0–28 are VGG16's, 30 is NetVLAD, 33 the whitening. Convolutions are S S IN OUT. Layer 30 has
    the assignment, D K, and minus the centres, D K. The whitening is 1 1 K·D d, with index d·K + k.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        net = loadmat(path, struct_as_record=False, squeeze_me=True)["net"]
        layers = list(net.layers)
        mean = np.asarray(net.meta.normalization.averageImage, np.float64)
    except (MatReadError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not the struct of the published NetVLAD weights: {error!r}") from error
    if len(layers) < 31:
        raise ModelError(
            f"{path} has {len(layers)} layers, not the 34 or so of the published NetVLAD weights"
        )
    state: dict[str, Tensor] = {}
    for name in vgg16_conv5().state_dict():
        layer, kind = name.split(".")
        weights = _matlab_weights(path, layers, int(layer), ("weight", "bias").index(kind))
        state[name] = weights.permute(3, 2, 0, 1).contiguous() if weights.ndim == 4 else weights
    assignment = _matlab_weights(path, layers, 30, 0).T  # K D
    centres = -_matlab_weights(path, layers, 30, 1).T
    whitening = None
    if len(layers) > 33:
        projection = _matlab_weights(path, layers, 33, 0)
        if projection.ndim != 2 or projection.numel() % assignment.numel():
            raise ModelError(
                f"{path}: the whitening has shape {tuple(projection.shape)}, not {assignment.numel()} × d"
            )
        clusters = len(assignment)
        by_channel = projection.view(-1, clusters, projection.shape[1])  # D K d, from d·K + k
        whitening = (
            by_channel.transpose(0, 1).reshape(-1, projection.shape[1]).T.contiguous(),
            _matlab_weights(path, layers, 33, 1),
        )
    r, g, b = (float(value) for value in mean.reshape(-1, 3).mean(0))
    return _build(path, state, assignment, None, centres, whitening, mean=(r, g, b), std=(1.0, 1.0, 1.0))


def _matlab_weights(path: Path, layers: list[Any], layer: int, which: int) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(layers[layer].weights[which], np.float32))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: layer {layer} has no weights[{which}]: {error}") from error


def _from_pytorch(path: Path) -> PlaceModel:
    """Read pytorch-NetVlad's checkpoint, with the whitening that Patch-NetVLAD adds.

    No code in the file is run. K·D has the index k·D + d, as ours.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, or is no PyTorch file, and was not read: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is not a PyTorch checkpoint, or is damaged: {error}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} is a PyTorch file, but holds no state dict")
    tensors = {name.replace("module.", ""): tensor.float() for name, tensor in loaded.items()}
    state = {name: _get(path, tensors, f"encoder.{name}") for name in vgg16_conv5().state_dict()}
    weight = _get(path, tensors, "pool.conv.weight").flatten(1)  # K D
    whitening = None
    if "WPCA.0.weight" in tensors:
        whitening = (tensors["WPCA.0.weight"].flatten(1), _get(path, tensors, "WPCA.0.bias"))
    centres = _get(path, tensors, "pool.centroids")
    bias = tensors.get("pool.conv.bias")
    means = {"mean": TORCHVISION_MEAN, "std": TORCHVISION_STD}
    return _build(path, state, weight, bias, centres, whitening, **means)


def _get(path: Path, tensors: Tensors, name: str) -> Tensor:
    try:
        return tensors[name]
    except KeyError:
        raise ModelError(
            f"{path} has no tensor {name}: not a checkpoint of NetVLAD on VGG16 by pytorch-NetVlad's names"
        ) from None


def _build(
    path: Path,
    state: Tensors,
    weight: Tensor,
    bias: Tensor | None,
    centres: Tensor,
    whitening: tuple[Tensor, Tensor] | None,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> PlaceModel:
    clusters = len(weight)
    _expect(path, "the assignment", weight, (clusters, CHANNELS))
    _expect(path, "the centres", centres, (clusters, CHANNELS))
    layer = NetVLAD(clusters, CHANNELS, version=1 if bias is None else 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.centres.copy_(centres)
        if layer.bias is not None and bias is not None:
            _expect(path, "the assignment's bias", bias, (clusters,))
            layer.bias.copy_(bias)
    backbone = vgg16_conv5()
    for name, tensor in backbone.state_dict().items():
        _expect(path, f"the convolution {name}", state[name], tuple(tensor.shape))
    backbone.load_state_dict(state, assign=True)
    reduction = None if whitening is None else _reduction(path, *whitening, channels=clusters * CHANNELS)
    config = ModelConfig(
        clusters=clusters,
        version=1 if bias is None else 2,
        dim=None if reduction is None else len(reduction.projection),
        power=None if reduction is None else 1.0,
        mean=mean,
        std=std,
    )
    return PlaceModel(config, backbone, layer, reduction)


def _reduction(path: Path, projection: Tensor, bias: Tensor, *, channels: int) -> Reduction:
    """Return y = Wv + b as P(v − µ): P = W, and µ = −Wᵀ(WWᵀ)⁻¹b, the shortest with −Wµ = b."""
    _expect(path, "the whitening", projection, (len(projection), channels))
    _expect(path, "the whitening's bias", bias, (len(projection),))
    wide = projection.double()
    mean = -(wide.T @ torch.linalg.solve(wide @ wide.T, bias.double()))
    reduction = Reduction(channels, len(projection))
    reduction.projection.data.copy_(projection)
    reduction.mean.data.copy_(mean)
    return reduction


def _expect(path: Path, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ModelError(f"{path}: {what} has shape {tuple(tensor.shape)}, not {shape}")
