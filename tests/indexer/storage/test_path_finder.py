"""Search of photos by paths that people type."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from indexer.errors import NotFound
from indexer.storage.catalogue import Catalogue
from indexer.storage.path_finder import PathFinder, resolve

if TYPE_CHECKING:
    from tests.indexer.conftest import World


def test_photo_is_found_by_any_form_of_path(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue(world.index)
    finder = PathFinder(catalogue)
    photo = finder.find(str(world.photo(1)))
    assert Path(world.open().photo_file(photo)) == world.photo(1)
    for path in (photo, "photos/wall1/view0.jpg", "wall1/view0.jpg", "./wall1/view0.jpg"):
        assert finder.find(path) == photo
    monkeypatch.chdir(world.photos / "wall0")
    for path in ("../wall1/view0.jpg", "../../photos/wall1/./view0.jpg"):
        assert finder.find(path) == photo
    assert finder.find("view0.jpg") == finder.find("wall0/view0.jpg")  # relative to the working directory


def test_ambiguous_and_unknown_paths_are_refused(world: World) -> None:
    finder = PathFinder(Catalogue(world.index))
    with pytest.raises(NotFound, match=r"^view0.jpg matches 4 photos of the index: give more of its path$"):
        finder.find("view0.jpg")
    for path in ("iew0.jpg", "wall1", "/wall1/view0.jpg", "other/wall1/view0.jpg", "", "/", ".", "a\0b"):
        with pytest.raises(NotFound, match=r" is not in the index$"):
            finder.find(path)


def test_copies_of_one_photo_are_not_ambiguous(world: World) -> None:
    (world.photos / "copies").mkdir()
    shutil.copy(world.photo(1), world.photos / "copies" / "same.jpg")
    shutil.copy(world.photo(1), world.photos / "same.jpg")
    world.build()
    finder = PathFinder(Catalogue(world.index))
    assert finder.find("same.jpg") == finder.find("wall1/view0.jpg")


def test_resolve_names_first_unknown_path(world: World) -> None:
    with pytest.raises(NotFound, match=r"^no\.jpg is not"):
        resolve(Catalogue(world.index), ["wall1/view0.jpg", "no.jpg", "view0.jpg"])
