"""Search by codes, compared with a naive product of the same descriptors; choice and tuning of an index."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from indexer.build.compact import compact
from indexer.build.rebuild import rebuild
from indexer.errors import IndexerError, UsageError
from indexer.filters import Filters
from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.options import SearchOptions, machine_memory, read_bytes
from indexer.photos.metadata import PhotoMetadata
from indexer.snapshots import compressed as compressed_module
from indexer.snapshots.choice import ROW_BYTES, SHARDS, choose, lists_for
from indexer.snapshots.compressed import CompressedStore, Setting, spread
from indexer.snapshots.exact import FLAT
from indexer.snapshots.shard_rows import Rows
from indexer.snapshots.store import Floats, Ids
from indexer.snapshots.tuning import NEAREST, least_effort, make_questions, measured, tune
from indexer.storage.catalogue import Catalogue
from indexer.storage.shards import ShardWriter

DIM = 64
COUNT = 3000
CODES = ["IVF64,RaBitQfs", "IVF32_HNSW32,RaBitQfs", "IVF64,PQ16x4fs", "IVF64,SQ8", "HNSW32,SQ8"]


def streets(count: int = COUNT, dim: int = DIM, seed: int = 0) -> Floats:
    """Descriptors of photos along streets: neighbours are similar."""
    generator = np.random.default_rng(seed)
    corners = generator.standard_normal((count // 50, dim))
    share = np.linspace(0, 1, 50, endpoint=False)[None, :, None]
    along = (1 - share) * corners[:, None] + share * np.roll(corners, -1, 0)[:, None]
    rows = along.reshape(-1, dim) + 0.5 * generator.standard_normal((len(corners) * 50, dim))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit.astype(np.float16), np.float32)


@pytest.fixture(scope="module")
def vectors() -> Floats:
    return streets()


@pytest.fixture(scope="module")
def rows(vectors: Floats, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Table with the ids 5, 12, 19 … in two shards, not in the order of ids."""
    folder = tmp_path_factory.mktemp("shards")
    order = np.random.default_rng(1).permutation(len(vectors))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    slots = ShardWriter(folder, DIM, None).append(vectors[first])
    slots += ShardWriter(folder, DIM, None, range(7, 9)).append(vectors[second])
    by_position = [slot for _, slot in sorted(zip(order.tolist(), slots, strict=True))]
    return Rows.of(folder, DIM, (7 * np.arange(len(vectors)) + 5).tolist(), by_position)


@pytest.fixture(scope="module", params=CODES)
def store(rows: Rows, request: pytest.FixtureRequest) -> CompressedStore:
    return CompressedStore.build(rows, request.param).completed().tuned(Setting(64, 24))


def nearest(vectors: Floats, query: Floats, k: int, among: Any = None) -> list[int]:
    at = np.arange(len(vectors)) if among is None else np.asarray(among)
    order = np.argsort(-(vectors[at] @ query), kind="stable")[:k]
    ids: list[int] = (7 * at[order] + 5).tolist()
    return ids


