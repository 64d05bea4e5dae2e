"""Where and when a photo was taken: from its EXIF, its name, or a table beside it."""

from indexer.metadata.exif import from_exif
from indexer.metadata.names import from_name
from indexer.metadata.record import PhotoMetadata
from indexer.metadata.table import MetadataTable, read_table, unused_rows

__all__ = ["MetadataTable", "PhotoMetadata", "from_exif", "from_name", "read_table", "unused_rows"]
