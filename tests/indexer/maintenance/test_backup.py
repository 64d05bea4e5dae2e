"""Backups are complete and consistent; a restore is exact or refused."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.build.rebuild import rebuild
from indexer.errors import DiskFull, FormatTooNew, IndexerError, IndexLocked, IndexMissing
from indexer.maintenance.backup import backup
from indexer.maintenance.check import check_index
from indexer.maintenance.restore import restore
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import read_new
from indexer.storage.catalogue import Catalogue
from indexer.storage.lock import backup_lock, is_backed_up, write_lock

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade, Paint, StartChild, World

Floats = NDArray[np.float32]
Unit = Callable[..., Floats]


@pytest.fixture
def thirty(handmade: Handmade, unit: Unit, monkeypatch: pytest.MonkeyPatch) -> Handmade:
    """Thirty photos in shards of minimum size, so that shards fill up and are emptied soon."""
    monkeypatch.setattr("indexer.storage.shards.SHARD_BYTES", 0)
    draw = np.random.default_rng(0)
    handmade.make([(PhotoMetadata(), [unit(draw)]) for _ in range(30)])
    return handmade


def problems(folder: Path) -> list[str]:
    """Problems of an index, except that one made by hand has no model."""
    return [problem for problem in check_index(folder) if not problem.startswith("no model file")]


def rows(handmade: Handmade) -> dict[str, list[float]]:
    """Searched descriptors by photo."""
    ids, descriptors = handmade.open().descriptors()
    return {id: row.tolist() for id, row in zip(ids, descriptors, strict=True)}


def restored(handmade: Handmade, source: Path, folder: Path) -> Handmade:
    restore(source, folder)
    return type(handmade)(folder)


def names(file: Path) -> list[str]:
    with tarfile.open(file) as tar:
        return tar.getnames()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# Whole


def test_restored_index_equals_original(world: World, paint: Paint, tmp_path: Path) -> None:
    index = world.open()
    new = read_new(paint(tmp_path / "new.jpg", 9).read_bytes(), PhotoMetadata(place="Gate"))
    (seen,) = index.embedder.see([index.posting().reader((new.id, new.data))])
    index.posting().add(new, seen.descriptor[None], [seen.local])
    gone = index.photos()[0].id
    index.posting().remove(gone)
    (world.index / "keys.json").write_text("{}")
    (world.index / "keys.json").chmod(0o600)
    saved = backup(world.index, tmp_path / "saved.tar", also=["keys.json", "absent.json"])
    assert (saved.snapshot, saved.photos) == ("01/000001", 8)
    assert saved.bytes == (tmp_path / "saved.tar").stat().st_size
    assert (tmp_path / "saved.tar").stat().st_mode & 0o777 == 0o600
    got = restore(tmp_path / "saved.tar", tmp_path / "back")
    assert (got.snapshot, got.photos) == (saved.snapshot, saved.photos)
    assert check_index(tmp_path / "back") == []
    back = type(world)(world.photos, tmp_path / "back")
    assert back.open().photos() == index.photos()
    assert back.open().query(tmp_path / "new.jpg").places == index.query(tmp_path / "new.jpg").places
    assert back.open().photo_file(new.id).read_bytes() == new.data
    assert (tmp_path / "back/keys.json").stat().st_mode & 0o777 == 0o600
    report = back.build()  # the next run works
    assert (report.photos, report.embedded, report.unchanged) == (8, 0, 7)
    assert sorted(entry.name for entry in world.index.iterdir() if "BACKUP" in entry.name) == ["BACKUP"]


def test_backup_is_a_plain_tar_file(thirty: Handmade, tmp_path: Path) -> None:
    backup(thirty.folder, tmp_path / "saved.tar")
    assert names(tmp_path / "saved.tar") == [
        "generations/01/options.json",
        "generations/01/shards/000001.npy",
        "generations/01/snapshots/000001/columns.npz",
        "generations/01/snapshots/000001/index.faiss",
        "generations/01/snapshots/000001/manifest.json",
        "catalogue.sqlite",
        "SHA256SUMS",
        "CURRENT",
    ]
    with tarfile.open(tmp_path / "saved.tar") as tar:
        tar.extractall(tmp_path / "by-hand")
    files = tree(tmp_path / "by-hand")
    sums = files.pop("SHA256SUMS").decode()
    assert sums == "".join(
        f"{hashlib.sha256(files[line[66:]]).hexdigest()}  {line[66:]}\n" for line in sums.splitlines()
    )
    assert len(sums.splitlines()) == len(files)
    assert rows(type(thirty)(tmp_path / "by-hand")) == rows(thirty)
    assert tree(restored(thirty, tmp_path / "saved.tar", tmp_path / "back").folder) == files | {"LOCK": b""}


def test_backup_through_pipe_and_compression(thirty: Handmade, tmp_path: Path) -> None:
    stream = io.BytesIO()
    backup(thirty.folder, stream)
    (tmp_path / "saved.tar.gz").write_bytes(gzip.compress(stream.getvalue()))
    restore(io.BytesIO(stream.getvalue()), tmp_path / "piped")
    restore(tmp_path / "saved.tar.gz", tmp_path / "gzipped")
    for folder in ("piped", "gzipped"):
        assert rows(type(thirty)(tmp_path / folder)) == rows(thirty)


def test_backup_contains_current_snapshot_only(thirty: Handmade, tmp_path: Path) -> None:
    """A backup has no other generations, spooled maps or partial files."""
    folder = thirty.folder / "generations"
    for left in ("01/spool/a.npy", "02/options.json", "01/snapshots/000009/index.faiss", "01/b.npy.partial"):
        (folder / left).parent.mkdir(parents=True, exist_ok=True)
        (folder / left).write_bytes(b"left")
    (folder / "01/features").mkdir()
    (folder / "01/features/000001.npy").write_bytes(b"whatever else a generation keeps")
    catalogue = Catalogue(thirty.folder, create=True)
    photo, slot = next((photo, slot) for _, photo, slot in catalogue.live_descriptors(1))
    catalogue.add_descriptors(2, [(photo, 0, 0.0, slot)])
    catalogue.close()
    backup(thirty.folder, tmp_path / "saved.tar")
    assert [name for name in names(tmp_path / "saved.tar") if name.startswith("generations")] == [
        "generations/01/features/000001.npy",
        "generations/01/options.json",
        "generations/01/shards/000001.npy",
        "generations/01/snapshots/000001/columns.npz",
        "generations/01/snapshots/000001/index.faiss",
        "generations/01/snapshots/000001/manifest.json",
    ]
    back = restored(thirty, tmp_path / "saved.tar", tmp_path / "back")
    assert not Catalogue(back.folder).is_embedded(photo, 2)
    assert rows(back) == rows(thirty)


# Of one moment


class Slow(io.BytesIO):
    """A stream that calls `between` before each block."""

    def __init__(self, out: IO[bytes], between: Callable[[], object]) -> None:
        super().__init__()
        self.out, self.between = out, between

    def write(self, data: Any, /) -> int:
        self.between()
        return self.out.write(data)


@pytest.mark.slow
def test_index_changes_during_backup(
    thirty: Handmade, unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup has all photos added before it and not deleted since, and none deleted before it."""
    monkeypatch.setattr("indexer.maintenance.backup.BLOCK", 10240)
    stop, lock, wrong = threading.Event(), threading.Lock(), list[object]()
    known, deleted, compacted = rows(thirty), set[str](), list[int]()

    def change(thread: int) -> None:
        draw, posting = np.random.default_rng(100 + thread), thirty.open().posting()
        mine: list[str] = []
        for number in range(10**6):
            if stop.is_set():
                return
            new, descriptor = thirty.new(10**6 * thread + number), unit(draw)
            with lock:
                known[new.id] = descriptor.tolist()
            posting.add(new, descriptor[None])
            with lock:
                acknowledged.add(new.id)
            mine.append(new.id)
            if len(mine) > 12:
                gone = mine.pop(int(draw.integers(len(mine))))
                posting.remove(gone)
                with lock:
                    deleted.add(gone)

    def publish() -> None:
        while not stop.is_set():
            compacted.append(int(rebuild(thirty.folder).snapshot[3:]))

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            wrong.append(error)

    def wait_for(snapshots: int) -> None:
        """Delete enough photos for a shard to be emptied and its file to be deleted."""
        for _ in range(6000):
            if len(compacted) >= snapshots or wrong:
                return
            time.sleep(0.01)
        raise TimeoutError

    acknowledged = set(known)
    works = [publish, *(lambda n=n: change(n) for n in (1, 2))]
    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            with lock:
                before, gone_before = set(acknowledged), set(deleted)
            began = len(compacted)
            with (tmp_path / f"{number}.tar").open("wb") as file:
                backup(thirty.folder, Slow(file, partial(wait_for, began + 3)))
            with lock:
                gone_after = set(deleted)
            back = restored(thirty, tmp_path / f"{number}.tar", tmp_path / f"{number}")
            assert problems(back.folder) == []
            found = rows(back)
            assert before - gone_after <= found.keys()
            assert not gone_before & found.keys()
            with lock:
                assert found == {id: known[id] for id in found}
            index = back.open()
            for id, descriptor in found.items():
                assert index.nearest(np.array(descriptor, np.float32), 1)[0].id == id
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert problems(thirty.folder) == []
    rebuild(thirty.folder)
    stored = {file.stem[:16] for file in (thirty.folder / "photos").iterdir()}
    assert stored == (acknowledged - deleted) - set(list(known)[:30])


