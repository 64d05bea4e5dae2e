"""Local features: which cells are chosen, how they are described, and how they are packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.embedder import Embedder
from model.layers.backbone import VGG16
from model.layers.local_features import (
    CHANNELS,
    DIM,
    STRIDE,
    LocalFeatures,
    extent,
    pack,
    packed_type,
    unpack,
)
from model.modelfile import ModelConfig, PlaceModel

CONFIG = ModelConfig(pooling="average", clusters=0, local_features=12)


def maps(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def records(count: int, middle: torch.Tensor) -> NDArray[np.void]:
    chosen, codes = LocalFeatures.shipped(count)(middle)
    return pack(chosen, codes, count, *middle.shape[2:])


def test_the_strongest_cells_are_kept_with_their_places_strongest_first() -> None:
    middle = maps(0, 1, CHANNELS, 5, 7)
    middle[0, :, 4, 6] *= 9
    middle[0, :, 1, 2] *= 4
    packed = records(3, middle)[0]
    assert packed["size"].tolist() == [5, 7]
    assert packed["cells"][:2].tolist() == [[4, 6], [1, 2]]
    positions, _ = unpack(packed)
    assert positions[0].tolist() == [6.5 * STRIDE, 4.5 * STRIDE]
    assert extent(packed) == (7 * STRIDE, 5 * STRIDE)


def test_codes_are_the_projected_activations_to_a_byte() -> None:
    features = LocalFeatures.shipped(20)
    middle = maps(1, 2, CHANNELS, 4, 5)
    packed = records(20, middle)
    for image, record in zip(middle, packed, strict=True):
        positions, codes = unpack(record)
        assert codes.shape == (20, DIM)
        cells = (positions / STRIDE - 0.5).round().astype(int)
        naive = torch.stack([image[:, y, x] for x, y in cells])
        wanted = F.normalize(F.normalize(naive, dim=1) @ features.projection, dim=1).numpy()
        assert (wanted * codes).sum(1).min() > 0.999


def test_a_small_map_has_fewer_features_and_a_dead_one_no_nan() -> None:
    packed = records(50, torch.zeros(1, CHANNELS, 2, 3))
    positions, codes = unpack(packed[0])
    assert len(positions) == 6
    assert np.isfinite(codes).all()
    assert packed.dtype == packed_type(50)
    assert packed.dtype.itemsize == 4 + 50 * (4 + DIM)


def test_the_shipped_directions_are_orthonormal() -> None:
    projection = LocalFeatures.shipped(1).projection
    assert projection.shape == (CHANNELS, DIM)
    torch.testing.assert_close(projection.T @ projection, torch.eye(DIM), atol=2e-3, rtol=0)


def test_local_features_do_not_change_the_maps() -> None:
    model = PlaceModel.unfitted(CONFIG).eval()
    images = torch.randint(0, 256, (2, 3, 48, 64), generator=torch.Generator().manual_seed(3))
    images = images.to(torch.uint8)
    with torch.inference_mode():
        seen, local = model.maps_and_local(images)
        torch.testing.assert_close(seen, model.maps(images))
        assert isinstance(model.backbone, VGG16)
        middle = model.backbone[:23](images - model.mean)
    assert middle.shape == (2, CHANNELS, 6, 8)
    assert local is not None
    assert (middle >= 0).all()
    strongest = middle.flatten(2).norm(dim=1).argmax(1)
    records = pack(*local, 12, 6, 8)
    assert [record["cells"][0].tolist() for record in records] == [
        [int(i) // 8, int(i) % 8] for i in strongest
    ]


def test_only_single_photos_have_local_features() -> None:
    embedder = Embedder(PlaceModel.unfitted(CONFIG), device="cpu", precision="fp32")
    images = [np.random.default_rng(i).integers(0, 256, (32, 48, 3)).astype(np.uint8) for i in range(3)]
    alone, clip, another = embedder.see([[images[0]], images[1:], [images[2]]])
    assert alone.local is not None
    assert another.local is not None
    assert clip.local is None
    (again,) = embedder.see([[images[0]]])
    assert again.local is not None
    assert again.local["cells"].tolist() == alone.local["cells"].tolist()
    np.testing.assert_allclose(
        embedder.see([[images[0]], images[1:]])[1].descriptor, clip.descriptor, atol=1e-6
    )


@pytest.mark.parametrize("kept", [0, 7])
def test_model_file_sets_the_number_of_features(kept: int) -> None:
    config = ModelConfig(pooling="average", clusters=0, local_features=kept)
    model = PlaceModel.unfitted(config)
    assert (model.local.count if model.local else 0) == kept
    changed = model.fitted(local_features=5)
    assert changed.local is not None
    assert changed.local.count == 5
    assert changed.fingerprint != model.fingerprint
    assert model.fitted(local_features=0).local is None
