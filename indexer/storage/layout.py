"""Paths in an index folder, and the current snapshot."""

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
"""File with the name of the snapshot that answers."""
UNPUBLISHED = "UNPUBLISHED"
"""File that exists while a run's changes may not be in a snapshot yet."""
COLUMNS = "columns.npz"
"""File of a snapshot with the columns for filters."""


class Layout:
    """Paths of one index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generations = folder / "generations"

    def generation(self, number: int) -> Path:
        """Return the folder of a generation: a fitted model and everything made with it."""
        return self.generations / f"{number:02}"

    def model(self, number: int) -> Path:
        return self.generation(number) / "model.safetensors"

    def options(self, number: int) -> Path:
        return self.generation(number) / "options.json"

    def shards(self, number: int) -> Path:
        return self.generation(number) / "shards"

    def local(self, number: int) -> Path:
        """Return the folder of local features, in the same slots as the descriptors."""
        return self.generation(number) / "local"

    def spool(self, number: int) -> Path:
        return self.generation(number) / "spool"

    def snapshot(self, name: str) -> Path:
        """Return the folder of a snapshot with a name such as `02/000007`."""
        generation, _, number = name.partition("/")
        return self.generations / generation / "snapshots" / number

    def snapshots(self, number: int) -> list[Path]:
        """Return the folders of a generation's snapshots."""
        return sorted((self.generation(number) / "snapshots").glob("*"))

    def manifest(self, name: str) -> Path:
        """Return the path of a snapshot's manifest. It is written last, when the snapshot is complete."""
        return self.snapshot(name) / "manifest.json"

    def newest_generation(self) -> int:
        """Return the newest generation that has options, its first file; 0 if there is none."""
        return max((n for n in _numbers(self.generations) if self.options(n).exists()), default=0)

    def next_snapshot(self, generation: int) -> str:
        """Return the name for the next snapshot of a generation."""
        number = max(_numbers(self.generation(generation) / "snapshots"), default=0) + 1
        return f"{generation:02}/{number:06}"

    def current(self) -> str:
        """Return the name of the snapshot that answers.

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
        """Return the current snapshot; if CURRENT is missing or damaged, the last complete one, or None."""
        try:
            name = self.current()
            if self.manifest(name).is_file():
                return name
        except IndexerError:
            pass
        complete = [
            f"{number:02}/{folder.name}"
            for number in sorted(_numbers(self.generations))
            for folder in self.snapshots(number)
            if (folder / "manifest.json").is_file()
        ]
        return complete[-1] if complete else None

    def set_current(self, name: str) -> None:
        """Make a snapshot the one that answers."""
        replace_text(self.folder / CURRENT, name + "\n")

    @property
    def unpublished(self) -> bool:
        """Whether a run may have made changes that are in no snapshot yet."""
        return (self.folder / UNPUBLISHED).exists()

    def set_unpublished(self, state: bool) -> None:
        """Record that a run starts to change the catalogue, or that its changes are published."""
        if state and not self.unpublished:
            (self.folder / UNPUBLISHED).touch()
            sync_folder(self.folder)
        elif not state:
            (self.folder / UNPUBLISHED).unlink(missing_ok=True)

    def mark_damaged(self) -> None:
        """Make the next run check everything, if the folder can be written."""
        with suppress(OSError):
            self.set_unpublished(True)

    def drop_old(self, keep: Iterable[str]) -> list[int]:
        """Delete other snapshots, and older generations without one. Return the remaining generations.

        A newer generation, which is still being fitted, stays. During a backup nothing is deleted.
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
        for discarded in self.generations.glob("*.discarded"):  # left by a killed run
            shutil.rmtree(discarded, ignore_errors=True)
        return _numbers(self.generations)

    def discard(self, number: int) -> None:
        """Delete a generation. It is renamed first, so that a killed run leaves no half of it."""
        discarded = self.generations / f"{number:02}.discarded"
        shutil.rmtree(discarded, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.generation(number).rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)


def generation_of(snapshot: str) -> int:
    """Return the generation in a snapshot's name."""
    return int(snapshot.partition("/")[0])


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]


def disk_use(folder: Path) -> int:
    """Return the bytes that a folder's files occupy on disk. Sparse shards occupy less than their size."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another run may delete old files
                stat = (Path(parent) / name).lstat()
                total += int(getattr(stat, "st_blocks", stat.st_size / 512)) * 512
    return total
