"""What the service needs of an index, so that any kind of index can stand behind it."""

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
    """A network with its device; used by one thread only."""

    def see(self, clips: Sequence[Sequence[Image]], /) -> Sequence[Seen]:
        """Turn clips of one image or more into descriptors, photos into local features as well."""
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
    def embedder(self) -> Embeds:
        """The network; shared by snapshots of the same model."""
        ...

    def read(self, photo: bytes, /, *, max_pixels: int) -> Image:
        """Decode a photo as the network takes it; from any thread. Raises ImageError."""
        ...

    def latest(self) -> "ServedIndex":
        """Give the newest snapshot: this one while there is no newer."""
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
        """Search among the photos that pass, verify, localise, and list matches where asked to.

        May be called from any thread.
        """
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


class Collects(Protocol):
    """Adds photos to an index and removes them; from one thread at a time."""

    def known(self, photo: NewPhoto, /) -> Photo | None:
        """Give the photo when it is stored and searched already."""
        ...

    @property
    def reader(self) -> "Reads":
        """What turns a photo into the images that the network sees."""
        ...

    def add(
        self,
        photo: NewPhoto,
        descriptors: NDArray[np.float32],
        local: Sequence[Packed | None],
        /,
    ) -> tuple[Photo, bool]:
        """Store a photo, the descriptors and local features of its views, and tell whether it is new.

        Raises Superseded when another model answers by now.
        """
        ...

    def remove(self, photo: str, /) -> None:
        """Take a photo out for good, or raise NotFound."""
        ...


class Reads(Protocol):
    """Turns a photo (its id and its bytes) into images: several where it is a panorama to be cut."""

    def __call__(self, item: tuple[str, bytes], /) -> Sequence[Image]: ...


class Counted(Protocol):
    """How much is searched."""

    @property
    def photos(self) -> int: ...
    @property
    def places(self) -> int: ...


@runtime_checkable
class WritableIndex(ServedIndex, Protocol):
    """An index that photos can be added to while it is served; what was added is searched at once."""

    def posting(self) -> Collects:
        """Give what adds and removes photos."""
        ...

    def counts(self) -> Counted:
        """Count what is searched now; cheap while nothing changes."""
        ...

    def drift(self) -> float:
        """Tell how much was added or removed since the snapshot, as a share of it."""
        ...

    def rebuild(self) -> None:
        """Publish the next snapshot; raises IndexLocked while a run does so itself."""
        ...
