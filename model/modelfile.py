"""The network as one value, and as one file: backbone, pooling, reduction and pre-processing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.errors import ModelError
from model.files import atomic_write
from model.images import DEFAULT_IMAGE_SIZE
from model.layers import deepface
from model.layers.backbone import CHANNELS, VGG16, imagenet_backbone, vgg16_conv5
from model.layers.deepface import DeepFace
from model.layers.local_features import LocalFeatures
from model.layers.poolings import (
    CLUSTERED,
    LAYERS,
    ONE_LAYER,
    TWO_LAYERS,
    VLAD,
    NetVLAD,
    Pooling,
    TwoLayers,
    build_pooling,
    joined,
)
from model.reduction import Reduction

FORMAT = 1
YOUNGER = (
    *("backbone", "connection", "tile", "ghosts", "normalisation"),
    *("min_image_size", "local_features", "layers"),
)  # fields that older files lack
IMAGENET_MEAN = (123.68, 116.779, 103.939)  # RGB 0–255; Oxford's weights take no scaling


@dataclass(frozen=True)
class ModelConfig:
    """The settings of a `PlaceModel`, and of the images for its weights."""

    weights: str = "imagenet"
    backbone: str = "vgg16"
    connection: str = "local"  # of DeepFace's L4 to L6
    tile: int = 2  # if they are tiled
    pooling: str = "netvlad"
    layers: str = ONE_LAYER  # pooled layers; each of two has half of the clusters
    version: int = 1  # of NetVLAD: 1 without, 2 with assignment bias
    clusters: int = 64  # 0 if the pooling has none
    ghosts: int = 0  # of GhostVLAD
    normalisation: str = "intra"  # of VLAD
    dim: int | None = None  # None: unreduced
    power: float | None = None  # of the whitening, 0 … 1
    image_size: int = DEFAULT_IMAGE_SIZE  # longest side in pixels, at most
    min_image_size: int = 0  # smaller photos are enlarged to this
    local_features: int = 0  # kept of a photo for verification, at most
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    activation_ranges: tuple[float, ...] = ()  # for int8; not in the fingerprint
    provenance: dict[str, Any] = field(default_factory=dict)  # how it was fitted; not in the fingerprint

    @property
    def channels(self) -> int:
        """D of the backbone's maps."""
        return BACKBONES[self.backbone][0]

    @property
    def pooled_dim(self) -> int:
        """Numbers in an unreduced descriptor."""
        return self.channels * (self.clusters if self.pooling in CLUSTERED else 1)

    @property
    def output_dim(self) -> int:
        """Numbers in a descriptor."""
        return self.dim or self.pooled_dim

    def each_layer(self) -> tuple[ModelConfig, ModelConfig]:
        """For two layers, the poolings of conv5_3 and of conv4_3."""
        lower = dataclasses.replace(
            self, layers=ONE_LAYER, clusters=self.clusters // 2, ghosts=self.ghosts // 2
        )
        clusters, ghosts = self.clusters - lower.clusters, self.ghosts - lower.ghosts
        return dataclasses.replace(lower, clusters=clusters, ghosts=ghosts), lower

    def pooling_settings(self) -> dict[str, int | str]:
        """Return the settings of the pooling."""
        match self.pooling:
            case "netvlad":
                return {"version": self.version}
            case "ghostvlad":
                return {"version": self.version, "ghosts": self.ghosts}
            case "vlad":
                return {"normalisation": self.normalisation}
        return {}

    def build_pooling(self) -> Pooling:
        """Return the pooling, still to be fitted or loaded."""
        if self.layers == TWO_LAYERS:
            upper, lower = (cast(NetVLAD | VLAD, layer.build_pooling()) for layer in self.each_layer())
            return TwoLayers(upper, lower)
        return build_pooling(
            self.pooling,
            clusters=self.clusters,
            channels=self.channels,
            version=self.version,
            ghosts=self.ghosts,
            normalisation=self.normalisation,
        )


