"""`loci plan`: the time, disk and memory that a collection will need."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from loci.console import count, duration, facts, note, say_json, size
from loci.options import (
    DeviceOption,
    DimOption,
    HnswOption,
    ImageSizeOption,
    JsonFlag,
    MemoryOption,
    PanoramasOption,
    PrecisionOption,
    RecallOption,
    option,
)

if TYPE_CHECKING:
    from indexer.build.plan import Plan


def plan(
    photos: Annotated[int, option("Number of photos.", "N", show_default=False)],
    within: Annotated[
        float | None, option("Time limit for embedding; says how many machines that needs.", "HOURS")
    ] = None,
    dim: DimOption = None,
    image_size: ImageSizeOption = None,
    panoramas: PanoramasOption = None,
    memory: MemoryOption = None,
    recall: RecallOption = None,
    hnsw: HnswOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Estimate time, disk and memory for N photos.

    Runs the network for a few seconds to measure this machine.
    """
    from indexer.build.plan import Pace, make_plan, measure_pace
    from indexer.options import BuildOptions, FitOptions, SearchOptions, machine_memory

    said = BuildOptions(
        dim=dim,
        image_size=image_size,
        panoramas=panoramas,
        memory=memory,
        recall=recall,
        hnsw=hnsw,
        device=device,
        precision=precision,
    )
    fit, search = said.fit_over(FitOptions()), said.search_over(SearchOptions())
    within_s = None if within is None else within * 3600
    make_plan(photos, Pace(1.0, 1.0), fit, search, within_s)  # wrong values fail before the measurement
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
        f"{duration(found.embedding_s)} at {photos_per_second:.1f} photos/s, the speed of this machine",
    )
    if found.machines > 1:
        yield "machines", f"{count(found.machines, 'such machine')} to embed in that time (--workers)"
    yield "building the search", f"{duration(found.search_s)}, {found.factory}"
    yield "disk", f"{size(found.disk)}, and {size(found.temporary)} more until the model is fitted"
    yield "  descriptors", size(found.shards)
    yield "  local features", found.local_features and size(found.local_features)
    yield "  search", size(found.search_file)
    yield "  catalogue", size(found.catalogue)
    yield "  model", size(found.model)
    much = ", more than this machine has (see --store)" if found.memory > memory else ""
    yield "memory", f"{size(found.memory)} to serve it{much}"
    yield "  search", size(found.search_memory)
    yield "  filters", f"{size(found.filter_memory)} after the first filtered query"
    yield "  network", size(found.network_memory)
