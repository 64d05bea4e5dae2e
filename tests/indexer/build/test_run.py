"""Runs: invalid targets, full disks, options that contradict the index, refits and removals."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from indexer.build.run import remove_photos
from indexer.errors import IndexerError, IndexMissing, ModelMismatch, NotFound, UsageError
from indexer.options import BuildOptions, FitOptions, load_options
from indexer.posting.new_photo import given_metadata, read_new
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout
from model.errors import ModelError
from model.layers.poolings import TwoLayers
from model.modelfile import ModelConfig, load_model, save_model

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World


class Killed(BaseException):
    """Simulates a killed run."""


def test_first_run_reports_photos(empty: World) -> None:
    report = empty.build()
    assert (report.photos, report.added, report.embedded, report.places) == (4, 4, 4, 2)
    assert (report.snapshot, report.dim, report.reduction) == ("01/000001", 2048, "none, 2048-D")
    assert report.model == load_model(empty.index / "generations/01/model.safetensors").fingerprint
    left = {file.name for file in empty.index.iterdir()}
    assert left - {"LOCK"} == {"CURRENT", "catalogue.sqlite", "generations"}
    assert empty.nearest(empty.photo(1)) == "photos/wall1/view0.jpg"
    assert not (empty.index / "generations/01/spool").exists()


# Targets


def test_file_as_target_is_refused(empty: World) -> None:
    empty.index.write_text("mine")
    with pytest.raises(IndexerError, match="is neither an index nor an empty folder: use another"):
        empty.build()
    assert empty.index.read_text() == "mine"


def test_target_with_other_files_is_refused(empty: World) -> None:
    empty.index.mkdir()
    (empty.index / "thesis.tex").write_text("mine")
    with pytest.raises(IndexerError, match="is neither an index nor an empty folder: use another"):
        empty.build()
    assert [file.name for file in empty.index.iterdir()] == ["thesis.tex"]
    with pytest.raises(IndexerError, match="is neither"):
        type(empty)(empty.photos, empty.photos).build()  # the folder of the photos


@pytest.mark.parametrize("below", ["file", "proc"])
def test_unwritable_target_is_refused(empty: World, below: str) -> None:
    file = empty.photos.parent / "file"
    file.touch()
    target = {"file": file / "a" / "index", "proc": Path("/proc/loci-index")}[below]
    with pytest.raises(IndexerError, match=rf"^cannot write to {target}: "):
        type(empty)(empty.photos, target).build()


def test_run_starts_over_remains_of_killed_run(empty: World) -> None:
    empty.index.mkdir()
    (empty.index / "LOCK").touch()
    (empty.index / "LOCK.holder").write_text("process 1 on elsewhere")
    assert empty.build().photos == 4


@pytest.mark.parametrize("made_before", [False, True])
def test_failed_run_leaves_no_folder(empty: World, made_before: bool) -> None:
    for file in empty.photos.glob("*/*.jpg"):
        file.write_text("no photo")
    if made_before:
        empty.index.mkdir()
    with pytest.raises(IndexerError, match=r"^none of the 4 photos can be read; the first"):
        empty.build()
    assert empty.index.exists() == made_before
    assert not made_before or not (empty.index / "catalogue.sqlite").exists()


def test_no_photos_is_an_error_for_new_index(empty: World, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(IndexerError, match=r"^no photos in .*none: nothing was indexed$"):
        empty.build(tmp_path / "none")
    with pytest.raises(IndexerError, match="does not exist; name a folder of photos, or photos"):
        empty.build(tmp_path / "missing")
    assert not empty.index.exists()


def test_no_photos_is_an_error_for_existing_index(empty: World, tmp_path: Path) -> None:
    report = empty.build()
    (tmp_path / "none").mkdir()
    with pytest.raises(IndexerError, match=r"^no photos in .*none: nothing was indexed$"):
        empty.build(tmp_path / "none")
    assert empty.open().snapshot == report.snapshot


def test_interrupted_run_keeps_photos_read(empty: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.run._Run.complete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            empty.build()
    assert Catalogue(empty.index).count() == 4
    with pytest.raises(IndexMissing, match="make one with"):
        empty.open()
    report = empty.build()
    assert (report.photos, report.unchanged) == (4, 4)


# Disks that are full


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Let every fsync after the first `after` fail with a full disk."""
    left, sync = [after], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


