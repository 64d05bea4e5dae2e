"""Options of a run, and those that an index keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from indexer.addresses import Address
from indexer.errors import IndexerError, UsageError
from indexer.places.assign import parse_mode
from indexer.storage.files import replace_text
from model.images import DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE, MIN_SIDE
from model.layers.local_features import LOCAL_FEATURES
from model.layers.poolings import CLUSTERED, LAYERS, NORMALISATIONS, ONE_LAYER, POOLINGS, TWO_LAYERS
from model.modelfile import ModelConfig

IMAGENET = "imagenet"
"""Weights whose clusters are still to be fitted."""
DEFAULT_GHOSTS = 8
PLACE_RADIUS_M = 25.0
"""Default radius of a place; also the distance within which a photo is right."""
RECALL = 0.99
FOLDER = "faiss"
"""The value of `store` for an index that is in its folder only."""
POOLING_OPTIONS = {
    "layers": CLUSTERED,
    "clusters": CLUSTERED,
    "netvlad_version": ("netvlad", "ghostvlad"),
    "ghosts": ("ghostvlad",),
    "vlad_normalisation": ("vlad",),
}
"""Options that only some poolings have, and those poolings."""

_LEAST = {
    "dim": 1,
    "clusters": 1,
    "image_size": MIN_SIDE,
    "min_image_size": 0,
    "local_features": 0,
    "panoramas": 2,
    "ghosts": 1,
    "seed": 0,
    "batch_size": 1,
}
_KNOWN: dict[str, tuple[str | int, ...]] = {
    "pooling": POOLINGS,
    "layers": LAYERS,
    "netvlad_version": (1, 2),
    "vlad_normalisation": NORMALISATIONS,
}
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class FitOptions:
    """Options of a generation's model, which never change."""

    dim: int = 512
    """Most dimensions of a descriptor; few photos give fewer."""
    clusters: int = 64
    image_size: int = DEFAULT_IMAGE_SIZE
    """Longest side in pixels to which photos are reduced."""
    min_image_size: int = MIN_IMAGE_SIZE
    """Longest side in pixels to which smaller photos are enlarged."""
    local_features: int = LOCAL_FEATURES
    """Local features kept of each photo."""
    panoramas: int | None = None
    """Views that each 360° photo is cut into."""
    weights: str = IMAGENET
    """Or the name of a fitted model, with its fingerprint."""
    pooling: str = "netvlad"
    layers: str = TWO_LAYERS
    netvlad_version: int = 1
    ghosts: int = 0
    vlad_normalisation: str = "intra"
    seed: int = 0

    def model_config(self) -> ModelConfig:
        """Return the configuration of the network that is to be fitted."""
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
    """Rule that groups photos into places; may change from run to run."""

    places: str = "auto"
    place_radius_m: float = PLACE_RADIUS_M

    def describe(self) -> str:
        """Return a text that changes with the options."""
        return f"{self.places} within {self.place_radius_m} m"


@dataclass(frozen=True)
class SearchOptions:
    """Memory and recall of a search; may change from run to run."""

    memory: str | None = None
    """Most memory for descriptors, in the notation of `read_bytes`; None: half of the machine's."""
    recall: float = RECALL
    """Share of the nearest descriptors that a search must find; 1: all."""
    store: str | None = None
    """Milvus address that snapshots are also sent to: see `indexer.addresses.Address`."""
    hnsw: bool = False
    """Search many descriptors by HNSW instead of inverted lists, if it fits the memory."""

    def memory_bytes(self) -> int:
        """Return `memory` in bytes."""
        return machine_memory() // 2 if self.memory is None else read_bytes(self.memory)

    def describe(self) -> str:
        """Return a text that changes with the options that a snapshot depends on."""
        hnsw = ", by HNSW" if self.hnsw else ""
        return f"recall {self.recall} in {self.memory or 'half the memory'}{hnsw}"


class Options(NamedTuple):
    """Options that an index keeps."""

    fit: FitOptions
    places: PlaceOptions
    search: SearchOptions


