"""The files of POSTed photos: deleting those that no photo has."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from indexer.storage.catalogue import Catalogue
from indexer.storage.lock import is_backed_up

PARTIAL = ".partial"
ABANDONED_S = 3600  # after this long, nobody is still writing a file

log = logging.getLogger(__name__)


def drop_files(catalogue: Catalogue, names: Iterable[str]) -> None:
    """Delete files of photos that were POSTed, unless a photo has them, as one that came back does.

    While a backup reads them, all stay: it deletes them when it is done.
    """
    for name in names:
        with catalogue.transaction():
            if catalogue.holds_file(name) or is_backed_up(catalogue.path.parent):
                continue
            try:
                (catalogue.folder / name).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be deleted, the next run tries again: %s", name, error.strerror)


def sweep(catalogue: Catalogue) -> None:
    """Delete what those left that were killed while they stored a photo, or deleted one."""
    if not catalogue.folder.is_dir():
        return
    held = set(catalogue.stored().values())
    for file in catalogue.folder.iterdir():
        if file.name.endswith(PARTIAL):
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > ABANDONED_S:
                    file.unlink()
        elif file.name not in held:
            drop_files(catalogue, [file.name])
