"""`loci export`: an index's photos and descriptors in the formats of other programs."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from loci.console import count, note
from loci.options import IndexArgument, at_least

Format = Literal["geojson", "csv", "numpy", "hloc", "colmap", "kapture"]


def export(
    index: IndexArgument,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="geojson or csv: the photos as a map or table, also good for --metadata; numpy: an .npz of "
            "the descriptors; hloc or kapture: pairs of similar photos; colmap: image and position lists.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write; stdout if not given."),
    ] = None,
    neighbours: Annotated[
        int,
        typer.Option(
            metavar="N", callback=at_least(1), help="How many others hloc and kapture pair a photo with."
        ),
    ] = 20,
) -> None:
    """Write an index for other programs to read."""
    from indexer.export.write import export as write
    from indexer.index import Index

    if output is None and format == "numpy" and sys.stdout.isatty():
        raise typer.BadParameter("numpy's arrays are not text for a terminal, give --output too")
    opened = Index.open(index, device="cpu")
    done = write(opened, format, output or sys.stdout.buffer, neighbours=neighbours)
    sys.stdout.flush()
    for file in done.files:
        note(f"wrote {file}: {count(done.photos, 'photo')}")
    for path in done.left_out:
        note(f"left out {path}: {format} cannot hold such a name")
