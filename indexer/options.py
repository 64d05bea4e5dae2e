"""What a run may be told, and what an index remembers of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from indexer.addresses import Address
from indexer.errors import IndexerError, UsageError
from indexer.memory import machine_memory, read_bytes
from indexer.places.assign import parse_mode
from indexer.storage.files import replace_text
from model.images import DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE, MIN_SIDE
from model.local_features import LOCAL_FEATURES
from model.modelfile import ModelConfig
from model.poolings import CLUSTERED, LAYERS, NORMALISATIONS, ONE_LAYER, POOLINGS, TWO_LAYERS

DEFAULT_GHOSTS = 8
RECALL = 0.99
FOLDER = "faiss"
"""The store that every index has."""
POOLING_OPTIONS = {
    "layers": CLUSTERED,
    "clusters": CLUSTERED,
    "netvlad_version": ("netvlad", "ghostvlad"),
    "ghosts": ("ghostvlad",),
    "vlad_normalisation": ("vlad",),
}
"""Which poolings have a setting."""


@dataclass(frozen=True)
class FitOptions:
    """What a generation's model is fitted with; fixed from then on."""

    dim: int = 512  # at most; few photos carry fewer dimensions
    clusters: int = 64
    image_size: int = DEFAULT_IMAGE_SIZE
    min_image_size: int = MIN_IMAGE_SIZE
    local_features: int = LOCAL_FEATURES
    panoramas: int | None = None  # views that a 360° photo is cut into
    weights: str = "imagenet"  # or a fitted model's name, with its fingerprint
    pooling: str = "netvlad"
    layers: str = TWO_LAYERS
    netvlad_version: int = 1
    ghosts: int = 0
    vlad_normalisation: str = "intra"
    seed: int = 0

    def model_config(self) -> ModelConfig:
        """The network that these ask for, still to be fitted."""
        return ModelConfig(
            weights=self.weights,
            pooling=self.pooling,
            layers=self.layers,
            version=self.netvlad_version,
            clusters=self.clusters,
            ghosts=self.ghosts,
            normalisation=self.vlad_normalisation,
            image_size=self.image_size,
            min_image_size=self.min_image_size,
            local_features=self.local_features,
        )


@dataclass(frozen=True)
class PlaceOptions:
    """How photos become places; may change from run to run."""

    places: str = "auto"
    place_radius_m: float = 25.0

    def describe(self) -> str:
        """Both in a few words, to see whether either has changed."""
        return f"{self.places} within {self.place_radius_m} m"


@dataclass(frozen=True)
class SearchOptions:
    """How descriptors are searched; may change from run to run."""

    memory: str | None = None
    """What may be kept in memory of them, as `read_bytes` takes it; None: half of the machine's."""
    recall: float = RECALL
    """Share of the nearest that a search is to find; 1: all."""
    store: str | None = None
    """Where snapshots are sent, too: see `indexer.milvus.client.Address`."""
    hnsw: bool = False
    """Search many descriptors by a graph, where it fits the memory, rather than by lists."""

    def memory_bytes(self) -> int:
        """`memory` in bytes."""
        return machine_memory() // 2 if self.memory is None else read_bytes("--memory", self.memory)

    def describe(self) -> str:
        """What a snapshot hangs on in a few words, to see whether it has changed."""
        hnsw = ", by HNSW" if self.hnsw else ""
        return f"recall {self.recall} in {self.memory or 'half the memory'}{hnsw}"


class Options(NamedTuple):
    """All that an index remembers of what it was told."""

    fit: FitOptions
    places: PlaceOptions
    search: SearchOptions


