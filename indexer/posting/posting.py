"""Add and remove photos one at a time, while others read or write the index.

A photo exists if its row does. The row is written last: file and descriptors are on disk by then. Each photo
is one transaction, so a kill leaves all of it, or at most a file that no row names, which `sweep` deletes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from indexer.answers import Photo
from indexer.errors import IndexerError, NotFound, Superseded
from indexer.milvus.sync import Mirror
from indexer.options import load_options
from indexer.photos.reader import Reader
from indexer.posting.join_place import join_place
from indexer.posting.new_photo import NewPhoto
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import PARTIAL, sha256_of, sync_folder
from indexer.storage.folder import os_errors_explained
from indexer.storage.layout import Layout, generation_of
from indexer.storage.local_shards import Local, write_local
from indexer.storage.rows import Slot
from indexer.storage.shards import POSTED, Floats, ShardWriter
from indexer.storage.stored_files import drop_files
from model.gpu_decoding import Read
from model.images import read_photo


class Posting:
    """Adds photos to one generation of an index, and removes them; safe beside runs and other writers."""

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
        """Return the photo if it is stored and searched; None if not, or if its file is damaged."""
        file = self._catalogue.stored_file(photo.id)
        if file is None or not self._is_embedded(photo.id):
            return None
        with suppress(NotFound, FileNotFoundError):
            if sha256_of(file) != photo.facts.sha256:
                return None
            return self._catalogue.photo(photo.id)
        return None

    def add(self, photo: NewPhoto, descriptors: Floats, local: Local | None = None) -> tuple[Photo, bool]:
        """Store a photo with its views' descriptors (V d) and local features: on disk when this returns.

        Returns the photo, and whether it is new. An existing photo stays as it is; a removed one comes back
        with what is given now.

        Raises:
            Superseded: another model is current.
            DiskFull, IndexerError: it cannot be written; nothing is left of it.
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
            # Within the transaction, so that nobody who deletes the photo deletes this file.
            partial.replace(self._catalogue.folder / photo.file)
            sync_folder(self._catalogue.folder)
            shown = self._catalogue.photo(photo.id)
        self._tell()
        return shown, status != "ok"

    def remove(self, photo: str) -> None:
        """Remove a photo permanently, with its file if it was POSTed; later runs leave it out, too.

        Raises:
            NotFound: there is no such photo.
        """
        with self._catalogue.transaction() as db:
            if self._catalogue.status_of(photo) != "ok":
                raise NotFound(f"no photo {photo!r} in this index")
            self._catalogue.set_status(db, [photo], "removed")
            files = self._catalogue.drop_stored(db, [photo])
        drop_files(self._catalogue, files)
        self._tell()

    def _tell(self) -> None:
        """Send changes to another store, if there is one; the photo is stored in any case."""
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
        """A temporary file with the photo, on disk, to be renamed; deleted if it was not."""
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
            with suppress(IndexerError):  # otherwise `sweep` deletes it
                drop_files(self._catalogue, [photo.file])
            raise
