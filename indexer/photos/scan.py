"""Find the photos below folders, without opening them."""

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from indexer.errors import IndexerError

_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".avif", ".tif", ".tiff")
_HEIF_SUFFIXES = (".heic", ".heif")
# copies of POSTed photos in an index are not a collection
_INDEX_MARK = "catalogue.sqlite"


class ScannedFile(NamedTuple):
    """A photo's file."""

    folder: str
    """The scanned folder (absolute); for a single file, its folder."""
    relative: str
    """Path below `folder`, with `/` between parts."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time of the last change, in nanoseconds since 1970."""

    @property
    def root(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)

    @property
    def path(self) -> Path:
        """Path to read."""
        return Path(self.name)

    @property
    def name(self) -> str:
        """Full path, as the catalogue compares it."""
        return full_path(self.folder, self.relative)


DATABASE = ("database", "ref", "reference")
QUERIES = ("queries", "query")
"""Folder names of the parts of a data set."""


@dataclass(frozen=True)
class ScanResult:
    """The result of a scan."""

    roots: list[Path]
    """The scanned folders, absolute: a missing photo counts as vanished only below these. The folder of a
    single file is not one of them.
    """
    files: list[ScannedFile]
    """Sorted by root and relative path, without repetitions."""
    problems: list[tuple[Path, str]]
    """What could not be read, and why."""


def full_path(root: str, relative: str) -> str:
    """Return the full path of a file from its folder and relative path."""
    return f"{root.rstrip('/')}/{relative}"


def photo_suffixes() -> tuple[str, ...]:
    """Extensions of photo files, lower case; HEIC only if its reader is installed."""
    return _SUFFIXES + _HEIF_SUFFIXES if find_spec("pillow_heif") else _SUFFIXES


def scan(sources: Sequence[Path]) -> ScanResult:
    """List the photos below folders, and single files.

    Hidden files and folders and other indexes are skipped. Links are followed; their target is listed once,
    under its own path if it has one here, so loops end. A source below another one is part of it. Raises
    IndexerError for a source that does not exist.
    """
    folders, singles = _sort_out(sources)
    walk = _Walk(photo_suffixes())
    for folder in folders:
        walk.add_root(folder)
    walk.in_place_is_known(bool(singles))
    walk.follow_links()
    for single in singles:
        walk.add_file(single.parent, single.name, single)
    return ScanResult(folders, sorted(walk.files), sorted(walk.problems))


def no_photos(sources: Sequence[Path]) -> IndexerError:
    """Return the error for folders without a photo."""
    return IndexerError(f"no photos in {', '.join(map(str, sources))}: nothing was indexed")


def _sort_out(sources: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    folders: list[Path] = []
    singles: list[Path] = []
    for source in sources:
        # not resolve(): keep the user's name of a folder, not the target of a link
        path = Path(os.path.abspath(source))  # noqa: PTH100
        if path.is_dir():
            folders.append(path)
        elif path.exists():
            singles.append(path)
        else:
            raise IndexerError(f"{source} does not exist; name a folder of photos, or photos")
    return _outermost(folders), sorted(set(singles))


def _outermost(folders: Iterable[Path]) -> list[Path]:
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(other) for other in kept):
            kept.append(folder)
    return kept


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


class _Walk:
    """The state of a scan; links wait until all direct entries are known.

    Little is done for each file: for a hundred thousand, a Path each would take longer than the disk.
    """

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.files: list[ScannedFile] = []
        self.problems: list[tuple[Path, str]] = []
        self._suffixes = suffixes
        self._seen: set[tuple[int, int]] = set()
        self._may_repeat = False
        self._links: list[tuple[Path, str]] = []

    def add_root(self, root: Path) -> None:
        """List a folder's photos, and leave links for `follow_links`."""
        if self._first_visit(root):
            self._add_tree(root, "")

    def in_place_is_known(self, singles: bool) -> None:
        """Check for repetitions from now on, if links or single files (`singles`) may repeat files.

        Folders alone list no file twice, and checking each file's identity takes as long as its size.
        """
        self._may_repeat = singles or bool(self._links)
        if self._may_repeat:
            for file in self.files:
                with suppress(OSError):
                    self._seen.add(_identity(os.stat(file.name)))  # noqa: PTH116

    def follow_links(self) -> None:
        """List the targets of links, also of links found there, unless they are listed already."""
        while self._links:
            root, relative = self._links.pop(0)
            path = root / relative
            if path.is_dir():
                if self._first_visit(path):
                    self._add_tree(root, relative)
            elif path.name.lower().endswith(self._suffixes):
                self.add_file(root, relative, path)

    def add_file(self, root: Path, relative: str, path: Path) -> None:
        """List a file, unless it is listed already; a missing file becomes a problem."""
        try:
            found = path.stat()
        except OSError as error:
            reason = "link to nothing" if path.is_symlink() else str(error.strerror)
            self.problems.append((path, reason))
            return
        self._add_found(str(root), relative, found)

    def _add_found(self, folder: str, relative: str, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            return
        if self._may_repeat:
            if _identity(found) in self._seen and found.st_nlink == 1:
                return
            self._seen.add(_identity(found))
        self.files.append(ScannedFile(folder, relative, found.st_size, found.st_mtime_ns))

    def _first_visit(self, folder: Path) -> bool:
        try:
            found = folder.stat()
        except OSError as error:
            self.problems.append((folder, str(error.strerror)))
            return False
        first = _identity(found) not in self._seen
        self._seen.add(_identity(found))
        return first

    def _add_tree(self, root: Path, start: str) -> None:
        waiting = [start]
        name = str(root)
        while waiting:
            folder = waiting.pop()
            entries = self._entries(root / folder)
            if _INDEX_MARK in [entry.name for entry in entries]:
                continue
            below = f"{folder}/" if folder else ""
            folders = []
            for entry in entries:
                relative = below + entry.name
                if entry.is_symlink():
                    self._links.append((root, relative))
                elif entry.is_dir():
                    if self._first_visit(root / relative):
                        folders.append(relative)
                elif entry.name.lower().endswith(self._suffixes):
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError:  # removed since it was listed
                        self.add_file(root, relative, root / relative)
                    else:
                        self._add_found(name, relative, found)
            waiting += reversed(folders)  # so that files come nearly sorted

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except OSError as error:
            self.problems.append((folder, f"cannot be listed: {error.strerror}"))
            return []
        nameable = [e for e in entries if e.name.isascii() or self._is_nameable(folder, e)]
        return sorted(nameable, key=attrgetter("name"))

    def _is_nameable(self, folder: Path, entry: os.DirEntry[str]) -> bool:
        # such a name fits neither the catalogue nor JSON
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            self.problems.append((folder / entry.name, "its name is not valid UTF-8"))
            return False
        return True