def test_deleted_files_are_kept_during_backup(thirty: Handmade, unit: Unit, tmp_path: Path) -> None:
    draw, index = np.random.default_rng(1), thirty.open()
    news = [thirty.new(number) for number in range(3 * 64)]
    for new in news:
        index.posting().add(new, unit(draw)[None])
    rebuild(thirty.folder)
    before, expected = tree(thirty.folder), rows(thirty)
    states: list[tuple[bool, bool, bool]] = []
    shard, file = thirty.folder / "generations/01/shards/500000.npy", thirty.folder / "photos" / news[0].file
    snapshot = thirty.folder / "generations/01/snapshots/000002"

    def clear() -> None:
        if not states:
            assert is_backed_up(thirty.folder)
            for new in news[:64]:
                index.posting().remove(new.id)
            for _ in range(3):
                rebuild(thirty.folder)
                index.posting().add(thirty.new(1000 + len(states)), unit(draw)[None])
                states.append((shard.exists(), file.exists(), snapshot.exists()))

    with (tmp_path / "saved.tar").open("wb") as out:
        backup(thirty.folder, Slow(out, clear))
    assert states == [(True, True, True)] * 3
    back = restored(thirty, tmp_path / "saved.tar", tmp_path / "back")
    assert rows(back) == expected
    assert problems(back.folder) == []
    assert tree(back.folder / "photos") == {
        name.removeprefix("photos/"): data for name, data in before.items() if name.startswith("photos/")
    }
    assert not is_backed_up(thirty.folder)
    assert not file.exists()  # deleted at the end of the backup, not by the next run
    assert len(list((thirty.folder / "photos").iterdir())) == 2 * 64 + 3
    rebuild(thirty.folder)
    assert (shard.exists(), snapshot.exists()) == (False, False)


