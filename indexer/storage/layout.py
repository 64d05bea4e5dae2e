"""Where things lie in an index folder, and which snapshot is current."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from indexer.errors import IndexerError, IndexMissing
from indexer.storage.files import replace_text, sync_folder
from indexer.storage.lock import is_backed_up

CURRENT = "CURRENT"
"""The file that names the snapshot that answers."""
UNPUBLISHED = "UNPUBLISHED"
"""The file that is there while what a run found may not be in a snapshot yet."""
COLUMNS = "columns.npz"
"""The file of a snapshot that holds the columns for filters."""


class Layout:
    """The paths of one index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generations = folder / "generations"

    def generation(self, number: int) -> Path:
        """One fitted model and what it made."""
        return self.generations / f"{number:02}"

    def model(self, number: int) -> Path:
        return self.generation(number) / "model.safetensors"

    def options(self, number: int) -> Path:
        return self.generation(number) / "options.json"

    def shards(self, number: int) -> Path:
        return self.generation(number) / "shards"

    def local(self, number: int) -> Path:
        """Shards of local features, row by row beside those of descriptors."""
        return self.generation(number) / "local"

    def spool(self, number: int) -> Path:
        return self.generation(number) / "spool"

    def snapshot(self, name: str) -> Path:
        """The folder of a snapshot named like `02/000007`."""
        generation, _, number = name.partition("/")
        return self.generations / generation / "snapshots" / number

    def snapshots(self, number: int) -> list[Path]:
        """The folders of a generation's snapshots."""
        return sorted((self.generation(number) / "snapshots").glob("*"))

    def manifest(self, name: str) -> Path:
        """Written last: a snapshot that has one is whole."""
        return self.snapshot(name) / "manifest.json"

    def newest_generation(self) -> int:
        """The generation begun last; 0 when there is none. It begins with its options."""
        return max((n for n in _numbers(self.generations) if self.options(n).exists()), default=0)

    def next_snapshot(self, generation: int) -> str:
        """The name of the snapshot after the newest of a generation."""
        number = max(_numbers(self.generation(generation) / "snapshots"), default=0) + 1
        return f"{generation:02}/{number:06}"

    def current(self) -> str:
        """The snapshot that answers.

        Raises:
            IndexMissing: there is no index, or its first run has not finished.
        """
        path = self.folder / CURRENT
        try:
            name = path.read_text(encoding="utf-8", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing() from None
        except OSError as error:
            raise IndexerError(f"{path} cannot be read: {error.strerror}") from error
        if not re.fullmatch(r"\d{2,}/\d{6,}", name, re.ASCII):
            raise IndexerError(f"{path} is damaged, it names no snapshot: run 'loci index' again")
        return name

    def _missing(self) -> IndexMissing:
        if self.newest_generation():
            return IndexMissing(f"the index {self.folder} is not finished: run 'loci index' again")
        return IndexMissing(f"no index in {self.folder}: make one with 'loci index'")

    def last_finished(self) -> str | None:
        """`current`, or where that is missing or damaged, the last snapshot that is whole; None without."""
        try:
            name = self.current()
            if self.manifest(name).is_file():
                return name
        except IndexerError:
            pass
        whole = [
            f"{number:02}/{folder.name}"
            for number in sorted(_numbers(self.generations))
            for folder in self.snapshots(number)
            if (folder / "manifest.json").is_file()
        ]
        return whole[-1] if whole else None

    def set_current(self, name: str) -> None:
        """Let a snapshot answer from now on."""
        replace_text(self.folder / CURRENT, name + "\n")

    @property
    def unpublished(self) -> bool:
        """Whether a run may have found what is in no snapshot yet."""
        return (self.folder / UNPUBLISHED).exists()

    def set_unpublished(self, state: bool) -> None:
        """Note that a run begins to change the catalogue, or that what it did is published."""
        if state and not self.unpublished:
            (self.folder / UNPUBLISHED).touch()
            sync_folder(self.folder)
        elif not state:
            (self.folder / UNPUBLISHED).unlink(missing_ok=True)

    def mark_damaged(self) -> None:
        """Note, where that can be written, that the next run is to look at everything."""
        with suppress(OSError):
            self.set_unpublished(True)

    def drop_old(self, keep: Iterable[str]) -> list[int]:
        """Remove other snapshots, and older generations without any; returns the generations kept.

        A newer generation, still being fitted, stays, and all of them while a backup reads them.
        """
        if is_backed_up(self.folder):
            return _numbers(self.generations)
        names = set(keep)
        generations = set(map(generation_of, names))
        for number in _numbers(self.generations):
            if number not in generations and number < max(generations):
                self.discard(number)
            for snapshot in self.snapshots(number):
                if f"{number:02}/{snapshot.name}" not in names:
                    shutil.rmtree(snapshot, ignore_errors=True)
        for rubbish in self.generations.glob("*.discarded"):  # of a run killed at it
            shutil.rmtree(rubbish, ignore_errors=True)
        return _numbers(self.generations)

    def discard(self, number: int) -> None:
        """Remove a generation: at once, by a rename, so that a killed run does not leave half of one."""
        rubbish = self.generations / f"{number:02}.discarded"
        shutil.rmtree(rubbish, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.generation(number).rename(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)


def generation_of(snapshot: str) -> int:
    """The generation of a snapshot's name."""
    return int(snapshot.partition("/")[0])


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]


def disk_use(folder: Path) -> int:
    """Bytes that files take on disk; shards are preallocated, so that their size says more than they take."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a run beside this one drops what is old
                stat = (Path(parent) / name).lstat()
                total += int(getattr(stat, "st_blocks", stat.st_size / 512)) * 512
    return total
