"""What the service needs of an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Answer, Photo, Place
from indexer.filters import Filters
from indexer.posting.new_photo import NewPhoto
from model.embedder import Seen
from model.gpu_decoding import Image
from model.layers.local_features import Packed

Descriptor = NDArray[np.float32]
"""D numbers, unit length."""


class Embeds(Protocol):
    """A network with its device; for one thread."""

    def see(self, clips: Sequence[Sequence[Image]], /) -> Sequence[Seen]:
        """Embed clips of one or more images; photos also get local features."""
        ...


class ServedIndex(Protocol):
    """One opened snapshot of an index; `indexer.index.Index` is one."""

    @property
    def snapshot(self) -> str:
        """Name of the snapshot."""
        ...

    @property
    def model_fingerprint(self) -> str:
        """Fingerprint of the model that made the descriptors."""
        ...

    @property
    def embedder(self) -> Embeds:
        """The network; shared by snapshots of the same model."""
        ...

    def read(self, photo: bytes, /, *, max_pixels: int) -> Image:
        """Decode a photo for the network; from any thread. Raises ImageError."""
        ...

    def latest(self) -> "ServedIndex":
        """Return the newest snapshot: this one if there is no newer."""
        ...

    def answer(
        self,
        seen: Seen,
        k: int,
        timings_ms: dict[str, float],
        filters: Filters | None = None,
        verify: bool = True,
        matched: bool = False,
        /,
    ) -> Answer:
        """Search the photos that pass, verify, locate, and list matches if requested.

        May be called from any thread.
        """
        ...

    def info(self) -> dict[str, Any]:
        """Return counts, model and snapshot."""
        ...

    def places(self) -> list[Place]:
        """Return all places."""
        ...

    def place(self, id: str, /) -> Place:
        """Return a place with its photos. Raises NotFound."""
        ...

    def photo(self, id: str, /) -> Photo:
        """Return a photo. Raises NotFound."""
        ...

    def photo_file(self, id: str, /) -> Path:
        """Return a file of a photo. Raises NotFound."""
        ...


class Collects(Protocol):
    """Adds photos to an index and removes them; one thread at a time."""

    def known(self, photo: NewPhoto, /) -> Photo | None:
        """Return the photo if it is stored and searched."""
        ...

    @property
    def reader(self) -> "Reads":
        """Reads a photo into the images that the network sees."""
        ...

    def add(
        self,
        photo: NewPhoto,
        descriptors: NDArray[np.float32],
        local: Sequence[Packed | None],
        /,
    ) -> tuple[Photo, bool]:
        """Store a photo with its views' descriptors and local features; return whether it is new.

        Raises Superseded if another model is current.
        """
        ...

    def remove(self, photo: str, /) -> None:
        """Remove a photo permanently. Raises NotFound."""
        ...


class Reads(Protocol):
    """Reads a photo (id and bytes) into images: several for a panorama that is cut."""

    def __call__(self, item: tuple[str, bytes], /) -> Sequence[Image]: ...


class Counted(Protocol):
    """How much is searched."""

    @property
    def photos(self) -> int: ...
    @property
    def places(self) -> int: ...


@runtime_checkable
class WritableIndex(ServedIndex, Protocol):
    """An index that takes photos while it is served; they are searched at once."""

    def posting(self) -> Collects:
        """Return what adds and removes photos."""
        ...

    def counts(self) -> Counted:
        """Return how much is searched now; cheap if nothing changes."""
        ...

    def drift(self) -> float:
        """Return the share of the snapshot that was added or removed since."""
        ...

    def rebuild(self) -> None:
        """Publish the next snapshot. Raises IndexLocked while a run does so."""
        ...
