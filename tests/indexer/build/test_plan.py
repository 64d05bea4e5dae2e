"""Plans: time, disk, memory and machines for a collection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from indexer.build.plan import Pace, Plan, make_plan, measure_pace
from indexer.errors import UsageError
from indexer.options import FitOptions, SearchOptions
from indexer.photos.metadata import PhotoMetadata

PACE = Pace(photos=2.0, multiplications=1e10)


def plan(photos: int, **more: Any) -> Plan:
    return make_plan(photos, PACE, search=SearchOptions("4G"), **more)


def test_time_and_disk_are_proportional_to_photos() -> None:
    one, ten = plan(10**6), plan(10**7)
    assert one.embedding_s == 500_000
    assert (one.shards, one.local_features) == (1_024_000_000, 34_000_000_000)
    for name in ("embedding_s", "shards", "local_features", "catalogue", "filter_memory"):
        assert getattr(ten, name) == 10 * getattr(one, name)
    assert 5 * one.search_s < ten.search_s < 40 * one.search_s
    assert one.disk == sum((one.shards, one.local_features, one.search_file, one.catalogue, one.model))
    assert one.memory == one.search_memory + one.filter_memory + one.network_memory


def test_planned_search_is_the_one_chosen() -> None:
    assert plan(1000).factory == "Flat"
    assert plan(1000).search_memory == 1000 * 512 * 4
    assert plan(10**6).factory == "IVF4096,RaBitQfs"
    assert make_plan(10**6, PACE, search=SearchOptions("4G", recall=1.0)).factory == "Flat"
    graph = make_plan(10**6, PACE, search=SearchOptions("4G", hnsw=True))
    assert graph.factory == "HNSW32,SQ8"
    assert graph.search_memory > 5 * plan(10**6).search_memory
    assert graph.search_s > plan(10**6).search_s


def test_panoramas_count_as_their_views() -> None:
    views = plan(1000, fit=FitOptions(panoramas=6))
    assert views.descriptors == 6000
    assert views.embedding_s == 3000
    assert views.shards == 6000 * 1024


@pytest.mark.parametrize(("hours", "machines"), [(1, 1), (0.1, 2), (0.05, 3), (1e-3, 139)])
def test_machines_for_a_time_limit(hours: float, machines: int) -> None:
    assert plan(1000, within_s=3600 * hours).machines == machines


def test_invalid_plans_are_refused() -> None:
    with pytest.raises(UsageError, match="`photos` must be at least 1"):
        plan(0)
    with pytest.raises(UsageError, match="`within` must be above 0"):
        plan(1, within_s=0)
    with pytest.raises(UsageError, match="`memory` is too small for 1,000,000,000 descriptors"):
        plan(10**9)


def test_pace_is_measured() -> None:
    pace = measure_pace(FitOptions(image_size=64, clusters=2, local_features=0), "cpu", "fp32")
    assert pace.photos > 1
    assert pace.multiplications > 1e8


@pytest.mark.slow
def test_planned_disk_is_close_to_an_index(handmade: Any) -> None:
    handmade.dim = 128
    rows = np.random.default_rng(0).standard_normal((2000, 128)).astype(np.float32)
    handmade.make([(PhotoMetadata(), [row / np.linalg.norm(row)]) for row in rows])
    planned = make_plan(2000, PACE, FitOptions(dim=128, local_features=0))
    catalogue = (handmade.folder / "catalogue.sqlite").stat().st_size
    assert 0.5 < planned.catalogue / catalogue < 2
    snapshot = handmade.layout.snapshot(handmade.layout.current())
    assert 0.9 < planned.search_file / sum(f.stat().st_size for f in snapshot.iterdir()) < 1.1
