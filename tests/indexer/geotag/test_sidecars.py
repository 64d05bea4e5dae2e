"""Sidecars: which file is a photo's, what it is made of, and that it is written whole or not at all."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import UsageError, XmpError
from indexer.geotag.sidecars import (
    PhotoNames,
    Sidecar,
    Sidecars,
    check_writable,
    read_sidecar,
    write_estimate,
)
from indexer.geotag.xmp import EXIF, LOCI, Xmp
from indexer.photos.scan import ScannedFile, scan

HERE: tuple[Any, ...] = (52.2034, 0.114, 12.4, None, {"Model": "f00d"})
RATED = Xmp.empty()
RATED.put(EXIF, "UserComment", "a rating")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/IMG_1.JPG", "b/IMG_2.jpg", "b/IMG_2.png", "b/x.jpg", "b/x.jpg.png"):
        (tmp_path / "photos" / name).write_bytes(b"no photo is opened here")
    return tmp_path / "photos"


def files(*folders: Path) -> dict[str, ScannedFile]:
    return {file.relative: file for file in scan(folders).files}


def sidecars(found: Iterable[ScannedFile], into: Path | None = None, naming: str | None = None) -> Sidecars:
    found = list(found)
    return Sidecars(found, PhotoNames(found), into=into, naming=naming)


def test_new_ones_are_named_in_full_or_by_the_stem(folder: Path) -> None:
    found = files(folder)
    photo = found["b/IMG_1.JPG"]
    assert sidecars(found.values()).of(photo) == Sidecar(folder / "b/IMG_1.JPG.xmp", None)
    assert sidecars(found.values(), naming="stem").of(photo) == Sidecar(folder / "b/IMG_1.xmp", None)
    with pytest.raises(UsageError, match=r"no naming 'both' of sidecars; there are full, stem"):
        sidecars(found.values(), naming="both")


@pytest.mark.parametrize("naming", [None, "full", "stem"])
@pytest.mark.parametrize("name", ["IMG_1.JPG.xmp", "IMG_1.xmp", "IMG_1.XMP", "IMG_1.JPG.XMP"])
def test_existing_sidecar_is_used_in_either_naming(folder: Path, name: str, naming: str | None) -> None:
    there = folder / "b" / name
    there.write_bytes(RATED.to_bytes())
    found = files(folder)
    assert sidecars(found.values(), naming=naming).of(found["b/IMG_1.JPG"]) == Sidecar(there, there)


def test_of_two_the_one_of_the_naming_is_taken(folder: Path) -> None:
    for name in ("IMG_1.JPG.xmp", "IMG_1.xmp"):
        (folder / "b" / name).write_bytes(RATED.to_bytes())
    found = files(folder)
    photo = found["b/IMG_1.JPG"]
    assert sidecars(found.values()).of(photo).target.name == "IMG_1.JPG.xmp"
    assert sidecars(found.values(), naming="stem").of(photo).target.name == "IMG_1.xmp"
    assert len(sidecars(found.values()).there(photo)) == 2


def test_two_photos_never_share_one(folder: Path) -> None:
    (folder / "b/IMG_2.xmp").write_bytes(RATED.to_bytes())
    found = files(folder)
    for name in ("b/IMG_2.jpg", "b/IMG_2.png"):
        made = sidecars(found.values()).of(found[name])
        assert made == Sidecar(folder / f"{name}.xmp", None)
        assert sidecars(found.values()).there(found[name]) == [folder / "b/IMG_2.xmp"]
        with pytest.raises(XmpError, match=r"^its name is shared with another photo: see `xmp_name`$"):
            sidecars(found.values(), naming="stem").of(found[name])


def test_a_photos_name_may_be_anothers_stem(folder: Path) -> None:
    found = files(folder)
    assert sidecars(found.values()).of(found["b/x.jpg"]).target == folder / "b/x.jpg.xmp"
    (folder / "b/x.jpg.xmp").write_bytes(RATED.to_bytes())
    assert sidecars(found.values()).of(found["b/x.jpg"]).base == folder / "b/x.jpg.xmp"
    assert sidecars(found.values()).of(found["b/x.jpg.png"]) == Sidecar(folder / "b/x.jpg.png.xmp", None)


def test_a_tree_of_their_own(folder: Path, tmp_path: Path) -> None:
    beside = folder / "b/IMG_1.XMP"
    beside.write_bytes(RATED.to_bytes())
    found = files(folder)
    made = sidecars(found.values(), into=tmp_path / "out")
    assert made.of(found["a.jpg"]) == Sidecar(tmp_path / "out/a.jpg.xmp", None)
    first = made.of(found["b/IMG_1.JPG"])
    assert first == Sidecar(tmp_path / "out/b/IMG_1.XMP", beside)
    write_estimate(first, *HERE)
    assert read_sidecar(first.target).get(EXIF, "UserComment") == "a rating"
    assert read_sidecar(first.target).position() == (52.2034, 0.114)
    assert beside.read_bytes() == RATED.to_bytes()
    assert made.of(found["b/IMG_1.JPG"]) == Sidecar(first.target, first.target)
    assert made.there(found["b/IMG_1.JPG"]) == [first.target, beside]


def test_several_folders_come_under_their_names(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.jpg").write_bytes(b"")
    names = PhotoNames(scan([folder, other]).files)
    assert next(names.of(file) for file in scan([folder, other]).files) == "other/c.jpg"
    assert names.of(files(folder)["b/IMG_1.JPG"]) == "photos/b/IMG_1.JPG"
    assert PhotoNames(scan([folder]).files).of(files(folder)["b/IMG_1.JPG"]) == "b/IMG_1.JPG"
    twin = tmp_path / "twin" / "photos"
    twin.mkdir(parents=True)
    (twin / "c.jpg").write_bytes(b"")
    names = PhotoNames(scan([folder, twin, other]).files)
    assert sorted(names.of(file) for file in scan([twin, other]).files) == [
        f"{tmp_path.name}/other/c.jpg",
        "twin/photos/c.jpg",
    ]
    assert names.of(files(folder)["a.jpg"]) == f"{tmp_path.name}/photos/a.jpg"


def test_estimate_is_added_to_existing_properties(folder: Path) -> None:
    path = folder / "a.jpg.xmp"
    path.write_bytes(RATED.to_bytes())
    path.chmod(0o640)
    write_estimate(Sidecar(path, path), *HERE)
    xmp = read_sidecar(path)
    assert (xmp.position(), xmp.get(EXIF, "UserComment")) == ((52.2034, 0.114), "a rating")
    assert xmp.get(LOCI, "Model") == "f00d"
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.jpg", "a.jpg.xmp", "b"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_failed_write_leaves_the_old_sidecar(
    folder: Path, stop: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "a.jpg.xmp"
    path.write_bytes(RATED.to_bytes())

    def stopped(_: int) -> None:
        raise stop

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        write_estimate(Sidecar(path, path), *HERE)
    assert path.read_bytes() == RATED.to_bytes()
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.jpg", "a.jpg.xmp", "b"]


def test_the_temporary_file_is_never_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / f".loci-{os.getpid()}.partial").symlink_to(victim)
    write_estimate(Sidecar(folder / "a.jpg.xmp", None), *HERE)
    assert victim.read_text() == "mine"
    assert not (folder / "a.jpg.xmp").is_symlink()


def test_a_link_is_read_and_not_written(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.xmp"
    xmp = Xmp.empty()
    xmp.put_estimate(1.0, 2.0, 3.0, None, {})
    kept.write_bytes(xmp.to_bytes())
    (folder / "a.jpg.xmp").symlink_to(kept)
    assert read_sidecar(folder / "a.jpg.xmp").position() == (1.0, 2.0)
    with pytest.raises(XmpError, match=r"^is a link, which is not written to$"):
        check_writable(Sidecar(folder / "a.jpg.xmp", folder / "a.jpg.xmp"))


def test_unreadable_sidecars_are_refused(folder: Path) -> None:
    (folder / "folder.xmp").mkdir()
    os.mkfifo(folder / "fifo.xmp")
    (folder / "nothing.xmp").symlink_to(folder / "nowhere")
    with (folder / "large.xmp").open("wb") as file:
        file.truncate(16_000_001)
    for name, message in (
        ("folder", "is not a file"),
        ("fifo", "is not a file"),
        ("nothing", "cannot be read: No such file or directory"),
        ("large", "has 16,000,001 bytes, 16,000,000 at most are read"),
    ):
        with pytest.raises(XmpError, match=f"^{message}$"):
            read_sidecar(folder / f"{name}.xmp")


def test_a_folder_that_may_not_be_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    def no(path: Path, _: int) -> bool:  # root may do anything
        looked.append(path)
        return False

    check_writable(Sidecar(folder / "a.jpg.xmp", None))
    monkeypatch.setattr(os, "access", no)
    with pytest.raises(XmpError, match=rf"^cannot be written, because {folder} is read-only: see `xmp_"):
        check_writable(Sidecar(folder / "a.jpg.xmp", None))
    with pytest.raises(XmpError, match=r"^cannot be written"):
        check_writable(Sidecar(tmp_path / "new/deep/a.jpg.xmp", None))
    assert looked == [folder, tmp_path]


def test_impossible_names_are_refused(folder: Path) -> None:
    long = folder / f"{'x' * 251}.jpg.xmp"
    with pytest.raises(XmpError, match=r"^cannot be written: File name too long$"):
        check_writable(Sidecar(long, None))
    write_estimate(Sidecar(folder / f"{'x' * 251}.xmp", None), *HERE)  # its temporary file is named shorter
    below = folder / "a.jpg" / "new" / "b.jpg.xmp"
    with pytest.raises(XmpError, match=rf"^cannot be written, because {folder}/a\.jpg is not a folder$"):
        check_writable(Sidecar(below, None))
