"""Photo files for a browser."""

import io
from pathlib import Path

from PIL import Image

from indexer.errors import NotFound
from model.errors import ImageError
from model.images import open_photo, read_photo

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG with further pictures behind it, as phones write them
    "PNG": "image/png",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "TIFF": "image/tiff",
    "HEIF": "image/heif",
    "GIF": "image/gif",
    "BMP": "image/bmp",
}
UNKNOWN = "application/octet-stream"
QUALITY = 82


def media_type(file: Path) -> str:
    """Return a photo's media type from its first bytes; its name may be wrong."""
    try:
        with open_photo(file) as image:
            return MEDIA_TYPES.get(image.format or "", UNKNOWN)
    except ImageError:
        return UNKNOWN


def etag(file: Path, *variant: object) -> str:
    """Return an ETag of this state of a file. Raises OSError if it is gone."""
    stat = file.stat()
    return '"' + "-".join([f"{stat.st_mtime_ns:x}", f"{stat.st_size:x}", *map(str, variant)]) + '"'


def thumbnail(file: Path, size: int) -> bytes:
    """Shrink a photo to `size` pixels on its longest side: an upright JPEG without metadata.

    Raises:
        NotFound: the file can no longer be read.
    """
    try:
        pixels = read_photo(file, size)
    except ImageError as error:
        raise NotFound(f"the photo's file can no longer be read: {error}") from error
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()
