"""Writing of exported files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Photo
from indexer.errors import IndexerError, UsageError
from indexer.export import formats
from indexer.export.pairs import retrieval_pairs
from indexer.storage.files import atomic_write

FORMATS = ("geojson", "csv", "numpy", "hloc", "colmap", "kapture")

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    files: tuple[Path, ...]
    """Written files; empty for a stream."""
    photos: int
    """Number of exported photos."""
    left_out: tuple[str, ...]
    """Paths of photos that the format cannot contain, because it ends names at a space or comma."""


@dataclass(frozen=True)
class _Content:
    """One file: an addition to the target's name before its suffix, and a function that writes it."""

    addition: str
    write: Callable[[BinaryIO], None]

    def path(self, out: Path) -> Path:
        return out.with_name(f"{out.stem}{self.addition}{out.suffix}")


def export(
    photos: Sequence[Photo],
    ids: Sequence[str],
    descriptors: FloatArray,
    format: str,
    out: Path | BinaryIO,
    *,
    neighbours: int = 20,
) -> Exported:
    """Write photos, and descriptors if the format contains them, to a file or stream.

    For colmap, the file is the image list, such as `images.txt`. Known positions go to a second file,
    `images.geo.txt`, but not to a stream.

    Args:
        ids: photo of each row of descriptors. A photo may have several rows (views of a panorama) or none.
        descriptors: rows of unit length (n d).
        neighbours: pairs for each photo, for hloc and kapture.

    Raises:
        UsageError: the format is unknown.
        IndexerError: the target cannot be written.
    """
    if format not in FORMATS:
        raise UsageError(f"no export format {format!r}; there are {', '.join(FORMATS)}")
    if descriptors.ndim != 2 or len(descriptors) != len(ids):
        raise ValueError(f"expected (n, d) descriptors and n ids, got {descriptors.shape} and {len(ids)}")
    kept = [photo for photo in photos if formats.can_hold(format, photo.path)]
    left_out = tuple(photo.path for photo in photos if not formats.can_hold(format, photo.path))
    contents = _contents(kept, ids, descriptors, format, neighbours)
    return Exported(_write(contents, out), len(kept), left_out)


def _contents(
    photos: Sequence[Photo], ids: Sequence[str], descriptors: FloatArray, format: str, neighbours: int
) -> list[_Content]:
    paths = {photo.id: photo.path for photo in photos}
    if format == "numpy":
        return [_Content("", lambda out: formats.write_numpy(out, paths, ids, descriptors))]
    if format in ("hloc", "kapture"):
        pairs = [(paths[a], paths[b], score) for a, b, score in _pairs(paths, ids, descriptors, neighbours)]
        text = formats.hloc_pairs(pairs) if format == "hloc" else formats.kapture_pairs(pairs)
        return [_text("", text)]
    if format == "colmap":
        reference = formats.colmap_reference(photos)
        images = _text("", formats.colmap_images(photos))
        return [images, _text(".geo", reference)] if reference else [images]
    return [_text("", formats.geojson(photos) if format == "geojson" else formats.csv_table(photos))]


def _pairs(
    paths: dict[str, str], ids: Sequence[str], descriptors: FloatArray, neighbours: int
) -> list[tuple[str, str, float]]:
    rows = [row for row, id in enumerate(ids) if id in paths]
    return retrieval_pairs([ids[row] for row in rows], descriptors[rows], neighbours)


def _text(addition: str, text: str) -> _Content:
    def write(out: BinaryIO) -> None:
        out.write(text.encode())

    return _Content(addition, write)


def _write(contents: Sequence[_Content], out: Path | BinaryIO) -> tuple[Path, ...]:
    if not isinstance(out, Path):
        contents[0].write(out)
        return ()
    files = [(content.path(out), content) for content in contents]
    try:
        for file, content in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as partial, partial.open("wb") as stream:
                content.write(stream)
    except OSError as error:
        raise IndexerError(f"cannot write {out}: {error.strerror or error}") from error
    return tuple(file for file, _ in files)
