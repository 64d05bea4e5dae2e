"""Return freed memory to the system that the C library keeps."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

GROWTH = 1.2
SLACK = 64_000_000


def resident() -> int:
    """Bytes of memory of this process; 0 if unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def trim() -> None:
    """Let glibc return every empty page; other C libraries do not need it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimmer:
    """Trims if the process has grown by more than a fifth since the last trim.

    A photo of 100 million pixels takes hundreds of megabytes to decode; the heap of each decoding thread
    would keep them.
    """

    def __init__(self, held: Callable[[], int] = resident, give_back: Callable[[], None] = trim) -> None:
        self._held = held
        self._give_back = give_back
        self._low = 0

    def __call__(self) -> None:
        """Trim if due."""
        held = self._held()
        if held > GROWTH * self._low + SLACK:
            self._give_back()
            held = self._held()
            self._low = held
        self._low = min(self._low, held)
