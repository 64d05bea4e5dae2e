"""`loci backup` and `loci restore`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from loci.console import count, note, size
from loci.options import IndexArgument

STREAM = Path("-")


def backup(
    index: IndexArgument,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The tar file to write. [default: stdout]"),
    ] = None,
) -> None:
    """Back up an index to one file.

    The file holds the index, photos that were added over HTTP, and the API keys. Photos in folders are not
    in it. Services and runs may use the index meanwhile.
    """
    from indexer.maintenance.backup import backup as write
    from service.settings import KEYS_FILE

    if output is None and _is_terminal():
        raise typer.BadParameter("a backup cannot be shown on a terminal: add --output FILE")
    saved = write(index, output or sys.stdout.buffer, also=[KEYS_FILE])
    note(f"backed up {count(saved.photos, 'photo')}, snapshot {saved.snapshot}: {size(saved.bytes)}")


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="A backup, also compressed; - reads stdin.")
    ],
    into: Annotated[
        Path, typer.Option(metavar="INDEX", help="A new or empty folder for the index.", show_default=False)
    ],
) -> None:
    """Restore an index from a backup.

    Every byte is checked. A damaged or incomplete backup leaves nothing behind.
    """
    from indexer.maintenance.restore import restore as read

    saved = read(sys.stdin.buffer if source == STREAM else source, into)
    note(f"restored {count(saved.photos, 'photo')}, snapshot {saved.snapshot}, in {into}")


def _is_terminal() -> bool:
    return sys.stdout.isatty()
