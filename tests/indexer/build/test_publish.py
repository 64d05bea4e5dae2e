"""Snapshots: damage is repaired, newer formats are refused, readers continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from indexer.build.run import remove_photos
from indexer.errors import FormatTooNew, IndexerError, IndexMissing
from indexer.maintenance.check import check_index
from indexer.snapshots.exact import ExactStore
from indexer.snapshots.manifest import FORMAT, read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World

Harm = Callable[[Path], object]


def snapshot(world: World) -> Path:
    layout = Layout(world.index)
    return layout.snapshot(layout.current())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


HARMS: dict[str, Harm] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header": lambda path: flip(path, 0),
    "dimension": lambda path: flip(path, 5),
    "length": lambda path: flip(path, 60),
    "text": lambda path: path.write_bytes(b"x" * path.stat().st_size),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_damaged_faiss_file_is_replaced(world: World, harm: Harm) -> None:
    world.build()
    before = world.open()
    expected = before.answer(before.see(world.photo(1))).places
    harm(snapshot(world) / "index.faiss")
    assert world.open().query(world.photo(1)).places == expected
    assert len(check_index(world.index)) == 1
    report = world.build()
    assert report.embedded == 0
    assert report.snapshot > before.snapshot
    assert check_index(world.index) == []
    assert world.open().query(world.photo(1)).places == expected


def test_flipped_bit_is_found_and_repaired(world: World) -> None:
    name = world.build().snapshot
    flip(snapshot(world) / "index.faiss", -100)
    (problem,) = check_index(world.index)
    assert problem.endswith("is damaged: 'loci index' makes it again")
    assert world.build().snapshot > name
    assert check_index(world.index) == []


MANIFESTS: dict[str, Harm] = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_text(path.read_text()[:40]),
    "list": lambda path: path.write_text("[]"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "field missing": lambda path: path.write_text('{"format": 1}'),
    "field unknown": lambda path: path.write_text(path.read_text().replace('"dim"', '"dimension"')),
}


@pytest.mark.parametrize("harm", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_damaged_manifest_is_replaced(world: World, harm: Harm) -> None:
    world.build()
    harm(snapshot(world) / "manifest.json")
    for read in (world.open, lambda: check_index(world.index)):
        with pytest.raises(IndexerError, match=r"manifest\.json is damaged .* again to rebuild it$"):
            read()
    report = world.build()
    assert (report.photos, report.embedded) == (8, 0)
    assert check_index(world.index) == []
    assert world.nearest(world.photo(1)) == "photos/wall1/view0.jpg"


CURRENTS: dict[str, Harm] = {
    "empty": lambda path: path.write_text(""),
    "text": lambda path: path.write_text("../../etc"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "nowhere": lambda path: path.write_text("07/000001\n"),
}


@pytest.mark.parametrize("options", [{}, {"clusters": 3}], ids=["same options", "other options"])
@pytest.mark.parametrize("harm", [*CURRENTS.values(), Path.unlink], ids=[*CURRENTS.keys(), "missing"])
def test_damaged_current_is_repaired(world: World, harm: Harm, options: dict[str, Any]) -> None:
    name = world.build().snapshot
    harm(world.index / "CURRENT")
    with pytest.raises(IndexerError):
        world.open()
    if options:
        with pytest.raises(IndexerError, match="this index was made with `clusters` 4, not 3"):
            world.build(**options)
        return
    report = world.build()
    assert (report.photos, report.embedded, report.snapshot) == (8, 0, name)
    assert world.open().snapshot == name


def test_problem_with_current_is_one_sentence(world: World, tmp_path: Path) -> None:
    (world.index / "CURRENT").write_text("rubbish")
    with pytest.raises(IndexerError, match="CURRENT is damaged, it names no snapshot: run 'loci"):
        world.open()
    (world.index / "CURRENT").unlink()
    with pytest.raises(IndexMissing, match=r"is not finished: run 'loci index' again$"):
        world.open()
    (world.index / "CURRENT").mkdir()
    with pytest.raises(IndexerError, match="cannot be read: Is a directory"):
        world.open()
    (tmp_path / "file").touch()
    with pytest.raises(IndexMissing, match=r"no index in .*file: make one"):
        Layout(tmp_path / "file").current()


def test_newer_manifest_is_refused_and_kept(world: World) -> None:
    world.build()
    path = snapshot(world) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1, "news": 1}))
    for act in (
        world.open,
        world.build,
        lambda: check_index(world.index),
        lambda: remove_photos(world.index, ["wall0/view0.jpg"]),
    ):
        with pytest.raises(
            FormatTooNew, match=f"has format {FORMAT + 1}: a newer loci reads it, this one up to"
        ):
            act()
    assert json.loads(path.read_text())["news"] == 1
    assert len(Catalogue(world.index).photos()) == 8


def test_manifest_describes_snapshot(made: World) -> None:
    layout = Layout(made.index)
    manifest = read_manifest(layout, layout.current())
    assert (manifest.count, manifest.photos, manifest.places, manifest.dim) == (8, 8, 4, 2048)
    assert (manifest.recall, manifest.format) == (1.0, FORMAT)
    assert manifest.calibration["reason"] == (
        "8 of 8 photos share a place with another photo, and calibration needs 40: add photos of "
        "these places, or set `places` to folder or frames:N if folders or order show places"
    )
    assert manifest.index_bytes == (snapshot(made) / "index.faiss").stat().st_size


def test_older_snapshots_are_deleted(world: World, paint: Paint) -> None:
    names = [world.open().snapshot]
    for number in range(3):
        paint(world.photos / f"{number}.jpg", 10 + number)
        names.append(world.build().snapshot)
    assert names == [f"01/{n:06}" for n in (1, 2, 3, 4)]
    left = sorted(folder.name for folder in (world.index / "generations/01/snapshots").iterdir())
    assert left == ["000003", "000004"]


def test_snapshot_of_killed_run_is_skipped(world: World) -> None:
    world.build()
    half = world.index / "generations/01/snapshots/000009"
    shutil.copytree(snapshot(world), half)
    (half / "manifest.json").unlink()
    assert world.open().snapshot != "01/000009"
    remove_photos(world.index, ["wall0/view0.jpg"])
    assert world.open().snapshot == "01/000010"
    assert not half.exists()


def test_missing_shard_is_one_sentence(world: World) -> None:
    (world.index / "generations/01/shards/000001.npy").unlink()
    assert len(world.open().query(world.photo(1)).places) == 4  # the FAISS file answers
    (problem,) = check_index(world.index)
    assert problem.startswith("the descriptors cannot be read: descriptor shard")
    (snapshot(world) / "index.faiss").unlink()
    with pytest.raises(IndexerError, match=r"descriptor shard .* cannot be read: .*No such file"):
        world.open()


# The store


def test_exact_store_equals_naive_product(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    ids = np.arange(100, 150)
    store = ExactStore.build(16, [(ids[:30], rows[:30]), (ids[30:], rows[30:])])
    store.save(tmp_path / "a")
    loaded = ExactStore.load(tmp_path / "a")
    scores, found = loaded.search(rows[:3], 7)
    products = rows[:3] @ rows.T
    order = np.argsort(-products, axis=1)[:, :7]
    np.testing.assert_array_equal(found, ids[order])
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, 1), rtol=1e-5)
    assert (loaded.search(rows[:1], 60)[1][0, 50:] == -1).all()


@pytest.mark.parametrize("rows", [1, 20_000])
def test_store_on_full_disk_raises_oserror(rows: int) -> None:
    store = ExactStore.build(16, [(np.arange(rows), np.ones((rows, 16), np.float32))])
    with pytest.raises(OSError, match="No space left on device"):
        store.save(Path("/dev/full"))
