"""A metadata table for photos, and the matching of its paths."""

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from indexer.errors import UsageError
from indexer.photos.csv_table import parse_csv
from indexer.photos.json_table import parse_json
from indexer.photos.metadata import PhotoMetadata


@dataclass(frozen=True)
class MetadataTable:
    """Metadata of photos by path, from one CSV or JSON file."""

    path: Path
    """The file; its folder is one of those that its paths may be relative to."""
    entries: Mapping[str, PhotoMetadata]
    """Metadata by the path in the file, with `/` between parts."""
    _used: set[str] = field(default_factory=set, repr=False, compare=False)
    _prefixes: dict[Path, list[tuple[str, str]]] = field(default_factory=dict, repr=False, compare=False)

    def for_photo(self, root: Path, relative: str) -> PhotoMetadata | None:
        """Return the entry of the photo `relative` (with `/`) below the indexed folder `root`, or None.

        A table's path may be relative to that folder, to the table's folder, or to a folder above the indexed
        one (its first parts are then folder names), or absolute; tried in this order.
        """
        for cut, prefix in self._prefixes_of(root):
            if not relative.startswith(cut):
                continue
            key = prefix + relative.removeprefix(cut)
            if key in self.entries:
                self._used.add(key)
                return self.entries[key]
        return None

    def unused(self) -> list[str]:
        """Paths in the table that no photo has matched so far, in order."""
        return [path for path in self.entries if path not in self._used]

    def _prefixes_of(self, root: Path) -> list[tuple[str, str]]:
        """Pairs (prefix to remove from a photo's path, prefix to add), in order of preference."""
        if root not in self._prefixes:
            found = [("", ""), *_from_table_folder(root.resolve(), self.path.resolve().parent)]
            for folder in dict.fromkeys((root.absolute(), root.resolve())):
                parts = folder.parts[1:]
                found += [("", "/".join(parts[i:]) + "/") for i in range(len(parts) - 1, -1, -1)]
                found.append(("", folder.as_posix().rstrip("/") + "/"))
            self._prefixes[root] = list(dict.fromkeys(found))
        return self._prefixes[root]


def read_table(path: Path) -> MetadataTable:
    """Read a CSV, GeoJSON or Mapillary description file.

    Raises UsageError with the file, and the line and column of the error. A path that is listed twice keeps
    its last line.
    """
    text = _read_text(path)
    parse = parse_json if text.lstrip()[:1] in ("{", "[") else parse_csv
    return MetadataTable(path, {_normal(name): metadata for name, metadata in parse(text, str(path))})


def unused_rows(table: MetadataTable) -> str:
    """Return a note on the rows that no photo has matched."""
    paths = table.unused()
    shown = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"{len(paths)} rows of {table.path} name no photo that was given: {shown}"


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the metadata file {path}: {error.strerror}") from error
    # Excel's "Unicode text" is UTF-16 with a byte-order mark; all others write UTF-8
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text; save it as CSV UTF-8") from error


def _normal(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _from_table_folder(root: Path, folder: Path) -> list[tuple[str, str]]:
    if folder.is_relative_to(root):
        inner = folder.relative_to(root).as_posix()
        return [("" if inner == "." else f"{inner}/", "")]
    return [("", _normal(os.path.relpath(root, folder)) + "/")]