@dataclass(frozen=True)
class BuildOptions:
    """What `build_index` may be told. None means: as this index was made, or the default for a new one."""

    dim: int | None = None
    clusters: int | None = None
    image_size: int | None = None
    min_image_size: int | None = None
    local_features: int | None = None
    panoramas: int | None = None
    weights: str | None = None
    pooling: str | None = None
    layers: str | None = None
    netvlad_version: int | None = None
    ghosts: int | None = None
    vlad_normalisation: str | None = None
    seed: int | None = None
    places: str | None = None
    place_radius_m: float | None = None
    memory: str | None = None
    recall: float | None = None
    store: str | None = None
    hnsw: bool | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: str | None = None
    metadata: Path | None = None
    refit: bool = False
    rehash: bool = False
    prune: bool = False

    def __post_init__(self) -> None:
        _at_least("--dim", self.dim, 1)
        _at_least("--clusters", self.clusters, 1)
        _at_least("--image-size", self.image_size, MIN_SIDE)
        _at_least("--min-image-size", self.min_image_size, 0)
        _at_least("--local-features", self.local_features, 0)
        _at_least("--panoramas", self.panoramas, 2)
        _at_least("--ghosts", self.ghosts, 1)
        _at_least("--seed", self.seed, 0)
        _at_least("--batch-size", self.batch_size, 1)
        _one_of("--pooling", self.pooling, POOLINGS)
        _one_of("--layers", self.layers, LAYERS)
        _one_of("--netvlad-version", self.netvlad_version, (1, 2))
        _one_of("--vlad-normalisation", self.vlad_normalisation, NORMALISATIONS)
        if self.places is not None:
            parse_mode(self.places)
        if self.place_radius_m is not None and not self.place_radius_m > 0:
            raise UsageError(f"--place-radius must be above 0 metres, got {self.place_radius_m}")
        if self.memory is not None:
            read_bytes("--memory", self.memory)
        if self.recall is not None and not 0 < self.recall <= 1:
            raise UsageError(f"--recall must be above 0 and at most 1, got {self.recall}")
        if self.store not in (None, FOLDER):
            Address.parse(self.store)

    def fit_over(self, base: FitOptions, brought: ModelConfig | None = None) -> FitOptions:
        """`base` with what was said; a setting of one pooling does not pass on to another.

        Args:
            brought: of the model that --weights names, whose pooling, and reduction if any, are kept.

        Raises:
            UsageError: a setting that the pooling does not have, or that the brought model has otherwise.
        """
        said = self._said(FitOptions)
        if brought is not None:
            return _as_brought(brought, base, said)
        pooling = said.get("pooling", base.pooling)
        if pooling != base.pooling or said.get("weights", base.weights) != base.weights:
            fresh = FitOptions(pooling=pooling)
            own = {name: getattr(fresh, name) for name in POOLING_OPTIONS}
            base = dataclasses.replace(base, **own)
        for name, poolings in POOLING_OPTIONS.items():
            if name in said and pooling not in poolings:
                raise UsageError(f"--{_dashed(name)} is for {' and '.join(poolings)}, not for {pooling}")
        wanted = dataclasses.replace(base, **said)
        if pooling not in CLUSTERED:
            return dataclasses.replace(wanted, clusters=0, layers=ONE_LAYER)
        if wanted.layers == TWO_LAYERS and wanted.clusters < 2:
            raise UsageError(f"--clusters must be at least 2 for two layers, got {wanted.clusters}")
        if pooling == "ghostvlad" and not wanted.ghosts:
            return dataclasses.replace(wanted, ghosts=DEFAULT_GHOSTS)
        return wanted

    def places_over(self, base: PlaceOptions) -> PlaceOptions:
        """`base` with what was said."""
        return dataclasses.replace(base, **self._said(PlaceOptions))

    def search_over(self, base: SearchOptions) -> SearchOptions:
        """`base` with what was said; the store "faiss" is none but the folder."""
        options = dataclasses.replace(base, **self._said(SearchOptions))
        return dataclasses.replace(options, store=None) if options.store == FOLDER else options

    def _said(self, kind: type[FitOptions] | type[PlaceOptions] | type[SearchOptions]) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}
        return {name: value for name, value in values.items() if value is not None}


def _as_brought(brought: ModelConfig, base: FitOptions, said: dict[str, Any]) -> FitOptions:
    own: dict[str, Any] = {
        "pooling": brought.pooling,
        "layers": brought.layers,
        "clusters": brought.clusters,
        "netvlad_version": brought.version,
        "ghosts": brought.ghosts,
        "vlad_normalisation": brought.normalisation,
    }
    if brought.backbone != "vgg16":  # trained on images of one size, and without conv4_3
        own |= {"min_image_size": brought.min_image_size, "local_features": 0}
    if brought.dim is not None:
        own["dim"] = brought.dim
    for name, value in own.items():
        if said.get(name, value) != value:
            raise UsageError(
                f"--{_dashed(name)} {said[name]} cannot be: the weights {brought.weights} bring {value}"
            )
    if base.weights != brought.weights:
        own["image_size"] = brought.image_size
    return dataclasses.replace(base, **{**own, **said, "weights": brought.weights})


def save_options(path: Path, options: Options) -> None:
    """Write all as JSON, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    for part in options:
        values |= dataclasses.asdict(part)
    replace_text(path, json.dumps(values, indent=1))


def load_options(path: Path) -> Options:
    """Read what `save_options` wrote. Raises IndexerError when it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.setdefault("hnsw", values.pop("graph", False))  # its name in the first indexes
        places = PlaceOptions(*(values.pop(field.name) for field in dataclasses.fields(PlaceOptions)))
        search = SearchOptions(*(values.pop(field.name) for field in dataclasses.fields(SearchOptions)))
        return Options(FitOptions(**values), places, search)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexerError(f"{path} cannot be read: {error}") from error


def differences(old: FitOptions, new: FitOptions) -> str:
    """In words, which fit options differ."""
    words = [
        f"--{_dashed(field.name)} {getattr(old, field.name)}, not {getattr(new, field.name)}"
        for field in dataclasses.fields(FitOptions)
        if getattr(old, field.name) != getattr(new, field.name)
    ]
    return ", ".join(words)


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def _one_of(name: str, value: str | int | None, known: Sequence[str | int]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{name} must be {' or '.join(map(str, known))}, got {value!r}")


def _dashed(name: str) -> str:
    return name.replace("_", "-")
