"""k-means initialisation: sampling, centres, sharpness."""

import math

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.clusters import SAMPLE_PER_PHOTO, kmeans, lloyd, sample_local, sharpness
from model.errors import ModelError

Floats = NDArray[np.float32]


def blobs(
    clusters: int = 6, each: int = 40, channels: int = 16, spread: float = 0.02
) -> tuple[Floats, Floats]:
    """(centres, points) of well separated blobs of very unequal sizes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(clusters, channels))
    sizes = [each * (1 + 3 * (k == 0)) // (1 + k % 3) for k in range(clusters)]
    points = np.repeat(centres, sizes, axis=0)
    points += rng.normal(size=points.shape) * spread
    return centres.astype(np.float32), rng.permutation(points).astype(np.float32)


def spread_of(points: Floats, centres: Floats) -> float:
    """What k-means minimises: the squared distances to the nearest centre."""
    return float(np.square(points[:, None] - centres[None]).sum(2).min(1).sum())


def test_sample_is_drawn_without_replacement() -> None:
    conv_map = np.random.default_rng(0).normal(size=(8, 20, 30)).astype(np.float32)
    sample = sample_local(conv_map, np.random.default_rng(1))
    assert sample.shape == (SAMPLE_PER_PHOTO, 8)
    assert sample.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(sample, axis=1), 1, rtol=1e-5)
    assert len(np.unique(sample, axis=0)) == SAMPLE_PER_PHOTO
    local = conv_map.reshape(8, -1).T
    local = local / np.linalg.norm(local, axis=1, keepdims=True)
    assert np.abs(sample[:, None] - local[None]).max(2).min(1).max() < 1e-6  # each is one of the map's


def test_sample_follows_its_generator() -> None:
    conv_map = np.random.default_rng(0).normal(size=(8, 20, 30)).astype(np.float32)
    one, same, other = (sample_local(conv_map, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_small_map_gives_all_features() -> None:
    assert sample_local(np.ones((8, 3, 2), np.float32), np.random.default_rng(0)).shape == (6, 8)


def test_blank_and_half_precision_maps() -> None:
    assert np.array_equal(
        sample_local(np.zeros((4, 2, 2), np.float32), np.random.default_rng(0)), np.zeros((4, 4))
    )
    large = np.full((512, 2, 2), 300, np.float16)  # its squared norm is beyond fp16
    sample = sample_local(large, np.random.default_rng(0))
    assert sample.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(sample, axis=1), 1, rtol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_separated_blobs(seed: int) -> None:
    centres, points = blobs()
    got = kmeans(points, 6, seed=seed)
    assert got.shape == (6, 16)
    assert got.dtype == np.float32
    distances = np.linalg.norm(got[:, None] - centres[None], axis=2)
    assert sorted(distances.argmin(1)) == list(range(6))
    assert distances.min(1).max() < 0.05


def test_kmeans_centres_are_the_means_of_their_points() -> None:
    points = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    centres = kmeans(points, 10)
    nearest = np.square(points[:, None] - centres[None]).sum(2).argmin(1)
    for k in range(10):
        np.testing.assert_allclose(centres[k], points[nearest == k].mean(0), atol=1e-4)


def test_kmeans_is_lloyds() -> None:
    """From the same starts to the same centres, one iteration after the other; an empty cluster stays."""
    points = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    starts = np.concatenate([points[:5], np.full((1, 4), 100, np.float32)])
    expected = starts.astype(np.float64)
    for iterations in range(1, 8):
        nearest = np.square(points[:, None] - expected[None]).sum(2).argmin(1)
        for k in set(nearest.tolist()):
            expected[k] = points[nearest == k].mean(0)
        squares, found = lloyd(points, starts, iterations)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    settled, found = lloyd(points, starts, 100)
    assert settled == pytest.approx(spread_of(points, found), rel=1e-4)
    assert settled <= squares
    np.testing.assert_array_equal(found[5], starts[5])


def test_kmeans_follows_its_seed() -> None:
    points = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    np.testing.assert_array_equal(kmeans(points, 12, seed=3), kmeans(points, 12, seed=3))
    assert not np.array_equal(kmeans(points, 12, seed=3), kmeans(points, 12, seed=4))


def test_kmeans_leaves_its_points_and_the_global_generator_alone() -> None:
    points = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    before, state = points.copy(), torch.random.get_rng_state()
    kmeans(points, 4)
    np.testing.assert_array_equal(points, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_kmeans_beats_a_single_run_from_random_points() -> None:
    _, points = blobs(clusters=20, each=30, channels=32, spread=0.3)
    ours = [spread_of(points, kmeans(points, 20, seed=seed)) for seed in range(6)]
    plain = []
    for seed in range(6):
        solver = faiss.Kmeans(32, 20, niter=100, seed=seed, min_points_per_centroid=1)
        solver.train(points)
        plain.append(spread_of(points, np.asarray(solver.centroids, np.float32)))
    assert np.mean(ours) < 0.8 * np.mean(plain)
    assert np.std(ours) < np.std(plain)


@pytest.mark.parametrize("layout", ["fortran", "float64", "strided"])
def test_kmeans_takes_points_of_any_layout(layout: str) -> None:
    points = np.random.default_rng(1).normal(size=(100, 8)).astype(np.float32)
    given = {"fortran": np.asfortranarray(points), "float64": points.astype(np.float64)}
    given["strided"] = np.repeat(points, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(kmeans(given[layout], 5), kmeans(points, 5))  # type: ignore[arg-type]


def test_as_many_clusters_as_points() -> None:
    points = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    assert spread_of(points, kmeans(points, 7)) == pytest.approx(0, abs=1e-5)


def test_too_few_points() -> None:
    with pytest.raises(
        ModelError, match=r"^8 clusters need at least as many local descriptors, got 7: use larger"
    ):
        kmeans(np.ones((7, 4), np.float32), 8)


def test_fewer_distinct_points_than_clusters_give_finite_centres() -> None:
    points = np.repeat(np.eye(4, dtype=np.float32)[:2], 25, axis=0)
    centres = kmeans(points, 3)
    assert np.isfinite(centres).all()
    assert spread_of(points, centres) < 1e-3


def test_blank_collection_is_refused() -> None:
    centres = kmeans(np.zeros((50, 4), np.float32), 3)
    with pytest.raises(ModelError, match="the clusters coincide"):
        sharpness(torch.zeros(50, 4), torch.from_numpy(centres))


@pytest.mark.parametrize("version", [1, 2])
def test_sharpness_equals_the_formula(version: int) -> None:
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    centres = torch.randn(5, 8, generator=generator) * torch.tensor([[0.5], [1.0], [2.0], [0.7], [0.9]])
    gaps = []
    for x in points.double():
        if version == 1:
            values = sorted((float(c / c.norm() @ x) for c in centres.double()), reverse=True)
            gaps.append(values[0] - values[1])
        else:
            values = sorted(float((c - x) @ (c - x)) for c in centres.double())
            gaps.append(values[1] - values[0])
    want = -math.log(0.01) / (sum(gaps) / len(gaps))
    assert sharpness(points, centres, version=version) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_nearest_cluster_outweighs_the_second_a_hundredfold(version: int) -> None:
    """With one point the mean gap is that point's own: the weights are exactly 100 to 1."""
    generator = torch.Generator().manual_seed(0)
    point = F.normalize(torch.randn(1, 8, generator=generator), dim=1)
    centres = F.normalize(torch.randn(5, 8, generator=generator), dim=1)
    alpha = sharpness(point, centres, version=version)
    logits = alpha * (point @ centres.T) if version == 1 else -alpha * torch.cdist(point, centres).square()
    first, second = logits.softmax(1)[0].topk(2).values.tolist()
    assert first / second == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize("version", [1, 2])
def test_one_cluster_has_any_sharpness(version: int) -> None:
    assert sharpness(torch.ones(3, 4), torch.ones(1, 4), version=version) == 1.0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("points", [torch.ones(3, 4), torch.zeros(3, 4), torch.full((3, 4), math.nan)])
def test_coinciding_clusters(points: torch.Tensor, version: int) -> None:
    with pytest.raises(ModelError, match=r"^the clusters coincide: the photos are all alike or blank$"):
        sharpness(points, torch.ones(2, 4), version=version)
