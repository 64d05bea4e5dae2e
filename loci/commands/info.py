"""`loci info` and `loci check`."""

from collections.abc import Iterator
from typing import Any

import typer

from loci.console import count, distance, facts, say, say_json, size
from loci.exit_codes import FAILED
from loci.options import IndexArgument, JsonFlag, ModelOption


def info(index: IndexArgument, model: ModelOption = None, as_json: JsonFlag = False) -> None:
    """Show what an index holds."""
    from indexer.index import Index

    found = Index.open(index, model=model).info()
    if as_json:
        say_json(found)
    else:
        facts(_facts(found))


def check(index: IndexArgument, as_json: JsonFlag = False) -> None:
    """Check an index for damage.

    Reads every byte. The exit code is 1 if anything is wrong.
    """
    from indexer.maintenance.check import check_index

    problems = check_index(index)
    if as_json:
        say_json({"index": str(index), "sound": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            say(problem)
    else:
        say(f"{index} is sound.")
    if problems:
        raise typer.Exit(FAILED)


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    failed = f", {found['failed']:,} more cannot be read" if found["failed"] else ""
    yield "photos", f"{found['photos']:,}, {found['with_position']:,} with a position{failed}"
    yield (
        "places",
        f"{found['places']:,}, by {found['places_by']}, radius {distance(found['place_radius_m'])}",
    )
    yield "descriptors", f"{found['descriptors']:,}, {found['dim']:,}-D{_reduction(found)}"
    yield "model", f"{found['model']}: {found['weights']}, {_pooling(found)}"
    fitted_on = found["fit"].get("cluster_photos") or found["fit"].get("reduction_photos")
    yield "fitted on", fitted_on and count(fitted_on, "photo")
    yield "image size", f"at most {found['image_size']:,} px{_least(found['min_image_size'])}"
    yield "local features", _local(found)
    yield "panoramas", found["panoramas"] and f"cut into {found['panoramas']} views"
    yield "snapshot", f"{found['snapshot']} of {found['created_at']}"
    yield "search", f"{found['factory']}, recall {found['search_recall']:.1%} of an exact search"
    yield "confidence", _confidence(found["calibration"])
    decoding = ", also decodes JPEGs" if found["decoding"] == "GPU" else ""
    yield "runs on", f"{found['device']}, {found['precision']}{decoding}"
    yield "size", size(found["bytes"]) if found["bytes"] else None


def _confidence(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none: the next 'loci index' run calibrates it"
    if found["reason"] is not None:
        return f"none: {found['reason']}"
    return (
        f"calibrated on {count(found['queries'], 'photo')} of the index (some disturbed; "
        f"{found['right']:.0%} found their place); "
        f"expected calibration error {found['ece']:.3f} on held-out photos"
    )


def _least(pixels: int) -> str:
    return f", smaller photos enlarged to {pixels:,}" if pixels else ""


def _local(found: dict[str, Any]) -> str:
    kept = found["local_features"]
    if not kept:
        return "none: answers are not verified"
    there = f", {size(found['local_bytes'])}" if found["local_bytes"] else ""  # none in a replica
    return f"at most {kept:,} for each photo{there}"


def _pooling(found: dict[str, Any]) -> str:
    clusters = f" of {found['clusters']} clusters" if found["clusters"] else ""
    settings = ", ".join(f"{name} {value}" for name, value in found["pooling_settings"].items())
    return f"{found['pooling']}{clusters}{settings and f' ({settings})'} on {found['layers']}"


def _reduction(found: dict[str, Any]) -> str:
    power = found["whitening_power"]
    return ", not reduced" if power is None else f", reduced by PCA, whitening power {power:g}"