# Of the 32: options, maps, clusters, unreduced descriptors, model, shard, snapshot, manifest, CURRENT.
@pytest.mark.parametrize("after", [0, 5, 10, 12, 20, 22, 25, 28, 30])
def test_first_run_on_full_disk_is_resumed(empty: World, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    with failing(monkeypatch, after), pytest.raises(IndexerError, match=r"No space left on device$"):
        empty.build()
    assert not (empty.index / "LOCK.holder").exists()
    report = empty.build()
    assert report.photos == 4
    assert empty.nearest(empty.photo(1)) == "photos/wall1/view0.jpg"


@pytest.mark.parametrize("after", [0, 2, 3, 5, 7, 9])
def test_index_answers_after_update_on_full_disk(
    world: World, paint: Paint, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    paint(world.photos / "new.jpg", 9)
    with failing(monkeypatch, after):
        try:
            world.build()
        except IndexerError as error:
            assert str(error) == f"cannot write to {world.index}: No space left on device"  # noqa: PT017
    assert world.nearest(world.photo(3)) == "photos/wall3/view0.jpg"
    assert world.build().photos == 9
    assert world.nearest(world.photos / "new.jpg") == "photos/new.jpg"


@pytest.mark.parametrize("pages", [1, 20])
def test_catalogue_on_full_disk_is_an_error(
    empty: World, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    for number in range(200):
        empty.photos.joinpath("wall0", f"{number}.jpg").write_text(f"no photo {number}")
    connect = Catalogue._connect

    def small(self: Catalogue) -> sqlite3.Connection:
        db = connect(self)
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    with monkeypatch.context() as patch:
        patch.setattr(Catalogue, "_connect", small)
        with pytest.raises(IndexerError, match=r"catalogue .* cannot be written: database or disk is full$"):
            empty.build()
    assert empty.build().photos == 4


def test_model_on_full_disk_is_an_error(empty: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("model.modelfile.save_file", full)
        with pytest.raises(ModelError, match=r"^cannot write .*safetensors: .*No space left"):
            empty.build()
    assert empty.build().photos == 4


# Options that do not fit


def test_other_options_need_refit(world: World) -> None:
    expected = (
        r"^this index was made with `clusters` 4, not 5, `seed` 0, not 1: leave that out, or set `refit`"
    )
    with pytest.raises(IndexerError, match=expected):
        world.build(clusters=5, seed=1)
    assert (
        world.build(clusters=None, image_size=None).photos == 8
    )  # without options, those of the index count
    assert load_options(Layout(world.index).options(1)).fit.clusters == 4


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"clusters": 0},
        {"image_size": 15},
        {"panoramas": 1},
        {"batch_size": 0},
        {"seed": -1},
        {"ghosts": 0},
        {"netvlad_version": 3},
        {"vlad_normalisation": "nothing"},
        {"pooling": "nothing"},
        {"places": "nothing"},
        {"place_radius_m": float("nan")},
        {"place_radius_m": 0.0},
    ],
)
def test_invalid_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BuildOptions(**wrong)


def test_old_generation_answers_during_refit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old = world.open()
    with monkeypatch.context() as patch:  # killed before it is published
        patch.setattr("indexer.build.run.publish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.build(refit=True, clusters=3)
    assert old.latest() is old
    assert world.open().snapshot.startswith("01/")
    remove_photos(world.index, ["wall0/view0.jpg"])  # the old generation takes changes meanwhile
    report = world.build(clusters=None)  # the next run continues the new generation
    assert (report.snapshot, report.embedded, report.photos) == ("02/000001", 0, 7)
    new = old.latest()
    assert new is not old
    assert new.snapshot == "02/000001"
    assert new.model_fingerprint != old.model_fingerprint
    assert new.embedder.model.config.clusters == 3
    hits = [index.nearest(index.embed([world.photo(1)])[0], 1)[0].path for index in (old, new)]
    assert hits == ["photos/wall1/view0.jpg"] * 2
    with pytest.raises(ModelMismatch, match="1536-D descriptors, got one of shape"):
        new.answer(old.embed([world.photo(1)])[0])
    assert (world.index / "generations/01").exists()  # for readers
    remove_photos(world.index, ["wall0/view1.jpg"])
    assert not (world.index / "generations/01").exists()
    assert len(world.open().photos()) == 6


def test_killed_refit_is_resumed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def before_current(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("indexer.storage.layout.Layout.set_current", before_current)
        with pytest.raises(Killed):
            world.build(refit=True, clusters=3)
    old = world.open()
    report = world.build(refit=True, clusters=3)
    assert (report.snapshot, report.embedded) == ("02/000002", 0)
    assert len(old.nearest(old.embed([world.photo(1)])[0], 8)) == 8  # still there for readers
    assert Layout(world.index).newest_generation() == 2


@pytest.mark.parametrize("published", [False, True])
def test_unfinished_run_with_other_options_starts_over(
    world: World, empty: World, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    ours = world if published else empty
    refit = {"refit": True} if published else {}
    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.run.publish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            ours.build(clusters=3, **refit)
    report = ours.build(clusters=5, **refit)
    assert report.embedded == report.photos
    assert report.snapshot == ("02/000001" if published else "01/000001")
    assert report.dim == 5 * 512
    assert ours.nearest(ours.photo(1)) == "photos/wall1/view0.jpg"


@pytest.mark.parametrize("moment", ["drop_descriptors", "rmtree"])
def test_killed_start_over_is_resumed(empty: World, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.run.publish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            empty.build(clusters=3)

    def after(*arguments: Any, **_: object) -> None:
        if moment == "rmtree" and Path(arguments[0]).exists():
            next(Path(arguments[0]).rglob("model.safetensors")).unlink()
            raise Killed
        if moment == "drop_descriptors":
            with sqlite3.connect(empty.index / "catalogue.sqlite") as db:
                db.execute("DELETE FROM descriptors")
            raise Killed

    with monkeypatch.context() as patch:
        dropping = "indexer.storage.catalogue.Catalogue.drop_descriptors"
        patch.setattr("shutil.rmtree" if moment == "rmtree" else dropping, after)
        with pytest.raises(Killed):
            empty.build(clusters=5)
    report = empty.build(clusters=5)
    assert (report.dim, report.embedded, report.photos) == (2560, 4, 4)
    assert empty.nearest(empty.photo(1)) == "photos/wall1/view0.jpg"
    assert [p.name for p in (empty.index / "generations").iterdir()] == ["01"]


def test_spooled_maps_outside_new_sample_are_used(
    empty: World, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr("indexer.build.fit.SAMPLE_PHOTOS", 4)
    with monkeypatch.context() as patch:
        patch.setattr("model.fitting.kmeans", killed)
        with pytest.raises(Killed):
            empty.build()
    spool = empty.index / "generations/01/spool/maps"
    assert len(list(spool.iterdir())) == 4
    for number in range(12):
        paint(empty.photos / f"{number}.jpg", 10 + number)
    assert empty.build().photos == 16
    assert empty.nearest(empty.photo(1)) == "photos/wall1/view0.jpg"


def test_generation_without_options_is_ignored(world: World) -> None:
    (world.index / "generations" / "02").mkdir()
    assert world.build().snapshot.startswith("01/")
    assert world.build(refit=True, clusters=3).snapshot == "02/000001"


# Models


def other_model(world: World) -> None:
    path = world.index / "generations/01/model.safetensors"
    model = load_model(path)
    assert isinstance(model.pooling, TwoLayers)
    model.pooling.upper.centres.data += 0.5
    save_model(model, path)


def test_swapped_model_file_is_refused(world: World, paint: Paint) -> None:
    paint(world.photos / "new.jpg", 9)
    other_model(world)
    for act in (world.open, world.build):
        with pytest.raises(ModelMismatch, match=r"was made by the model [0-9a-f]{16}, but the model file is"):
            act()
    assert Layout(world.index).current() == "01/000001"
    report = world.build(refit=True)
    assert (report.snapshot, report.embedded) == ("02/000001", 9)
    assert world.nearest(world.photos / "new.jpg") == "photos/new.jpg"


def test_missing_model_file_is_refused(world: World) -> None:
    (world.index / "generations/01/model.safetensors").unlink()
    with pytest.raises(ModelError, match="no model file"):
        world.open()
    with pytest.raises(IndexerError, match=r"the model file .* is missing: restore it, or set `refit`"):
        world.build()
    assert world.build(refit=True).snapshot == "02/000001"


# Removing


def test_remove_is_atomic(world: World) -> None:
    with pytest.raises(NotFound, match=r"nowhere\.jpg is not in the index"):
        remove_photos(world.index, ["wall0/view0.jpg", "nowhere.jpg"])
    assert world.build().photos == 8
    photo = world.open().photos()[0]
    assert remove_photos(world.index, [photo.id, photo.path]) == [photo.path] * 2
    assert world.open().manifest.photos == 7
    with pytest.raises(IndexerError, match="would leave no photo in the index: delete its folder instead"):
        remove_photos(world.index, [photo.id for photo in world.open().photos()])
    assert len(world.open().photos()) == 7


def test_remove_from_missing_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing):
        remove_photos(tmp_path / "no", ["a"])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"layers": "conv3_3"}, "`layers` must be conv5_3 or conv4_3+conv5_3, got 'conv3_3'"),
        (
            {"layers": "conv4_3+conv5_3", "pooling": "average"},
            "`layers` is for netvlad and vlad and ghostvlad, not for average",
        ),
        ({"clusters": 1}, "`clusters` must be at least 2 for two layers, got 1"),
    ],
)
def test_invalid_layers_are_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        BuildOptions(**told).fit_over(FitOptions())


def test_layers_follow_pooling() -> None:
    assert BuildOptions().fit_over(FitOptions()).layers == "conv4_3+conv5_3"
    assert BuildOptions(pooling="average").fit_over(FitOptions()).layers == "conv5_3"
    assert BuildOptions(layers="conv5_3", clusters=1).fit_over(FitOptions()).layers == "conv5_3"
    brought = ModelConfig(weights="street", clusters=64)
    assert BuildOptions().fit_over(FitOptions(), brought).layers == "conv5_3"


def test_index_of_one_layer_keeps_it(world: World) -> None:
    world.build(refit=True, layers="conv5_3")
    assert world.open().info()["layers"] == "conv5_3"
    world.build()
    assert world.open().info()["layers"] == "conv5_3"
    with pytest.raises(
        IndexerError, match=r"made with `layers` conv5_3, not conv4_3\+conv5_3: leave that out"
    ):
        world.build(layers="conv4_3+conv5_3")


# Nothing to do


def test_unchanged_run_reads_no_rows_or_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.build()

    def looked(*_: object, **__: object) -> None:
        pytest.fail("looked")

    for name in ("live_descriptors", "files", "photos", "pending"):
        monkeypatch.setattr(Catalogue, name, looked)
    monkeypatch.setattr("indexer.build.run.load_model", looked)
    report = world.build()
    assert (report.unchanged, report.photos, report.embedded, report.snapshot) == (8, 8, 0, before.snapshot)
    assert (report.model, report.places, report.reduction) == (before.model, before.places, before.reduction)


@pytest.mark.parametrize("change", ["touched", "added", "gone", "failed", "table", "rehash"])
def test_every_kind_of_change_is_noticed(world: World, change: str, paint: Paint) -> None:
    before = world.build(rehash=True)  # because the paths of the copy differ
    options: dict[str, Any] = {}
    if change == "touched":
        os.utime(world.photo(0), (1, 1))
    elif change == "added":
        paint(world.photo(0, 9), 0, 9)
    elif change == "gone":
        world.photo(0).unlink()
    elif change == "failed":
        (world.photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        world.build()
        paint(world.photos / "broken.jpg", 0, 5)
    elif change == "table":
        options["metadata"] = world.photos.parent / "positions.csv"
        options["metadata"].write_text("path,lat,lon\nwall0/view0.jpg,52,0.1\n")
    else:
        options["rehash"] = True
    report = world.build(**options)
    expected = {"touched": 8, "added": 9, "gone": 7, "failed": 9, "table": 8, "rehash": 8}[change]
    assert report.photos == expected
    assert (report.snapshot == before.snapshot) == (change in ("touched", "rehash"))
    assert world.build().snapshot == report.snapshot


def test_changes_of_killed_run_are_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.build(places="folder")
    assert len(world.open().places()) == 4
    (world.photos / "wall9").mkdir()
    world.photo(0).rename(world.photo(9))

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("indexer.build.run.publish", killed)
        with pytest.raises(Killed):
            world.build()
    assert (world.index / "UNPUBLISHED").exists()
    report = world.build()
    assert (report.moved, report.embedded, report.places) == (0, 0, 5)
    assert not (world.index / "UNPUBLISHED").exists()
    assert world.build().snapshot == report.snapshot


def test_posted_photo_is_in_next_snapshot(world: World, paint: Paint) -> None:
    before = world.build()
    index = world.open()
    paint(world.photos.parent / "posted.jpg", 3, 7)
    new = read_new((world.photos.parent / "posted.jpg").read_bytes(), given_metadata())
    seen = index.see(world.photos.parent / "posted.jpg")
    index.posting().add(new, seen.descriptor[None], [seen.local])
    report = world.build()
    assert report.snapshot > before.snapshot
    assert (report.photos, report.embedded) == (9, 0)
    assert world.build().snapshot == report.snapshot


def test_too_little_memory_fails_before_embedding(empty: World) -> None:
    with pytest.raises(UsageError, match="`memory` is too small for 4 descriptors of 512 numbers"):
        empty.build(memory="10")
    assert not (empty.index / "generations/01/model.safetensors").exists()
    assert empty.build().photos == 4
