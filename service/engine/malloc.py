"""Gives back to the system what the C library keeps of memory that was freed."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

GROWTH = 1.2
SLACK = 64_000_000


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def trim() -> None:
    """Have glibc give back every page that holds nothing; other C libraries need no asking."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimmer:
    """Trims when the process has grown by more than a fifth since it was trimmed last.

    A photo of 100 million pixels takes hundreds of megabytes while it is decoded; each decoding thread has
    a heap of its own, which would keep them for the next such photo.
    """

    def __init__(self, held: Callable[[], int] = resident, give_back: Callable[[], None] = trim) -> None:
        self._held = held
        self._give_back = give_back
        self._low = 0

    def __call__(self) -> None:
        """Look, and trim where that is due."""
        held = self._held()
        if held > GROWTH * self._low + SLACK:
            self._give_back()
            held = self._held()
            self._low = held
        self._low = min(self._low, held)
