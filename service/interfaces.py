"""What the service needs of an index, so that any kind of index can stand behind it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Answer, Photo, Place

Image = NDArray[np.uint8]
"""H W 3, RGB, as the model sees it."""
Descriptor = NDArray[np.float32]
"""D numbers, unit length."""


class Embeds(Protocol):
    """A network with its device; used by one thread only."""

    def embed_clips(self, clips: Sequence[Sequence[Image]], /) -> NDArray[np.float32]:
        """Turn B clips of one image or more into descriptors, B D."""
        ...


class ServedIndex(Protocol):
    """One opened snapshot of an index; `indexer.index.Index` is one."""

    @property
    def snapshot(self) -> str:
        """The snapshot's name."""
        ...

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model that made the descriptors."""
        ...

    @property
    def image_size(self) -> int:
        """Longest side in pixels of the images that the model takes."""
        ...

    @property
    def embedder(self) -> Embeds:
        """The network; shared by snapshots of the same model."""
        ...

    def latest(self) -> "ServedIndex":
        """Give the newest snapshot: this one while there is no newer."""
        ...

    def answer(self, descriptor: Descriptor, k: int, timings_ms: dict[str, float], /) -> Answer:
        """Search and localise; may be called from any thread."""
        ...

    def info(self) -> dict[str, Any]:
        """Count photos and places, and name model and snapshot."""
        ...

    def places(self) -> list[Place]:
        """List all places."""
        ...

    def place(self, id: str, /) -> Place:
        """Give one place with its photos, or raise NotFound."""
        ...

    def photo(self, id: str, /) -> Photo:
        """Give one photo, or raise NotFound."""
        ...

    def photo_file(self, id: str, /) -> Path:
        """Give the file to read a photo from, or raise NotFound."""
        ...