def test_refit_during_copy_of_catalogue(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_to, copies = Catalogue.copy_to, list[str]()

    def copy(catalogue: Catalogue, path: Path, generation: int) -> None:
        if not copies:
            world.build(refit=True, clusters=3)
        copy_to(catalogue, path, generation)
        copies.append((world.index / "CURRENT").read_text())

    monkeypatch.setattr(Catalogue, "copy_to", copy)
    assert backup(world.index, tmp_path / "saved.tar").snapshot == "02/000001"
    assert copies == ["02/000001\n"] * 2
    restore(tmp_path / "saved.tar", tmp_path / "back")
    assert check_index(tmp_path / "back") == []
    assert sorted(path.name for path in (tmp_path / "back/generations").iterdir()) == ["02"]


# Never half of one


@pytest.mark.slow
def test_killed_backup_leaves_no_valid_file(
    thirty: Handmade, start_child: StartChild, unit: Unit, tmp_path: Path
) -> None:
    index = thirty.open()
    new = thirty.new(0)
    index.posting().add(new, unit(np.random.default_rng(0))[None])
    out, log = tmp_path / "saved.tar", tmp_path / "log"
    ended, refused = list[int](), list[str]()
    with start_child("maintenance/backup_child.py") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for nth in range(1, 40):
            for late in (False, True):
                order = {"index": str(thirty.folder), "out": str(out), "log": str(log), "late": late}
                child.stdin.write(json.dumps(order | {"stage": "start", "nth": nth}) + "\n")
                child.stdin.flush()
                ended.append(int(child.stdout.readline()))
                assert not is_backed_up(thirty.folder)
                if out.exists():
                    assert rows(restored(thirty, out, tmp_path / "back")) == rows(thirty)
                    shutil.rmtree(tmp_path / "back")
                    out.unlink()
                    continue
                try:
                    restore(out.with_name("saved.tar.partial"), tmp_path / "back")
                except IndexerError as error:
                    refused.append(str(error))
                    assert not (tmp_path / "back").exists()
                    continue
                # killed after writing all, before the rename
                assert rows(type(thirty)(tmp_path / "back")) == rows(thirty)
                shutil.rmtree(tmp_path / "back")
            if ended[-2:] == [0, 0]:
                break
    assert ended[-2:] == [0, 0]
    assert (ended.count(-9), len(refused)) == (26, 20)
    assert all("truncated" in sentence for sentence in refused)
    assert problems(thirty.folder) == []
    assert sorted(path.name for path in thirty.folder.iterdir() if "BACKUP" in path.name) == ["BACKUP"]


def test_truncated_backup_is_refused(thirty: Handmade, tmp_path: Path) -> None:
    backup(thirty.folder, tmp_path / "saved.tar")
    data = (tmp_path / "saved.tar").read_bytes()
    end = data.rindex(b"01/000001\n")  # contents of CURRENT, before the padding
    for size in (*range(0, end, 1999), end - 1, end):
        with pytest.raises(IndexerError, match="is truncated"):
            restore(io.BytesIO(data[:size]), tmp_path / "back")
        assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_flipped_bit_is_refused_or_harmless(thirty: Handmade, tmp_path: Path) -> None:
    backup(thirty.folder, tmp_path / "saved.tar")
    restore(tmp_path / "saved.tar", tmp_path / "whole")
    expected, data = tree(tmp_path / "whole"), (tmp_path / "saved.tar").read_bytes()
    refused = 0
    for place in range(0, len(data), 331):
        flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        try:
            restore(io.BytesIO(flipped), tmp_path / "back")
        except IndexerError:
            refused += 1
            assert not (tmp_path / "back").exists()
            continue
        assert tree(tmp_path / "back") == expected  # a byte of padding
        shutil.rmtree(tmp_path / "back")
    assert refused > 50


# What is in the way


def test_impossible_backups_are_refused(thirty: Handmade, tmp_path: Path) -> None:
    (tmp_path / "saved.tar").write_bytes(b"before")
    with pytest.raises(IndexerError, match=r"saved\.tar exists already: choose a new file$"):
        backup(thirty.folder, tmp_path / "saved.tar")
    assert (tmp_path / "saved.tar").read_bytes() == b"before"
    with pytest.raises(IndexerError, match=r"cannot write to .*/no/saved\.tar: No such file or directory"):
        backup(thirty.folder, tmp_path / "no" / "saved.tar")
    with pytest.raises(IndexMissing, match="no index in"):
        backup(tmp_path / "nowhere", tmp_path / "new.tar")
    (tmp_path / "begun/generations/01").mkdir(parents=True)
    (tmp_path / "begun/generations/01/options.json").write_text("{}")
    with pytest.raises(IndexMissing, match="is not finished"):
        backup(tmp_path / "begun", tmp_path / "new.tar")
    with backup_lock(thirty.folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.storage.lock.PATIENCE_S", 0)
        with pytest.raises(
            IndexLocked, match=rf"is being backed up by process {os.getpid()} on .*: wait until"
        ):
            backup(thirty.folder, tmp_path / "new.tar")
    with write_lock(thirty.folder):
        backup(thirty.folder, tmp_path / "new.tar")  # during a run


@pytest.mark.parametrize("lost", ["generations/01/shards/000001.npy", "photos", "catalogue.sqlite"])
def test_damaged_index_is_not_backed_up(thirty: Handmade, unit: Unit, tmp_path: Path, lost: str) -> None:
    new = thirty.new(1)
    thirty.open().posting().add(new, unit(np.random.default_rng(1))[None])
    path = thirty.folder / lost
    if lost == "catalogue.sqlite":
        Catalogue(thirty.folder, create=True).close()
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\x55" * (len(data) - 4096))
        expected = "the catalogue .* is damaged: |database disk image is malformed"
    else:
        path = path / new.file if path.is_dir() else path
        path.unlink()
        expected = rf"{path} cannot be read \(No such file or directory\): 'loci check' shows what is damaged"
    with pytest.raises(IndexerError, match=expected):
        backup(thirty.folder, tmp_path / "saved.tar")
    assert list(tmp_path.glob("saved*")) == []


def test_newer_index_is_neither_backed_up_nor_restored(thirty: Handmade, tmp_path: Path) -> None:
    backup(thirty.folder, tmp_path / "saved.tar")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.snapshots.manifest.FORMAT", 0)
        with pytest.raises(FormatTooNew):
            backup(thirty.folder, tmp_path / "new.tar")
        with pytest.raises(FormatTooNew):
            restore(tmp_path / "saved.tar", tmp_path / "back")
    assert not (tmp_path / "back").exists()
    assert list(tmp_path.glob("new*")) == []


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("at", ["sync", "catalogue"])
def test_backup_on_full_disk_leaves_nothing(
    thirty: Handmade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    with monkeypatch.context() as patch:
        where = tmp_path / "saved.tar"
        if at == "sync":
            patch.setattr("indexer.maintenance.backup.os.fsync", full)
        else:
            where = thirty.folder
            patch.setattr(Catalogue, "copy_to", full)
        with pytest.raises(DiskFull, match=f"cannot write to {where}: No space left on device"):
            backup(thirty.folder, tmp_path / "saved.tar")
    assert list(tmp_path.glob("saved*")) == []
    assert not (thirty.folder / "BACKUP.copy").exists()
    with pytest.raises(DiskFull, match="cannot write to the output: No space left on device"):
        backup(thirty.folder, Slow(io.BytesIO(), full))
    backup(thirty.folder, tmp_path / "saved.tar")


def test_invalid_targets_of_restore_are_refused(thirty: Handmade, tmp_path: Path) -> None:
    saved = tmp_path / "saved.tar"
    backup(thirty.folder, saved)
    before = tree(thirty.folder)
    with pytest.raises(IndexerError, match="is not empty: choose a new folder, or move its contents away"):
        restore(saved, thirty.folder)
    assert tree(thirty.folder) == before
    with pytest.raises(IndexerError, match="is not empty"):
        restore(saved, saved)
    (tmp_path / "taken").mkdir()
    with write_lock(tmp_path / "taken"), pytest.raises(IndexLocked, match="is being written by process"):
        restore(saved, tmp_path / "taken")
    with pytest.raises(IndexerError, match=r"no such\.tar cannot be read: No such file or directory"):
        restore(tmp_path / "no such.tar", tmp_path / "back")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("indexer.maintenance.restore.os.fsync", full)
        with pytest.raises(DiskFull, match=f"cannot write to {tmp_path / 'back'}: No space left on device"):
            restore(saved, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_killed_restore_starts_over(thirty: Handmade, tmp_path: Path) -> None:
    backup(thirty.folder, tmp_path / "saved.tar")
    (tmp_path / "back/RESTORE.partial/generations").mkdir(parents=True)
    (tmp_path / "back/RESTORE.partial/catalogue.sqlite").write_bytes(b"half")
    (tmp_path / "back/LOCK").touch()
    with pytest.raises(IndexMissing, match="no index in"):
        check_index(tmp_path / "back")
    assert rows(restored(thirty, tmp_path / "saved.tar", tmp_path / "back")) == rows(thirty)
    assert not (tmp_path / "back/RESTORE.partial").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../outside", tarfile.REGTYPE),
        ("/outside", tarfile.REGTYPE),
        ("a/../../outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
        ("folder", tarfile.DIRTYPE),
    ],
)
def test_members_outside_folder_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(IndexerError, match=rf"the input is no backup: an index has no file '{name}'"):
        restore(io.BytesIO(stream.getvalue()), tmp_path / "in" / "back")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "in" / "back").exists()


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08 neither gzip"])
def test_other_files_are_no_backup(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(IndexerError, match="file is no backup, or is truncated: "):
        restore(tmp_path / "file", tmp_path / "back")
