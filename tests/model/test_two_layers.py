"""Pooling conv5_3 and conv4_3 together: the same as each by itself, one after the other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.embedder import Embedder
from model.errors import ModelError
from model.fitting import fit_clusters
from model.layers.backbone import VGG16
from model.layers.poolings import ONE_LAYER, TWO_LAYERS, VLAD, NetVLAD, TwoLayers, apart, joined
from model.modelfile import ModelConfig, PlaceModel, load_model, save_model


def maps(
    count: int = 2, height: int = 3, width: int = 4, seed: int = 0, extra: int = 0
) -> tuple[Tensor, Tensor]:
    """Of conv5_3, and of conv4_3 with `extra` rows and columns more than twice as many."""
    generator = torch.Generator().manual_seed(seed)
    upper = torch.randn(count, 8, height, width, generator=generator)
    lower = torch.randn(count, 8, 2 * height + extra, 2 * width + extra, generator=generator).relu()
    return upper, lower


def layer(clusters: int, seed: int, ghosts: int = 0) -> NetVLAD:
    centres = torch.randn(clusters + ghosts, 8, generator=torch.Generator().manual_seed(seed))
    return NetVLAD.from_centres(centres, 3.0, ghosts=ghosts)


@pytest.mark.parametrize("extra", [0, 1])
def test_it_is_both_poolings_one_after_the_other(extra: int) -> None:
    upper, lower = maps(extra=extra)
    one, other = layer(3, 1), layer(2, 2, ghosts=1)
    both = TwoLayers(one, other)
    found = both(joined(upper, lower))
    expected = torch.cat([one(upper), other(lower[:, :, :6, :8])], 1) / 2**0.5
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 5 * 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_joined_maps_come_apart() -> None:
    upper, lower = maps(extra=1)
    again = apart(joined(upper, lower))
    assert torch.equal(again[0], upper)
    assert torch.equal(again[1], lower[:, :, :6, :8])


@pytest.mark.parametrize("width", [1, 4, 5])
def test_halves_are_those_of_each_layer(width: int) -> None:
    both = TwoLayers(layer(3, 1), layer(2, 2, ghosts=1))
    upper, lower = maps(width=width)
    half = max(1, width // 2)
    found = both.whole_and_halves(joined(upper, lower))
    left = both(joined(upper[..., :half], lower[..., : 2 * half]))
    right = both(joined(upper[..., -half:], lower[..., -2 * half :]))
    torch.testing.assert_close(found, torch.stack([both(joined(upper, lower)), left, right], 1))


def test_a_clip_is_the_sum_of_its_frames() -> None:
    both = TwoLayers(layer(3, 1), layer(2, 2))
    frames = [joined(*maps(height=3, seed=n)) for n in range(2)]
    one, other = maps(height=3, seed=0), maps(height=3, seed=1)
    tall = joined(torch.cat([one[0], other[0]], 2), torch.cat([one[1], other[1]], 2))
    torch.testing.assert_close(both.pool_clip(frames), both(tall))


def test_maps_of_one_layer_are_refused() -> None:
    with pytest.raises(ModelError, match=r"^TwoLayers expects maps B×40×H×W, got \(2, 8, 3, 4\)$"):
        TwoLayers(layer(3, 1), layer(2, 2))(maps()[0])


@pytest.mark.parametrize(
    ("told", "clusters", "ghosts"),
    [
        ({"clusters": 64}, (32, 32), (0, 0)),
        ({"clusters": 5, "ghosts": 3, "pooling": "ghostvlad"}, (3, 2), (2, 1)),
    ],
)
def test_each_layer_has_half_of_the_clusters(
    told: dict[str, int | str], clusters: tuple[int, int], ghosts: tuple[int, int]
) -> None:
    config = ModelConfig(layers=TWO_LAYERS, **told)  # type: ignore[arg-type]
    each = config.each_layer()
    assert tuple(one.clusters for one in each) == clusters
    assert tuple(one.ghosts for one in each) == ghosts
    assert {one.layers for one in each} == {ONE_LAYER}
    assert config.pooled_dim == 512 * sum(clusters)
    pooling = config.build_pooling()
    assert isinstance(pooling, TwoLayers)
    assert pooling.channels == 2560


@pytest.mark.parametrize("name", ["netvlad", "vlad", "ghostvlad"])
def test_clusters_are_fitted_on_each_layer_alone(name: str) -> None:
    """What is fitted on joined maps is what is fitted on the maps of each layer."""
    generator = np.random.default_rng(0)
    upper = {f"{n:02x}": generator.standard_normal((1, 512, 2, 3)).astype(np.float32) for n in range(4)}
    lower = {n: np.abs(generator.standard_normal((1, 512, 4, 6))).astype(np.float32) for n in upper}
    config = ModelConfig(pooling=name, layers=TWO_LAYERS, clusters=4, ghosts=2 if name == "ghostvlad" else 0)

    def both(photo: str) -> np.ndarray:
        return joined(torch.from_numpy(upper[photo]), torch.from_numpy(lower[photo])).numpy()

    pooling, provenance = fit_clusters(config, list(upper), both, seed=1)
    assert isinstance(pooling, TwoLayers)
    for part, only, told in zip(
        (pooling.upper, pooling.lower), (upper, lower), config.each_layer(), strict=True
    ):
        alone, _ = fit_clusters(told, list(upper), only.__getitem__, seed=1)
        assert isinstance(alone, NetVLAD | VLAD)
        torch.testing.assert_close(part.centres, alone.centres, rtol=1e-3, atol=1e-4)
    assert provenance["cluster_photos"] == 4
    assert len(provenance["local_descriptors"]) == 2


@pytest.fixture
def model() -> PlaceModel:
    pooling = TwoLayers(*(NetVLAD.from_centres(torch.randn(2, 512), 5.0) for _ in range(2)))
    return PlaceModel.unfitted(ModelConfig(local_features=10)).fitted(pooling, layers=TWO_LAYERS, clusters=4)


def test_network_joins_both_layers(model: PlaceModel, tmp_path: Path) -> None:
    images = torch.randint(
        0, 256, (2, 3, 70, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert isinstance(model.backbone, VGG16)
    with torch.inference_mode():
        middle, upper = model.backbone.both(model.prepared(images))
        found = model.maps(images)
        torch.testing.assert_close(found, joined(upper, middle))
        torch.testing.assert_close(model.maps_and_local(images)[0], found)
    assert found.shape == (2, 2560, 4, 3)
    assert middle.shape == (2, 512, 8, 6)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert again.config.layers == TWO_LAYERS
    photos = [image.permute(1, 2, 0).numpy() for image in images]
    rows = [Embedder(each, device="cpu", precision="fp32").embed(photos) for each in (model, again)]
    np.testing.assert_allclose(rows[0], rows[1], atol=2e-3)  # the convolutions are kept in fp16
    assert again.fingerprint == model.fingerprint
    assert model.fitted(layers=ONE_LAYER).fingerprint != model.fingerprint
