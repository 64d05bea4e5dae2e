"""Photos that come and go one at a time, beside whatever else reads or writes the index.

A photo is there when its row is, and its row is written last: the file and the descriptors are on disk by
then. Each photo is one transaction, so that a kill leaves all of it or nothing but a file that no row names,
which `sweep` takes away.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from indexer.answers import Photo
from indexer.errors import FieldError, IndexerError, NotFound, Superseded
from indexer.filters import check_position, within
from indexer.milvus.sync import Mirror
from indexer.options import load_options
from indexer.photos.exif import from_exif
from indexer.photos.metadata import PhotoMetadata, heading_or_none, time_or_none
from indexer.photos.reader import Reader
from indexer.posting.join_place import join_place
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import sha256_of, sync_folder
from indexer.storage.folder import os_errors_explained
from indexer.storage.layout import Layout, generation_of
from indexer.storage.local_shards import Local, write_local
from indexer.storage.rows import PhotoFacts, Slot
from indexer.storage.shards import POSTED, Floats, ShardWriter
from indexer.storage.stored_files import PARTIAL, drop_files
from model.gpu_decoding import Read
from model.images import MAX_PIXELS, open_photo, read_photo, upright_size

SUFFIXES = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "AVIF": ".avif",
    "TIFF": ".tif",
    "HEIF": ".heic",
    "GIF": ".gif",
    "BMP": ".bmp",
}

LONGEST = 200  # characters of a name or place


@dataclass(frozen=True)
class NewPhoto:
    """A photo that was sent, as far as it is known before it is decoded."""

    data: bytes
    facts: PhotoFacts
    file: str
    """Its name in the index's folder for such photos: by content."""
    name: str
    """What answers call it."""

    @property
    def id(self) -> str:
        return self.facts.id


def given_metadata(
    *,
    lat: float | None = None,
    lon: float | None = None,
    heading: float | None = None,
    taken_at: str | None = None,
    place: str | None = None,
) -> PhotoMetadata:
    """What a caller says of a photo, checked.

    Raises:
        FieldError: a value that cannot be.
    """
    check_position(lat, lon)
    within("heading", heading, 0, 360)
    moment = None if taken_at is None else time_or_none(taken_at)
    if taken_at is not None and moment is None:
        raise FieldError("taken_at", f"must be a time such as 2024-09-23T16:06:58, not {taken_at[:40]!r}")
    return PhotoMetadata(
        lat=lat,
        lon=lon,
        heading=None if heading is None else heading_or_none(heading),
        taken_at=moment,
        place=None if place is None else _label("place", place),
    )


