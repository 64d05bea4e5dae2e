"""The catalogue: formats, damage, and readers during writes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from indexer.errors import FormatTooNew, IndexerError, IndexMissing, NotFound
from indexer.photos.metadata import PhotoMetadata
from indexer.storage import schema
from indexer.storage.catalogue import Catalogue
from indexer.storage.rows import FileRow, PhotoFacts, Slot

if TYPE_CHECKING:
    from tests.indexer.conftest import World


def put(catalogue: Catalogue, number: int, metadata: PhotoMetadata | None = None) -> str:
    """Add a photo in the file `number`.jpg with a descriptor in generation 1."""
    facts = PhotoFacts(f"{number:064x}"[::-1], 4, 3, metadata or PhotoMetadata())
    with catalogue.transaction() as db:
        catalogue.put_photo(db, facts)
        catalogue.put_file(db, "/r", f"{number}.jpg", FileRow(1, 2, facts.id))
    catalogue.add_descriptors(1, [(facts.id, 0, 0.0, Slot(1, number))])
    return facts.id


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path, create=True)


def test_missing_catalogue_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexMissing, match=r"no index in .*: make one with 'loci index"):
        Catalogue(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_newer_format_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    with catalogue.transaction() as db:
        db.execute("PRAGMA user_version = 7")
    for create in (False, True):
        with pytest.raises(FormatTooNew, match=r"has format 7: a newer loci reads it, this one up to 2$"):
            Catalogue(tmp_path, create=create)


def test_interrupted_migration_leaves_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def half(db: sqlite3.Connection) -> None:
        for statement in schema._M002[:3]:
            db.execute(statement)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(schema.MIGRATIONS, 2, half)
        with pytest.raises(Killed):
            Catalogue(tmp_path, create=True)
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    db.close()
    assert Catalogue(tmp_path, create=True).count() == 0
    assert Catalogue(tmp_path, create=True).count() == 0  # the second time there is nothing to do


def test_migration_keeps_existing_rows(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = put(catalogue, 1)

    def more(db: sqlite3.Connection) -> None:
        db.execute("ALTER TABLE photos ADD COLUMN quality REAL")

    monkeypatch.setitem(schema.MIGRATIONS, 3, more)
    assert Catalogue(tmp_path, create=True).photo(photo).width == 4
    with sqlite3.connect(tmp_path / "catalogue.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT quality FROM photos").fetchall() == [(None,)]
    db.close()


READS: list[Callable[[Catalogue], Any]] = [
    Catalogue.files,
    Catalogue.statuses,
    Catalogue.failures,
    Catalogue.count,
    Catalogue.photos,
    Catalogue.paths,
    Catalogue.places,
    Catalogue.assigned_places,
    lambda catalogue: catalogue.live_descriptors(1),
    lambda catalogue: catalogue.pending(1),
    lambda catalogue: catalogue.hits([1]),
    lambda catalogue: catalogue.photo("x"),
    lambda catalogue: catalogue.place("x"),
]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue with damage after its first page."""
    folder = tmp_path_factory.mktemp("damaged")
    catalogue = Catalogue(folder, create=True)
    for number in range(50):
        put(catalogue, number)
    catalogue.close()
    file = folder / "catalogue.sqlite"
    data = bytearray(file.read_bytes())
    data[4096:] = b"\x55" * (len(data) - 4096)
    file.write_bytes(data)
    return folder


@pytest.mark.parametrize("read", READS)
def test_damaged_catalogue_is_one_sentence(damaged: Path, read: Callable[[Catalogue], Any]) -> None:
    with pytest.raises(IndexerError, match=r"the catalogue .*sqlite cannot be read: .*malformed"):
        read(Catalogue(damaged))


@pytest.mark.parametrize("create", [False, True])
def test_other_files_are_no_catalogue(tmp_path: Path, create: bool) -> None:
    (tmp_path / "catalogue.sqlite").write_text("no database" * 1000)
    with pytest.raises(IndexerError, match=r"cannot be opened: file is not a database"):
        Catalogue(tmp_path, create=create)


def test_transactions_are_atomic(catalogue: Catalogue) -> None:
    photo = put(catalogue, 1)

    def remove(then: str) -> None:
        with catalogue.transaction() as db:
            catalogue.set_status(db, [photo], "removed")
            catalogue.set_status(db, [photo], {"ok": "ok", "bad": "no such status"}[then])

    with pytest.raises(KeyError):
        remove("error")
    assert catalogue.statuses() == {photo: "ok"}
    with pytest.raises(IndexerError, match="cannot be written: CHECK constraint failed"):
        remove("bad")
    assert catalogue.statuses() == {photo: "ok"}


