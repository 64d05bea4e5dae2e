"""`loci plan`: what a collection will need, before it is there."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import count, duration, facts, note, say_json, size
from loci.options import DeviceOption, JsonFlag, PrecisionOption

if TYPE_CHECKING:
    from indexer.build.plan import Plan


def plan(
    photos: Annotated[int, typer.Option(metavar="N", help="How many photos.", show_default=False)],
    within: Annotated[
        float | None,
        typer.Option(metavar="HOURS", help="In which they are to be embedded; tells how many machines."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(metavar="D", help="Numbers in a descriptor. [default: 512]")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Longest side of a photo. [default: 640]")
    ] = None,
    panoramas: Annotated[int | None, typer.Option(metavar="N", help="Views of each photo.")] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="What a search may keep. [default: half of this machine's]"),
    ] = None,
    recall: Annotated[
        float | None, typer.Option(metavar="R", help="That a search is to have. [default: 0.99]")
    ] = None,
    graph: Annotated[
        bool | None, typer.Option("--graph/--no-graph", help="Search by an HNSW graph. [default: no]")
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Say what an index of N photos will need.

    Time, disk, memory and machines are told. The network runs for a few seconds first, to see how fast this
    machine is.
    """
    from indexer.build.pace import Pace, measure_pace
    from indexer.build.plan import make_plan
    from indexer.memory import machine_memory
    from indexer.options import BuildOptions, FitOptions, SearchOptions

    said = BuildOptions(
        dim=dim,
        image_size=image_size,
        panoramas=panoramas,
        memory=memory,
        recall=recall,
        hnsw=graph,
        device=device,
        precision=precision,
    )
    fit, search = said.fit_over(FitOptions()), said.search_over(SearchOptions())
    within_s = None if within is None else within * 3600
    make_plan(photos, Pace(1.0, 1.0), fit, search, within_s)  # what cannot be is said at once
    note("measuring how fast this machine is …")
    pace = measure_pace(fit, device, precision)
    found = make_plan(photos, pace, fit, search, within_s)
    if as_json:
        totals = {"disk": found.disk, "memory": found.memory, "photos_per_second": pace.photos}
        say_json(asdict(found) | totals)
    else:
        facts(_facts(found, pace.photos, machine_memory()))


def _facts(found: "Plan", photos_per_second: float, memory: int) -> Iterator[tuple[str, object]]:
    yield (
        "embedding",
        f"{duration(found.embedding_s)} at {photos_per_second:.1f} photos/s, as this machine does",
    )
    if found.machines > 1:
        yield "machines", f"{count(found.machines, 'such machine')} to embed in that time: --workers"
    yield "making the search", f"{duration(found.search_s)}, {found.factory}"
    yield "disk", f"{size(found.disk)}, and {size(found.temporary)} until the model is fitted"
    yield "  descriptors", size(found.shards)
    yield "  local features", found.local_features and size(found.local_features)
    yield "  search", size(found.search_file)
    yield "  catalogue", size(found.catalogue)
    yield "  model", size(found.model)
    much = ", more than this machine has: --store milvus://…" if found.memory > memory else ""
    yield "memory", f"{size(found.memory)} to serve it{much}"
    yield "  search", size(found.search_memory)
    yield "  filters", f"{size(found.filter_memory)} once they are used"
    yield "  network", size(found.network_memory)
