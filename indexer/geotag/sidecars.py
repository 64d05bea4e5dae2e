"""XMP sidecars: metadata files next to photos, or in their own tree."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from indexer.errors import UsageError, XmpError
from indexer.geotag.xmp import MAX_BYTES, Xmp
from indexer.photos.scan import ScannedFile
from model.files import PARTIAL, atomic_write

NAMINGS = ("full", "stem")
"""`full`: `IMG_1.jpg.xmp`, as darktable and digiKam; `stem`: `IMG_1.xmp`, as Lightroom for raw photos."""

_SUFFIXES = (".xmp", ".XMP")


class PhotoNames:
    """Names of photos in written files: paths below the given folder.

    With several folders, the folder's name comes first, with as many parent folders as make names unique;
    `loci index` reads all of these in metadata.
    """

    def __init__(self, files: Iterable[ScannedFile]) -> None:
        roots = {file.root for file in files}
        depth = 0 if len(roots) == 1 else 1
        while len(starts := {root: _ending(root, depth) for root in roots}) > len(set(starts.values())):
            depth += 1
        self._starts = starts

    def of(self, file: ScannedFile) -> str:
        return self._starts[file.root] + file.relative


@dataclass(frozen=True)
class Sidecar:
    """The target of a photo's sidecar, and the file it is based on."""

    target: Path
    base: Path | None
    """An existing sidecar, whose other properties are kept; None if there is none."""


class Sidecars:
    """Finds the sidecars of photos, in both namings, and the targets of new ones."""

    def __init__(
        self, files: Sequence[ScannedFile], names: PhotoNames, *, into: Path | None, naming: str | None
    ) -> None:
        """`into`: folder of their own tree; `naming`: of new ones, `full` if None."""
        if naming not in (None, *NAMINGS):
            raise UsageError(f"no naming {naming!r} of sidecars; there are {', '.join(NAMINGS)}")
        self._names = names
        self._into = into
        self._naming = naming or NAMINGS[0]
        stems = Counter(_stem(file.path) for file in files)
        stems.update(str(file.path) for file in files)  # the stem of a.jpg.png is the name of a.jpg
        self._shared = frozenset(stem for stem, count in stems.items() if count > 1)

    def there(self, file: ScannedFile) -> list[Path]:
        """Return the existing sidecars of a photo, first the one to write to or to start from."""
        homes = [file.path.parent] if self._into is None else [self._home(file), file.path.parent]
        return [path for home in homes for path in self._candidates(home, file) if os.path.lexists(path)]

    def of(self, file: ScannedFile) -> Sidecar:
        """Return the target of a photo's sidecar.

        Raises:
            XmpError: it would be another photo's sidecar, too.
        """
        shared = _stem(file.path) in self._shared
        own = [path for path in self.there(file) if not (shared and _is_by_stem(path, file))]
        base = own[0] if own else None
        if base is not None:
            return Sidecar(self._home(file) / base.name, base)
        if self._naming == "full":
            return Sidecar(self._home(file) / f"{file.path.name}.xmp", None)
        if shared:
            raise XmpError("its name is shared with another photo: see `xmp_name`")
        return Sidecar(self._home(file) / f"{file.path.stem}.xmp", None)

    def _home(self, file: ScannedFile) -> Path:
        if self._into is None:
            return file.path.parent
        return self._into / PurePosixPath(self._names.of(file)).parent

    def _candidates(self, home: Path, file: ScannedFile) -> Iterator[Path]:
        names = {"full": file.path.name, "stem": file.path.stem}
        for naming in sorted(NAMINGS, key=lambda naming: naming != self._naming):
            for suffix in _SUFFIXES:
                yield home / f"{names[naming]}{suffix}"


def read_sidecar(path: Path) -> Xmp:
    """Read a sidecar, also through a link; other kinds of files are not read.

    Raises:
        XmpError: it cannot be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise XmpError("is not a file")
        if found.st_size > MAX_BYTES:
            raise XmpError(f"has {found.st_size:,} bytes, {MAX_BYTES:,} at most are read")
        return Xmp.parse(path.read_bytes())
    except OSError as error:
        raise XmpError(f"cannot be read: {error.strerror}") from error


def check_writable(sidecar: Sidecar) -> None:
    """Check that a sidecar can be written, before any work. Raises XmpError."""
    try:
        if stat.S_ISLNK(sidecar.target.lstat().st_mode):
            raise XmpError("is a link, which is not written to")
    except (FileNotFoundError, NotADirectoryError):
        pass  # the latter: its parent is found by the next check
    except OSError as error:  # a name too long
        raise XmpError(f"cannot be written: {error.strerror}") from None
    folder = next(folder for folder in sidecar.target.parents if folder.exists())
    if not folder.is_dir():
        raise XmpError(f"cannot be written, because {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise XmpError(f"cannot be written, because {folder} is read-only: see `xmp_into`")


def write_estimate(
    sidecar: Sidecar,
    lat: float,
    lon: float,
    radius_m: float,
    heading: float | None,
    remarks: Mapping[str, str],
) -> None:
    """Put an estimated position (see `Xmp.put_estimate`) into a photo's sidecar, as a whole or not at all.

    Raises:
        XmpError: the existing one cannot be read.
        OSError: it cannot be written.
    """
    xmp = read_sidecar(sidecar.base) if sidecar.base else Xmp.empty()
    xmp.put_estimate(lat, lon, radius_m, heading, remarks)
    sidecar.target.parent.mkdir(parents=True, exist_ok=True)
    # a short name: that of the target may have the greatest length
    short = sidecar.target.with_name(f".loci-{os.getpid()}{PARTIAL}")
    with atomic_write(sidecar.target, partial=short) as partial:
        with partial.open("xb") as file:  # never through an existing link
            file.write(xmp.to_bytes())
        if sidecar.target.exists():
            shutil.copymode(sidecar.target, partial)


def _ending(folder: Path, depth: int) -> str:
    """The last parts of a folder's path, each with a slash."""
    parts = folder.parts[1:]
    return "".join(f"{part}/" for part in parts[max(len(parts) - depth, 0) :])


def _stem(photo: Path) -> str:
    return str(photo.with_suffix(""))


def _is_by_stem(sidecar: Path, file: ScannedFile) -> bool:
    return sidecar.name[: -len(_SUFFIXES[0])] == file.path.stem
