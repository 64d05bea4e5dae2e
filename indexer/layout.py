"""Where things lie in an index folder, and which snapshot is current."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from indexer.errors import IndexerError, IndexMissing
from indexer.files import replace_text


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

    def spool(self, number: int) -> Path:
        return self.generation(number) / "spool"

    def snapshot(self, name: str) -> Path:
        """The folder of a snapshot named like `02/000007`."""
        generation, _, number = name.partition("/")
        return self.generations / generation / "snapshots" / number

    def newest_generation(self) -> int:
        """The generation begun last; 0 when there is none."""
        return max(_numbers(self.generations), default=0)

    def next_snapshot(self, generation: int) -> str:
        """The name of the snapshot after the newest of a generation."""
        number = max(_numbers(self.generation(generation) / "snapshots"), default=0) + 1
        return f"{generation:02}/{number:06}"

    def current(self) -> str:
        """The snapshot that answers.

        Raises:
            IndexMissing: there is no index, or its first run has not finished.
        """
        try:
            name = (self.folder / "CURRENT").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if self.newest_generation():
                raise IndexMissing(
                    f"the index {self.folder} is not finished: "
                    f"run 'loci index PHOTOS --into {self.folder}' again"
                ) from None
            raise IndexMissing(
                f"no index in {self.folder}: make one with 'loci index PHOTOS --into {self.folder}'"
            ) from None
        if not re.fullmatch(r"\d{2,}/\d{6,}", name):
            raise IndexerError(f"{self.folder / 'CURRENT'} is damaged: it names no snapshot")
        return name

    def current_or_none(self) -> str | None:
        """`current`, or None before the first run has finished."""
        try:
            return self.current()
        except IndexMissing:
            return None

    def set_current(self, name: str) -> None:
        replace_text(self.folder / "CURRENT", name + "\n")

    def drop_old(self, keep: Iterable[str]) -> list[int]:
        """Remove other snapshots, and other generations' files; returns the generations kept."""
        names = set(keep)
        generations = {int(name.partition("/")[0]) for name in names}
        for number in _numbers(self.generations):
            if number not in generations and number < max(generations):
                shutil.rmtree(self.generation(number), ignore_errors=True)
                continue
            for snapshot in (self.generation(number) / "snapshots").glob("*"):
                if f"{number:02}/{snapshot.name}" not in names:
                    shutil.rmtree(snapshot, ignore_errors=True)
        return sorted(generations)


def generation_of(snapshot: str) -> int:
    """The generation of a snapshot's name."""
    return int(snapshot.partition("/")[0])


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()]
