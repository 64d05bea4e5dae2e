"""Snapshots on Milvus: the same answers as the folder's own, what comes and goes, and what goes wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.addresses import Address
from indexer.build.rebuild import rebuild
from indexer.errors import (
    FieldError,
    IndexerError,
    IndexMissing,
    ModelMismatch,
    NotFound,
    StoreUnavailable,
    UsageError,
)
from indexer.filters import Filters
from indexer.index import Index
from indexer.milvus import sync as sending
from indexer.milvus.client import Milvus
from indexer.milvus.entities import expression_of, passing
from indexer.milvus.replica import Replica
from indexer.options import RECALL, BuildOptions, SearchOptions
from indexer.photos.metadata import PhotoMetadata
from indexer.snapshots.manifest import read_manifest
from indexer.snapshots.store import Floats
from indexer.storage.catalogue import Catalogue
from indexer.storage.rows import Hit

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed")
# milvus-lite and pymilvus warn.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
DIM = 8
Draw = Callable[..., Floats]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    milvus = pytest.importorskip(
        "milvus", reason="the Milvus server (pip install milvus==2.3.5) is not installed"
    )
    milvus.default_server.set_base_dir(str(tmp_path_factory.mktemp("milvus")))
    milvus.default_server.start()
    yield f"milvus://127.0.0.1:{milvus.default_server.listen_port}"
    milvus.default_server.stop()


@pytest.fixture(params=["file", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
        return f"milvus:{tmp_path / 'milvus.db'}"
    return f"{request.getfixturevalue('server')}/t{abs(hash(tmp_path)) % 10**9}"


def moments(generator: np.random.Generator) -> PhotoMetadata:
    """What may be known of a photo, or not, across the date line and the north."""
    odd = generator.random(5) < 0.15
    times = ("2024-05-01", "2024-05-01T23:30:00", "2024-05-02T00:30:00+02:00", "2024-05-03T12:00:00Z")
    lat, lon = (52 + generator.normal(0, 0.002), (179.999 + generator.normal(0, 0.004) + 180) % 360 - 180)
    return PhotoMetadata(
        lat=None if odd[0] else float(lat),
        lon=None if odd[0] else float(lon),
        heading=None if odd[1] else float(generator.integers(0, 360)),
        taken_at=None if odd[2] else times[generator.integers(len(times))],
        place=None if odd[3] else f'"quoted\\ {generator.integers(4)}"',
    )


@pytest.fixture
def made(handmade: Any, unit: Draw, store: str) -> Any:
    """300 photos, some of two views, sent to a store."""
    generator = np.random.default_rng(0)
    photos = [
        (moments(generator), [unit(generator) for _ in range(1 + (number % 7 == 0))]) for number in range(300)
    ]
    handmade.make(photos, SearchOptions(store=store), places="auto")
    send(handmade, store)
    return handmade


def send(made: Any, store: str) -> None:
    catalogue = Catalogue(made.folder)
    sending.send(made.layout, catalogue, read_manifest(made.layout, made.layout.current()), store, RECALL)
    catalogue.close()


def far(store: str, fingerprint: str = "made by hand") -> Index:
    """A replica without a network: it answers descriptors only."""
    model: Any = dataclasses.make_dataclass("Model", ["fingerprint"])(fingerprint)
    embedder: Any = dataclasses.make_dataclass("Embedder", ["model"])(model)
    return Index.over(Replica.open(store), embedder)


FILTERS = [
    None,
    Filters(lat=52.0, lon=179.999, radius_m=300),
    Filters(lat=52.001, lon=-179.9995, radius_m=150),
    Filters(lat=89.9, lon=0, radius_m=20_000_000),
    Filters(heading=5, heading_tolerance=20),
    Filters(heading=180),
    Filters(heading=0, heading_tolerance=180),
    Filters(taken_after="2024-05-02"),
    Filters(taken_before="2024-05-02"),
    Filters(taken_after="2024-05-01T22:00:00Z", taken_before="2024-05-03"),
    Filters(place='"quoted\\ 2"'),
    Filters(place="nowhere"),
    Filters(place='"quoted\\ 1"', heading=90, lat=52.0, lon=180, radius_m=1000),
]


@pytest.mark.usefixtures("made")
def test_unloaded_collection_is_unavailable(store: str) -> None:
    """As after a start of the server, which names the collection seconds before it can search it."""
    if store.endswith(".db"):
        pytest.skip("a file is always loaded")
    replica = far(store)
    assert replica.latest() is replica
    client = pymilvus.MilvusClient(uri=Address.parse(store).uri)
    collection = Milvus(Address.parse(store)).current()
    client.release_collection(collection)
    with pytest.raises(StoreUnavailable, match=r"cannot be read: .*load"):
        replica.latest()
    client.load_collection(collection)
    assert replica.latest() is replica


def test_the_answers_are_the_same(made: Any, store: str, unit: Draw) -> None:
    near, replica = made.open(), far(store)
    generator = np.random.default_rng(1)
    found = []
    for filters in FILTERS:
        for k in (1, 5, 400):
            descriptor = unit(generator)
            one, other = (
                dataclasses.replace(index.answer(descriptor, k, filters=filters), timings_ms={})
                for index in (near, replica)
            )
            assert one == other, filters
        hits = [index.nearest(unit(np.random.default_rng(2)), 1000, filters) for index in (near, replica)]
        assert hits[0] == hits[1], filters
        found.append(len(hits[0]))
    assert found[0] == 300
    assert sum(0 < each < 300 for each in found) >= 9  # most filters leave some, and not all


def test_photos_and_places_are_the_same(made: Any, store: str) -> None:
    near, replica = made.open(), far(store)
    assert replica.photos() == near.photos()
    assert replica.places() == near.places()
    for place in near.places()[:5]:
        assert replica.place(place.id) == near.place(place.id)
    photo = near.photos()[3]
    assert replica.photo(photo.id) == photo
    for unknown in ("0" * 16, 'x" or id > 0 or photo == "', ""):
        with pytest.raises(NotFound):
            replica.photo(unknown)
        with pytest.raises(NotFound):
            replica.place(unknown)
    assert replica.counts().photos + 43 == replica.counts().descriptors


def test_added_and_removed_photos_show_at_once(made: Any, store: str, unit: Draw) -> None:
    near, replica = made.open(), far(store)
    new = unit(np.random.default_rng(9))
    gone = near.nearest(new, 1)[0].id
    near.posting().add(made.new(1, PhotoMetadata(lat=52.0, lon=179.99)), new[None])
    near.posting().remove(gone)
    found = replica.nearest(new, 400)
    assert found[0].id == made.new(1).id
    assert gone not in [hit.id for hit in found]
    assert found == near.nearest(new, 400)


def test_next_snapshot_becomes_current_and_last_still_answers(made: Any, store: str, unit: Draw) -> None:
    replica = far(store)
    milvus = Milvus(Address.parse(store))
    for number in range(3):
        made.open().posting().add(made.new(number), unit(np.random.default_rng(number))[None])
        before = milvus.current()
        rebuild(made.folder)
        assert milvus.current() != before
        assert set(milvus.collections()) == {before, milvus.current()}
    with pytest.raises(IndexerError):
        replica.nearest(unit(np.random.default_rng(1)), 5)  # two snapshots old
    latest = replica.latest()
    assert latest.snapshot == made.open().snapshot
    assert latest.latest() is latest
    descriptor = unit(np.random.default_rng(2))
    assert latest.nearest(descriptor, 9) == made.open().nearest(descriptor, 9)


@pytest.mark.parametrize("at", ["put", "say", "point"])
def test_killed_sending_is_resumed_by_the_next_run(
    made: Any, store: str, unit: Draw, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    descriptor = unit(np.random.default_rng(2))
    before = far(store)
    expected = before.nearest(descriptor, 9)
    made.open().posting().add(made.new(1), descriptor[None])

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, at, die)
        with pytest.raises(KeyboardInterrupt):
            rebuild(made.folder)
    assert before.latest() is before
    assert before.nearest(descriptor, 10)[1:] == expected
    rebuild(made.folder)
    latest = before.latest()
    assert latest.snapshot == made.open().snapshot
    assert latest.nearest(descriptor, 10) == made.open().nearest(descriptor, 10)


def test_a_store_that_is_gone_holds_up_no_post(
    made: Any, store: str, unit: Draw, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    descriptor = unit(np.random.default_rng(3))
    near, replica = made.open(), far(store)

    def fail(*_: Any) -> None:
        raise IndexerError("the Milvus store is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Milvus, "put", fail)
        near.posting().add(made.new(1), descriptor[None])
    assert "the Milvus store is gone; the next change, or run, sends it again" in caplog.text
    assert near.nearest(descriptor, 1)[0].id == made.new(1).id
    assert replica.nearest(descriptor, 1)[0].id != made.new(1).id
    near.posting().add(made.new(2), unit(np.random.default_rng(4))[None])
    assert replica.nearest(descriptor, 1)[0].id == made.new(1).id


def test_a_snapshot_is_sent_once(made: Any, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Milvus, "create", lambda *_: pytest.fail("sent again"))
    send(made, store)
    with monkeypatch.context() as patch:
        patch.setattr(sending, "COMPARED", "as another version calls it")
        with pytest.raises(pytest.fail.Exception, match="sent again"):
            send(made, store)


def test_changes_are_sealed_from_time_to_time(
    made: Any, store: str, unit: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed: list[str] = []
    monkeypatch.setattr(sending, "UNSEALED", 5)
    monkeypatch.setattr(Milvus, "seal", lambda _, collection: sealed.append(collection))
    near = made.open()
    changes = [near.catalogue.last_change()]
    for number in range(12):
        near.posting().add(made.new(number), unit(np.random.default_rng(number))[None])
        changes.append(near.catalogue.last_change())
    assert len(sealed) == len({change // 5 for change in changes}) - 1 >= 2
    assert set(sealed) == {Milvus(Address.parse(store)).current()}


# Collections too large to be searched exactly


WIDE = 64


@pytest.fixture
def large(make_handmade: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """3,000 photos, which are too many for a server to compare all."""
    monkeypatch.setattr("indexer.milvus.client.EXACT", 2000)
    generator = np.random.default_rng(0)
    made = make_handmade(tmp_path / "large", dim=WIDE)
    made.make([(moments(generator), [row]) for row in wide(3000)], places="auto")
    return made


def wide(n: int, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((n, WIDE)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def sent(made: Any, store: str, recall: float) -> Index:
    catalogue = Catalogue(made.folder)
    sending.send(made.layout, catalogue, read_manifest(made.layout, made.layout.current()), store, recall)
    catalogue.close()
    return far(store)


def found(near: Index, replica: Index) -> float:
    """The share of the ten nearest that a replica finds."""
    same = [
        {hit.id for hit in near.nearest(query, 10)} & {hit.id for hit in replica.nearest(query, 10)}
        for query in wide(30, seed=1)
    ]
    return sum(map(len, same)) / 300


def test_a_graph_is_searched_for_the_recall_wanted(
    large: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.snapshots.tuning.EFFORTS", (10, 40, 160, 640))
    replicas = {
        wanted: sent(large, f"{server}/t{abs(hash(tmp_path)) % 10**9}_{number}", wanted)
        for number, wanted in enumerate((0.5, 0.97, 1.0))
    }
    for wanted, replica in replicas.items():
        reached = replica.manifest.recall
        assert reached >= wanted - 0.02
        assert found(large.open(), replica) >= reached - 0.08  # what came last is compared one by one
    half, most, exact = replicas.values()
    assert half.manifest.factory == most.manifest.factory == "Milvus HNSW"
    assert half.manifest.probes < most.manifest.probes
    assert half.manifest.recall < 0.97
    assert (exact.manifest.factory, found(large.open(), exact)) == ("Milvus FLAT", 1.0)


def test_unreachable_recall_is_reported(
    large: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("indexer.snapshots.tuning.EFFORTS", (10,))
    sent(large, f"{server}/t{abs(hash(tmp_path)) % 10**9}", 0.999)
    assert "of what an exact one finds, less than the 99.9 % wanted" in caplog.text


def test_a_collection_with_a_graph_is_sent_once(
    large: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"{server}/t{abs(hash(tmp_path)) % 10**9}"
    collection = sent(large, store, 0.9).info()["factory"]
    monkeypatch.setattr(Milvus, "create", lambda *_: pytest.fail("sent again"))
    assert sent(large, store, 0.9).info()["factory"] == collection


def test_server_without_hnsw_is_given_up(
    large: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.milvus.client.PATIENCE", 1)
    monkeypatch.setattr(Milvus, "seal", lambda *_: None)
    store = f"{server}/t{abs(hash(tmp_path)) % 10**9}"
    with pytest.raises(StoreUnavailable, match="has made a graph of 0 of 2,000 descriptors, and of no more"):
        sent(large, store, 0.9)
    assert Milvus(Address.parse(store)).current() is None


@pytest.mark.usefixtures("made")
def test_replica_refuses_what_needs_a_folder(store: str) -> None:
    replica = far(store)
    with pytest.raises(NotFound, match=r"is not here$"):
        replica.photo_file(replica.photos()[0].id)
    for act in (replica.posting, replica.rebuild, replica.descriptors, replica.follow):
        with pytest.raises(UsageError, match="a replica only answers queries"):
            act()


@pytest.mark.usefixtures("made")
def test_another_model_is_refused(store: str) -> None:
    with pytest.raises(
        ModelMismatch, match="was made by the model made by hand, but the model file is another"
    ):
        far(store, "another")


def test_an_empty_store(store: str) -> None:
    with pytest.raises(IndexMissing, match=r"no index on .*: send one by setting"):
        Index.open(store, model=Path("model.safetensors"))
    with pytest.raises(UsageError, match="needs `model`"):
        Index.open(store)


def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(pymilvus, "MilvusClient", refuse)
    with pytest.raises(
        IndexerError, match=r"the Milvus store http://nowhere:1 \(loci\) cannot be reached: no route"
    ):
        Milvus(Address.parse("milvus://nowhere:1"))


# Addresses and filters


@pytest.mark.parametrize(
    ("text", "uri", "name"),
    [
        ("milvus://head", "http://head:19530", "loci"),
        ("milvus://10.0.0.1:99/cats", "http://10.0.0.1:99", "cats"),
        ("milvus:/head:99/cats", "http://head:99", "cats"),
        ("milvus:/a/b.db", "/a/b.db", "loci"),
    ],
)
def test_addresses(text: str, uri: str, name: str) -> None:
    assert Address.parse(text) == Address(uri, name)


@pytest.mark.parametrize("text", ["milvus:", "milvus://", "milvus://head/a-b", "http://head", "milvus://a b"])
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"a Milvus store is milvus://HOST"):
        BuildOptions(store=text)


def test_pymilvus_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.addresses.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'geniusloci\[milvus\]'"):
        Address.parse("milvus://head")


def test_the_store_faiss_is_the_folder_alone() -> None:
    kept = BuildOptions().search_over(SearchOptions(store="milvus://head"))
    assert kept.store == "milvus://head"
    assert BuildOptions(store="faiss").search_over(kept).store is None


def test_without_filters_nothing_is_left_out() -> None:
    assert expression_of(None) == ""
    assert expression_of(Filters()) == ""
    assert passing(Filters(), {}) == set()
    with pytest.raises(FieldError):
        Filters(radius_m=5)


def test_photo_without_metadata_survives() -> None:
    from indexer.answers import Photo
    from indexer.milvus.entities import entity, hit_of

    hit = Hit(Photo("a", "b/c.jpg", None, None, None, None, None, 8, 6, "ok"), None, 0.0)
    assert hit_of(entity(1, np.ones(2, np.float32), hit, None)) == hit
