"""Read a photo file into the images that the network sees: one, or the views of a panorama."""

from __future__ import annotations

from dataclasses import dataclass

from model.gpu_decoding import Image, Read
from model.images import Source, open_photo, read_photo
from model.panorama import cut_views, is_panorama, source_width


@dataclass(frozen=True)
class Reader:
    """Reads photos for one model: at most `image_size` pixels; 360° photos are cut into `panoramas` views.

    Whole photos are read by `read`, an embedder's reader.
    """

    image_size: int
    panoramas: int | None = None
    min_image_size: int = 0
    read: Read = read_photo

    def __call__(self, item: tuple[str, Source]) -> list[Image]:
        """Return the images of a photo (id, and file or bytes). Raises ImageError."""
        photo = item[1]
        if self.panoramas is None or not _is_panorama(photo):
            return [self.read(photo, self.image_size, self.min_image_size)]
        whole = read_photo(photo, source_width(self.image_size, self.panoramas))
        return [view.image for view in cut_views(whole, self.panoramas)]

    def yaws(self, views: int) -> list[float]:
        """Return the direction of each view: degrees right of the middle."""
        return [360.0 * view / views for view in range(views)]


def _is_panorama(photo: Source) -> bool:
    with open_photo(photo) as image:
        return is_panorama(image)