BACKBONES: dict[str, tuple[int, Callable[[ModelConfig], nn.Module]]] = {
    "vgg16": (CHANNELS, lambda _: vgg16_conv5()),  # looked up when it is built
    "deepface": (deepface.CHANNELS, lambda config: DeepFace(config.connection, tile=config.tile)),
}
"""By name: channels of its maps, and how it is built."""


class PlaceModel(nn.Module):
    """Backbone → pooling → reduction.

    Input: uint8 images, B 3 H W, RGB. Output: B d, fp32, unit length.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        backbone: nn.Module,
        pooling: Pooling,
        reduction: Reduction | None,
        local: LocalFeatures | None = None,
    ) -> None:
        super().__init__()
        self.local = local
        self.config = config
        self.backbone = backbone
        self.pooling = pooling
        self.reduction = reduction
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def unfitted(cls, config: ModelConfig) -> PlaceModel:
        """Return ImageNet's convolutions with clusters and reduction still to be fitted."""
        if config.weights != "imagenet":
            raise ModelError(
                f"a model that is still to be fitted has weights 'imagenet', not {config.weights!r}"
            )
        if config.backbone != "vgg16":
            raise ModelError(
                f"there are ImageNet weights for the backbone vgg16, not for {config.backbone!r}"
            )
        local = LocalFeatures.shipped(config.local_features) if config.local_features else None
        return cls(config, imagenet_backbone(), config.build_pooling(), None, local)

    @classmethod
    def untrained(cls, config: ModelConfig) -> PlaceModel:
        """Return a network with random weights."""
        return cls(config, BACKBONES[config.backbone][1](config), config.build_pooling(), None)

    def fitted(
        self, pooling: Pooling | None = None, reduction: Reduction | None = None, **config: Any
    ) -> PlaceModel:
        """Return a model with the same backbone and other parts; `config` has the fields that change."""
        changed = dataclasses.replace(self.config, **config)
        local = self.local if self.local and self.local.count == changed.local_features else None
        if local is None and changed.local_features:
            local = LocalFeatures.shipped(changed.local_features)
        return PlaceModel(changed, self.backbone, pooling or self.pooling, reduction or self.reduction, local)

    def maps(self, images: Tensor) -> Tensor:
        """Return conv maps, B 512 H/16 W/16 of VGG16, in the backbone's precision; of two layers `joined`."""
        if self.config.layers == TWO_LAYERS:
            return self._both(images)[1]
        maps: Tensor = self.backbone(self.prepared(images))
        return maps

    def maps_and_local(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return `maps`, and local features of conv4_3; None if the model keeps none."""
        if self.local is None:
            return self.maps(images), None
        middle, maps = self._both(images)
        return maps, self.local(middle)

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return conv4_3, and the maps to pool."""
        middle, maps = cast(VGG16, self.backbone).both(self.prepared(images))  # others have one layer
        return middle, joined(maps, middle) if self.config.layers == TWO_LAYERS else maps

    def prepared(self, images: Tensor) -> Tensor:
        """Return images (B 3 H W) as the backbone takes them."""
        weight = next(self.backbone.parameters(), self.mean)  # int8 has none
        x = (images.to(weight.device).contiguous() - self.mean) / self.std  # faster than across channels
        return x.to(weight.dtype, memory_format=torch.channels_last)

    def pool(self, maps: Tensor) -> Tensor:
        """Return unreduced descriptors, B C, fp32."""
        pooled: Tensor = self.pooling(maps)
        return pooled

    def reduce(self, pooled: Tensor) -> Tensor:
        """Return descriptors as they are stored, B d, fp32."""
        return pooled if self.reduction is None else self.reduction(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.reduce(self.pool(self.maps(images)))

    @property
    def fingerprint(self) -> str:
        """16 hex digits over weights, clusters, reduction and pre-processing, not over precision."""
        digest = hashlib.sha256(json.dumps(_identity(self.config), sort_keys=True).encode())
        for name, tensor in sorted(_state(self).items()):
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


def save_model(model: PlaceModel, path: Path) -> str:
    """Write `model` to `path` atomically; return its fingerprint.

    Raises:
        ModelError: the disk is full.
        OSError: no such folder, or it cannot be written.
    """
    fingerprint = model.fingerprint
    header = {
        "format": str(FORMAT),
        "config": json.dumps(dataclasses.asdict(model.config)),
        "fingerprint": fingerprint,
    }
    try:
        with atomic_write(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode & 0o777  # by the umask; safetensors' files are for the owner only
            save_file(_state(model), partial, metadata=header)
            partial.chmod(mode)
    except SafetensorError as error:  # its error for a full disk
        raise ModelError(f"cannot write {path}: {error}") from error
    return fingerprint


def load_model(path: Path) -> PlaceModel:
    """Read a model written by `save_model`; every tensor must be there and fit.

    Raises:
        ModelError: no such file, not a model file, damaged, or of a newer format.
    """
    header = read_header(path)
    config = _config(header["config"], path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model file {path} is damaged: {error}") from error
    with torch.device("meta"):
        pooling = config.build_pooling()
        reduction = Reduction(config.pooled_dim, config.dim) if config.dim else None
        backbone = BACKBONES[config.backbone][1](config)
        local = LocalFeatures(config.local_features) if config.local_features else None
    model = PlaceModel(config, backbone, pooling, reduction, local)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"model file {path} does not hold the network its header describes: {error}"
        ) from error
    return model.eval()


def read_header(path: Path) -> dict[str, str]:
    """Read the header of a model file: `format`, `config` (JSON) and `fingerprint`.

    Raises:
        ModelError: see `load_model`.
    """
    if not path.is_file():
        raise ModelError(f"no model file {path}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"model file {path} is damaged: {error}") from error
    if not {"format", "config", "fingerprint"} <= header.keys():
        raise ModelError(f"{path} is a safetensors file, but not a loci model")
    if not header["format"].isdecimal():
        raise ModelError(f"{path} is a safetensors file, but not a loci model")
    if int(header["format"]) > FORMAT:
        raise ModelError(
            f"model file {path} has format {header['format']}: a newer loci reads it, this one {FORMAT}"
        )
    return dict(header)


def read_config(path: Path) -> tuple[ModelConfig, str]:
    """Return a model file's settings and fingerprint; no tensor is read.

    Raises:
        ModelError: see `load_model`.
    """
    header = read_header(path)
    return _config(header["config"], path), header["fingerprint"]


def _config(text: str, path: Path) -> ModelConfig:
    try:
        config = ModelConfig(**json.loads(text))
        r, g, b = config.mean
        x, y, z = config.std
        if config.backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {config.backbone!r}")
        if config.layers not in LAYERS:
            raise ValueError(f"unknown layers {config.layers!r}")
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model file {path} has a configuration this version cannot read: {error}"
        ) from error
    ranges = tuple(map(float, config.activation_ranges))
    return dataclasses.replace(config, mean=(r, g, b), std=(x, y, z), activation_ranges=ranges)


def _identity(config: ModelConfig) -> dict[str, Any]:
    """Return the fields that the fingerprint covers; later fields only if set, so that files keep theirs."""
    fields = dataclasses.asdict(config)
    del fields["provenance"], fields["activation_ranges"]
    for name in YOUNGER:
        if fields[name] == ModelConfig.__dataclass_fields__[name].default:
            del fields[name]
    return fields


def _state(model: PlaceModel) -> dict[str, Tensor]:
    """Return the tensors to save: the backbone in fp16, as it is shipped, and fitted parts in fp32."""
    return {
        name: (tensor.half() if name.startswith("backbone.") else tensor.float()).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