@dataclass(frozen=True)
class BuildOptions:
    """Options of `build_index`. None: as this index was made, or the default for a new one.

    Raises:
        UsageError: a value is out of range or unknown.
    """

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
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"`{name}` must be at least {least}, got {value}")
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise UsageError(f"`{name}` must be {' or '.join(map(str, known))}, got {value!r}")
        if self.places is not None:
            parse_mode(self.places)
        if self.place_radius_m is not None and not self.place_radius_m > 0:
            raise UsageError(f"`place_radius_m` must be above 0 metres, got {self.place_radius_m}")
        if self.memory is not None:
            read_bytes(self.memory)
        if self.recall is not None and not 0 < self.recall <= 1:
            raise UsageError(f"`recall` must be above 0 and at most 1, got {self.recall}")
        if self.store not in (None, FOLDER):
            Address.parse(self.store)

    def fit_over(self, base: FitOptions, brought: ModelConfig | None = None) -> FitOptions:
        """Return `base` with the options that are set here.

        An option of one pooling is not passed on to another pooling.

        Args:
            brought: configuration of the model that `weights` names. Its pooling and reduction are kept.

        Raises:
            UsageError: the pooling does not have an option, or the brought model has another value.
        """
        changes = self._set(FitOptions)
        if brought is not None:
            return _as_brought(brought, base, changes)
        pooling = changes.get("pooling", base.pooling)
        if pooling != base.pooling or changes.get("weights", base.weights) != base.weights:
            fresh = FitOptions(pooling=pooling)
            base = dataclasses.replace(base, **{name: getattr(fresh, name) for name in POOLING_OPTIONS})
        for name, poolings in POOLING_OPTIONS.items():
            if name in changes and pooling not in poolings:
                raise UsageError(f"`{name}` is for {' and '.join(poolings)}, not for {pooling}")
        wanted = dataclasses.replace(base, **changes)
        if pooling not in CLUSTERED:
            return dataclasses.replace(wanted, clusters=0, layers=ONE_LAYER)
        if wanted.layers == TWO_LAYERS and wanted.clusters < 2:
            raise UsageError(f"`clusters` must be at least 2 for two layers, got {wanted.clusters}")
        if pooling == "ghostvlad" and not wanted.ghosts:
            return dataclasses.replace(wanted, ghosts=DEFAULT_GHOSTS)
        return wanted

    def places_over(self, base: PlaceOptions) -> PlaceOptions:
        """Return `base` with the options that are set here."""
        return dataclasses.replace(base, **self._set(PlaceOptions))

    def search_over(self, base: SearchOptions) -> SearchOptions:
        """Return `base` with the options that are set here; the store "faiss" means no Milvus."""
        options = dataclasses.replace(base, **self._set(SearchOptions))
        return dataclasses.replace(options, store=None) if options.store == FOLDER else options

    def _set(self, kind: type[FitOptions] | type[PlaceOptions] | type[SearchOptions]) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}
        return {name: value for name, value in values.items() if value is not None}


def _as_brought(brought: ModelConfig, base: FitOptions, changes: dict[str, Any]) -> FitOptions:
    own: dict[str, Any] = {
        "pooling": brought.pooling,
        "layers": brought.layers,
        "clusters": brought.clusters,
        "netvlad_version": brought.version,
        "ghosts": brought.ghosts,
        "vlad_normalisation": brought.normalisation,
    }
    if brought.backbone != "vgg16":  # trained on images of one size, and has no conv4_3
        own |= {"min_image_size": brought.min_image_size, "local_features": 0}
    if brought.dim is not None:
        own["dim"] = brought.dim
    for name, value in own.items():
        if changes.get(name, value) != value:
            raise UsageError(
                f"`{name}` {changes[name]} is impossible: the weights {brought.weights} have {value}"
            )
    if base.weights != brought.weights:
        own["image_size"] = brought.image_size
    return dataclasses.replace(base, **{**own, **changes, "weights": brought.weights})


def save_options(path: Path, options: Options) -> None:
    """Write all options to a JSON file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {}
    for part in options:
        values |= dataclasses.asdict(part)
    replace_text(path, json.dumps(values, indent=1))


def load_options(path: Path) -> Options:
    """Read the file that `save_options` wrote. Raises IndexerError if it is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        places = PlaceOptions(*(values.pop(field.name) for field in dataclasses.fields(PlaceOptions)))
        search = SearchOptions(*(values.pop(field.name) for field in dataclasses.fields(SearchOptions)))
        return Options(FitOptions(**values), places, search)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexerError(f"{path} cannot be read: {error}") from error


def differences(old: FitOptions, new: FitOptions) -> str:
    """Return the options that differ, as words for an error."""
    words = [
        f"`{field.name}` {getattr(old, field.name)}, not {getattr(new, field.name)}"
        for field in dataclasses.fields(FitOptions)
        if getattr(old, field.name) != getattr(new, field.name)
    ]
    return ", ".join(words)


def read_bytes(text: str) -> int:
    """Read the option `memory`: a number of bytes with a binary unit, such as 512M, 1.5G or 2 GiB.

    Raises:
        UsageError: it is no such number, or 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise UsageError(f"`memory` must be a number of bytes such as 512M or 4G, got {text!r}")
    return size


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that this process runs in."""
    pages: int = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(pages, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # not Linux, or no limit
        return pages
