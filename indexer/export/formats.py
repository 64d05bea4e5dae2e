"""Formats of exported photos and pairs.

geojson (RFC 7946) and csv can be read back as metadata tables. hloc: one `query reference` a line, separated
by white space. kapture: a pairs file of `query_image, map_image, score`. COLMAP: an image list for
`--image_list_path`, and `name lat lon alt` for `model_aligner --ref_images_path … --ref_is_gps 1`.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Photo

_CSV_COLUMNS = ("path", "lat", "lon", "heading", "taken_at", "place", "id", "width", "height")

Pair = tuple[str, str, float]


def can_hold(format: str, path: str) -> bool:
    """Whether a format can contain a path. hloc, COLMAP and kapture cannot quote their separators."""
    if format in ("hloc", "colmap"):
        return path.split() == [path] and not path.startswith("#")
    return not (format == "kapture" and ("," in path or path != path.strip() or path.startswith("#")))


def geojson(photos: Iterable[Photo]) -> str:
    """Return a FeatureCollection with a Point for each photo; without geometry for an unknown position."""
    features = [_feature(photo) for photo in photos]
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False) + "\n"


def csv_table(photos: Iterable[Photo]) -> str:
    """Return a table with a header and a line for each photo. Unknown values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    writer.writerows([getattr(photo, column) for column in _CSV_COLUMNS] for photo in photos)
    return out.getvalue()


def hloc_pairs(pairs: Iterable[Pair]) -> str:
    """Return pairs in the format of hloc."""
    return "".join(f"{query} {reference}\n" for query, reference, _ in pairs)


def kapture_pairs(pairs: Iterable[Pair]) -> str:
    """Return pairs with scores in the format of kapture."""
    lines = "".join(f"{query}, {reference}, {score:.6f}\n" for query, reference, score in pairs)
    return "# kapture format: 1.1\n# query_image, map_image, score\n" + lines


def colmap_images(photos: Iterable[Photo]) -> str:
    """Return the names of images, one on each line."""
    return "".join(f"{photo.path}\n" for photo in photos)


def colmap_reference(photos: Iterable[Photo]) -> str:
    """Return `name lat lon alt` of the photos with a position. The altitude is unknown and written as 0."""
    placed = [photo for photo in photos if photo.lat is not None and photo.lon is not None]
    return "".join(f"{photo.path} {photo.lat:.8f} {photo.lon:.8f} 0\n" for photo in placed)


def write_numpy(
    out: BinaryIO, paths: Mapping[str, str], ids: Sequence[str], descriptors: NDArray[np.float32]
) -> None:
    """Write an .npz of `descriptors` float32 (n, d), and `ids` and `paths` (n,) as text, without pickle."""
    rows = [row for row, id in enumerate(ids) if id in paths]
    np.savez(
        out,
        descriptors=np.asarray(descriptors[rows], np.float32),
        ids=np.array([ids[row] for row in rows], dtype=np.str_),
        paths=np.array([paths[ids[row]] for row in rows], dtype=np.str_),
    )


def _feature(photo: Photo) -> dict[str, Any]:
    geometry = None
    if photo.lat is not None and photo.lon is not None:
        geometry = {"type": "Point", "coordinates": [photo.lon, photo.lat]}
    names = ("path", "heading", "taken_at", "place", "width", "height")
    properties = {name: getattr(photo, name) for name in names}
    return {"type": "Feature", "id": photo.id, "geometry": geometry, "properties": properties}
