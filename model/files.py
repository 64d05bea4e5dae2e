"""Atomic writing of files: a crash leaves the old file or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ending of the names of files that are not complete yet."""


@contextmanager
def atomic_write(path: Path, mode: int | None = None, *, partial: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; then sync the file and rename it to `path`.

    If an exception is raised, the temporary file is deleted and `path` stays as it was.

    Args:
        mode: permissions of the file; None: the usual ones.
        partial: the temporary path; None: `path` with the ending `.partial`.
    """
    partial = partial or path.with_name(f"{path.name}{PARTIAL}")
    partial.unlink(missing_ok=True)  # left by a killed run, with another mode, or a link
    try:
        if mode is not None:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write renames in a folder to disk; does nothing if folders cannot be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the rename itself stays atomic
    finally:
        os.close(descriptor)
