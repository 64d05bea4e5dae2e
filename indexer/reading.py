"""A photo's file → the images that the network sees: one, or the views of a panorama."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.images import open_photo, read_photo
from model.panorama import cut_views, is_panorama, source_width


@dataclass(frozen=True)
class Reader:
    """Reads photos for one model: `image_size` pixels, 360° photos cut into `panoramas` views."""

    image_size: int
    panoramas: int | None = None

    def __call__(self, item: tuple[str, Path]) -> list[NDArray[np.uint8]]:
        """The images of a photo (id, file). Raises ImageError."""
        path = item[1]
        if self.panoramas is None or not _is_panorama(path):
            return [read_photo(path, self.image_size)]
        whole = read_photo(path, source_width(self.image_size, self.panoramas))
        return [view.image for view in cut_views(whole, self.panoramas)]

    def yaws(self, views: int) -> list[float]:
        """Where each of a photo's views looks: degrees right of its middle."""
        return [360.0 * view / views for view in range(views)]


def _is_panorama(path: Path) -> bool:
    with open_photo(path) as image:
        return is_panorama(image)
