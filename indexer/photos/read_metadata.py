"""The metadata of a photo from all sources, in order of trust: table, file name, EXIF."""

from __future__ import annotations

from pathlib import Path

from indexer.photos.exif import from_exif
from indexer.photos.file_name import from_name
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import MetadataTable
from indexer.photos.scan import ScannedFile
from model.images import open_photo


def listed_metadata(file: ScannedFile, table: MetadataTable | None) -> PhotoMetadata:
    """Return what the table and the file name contain; the file is not opened."""
    listed = (table.for_photo(file.root, file.relative) if table else None) or PhotoMetadata()
    return listed.merged_over(from_name(Path(file.relative).name))


def read_metadata(file: ScannedFile, table: MetadataTable | None = None) -> PhotoMetadata:
    """Return the metadata of all sources; EXIF is read only if the others have no position.

    Raises:
        ImageError: the photo must be opened and cannot be.
    """
    listed = listed_metadata(file, table)
    if listed.lat is not None:
        return listed
    with open_photo(file.path) as image:
        return listed.merged_over(from_exif(image))
