"""Query an index with photos of known places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from indexer.answers import PhotoHit
from indexer.errors import IndexerError, UsageError
from indexer.evaluation.queries import Query, find_queries, read_queries
from indexer.evaluation.results import Evaluation, QueryResult, Rule
from indexer.evaluation.truth import AlignedBy, Expected, by_distance, by_file, by_frames
from indexer.index import Index
from indexer.options import PLACE_RADIUS_M
from indexer.photos.file_name import panorama_of
from indexer.photos.metadata_table import read_table
from indexer.progress import Progress, Silent
from indexer.search.searcher import Question

AT = (1, 5, 10, 20)


def evaluate(
    index: Index,
    queries: Path,
    *,
    truth: Path | None = None,
    frames: int | None = None,
    aligned_by: AlignedBy = "name",
    metadata: Path | None = None,
    radius_m: float = PLACE_RADIUS_M,
    more_radii_m: Sequence[float] = (),
    heading_tolerance: float | None = None,
    one_per_panorama: bool = False,
    at: Sequence[int] = AT,
    verify: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Query the index with every photo in `queries`, and judge the answers.

    Args:
        queries: a folder of photos, or a data set's folder with `database` and `queries` in it.
        truth: a CSV of right photos: `query,positives`, positives separated by spaces; or the
            frame-aligned form `query,reference_indices`, numbers of photos in the order of their paths.
        frames: right is the query's own frame of an aligned traverse, or up to this many frames away.
        aligned_by: how a query finds its own frame: by file name, or by position in order.
        metadata: a table with the queries' positions, if neither name nor EXIF has them.
        radius_m: without `truth` or `frames`, right is a photo within this of the query's position.
        more_radii_m: further radii for recall, with the same answers.
        heading_tolerance: a right photo also has the query's heading, within these degrees.
        one_per_panorama: only the best photo of each panorama counts, by `@…@` names.
        at: the N of recall@N.
        verify: compare the nearest photos again by local features, if the index has them.

    Raises:
        UsageError: the truth or metadata file is wrong, or two options define what is right.
        IndexerError: no query photo, none readable, or none with a right answer.
    """
    rule = _rule(radius_m, heading_tolerance, truth, frames, aligned_by)
    if rule.radius_m is None and more_radii_m:
        raise UsageError("several radii judge photos by distance, not by a truth file or frames")
    failed: dict[str, str] = {}
    table = read_table(metadata) if metadata else None
    found = read_queries(find_queries(queries), table, failed)
    progress = progress or Silent()
    rules = [rule, *(replace(rule, radius_m=radius) for radius in more_radii_m)]
    expected = [_expected(index, found, one, progress) for one in rules]
    for one, photos in zip(rules, expected, strict=True):
        if not any(query.photos for query in photos):  # checked before the network runs
            raise IndexerError(_no_answer(one, failed, len(found)))
    panoramas = _panoramas(index) if one_per_panorama else {}
    results = _ask(index, found, expected[0], max(at), panoramas, failed, progress, verify)
    evaluation = Evaluation(
        results=tuple(results.values()),
        at=tuple(at),
        database=index.counts().photos,
        rule=rule,
        unjudged=len(found) - len(results) - len(failed),
        failed=tuple(sorted(failed.items())),
        model=index.model_fingerprint,
        snapshot=index.snapshot,
    )
    judged = [_judged(evaluation, *by, results) for by in zip(rules, expected, strict=True)]
    for other in judged:
        if not other.answerable:
            raise IndexerError(_no_answer(other.rule, failed, len(found)))
    return replace(evaluation, by_radius=tuple(judged)) if more_radii_m else evaluation


def _rule(
    radius_m: float,
    heading_tolerance: float | None,
    truth: Path | None,
    frames: int | None,
    aligned_by: AlignedBy,
) -> Rule:
    if truth is not None and frames is not None:
        raise UsageError("a truth file and frames both define what is right: give one of them")
    if truth is None and frames is None:
        return Rule(radius_m=radius_m, heading_tolerance=heading_tolerance)
    if heading_tolerance is not None:
        raise UsageError("a heading tolerance goes with a radius, not with a truth file or frames")
    return Rule(truth=truth) if truth is not None else Rule(frames=frames, aligned_by=aligned_by)