def test_descriptors_never_share_a_slot_or_view(catalogue: Catalogue) -> None:
    photo = put(catalogue, 1)
    with pytest.raises(IndexerError, match="UNIQUE constraint failed"):
        catalogue.add_descriptors(1, [(photo, 1, 0.0, Slot(1, 1))])
    catalogue.add_descriptors(1, [(photo, 0, 0.0, Slot(1, 9))])  # from a run, after a POST: the first stays
    assert catalogue.live_descriptors(1) == [(1, photo, Slot(1, 1))]
    catalogue.add_descriptors(2, [(photo, 0, 0.0, Slot(1, 1))])  # another generation
    catalogue.drop_generations([1])
    assert [row[1] for row in catalogue.live_descriptors(1)] == [photo]
    assert catalogue.live_descriptors(2) == []


def test_metadata_is_completed_but_not_overwritten(catalogue: Catalogue) -> None:
    photo = put(catalogue, 1, PhotoMetadata(lat=1.0, lon=2.0))
    put_again = PhotoFacts(f"{1:064x}"[::-1], 4, 3, PhotoMetadata(lat=5.0, lon=6.0, heading=90.0))
    with catalogue.transaction() as db:
        catalogue.put_photo(db, put_again)
        catalogue.set_metadata(db, photo, PhotoMetadata(taken_at="2024-05-01"))
    found = catalogue.photo(photo)
    assert (found.lat, found.lon, found.heading, found.taken_at) == (1.0, 2.0, 90.0, "2024-05-01")
    with catalogue.transaction() as db:
        catalogue.set_metadata(db, photo, PhotoMetadata(lat=7.0, lon=8.0))
    assert (catalogue.photo(photo).lat, catalogue.photo(photo).lon) == (7.0, 8.0)


def test_hits_of_many_ids_take_several_statements(catalogue: Catalogue) -> None:
    ids = {put(catalogue, number) for number in (1, 2, 3)}
    asked = [*range(4, 70_000), 1, 2, 3]
    assert {hit.photo.id for hit in catalogue.hits(asked).values()} == ids
    assert catalogue.hits([]) == {}


def test_removed_photos_are_not_found(catalogue: Catalogue) -> None:
    photo = put(catalogue, 1)
    with catalogue.transaction() as db:
        catalogue.set_status(db, [photo], "removed")
    for read in (
        lambda: catalogue.photo(photo),
        lambda: catalogue.photo("no"),
        lambda: catalogue.place("no"),
    ):
        with pytest.raises(NotFound, match="in this index"):
            read()
    assert catalogue.hits([1]) == {}


@pytest.mark.slow
def test_readers_never_see_half_a_transaction(catalogue: Catalogue, tmp_path: Path) -> None:
    """Each transaction adds two photos. A reader always counts an even number."""
    catalogue.close()
    writer = (
        "import sys, pathlib\n"
        "from indexer.storage.catalogue import Catalogue\n"
        "from indexer.storage.rows import PhotoFacts\n"
        "c = Catalogue(pathlib.Path(sys.argv[1]), create=True)\n"
        "for n in range(0, 400, 2):\n"
        "    with c.transaction() as db:\n"
        "        for m in (n, n + 1): c.put_photo(db, PhotoFacts(f'{m:064x}'[::-1], 1, 1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    reader = Catalogue(tmp_path)
    seen: list[int] = []
    with subprocess.Popen([sys.executable, "-c", writer, str(tmp_path)], env=environment) as process:
        while process.poll() is None:
            seen.append(reader.count())
    assert process.returncode == 0
    assert reader.count() == 400
    assert seen == sorted(seen)
    assert not [n for n in seen if n % 2]


def test_each_thread_has_its_own_connection(catalogue: Catalogue, tmp_path: Path) -> None:
    put(catalogue, 1)
    reader = Catalogue(tmp_path)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(reader.count())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1] * 8


READ_ONLY = """
import os, pathlib, sys
from indexer.storage.catalogue import Catalogue
if os.getuid() == 0:
    os.setuid(65534)  # nobody, because root may write anywhere
print(Catalogue(pathlib.Path(sys.argv[1])).count())
"""


def read_elsewhere(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )


@pytest.fixture
def read_only(world: World, tmp_path: Path) -> Path:
    """An index in a read-only folder that the user `nobody` can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder.owner() == tmp_path.owner():
            folder.chmod(folder.stat().st_mode | 0o055)
    world.index.chmod(0o555)
    for file in world.index.iterdir():
        file.chmod(0o555)
    return world.index


@pytest.mark.slow
def test_read_only_folder_is_readable(read_only: Path) -> None:
    done = read_elsewhere(read_only)
    assert (done.stdout, done.stderr) == ("8\n", "")


@pytest.mark.slow
def test_read_only_folder_with_unmerged_log_is_refused(read_only: Path, tmp_path: Path) -> None:
    writer = Catalogue(read_only, create=True)
    put(writer, 99)
    copied = Path(shutil.copytree(read_only, tmp_path / "copied"))
    (copied / "catalogue.sqlite-shm").unlink()
    copied.chmod(0o555)
    done = read_elsewhere(copied)
    assert done.stdout == ""
    assert "IndexerError: the catalogue" in done.stderr.splitlines()[-1]
