"""Fit a pooling's clusters on maps of photos, and make the halves that choose parts of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.clusters import kmeans, rank_by_halves, sample_local, sharpness
from model.layers.poolings import TWO_LAYERS, VLAD, NetVLAD, Pooling, TwoLayers, apart
from model.modelfile import ModelConfig

GHOST_PHOTOS = 200  # photos whose halves decide which clusters become ghosts

Floats = NDArray[np.float32]
Maps = Callable[[str], Floats]
"""Maps of a photo by its id (hex digits): V D H W, V views of a panorama or one."""


def fit_clusters(
    config: ModelConfig, photos: Sequence[str], maps: Maps, *, seed: int
) -> tuple[Pooling, dict[str, Any]]:
    """Return the pooling of `config` with k-means clusters, and a record of the fit.

    What is drawn of a photo depends on the seed and its id, not on other photos.

    Raises:
        ModelError: fewer local descriptors than clusters, or identical photos.
    """
    if config.layers == TWO_LAYERS:
        return _fit_layers(config, photos, maps, seed=seed)
    return _fit_layer(config, photos, maps, [_draw(maps(photo), photo, seed) for photo in photos], seed)


def _fit_layer(
    config: ModelConfig, photos: Sequence[str], maps: Maps, drawn: Sequence[Floats], seed: int
) -> tuple[NetVLAD | VLAD, dict[str, Any]]:
    """Fit one layer on what was drawn of each photo, n D."""
    points = np.concatenate(drawn)
    centres = torch.from_numpy(kmeans(points, config.clusters + config.ghosts, seed=seed))
    provenance: dict[str, Any] = {"cluster_photos": len(photos), "local_descriptors": len(points)}
    if config.pooling == "vlad":
        return VLAD.from_centres(centres, normalisation=config.normalisation), provenance
    alpha = sharpness(torch.from_numpy(points), centres, version=config.version)
    provenance["alpha"] = alpha
    layer = NetVLAD.from_centres(centres, alpha, version=config.version)
    if config.ghosts:
        centres = centres[_ghosts_last(layer, photos[:GHOST_PHOTOS], maps)]
        layer = NetVLAD.from_centres(centres, alpha, version=config.version, ghosts=config.ghosts)
    return layer, provenance


def _fit_layers(
    config: ModelConfig, photos: Sequence[str], maps: Maps, *, seed: int
) -> tuple[Pooling, dict[str, Any]]:
    """Fit conv5_3 and conv4_3 separately; the record has numbers of both, conv5_3 first."""

    def of(layer: int, photo: str) -> Floats:
        return apart(torch.from_numpy(maps(photo)))[layer].numpy()

    drawn = [
        [_draw(part.numpy(), photo, seed) for part in apart(torch.from_numpy(maps(photo)))]
        for photo in photos
    ]
    (upper, above), (lower, below) = (
        _fit_layer(each, photos, partial(of, layer), [parts[layer] for parts in drawn], seed)
        for layer, each in enumerate(config.each_layer())
    )
    provenance = above | {name: [above[name], below[name]] for name in above if name != "cluster_photos"}
    return TwoLayers(upper, lower), provenance


def halves(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right halves of maps, V D H W each."""
    half = max(1, maps.shape[3] // 2)
    return maps[..., :half], maps[..., -half:]


def _draw(maps: Floats, photo: str, seed: int) -> Floats:
    rng = np.random.default_rng([seed, int(photo, 16)])
    return np.concatenate([sample_local(view, rng) for view in maps])


def _ghosts_last(layer: NetVLAD, photos: Sequence[str], maps: Maps) -> Tensor:
    """Return the clusters' order, with those that distinguish photos least at the end."""
    if len(photos) < 2:
        return torch.arange(len(layer.centres))
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.inference_mode():
        for photo in photos:
            view = torch.from_numpy(maps(photo))[:1]  # 1 D H W
            for side, part in zip(sides, halves(view), strict=True):
                side.append(layer.accumulate(part).view(1, len(layer.centres), -1))  # 1 K D
        return rank_by_halves(torch.cat(sides[0]), torch.cat(sides[1]))
