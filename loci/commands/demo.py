"""`loci demo`: index and query the sample photos, offline."""

import contextlib
import csv
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from loci.commands.serve import run_service
from loci.console import distance, latlon, note, say, table
from loci.options import check_port, command_line
from loci.progress import showing_progress

if TYPE_CHECKING:
    from indexer.answers import Answer
    from indexer.photos.metadata import PhotoMetadata

FOLDER = Path(__file__).parents[1] / "demo"
PHOTOS, QUERIES, TRUTH = FOLDER / "photos", FOLDER / "queries", FOLDER / "truth.csv"
RADIUS_M = 25
"""Distance in metres within which `truth.csv` counts a photo as right."""
DIGITS = 5
"""Decimal digits of degrees: five are a metre and let the table fit 80 columns."""

COLUMNS = (
    ("query", "left"),
    ("most similar", "left"),
    ("", "left"),
    ("found at", "left"),
    ("taken at", "left"),
    ("off by", "right"),
)


@dataclass(frozen=True)
class Finding:
    """The answer for one query photo, and the truth."""

    query: str
    best: str | None
    """The most similar photo."""
    right: bool
    """True if that photo was taken within RADIUS_M of the query."""
    found: str | None
    truth: str | None
    off_m: float | None
    """Position error in metres."""


def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Serve the index afterwards.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder to keep the index in. [default: a temporary one]", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            callback=check_port,
            help="Port of the service. [default: 8000]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Try loci on sample photos, offline.

    Indexes 60 drone photos, then finds where 15 others were taken.
    """
    with _folder(into) as folder:
        _index(folder)
        findings = _ask(folder)
        _show(findings)
        _say_next(into)
        if serve:
            run_service(folder, port=port)


@contextlib.contextmanager
def _folder(into: Path | None) -> Iterator[Path]:
    if into is not None:
        yield into
        return
    with tempfile.TemporaryDirectory(prefix="loci-demo-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary) / "index"


def _index(folder: Path) -> None:
    from indexer.build.run import build_index
    from indexer.options import BuildOptions

    note("Indexing 60 sample photos of a ranch, taken by a drone (CC0, OpenDroneMap).")
    with showing_progress() as progress:
        report = build_index([PHOTOS], folder, BuildOptions(), progress)
    say(f"Indexed {report.photos} photos as {report.places} places.")


def _ask(folder: Path) -> list[Finding]:
    from indexer.index import Index
    from indexer.photos.exif import from_exif
    from model.images import open_photo

    index, positives = Index.open(folder), _read_truth()
    findings = []
    with showing_progress() as progress:
        queries = sorted(QUERIES.iterdir())
        progress.stage("querying", len(queries))
        for photo in queries:
            with open_photo(photo) as image:
                truth = from_exif(image)
            findings.append(compare_with_truth(photo.name, index.query(photo), truth, positives[photo.name]))
            progress.advance()
    return findings


def _read_truth() -> dict[str, set[str]]:
    with TRUTH.open(newline="", encoding="utf-8") as file:
        return {row["query"]: set(row["positives"].split()) for row in csv.DictReader(file)}


def compare_with_truth(query: str, answer: "Answer", truth: "PhotoMetadata", positives: set[str]) -> Finding:
    """Compare an answer with the query's own position and the photos known to be near."""
    from indexer.geo import haversine_m

    photos = answer.places[0].photos if answer.places else ()
    best = PurePosixPath(photos[0].path).name if photos else None  # the index's paths begin with the folder
    position, off_m = answer.position, None
    if position is not None and truth.lat is not None and truth.lon is not None:
        off_m = float(haversine_m(position.lat, position.lon, truth.lat, truth.lon))
    return Finding(
        query=query,
        best=best,
        right=best in positives,
        found=None if position is None else latlon(position.lat, position.lon, DIGITS),
        truth=latlon(truth.lat, truth.lon, DIGITS),
        off_m=off_m,
    )


def _show(findings: Sequence[Finding]) -> None:
    say("")
    table(
        COLUMNS,
        [
            (
                f.query,
                f.best,
                "✓" if f.right else "✗",
                f.found,
                f.truth,
                None if f.off_m is None else distance(f.off_m),
            )
            for f in findings
        ],
    )
    right = sum(finding.right for finding in findings)
    off = [finding.off_m for finding in findings if finding.off_m is not None]
    say("")
    share = f"{right} of {len(findings)}, recall@1 {right / len(findings):.3f}"
    say(f"✓ within {RADIUS_M} m of the query: {share}.")
    if off:
        say(f"Median position error: {distance(statistics.median(off))}.")


def _say_next(into: Path | None) -> None:
    own = into or Path("my-index")
    note("\nNext, with your own photos:" if into is None else "\nNext:")
    if into is None:
        note(f"  {command_line('loci', 'index')} PHOTOS --into {command_line(own)}")
    note(f"  loci query PHOTO --index {command_line(own)}")
    note(f"  loci serve --index {command_line(own)}")
