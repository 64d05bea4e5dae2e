"""`loci backup` and `loci restore`: an index as one file, and back."""

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
        typer.Option(metavar="FILE", help="The file to write, a tar; stdout if not given."),
    ] = None,
) -> None:
    """Write an index to one file, while it is in use.

    It holds what the index answers from, photos that were added over HTTP and the API keys; photos in folders
    stay where they are. Services and runs go on meanwhile.
    """
    from indexer.maintenance.backup import backup as write
    from service.settings import KEYS_FILE

    if output is None and _is_terminal():
        raise typer.BadParameter("a backup is not text for a terminal, give --output too")
    saved = write(index, output or sys.stdout.buffer, also=[KEYS_FILE])
    note(f"backed up {count(saved.photos, 'photo')}, snapshot {saved.snapshot}: {size(saved.bytes)}")


def restore(
    source: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="What 'loci backup' wrote; - for stdin. Also compressed.")
    ],
    into: Annotated[
        Path, typer.Option(metavar="INDEX", help="A new or empty folder for the index.", show_default=False)
    ],
) -> None:
    """Make an index of a backup again.

    Every byte is checked first: what is damaged, or not whole, leaves nothing behind.
    """
    from indexer.maintenance.restore import restore as read

    saved = read(sys.stdin.buffer if source == STREAM else source, into)
    note(f"restored {count(saved.photos, 'photo')}, snapshot {saved.snapshot}, in {into}")


def _is_terminal() -> bool:
    return sys.stdout.isatty()
