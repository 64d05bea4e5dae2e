"""Deletion of POSTed photos' files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from indexer.storage.catalogue import Catalogue
from indexer.storage.files import PARTIAL
from indexer.storage.lock import is_backed_up

ABANDONED_S = 3600  # age of a partial file that nobody is still writing

log = logging.getLogger(__name__)


def drop_files(catalogue: Catalogue, names: Iterable[str]) -> None:
    """Delete files of POSTed photos that were removed, unless a photo uses them again.

    During a backup all files stay; the backup deletes them at its end.
    """
    for name in names:
        with catalogue.transaction():
            if catalogue.holds_file(name) or is_backed_up(catalogue.path.parent):
                continue
            try:
                (catalogue.folder / name).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s cannot be deleted, and the next run tries again: %s", name, error.strerror)


def sweep(catalogue: Catalogue) -> None:
    """Delete the files that a killed process left while it stored or deleted a photo."""
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