def _expected(index: Index, queries: Sequence[Query], rule: Rule, progress: Progress) -> list[Expected]:
    if rule.truth is not None:
        return by_file(rule.truth, index, queries)
    if rule.frames is not None:
        frames = len(index.catalogue.files())
        if rule.aligned_by == "order" and frames != len(queries):
            progress.note(
                f"{len(queries)} queries are aligned by order with {frames} photos: where some are missing, "
                "all after them are taken for others"
            )
        return by_frames(index, queries, rule.frames, rule.aligned_by)
    return by_distance(index, queries, rule.radius_m or 0.0, rule.heading_tolerance)


def _judged(
    evaluation: Evaluation, rule: Rule, expected: Sequence[Expected], results: dict[int, QueryResult]
) -> Evaluation:
    """Return the same answers, judged by this rule."""
    judged = [replace(result, expected=expected[number]) for number, result in results.items()]
    return replace(evaluation, results=tuple(judged), rule=rule)


def _ask(
    index: Index,
    queries: Sequence[Query],
    expected: Sequence[Expected],
    deepest: int,
    panoramas: dict[str, str],
    failed: dict[str, str],
    progress: Progress,
    verify: bool,
) -> dict[int, QueryResult]:
    """Return the answers to all queries with truth, by number; unreadable ones go into `failed`."""
    asked = [
        (str(number), query.path)
        for number, query in enumerate(queries)
        if expected[number].photos is not None and str(query.path) not in failed
    ]
    progress.stage("querying", len(asked))
    results: dict[int, QueryResult] = {}
    for batch in index.embedder.stream(asked, index.reader):
        for embedded in batch:
            number = int(embedded.item[0])
            if embedded.error is not None:
                failed[str(embedded.item[1])] = embedded.error
                continue
            question = Question.of(embedded.seen[0], verify=verify)
            answer = index.answer(question, 1)
            results[number] = QueryResult(
                file=queries[number].file,
                metadata=queries[number].known,
                expected=expected[number],
                hits=tuple(_nearest(index, question, deepest, panoramas)),
                position=answer.position,
                confidence=answer.confidence,
                known=answer.known,
            )
        progress.advance(len(batch))
    return dict(sorted(results.items()))


def _nearest(index: Index, question: Question, n: int, panoramas: dict[str, str]) -> list[PhotoHit]:
    """Return the n nearest photos, only the best of each panorama."""
    ask = n
    while True:
        hits = index.nearest(question, ask)
        best: dict[str, PhotoHit] = {}
        for hit in hits:
            best.setdefault(panoramas.get(hit.id, hit.id), hit)
        if len(best) >= n or len(hits) < ask:
            return list(best.values())[:n]
        ask *= 4


def _panoramas(index: Index) -> dict[str, str]:
    """Return each photo's panorama from its name: folder and panorama."""
    found = {}
    for photo in index.photos():
        path = PurePosixPath(photo.path)
        panorama = panorama_of(path.name)
        if panorama:
            found[photo.id] = f"{path.parent}/@{panorama}"
    if not found:
        raise IndexerError("no photo of the index has a panorama in its name")
    return found


def _no_answer(rule: Rule, failed: dict[str, str], queries: int) -> str:
    if len(failed) == queries:
        path = min(failed)
        return f"none of the query photos can be read; the first is {path}: {failed[path]}"
    none = f"none of the {queries} query photos has a"
    if rule.truth is not None:
        return f"{none} right answer in {rule.truth}"
    if rule.frames is not None:
        return f"{none} frame of its own in the index"
    looking = "" if rule.heading_tolerance is None else ", looking the same way"
    return f"{none} position near a photo of the index (within {rule.radius_m:g} m{looking})"