def queries(vectors: Floats, count: int = 40) -> Floats:
    generator = np.random.default_rng(2)
    rows = vectors[generator.choice(len(vectors), count)] + 0.05 * generator.standard_normal((count, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


# What it holds


def test_rows_hold_ids_and_descriptors(rows: Rows, vectors: Floats) -> None:
    assert len(rows) == COUNT
    assert rows.shards == [1, 7]
    assert rows.holds(np.array([5, 6, 12, 7 * COUNT + 5])).tolist() == [True, False, True, False]
    np.testing.assert_array_equal(rows.read(np.array([2999, 0, 0, 17])), vectors[[2999, 0, 0, 17]])
    np.testing.assert_array_equal(np.concatenate(list(rows.blocks())), vectors)


def test_rows_are_mapped_from_file(rows: Rows, vectors: Floats, tmp_path: Path) -> None:
    rows.save(tmp_path / "rows.npy")
    loaded = Rows.load(tmp_path / "rows.npy", rows._shards, DIM)
    assert isinstance(loaded._table, np.memmap)
    np.testing.assert_array_equal(loaded.read(np.arange(COUNT)), vectors)
    (tmp_path / "rows.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-1])
    with pytest.raises(IndexerError, match=r"rows.npy cannot be read"):
        Rows.load(tmp_path / "rows.npy", rows._shards, DIM)
    np.save(tmp_path / "rows.npy", np.zeros(3))
    with pytest.raises(IndexerError, match="is no table of descriptors"):
        Rows.load(tmp_path / "rows.npy", rows._shards, DIM)
    rows.save(tmp_path / "rows.npy")
    with pytest.raises(IndexerError, match="descriptor shard"):
        Rows.load(tmp_path / "rows.npy", tmp_path, DIM)


def test_vectors_and_scores_equal_shards(store: CompressedStore, vectors: Floats) -> None:
    assert (store.count, store.dim) == (COUNT, DIM)
    ids = np.array([5, 7 * 2999 + 5, 12])
    np.testing.assert_array_equal(store.vectors(ids), vectors[[0, 2999, 1]])
    np.testing.assert_allclose(store.products(vectors[:3]), vectors[:3] @ vectors.T, atol=1e-5)
    np.testing.assert_allclose(store.scores(vectors[4]), vectors @ vectors[4], atol=1e-5)


# Searching


def test_search_nearly_equals_naive_product(store: CompressedStore, vectors: Floats) -> None:
    asked = queries(vectors)
    scores, ids = store.search(asked, NEAREST)
    found = [
        len(set(nearest(vectors, query, NEAREST)) & set(row.tolist()))
        for query, row in zip(asked, ids, strict=True)
    ]
    assert sum(found) >= 0.97 * NEAREST * len(asked)
    for query, cosines, row in zip(asked, scores, ids, strict=True):  # exact, and best first
        np.testing.assert_allclose(cosines, vectors[(row - 5) // 7] @ query, atol=1e-6)
        assert (np.diff(cosines) <= 0).all()


@pytest.mark.parametrize("left", [1, 9, 200, 2999])
def test_filtered_search_of_few_is_exact(store: CompressedStore, vectors: Floats, left: int) -> None:
    among = np.sort(np.random.default_rng(left).choice(COUNT, left, replace=False))
    query = queries(vectors, 1)
    _, ids = store.search(query, 12, 7 * among + 5)
    expected = nearest(vectors, query[0], 12, among)
    assert ids[0].tolist() == expected + [-1] * (12 - len(expected))


def test_filtered_search_of_many_finds_no_other(
    store: CompressedStore, vectors: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed_module, "EXHAUSTIVE", 100)
    few = store.tuned(Setting(2, 8))  # these probes would find little after filtering
    among = np.sort(np.random.default_rng(5).choice(COUNT, 1200, replace=False))
    right = 0
    for query in queries(vectors):
        _, ids = few.search(query[None], NEAREST, 7 * among + 5)
        assert np.isin(ids[0], 7 * among + 5).all()
        right += len(set(ids[0].tolist()) & set(nearest(vectors, query, NEAREST, among)))
    assert right >= 0.8 * 40 * NEAREST


def test_unknown_ids_are_not_found(store: CompressedStore, vectors: Floats) -> None:
    _, ids = store.search(vectors[:1], 3, np.array([6, 12, 13]))
    assert ids[0].tolist() == [12, -1, -1]
    assert (store.search(vectors[:1], 3, np.array([6]))[1] == -1).all()


def test_search_finds_k_descriptors(store: CompressedStore, vectors: Floats) -> None:
    shallow = store.tuned(Setting(1, 1))
    for k in (1, 58, 300, COUNT, COUNT + 5):
        ids = shallow.search(vectors[:1], k)[1][0]
        assert (ids >= 0).sum() == min(k, COUNT)
        assert len(set(ids.tolist())) == min(k, COUNT) + (k > COUNT)


def test_search_without_codes_is_exact(rows: Rows, vectors: Floats) -> None:
    asked = queries(vectors, 5)
    scores, ids = CompressedStore(rows).search(asked, 20)
    for query, row, cosines in zip(asked, ids, scores, strict=True):
        assert row.tolist() == nearest(vectors, query, 20)
        np.testing.assert_allclose(cosines, np.sort(vectors @ query)[::-1][:20], atol=1e-6)


def test_codes_are_read_from_file(store: CompressedStore, vectors: Floats, tmp_path: Path) -> None:
    store.save(tmp_path / "index.faiss")
    loaded = CompressedStore.load(tmp_path / "index.faiss", store.rows, store.setting)
    for one, other in zip(store.search(vectors[:9], 5), loaded.search(vectors[:9], 5), strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "index.faiss").write_bytes((tmp_path / "index.faiss").read_bytes()[:9000])
    with pytest.raises(IndexerError, match="is damaged"):
        CompressedStore.load(tmp_path / "index.faiss", store.rows, store.setting)


def test_lists_are_fitted_on_gpus(rows: Rows, vectors: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def taking(index: Any) -> Any:
        taken.append(index)
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", taking, raising=False)
    store = CompressedStore.build(rows, "IVF64,RaBitQfs").tuned(Setting(16, 12))
    assert len(taken) == 1
    _, ids = store.search(vectors[:50], 1)
    assert ids[:, 0].tolist() == (7 * np.arange(50) + 5).tolist()


# Tuning


def test_queries_are_searched_without_themselves(rows: Rows, vectors: Floats) -> None:
    asked = make_questions(CompressedStore(rows), None)
    assert asked.itself.tolist() == spread(COUNT, 1000).tolist()
    cosines = asked.queries @ vectors.T
    own = cosines[np.arange(1000), asked.itself]
    plain = np.arange(1000) % 4 < 2
    np.testing.assert_allclose(own[plain], 1, atol=1e-3)
    assert 0.4 < own[~plain].mean() < 0.9  # a mixture of the same length is added
    cosines[np.arange(1000), asked.itself] = -2
    np.testing.assert_array_equal(asked.nearest, np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST])


def test_hnsw_is_tuned_on_held_out_descriptors(rows: Rows, vectors: Floats) -> None:
    graph = CompressedStore.build(rows, "HNSW32,SQ8").tuned(Setting(300, 4))
    asked = make_questions(graph, graph.encoded)
    assert graph.encoded is not None
    assert len(graph.encoded) == COUNT - len(asked.itself)
    for unseen in (asked.nearest, graph.candidates(vectors[:50], 20, 300)):
        assert not np.isin(unseen, asked.itself).any()
    whole = graph.completed()
    assert (
        whole.search(vectors[asked.itself[:50]], 1)[1][:, 0].tolist() == (7 * asked.itself[:50] + 5).tolist()
    )
    assert whole.completed()._codes.ntotal == COUNT


@pytest.mark.parametrize("recall", [0.6, 0.9, 0.99])
def test_tuning_reaches_recall_at_least_cost(store: CompressedStore, recall: float) -> None:
    setting, reached = tune(store, recall)
    assert reached > recall - 0.02
    asked = make_questions(store, store.encoded)
    half = dataclasses.replace(setting, probes=max(1, setting.probes // 4), depth=max(1, setting.depth // 3))
    if half != setting:
        assert measured(store, asked, half) < measured(store, asked, setting)
    if recall == 0.6:
        assert setting.probes < store.efforts[-1]


def test_unreachable_recall_is_reported(rows: Rows) -> None:
    poor = CompressedStore.build(rows, "IVF1,PQ2x4fs")
    setting, reached = tune(poor, 0.9999)
    assert setting.probes == 1
    assert reached == pytest.approx(
        measured(poor, make_questions(poor, poor.encoded).part(slice(1, None, 2)), setting)
    )
    assert reached < 0.9999


def test_least_effort_reaches_recall_on_a_server(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.snapshots.tuning.EFFORTS", (10, 20, 40, 80, 160))
    graph = CompressedStore.build(rows, "HNSW4,Flat")  # without the held-out descriptors
    asked: list[int] = []

    def search(queries: Floats, k: int, effort: int) -> Ids:
        asked.append(effort)
        return rows.ids[graph.candidates(queries, k, effort)]

    little, reached = least_effort(search, CompressedStore(rows), 0.5)
    assert reached > 0.48
    assert asked == [each for each in (10, 20, 40, 80, 160) if each <= little] + [little]
    most, best = least_effort(search, CompressedStore(rows), 1.0)
    assert little < most == 160
    assert reached < best < 1


# Choosing


def test_small_collections_are_searched_exactly() -> None:
    assert choose(1000, 512, 2**30, 0.99).factory == FLAT
    assert choose(100_000, 512, 2**30, 0.99).factory == FLAT
    assert choose(10, 32_768, 2**30, 1.0).factory == FLAT


def test_large_collections_use_codes_that_fit_memory() -> None:
    million = choose(10**6, 512, 8 * 2**30, 0.99)
    assert million.factory == "IVF4096,RaBitQfs"
    assert million.memory < 150 * 2**20
    assert choose(10**6, 512, 70 * 2**20, 0.99).factory.endswith(",PQ128x4fs") is False
    small = [choose(10**7, 512, memory * 2**20, 0.99).factory for memory in (2000, 900, 600, 450)]
    assert [factory.partition(",")[2] for factory in small] == [
        "RaBitQfs",
        "PQ128x4fs",
        "PQ64x4fs",
        "PQ32x4fs",
    ]
    with pytest.raises(
        UsageError,
        match=r"`memory` is too small for 10,000,000 descriptors of 512 numbers: they need \d+ MiB",
    ):
        choose(10**7, 512, 100 * 2**20, 0.99)


def test_hnsw_is_chosen_if_it_fits_memory() -> None:
    million = choose(10**6, 512, 8 * 2**30, 0.99, hnsw=True)
    assert million.factory == "HNSW32,SQ8"
    assert 750 * 2**20 < million.memory < 850 * 2**20
    assert choose(10**6, 512, 512 * 2**20, 0.99, hnsw=True) == choose(10**6, 512, 512 * 2**20, 0.99)
    assert choose(1000, 512, 2**30, 0.99, hnsw=True).factory == FLAT
    assert choose(10**6, 512, 2**30, 1.0, hnsw=True).factory == SHARDS


def test_memory_of_hnsw_is_as_estimated(rows: Rows, tmp_path: Path) -> None:
    CompressedStore.build(rows, "HNSW32,SQ8").completed().save(tmp_path / "index.faiss")
    told = choose(10**9, DIM, 2**50, 0.99, hnsw=True).memory / 10**9 - ROW_BYTES
    assert (tmp_path / "index.faiss").stat().st_size / COUNT == pytest.approx(told, rel=0.1)


def test_full_recall_is_searched_exactly() -> None:
    assert choose(10**6, 512, 4 * 2**30, 1.0).factory == FLAT
    assert choose(10**6, 512, 2**30, 1.0).factory == SHARDS


def test_number_of_lists_is_a_fittable_power_of_two() -> None:
    for count in (1, 39, 100, 5000, 10**6, 10**9):
        lists = lists_for(count, 512, 8 * 2**30)
        assert lists == 1 or (lists & (lists - 1) == 0 and 40 * lists <= count and lists <= 16_384)
        assert lists_for(count, 512, 64 * 2**20) * 40 * 2048 <= 32 * 2**20


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("512M", 2**29), ("1.5 GiB", 3 * 2**29), ("2kb", 2048), ("4 g", 2**32), ("1TB", 2**40)],
)
def test_memory_is_read_with_units(text: str, expected: int) -> None:
    assert read_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "0.0G", "5X", "1e9", "1 2"])
def test_invalid_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`memory` must be a number of bytes such as 512M or 4G"):
        read_bytes(text)


def test_machine_memory_is_plausible() -> None:
    assert 2**28 < machine_memory() < 2**50


# In an index


@pytest.fixture(scope="module", params=["lists", "graph"])
def street(
    make_handmade: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, list[str], Floats]:
    """An index of 1,500 photos along a street, without descriptors in memory."""
    graph = request.param == "graph"
    wanted = SearchOptions(memory="1M" if graph else "150K", recall=0.95, hnsw=graph)
    made = make_handmade(tmp_path_factory.mktemp("street") / "index", DIM)
    vectors = streets(1500)
    photos = [
        (PhotoMetadata(lat=52 + number * 1e-4, lon=0.1, heading=float(number % 360)), [vector])
        for number, vector in enumerate(vectors)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.snapshots.choice.QUICK_BYTES", 0)
        ids = made.make(photos, wanted)
    assert made.open().manifest.factory.startswith("HNSW32" if graph else "IVF")
    return made, ids, vectors


@pytest.fixture
def small(
    street: tuple[Any, list[str], Floats], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[str], Floats]:
    """A copy that a test may change."""
    monkeypatch.setattr("indexer.snapshots.choice.QUICK_BYTES", 0)
    made, ids, vectors = street
    shutil.copytree(made.folder, tmp_path / "index")
    return dataclasses.replace(made, folder=tmp_path / "index"), ids, vectors


def found(index: Index, query: Floats, n: int = 10, filters: Filters | None = None) -> list[str]:
    return [hit.id for hit in index.nearest(query, n, filters)]


def problems(made: Any) -> list[str]:
    """Problems except that the model is missing."""
    return [problem for problem in check_index(made.folder) if not problem.startswith("no model file")]


@pytest.mark.slow
def test_compressed_index_answers(small: tuple[Any, list[str], Floats]) -> None:
    made, ids, vectors = small
    index = made.open()
    assert index.manifest.recall > 0.93
    assert index.manifest.depth >= 1
    assert found(index, vectors[700], 1) == [ids[700]]
    near = Filters(lat=52.07, lon=0.1, radius_m=300)
    expected = [number for number in range(1500) if abs(52 + number * 1e-4 - 52.07) * 111_195 <= 300]
    order = sorted(expected, key=lambda number: -float(vectors[number] @ vectors[3]))
    assert found(index, vectors[3], 100, near) == [ids[number] for number in order]
    assert problems(made) == []
    answer = index.answer(vectors[700])
    assert answer.places[0].photos[0].id == ids[700]


@pytest.mark.slow
def test_changes_are_searched_and_enter_next_snapshot(small: tuple[Any, list[str], Floats]) -> None:
    made, ids, vectors = small
    index = made.open()
    new = streets(50, seed=9)[0]
    index.posting().add(made.new(1), new[None])
    index.posting().remove(ids[700])
    assert found(index, new, 1) == [made.new(1).id]
    assert ids[700] not in found(index, vectors[700], 50)
    rebuild(made.folder)
    latest = made.open()
    assert latest.manifest.factory == index.manifest.factory
    assert latest.manifest.count == 1500
    assert found(latest, new, 1) == [made.new(1).id]
    assert ids[700] not in found(latest, vectors[700], 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.faiss", "rows.npy"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_damaged_file_is_replaced_by_next_snapshot(
    small: tuple[Any, list[str], Floats], name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, ids, vectors = small
    before = found(made.open(), vectors[5], 10)
    path = made.layout.snapshot(made.layout.current()) / name
    content = path.read_bytes()
    path.unlink()  # an opened index has it mapped
    if damage == "cut":
        path.write_bytes(content[:-50])
    index = made.open()
    assert "searching the shards instead" in caplog.text
    exact = np.argsort(-(vectors @ vectors[5]), kind="stable")[:10]
    assert found(index, vectors[5], 10) == [ids[number] for number in exact]
    assert len(set(before) & {ids[number] for number in exact}) >= 8
    assert [problem for problem in problems(made) if name in problem]
    rebuild(made.folder)
    assert problems(made) == []


@pytest.mark.slow
def test_other_search_options_make_another_snapshot(small: tuple[Any, list[str], Floats]) -> None:
    made, _, _ = small
    first = made.layout.current()
    rebuild(made.folder)
    assert made.layout.current() == first
    path = made.layout.options(1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": "1G", "recall": 1.0}))
    rebuild(made.folder)
    assert made.layout.current() != first
    assert made.open().manifest.factory == FLAT


@pytest.mark.slow
def test_too_little_memory_publishes_nothing(small: tuple[Any, list[str], Floats]) -> None:
    made, _, _ = small
    first = made.layout.current()
    path = made.layout.options(1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"memory": "1K"}))
    with pytest.raises(UsageError, match="`memory` is too small"):
        rebuild(made.folder)
    assert made.layout.current() == first


@pytest.mark.slow
def test_shards_of_the_snapshot_are_not_deleted(
    small: tuple[Any, list[str], Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, ids, vectors = small
    index = made.open()
    before = found(index, vectors[5], 10)
    shard = made.layout.shards(1) / "000001.npy"
    catalogue = Catalogue(made.folder, create=True)
    monkeypatch.setattr("indexer.build.compact._newest", lambda *_: [2])  # as if it were full
    for photo in ids[400:]:
        index.posting().remove(photo)
    for _ in range(3):  # a run that is killed before it publishes
        compact(made.layout, catalogue, 1, DIM)
    assert shard.exists()
    kept = [photo for photo in before if photo in ids[:400]]
    assert found(made.open(), vectors[5], 10)[: len(kept)] == kept
    catalogue.close()
