"""Amounts of memory: as options give them, and as this machine has it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from indexer.errors import UsageError

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def read_bytes(name: str, text: str) -> int:
    """Bytes from a number and a unit of 1,024ths, such as 512M, 1.5G or 2 GiB.

    Raises:
        UsageError: it is none, or 0; the message begins with `name`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    found = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if found <= 0:
        raise UsageError(f"{name} must be a number of bytes such as 512M or 4G, got {text!r}")
    return found


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container that this runs in, has."""
    pages: int = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(pages, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # not Linux, or no limit
        return pages