def read_new(
    data: bytes, given: PhotoMetadata, name: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> NewPhoto:
    """Take a photo's hash, size and EXIF, which fills what is not given; its pixels are not decoded yet.

    Raises:
        ImageError: it is no photo, or has too many pixels.
        FieldError: the name cannot be one.
    """
    with open_photo(data, max_pixels=max_pixels) as image:
        width, height = upright_size(image)
        metadata = given.merged_over(from_exif(image))
        suffix = SUFFIXES[image.format or ""]
    sha256 = hashlib.sha256(data).hexdigest()
    facts = PhotoFacts(sha256, width, height, metadata)
    label = f"{facts.id}{suffix}" if name is None else _label("name", name.replace("\\", "/").split("/")[-1])
    return NewPhoto(data, facts, f"{sha256}{suffix}", label)


def _label(field: str, text: str) -> str:
    text = text.strip()
    if not text or text in (".", "..") or len(text) > LONGEST or not text.isprintable():
        raise FieldError(field, f"must be 1 to {LONGEST} printable characters, not {text[:40]!r}")
    return text


class Posting:
    """Adds photos to one generation of an index, and removes them; safe beside a run and beside others."""

    def __init__(self, layout: Layout, generation: int, dim: int, read: Read = read_photo) -> None:
        self._layout = layout
        self._generation = generation
        self._dim = dim
        fitted, self._places, search = load_options(layout.options(generation))
        self._mirror = None if search.store is None else Mirror(layout, search.store)
        self.reader = Reader(fitted.image_size, fitted.panoramas, fitted.min_image_size, read)
        with os_errors_explained(layout.folder):
            self._catalogue = Catalogue(layout.folder, create=True)

    def known(self, photo: NewPhoto) -> Photo | None:
        """The photo as it is stored and searched already; None where it is not, or its file is damaged."""
        file = self._catalogue.stored_file(photo.id)
        if file is None or not self._is_embedded(photo.id):
            return None
        with suppress(NotFound, FileNotFoundError):
            if sha256_of(file) != photo.facts.sha256:
                return None
            return self._catalogue.photo(photo.id)
        return None

    def add(self, photo: NewPhoto, descriptors: Floats, local: Local | None = None) -> tuple[Photo, bool]:
        """Store a photo with its views' descriptors (V d) and local features: on disk when it returns.

        Returns what the index knows of it, and whether it is new: a photo that is there already stays as it
        is, and one that was removed comes back as it is given now.

        Raises:
            Superseded: another model answers by now.
            DiskFull, IndexerError: it cannot be written; nothing is there then.
        """
        with (
            os_errors_explained(self._layout.folder),
            self._beside(photo) as partial,
            self._catalogue.transaction() as db,
        ):
            if generation_of(self._layout.current()) != self._generation:
                raise Superseded("another model has taken over this index since it was opened")
            status = self._catalogue.status_of(photo.id)
            if status != "ok":
                self._catalogue.renew_photo(db, photo.facts)
            self._catalogue.put_stored(db, photo.id, photo.file, photo.name)
            if not self._is_embedded(photo.id):
                self._catalogue.put_descriptors(
                    db, self._generation, self._append(photo.id, descriptors, local)
                )
            if status != "ok":
                join_place(db, photo.facts, self._places)
            # Within the transaction, so that nobody who deletes the photo takes this file away.
            partial.replace(self._catalogue.folder / photo.file)
            sync_folder(self._catalogue.folder)
            shown = self._catalogue.photo(photo.id)
        self._tell()
        return shown, status != "ok"

    def remove(self, photo: str) -> None:
        """Take a photo out for good, and its file if it was POSTed; it stays out of later runs, too.

        Raises:
            NotFound: there is none.
        """
        with self._catalogue.transaction() as db:
            if self._catalogue.status_of(photo) != "ok":
                raise NotFound(f"no photo {photo!r} in this index")
            self._catalogue.set_status(db, [photo], "removed")
            files = self._catalogue.drop_stored(db, [photo])
        drop_files(self._catalogue, files)
        self._tell()

    def _tell(self) -> None:
        """Send what changed on, where there is another store; what is stored here is stored in any case."""
        if self._mirror is not None:
            self._mirror.follow(self._catalogue)

    def _is_embedded(self, photo: str) -> bool:
        return self._catalogue.is_embedded(photo, self._generation)

    def _append(
        self, photo: str, descriptors: Floats, local: Local | None
    ) -> list[tuple[str, int, float, Slot]]:
        # Within the transaction, so that no other writer takes the same slots.
        last = self._catalogue.last_slot(self._generation, POSTED)
        writer = ShardWriter(self._layout.shards(self._generation), self._dim, last, POSTED)
        slots = writer.append(descriptors)
        write_local(self._layout.local(self._generation), slots, local or [None] * len(slots))
        yaws = self.reader.yaws(len(descriptors))
        return [(photo, view, yaw, slot) for view, (yaw, slot) in enumerate(zip(yaws, slots, strict=True))]

    @contextmanager
    def _beside(self, photo: NewPhoto) -> Iterator[Path]:
        """The photo in a file of another name, on disk, to be renamed; gone when that was not done."""
        folder = self._catalogue.folder
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
        partial = folder / f"{photo.file}.{secrets.token_hex(8)}{PARTIAL}"
        try:
            with partial.open("xb") as file:
                file.write(photo.data)
                file.flush()
                os.fsync(file.fileno())
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            with suppress(IndexerError):  # else `sweep` does it
                drop_files(self._catalogue, [photo.file])
            raise
