"""Following a camera through an index: from frames to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.answers import Answer
from indexer.build.run import remove_photos
from indexer.errors import IndexerError, ModelMismatch, UsageError
from indexer.filters import Filters
from indexer.geo import from_local
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.sequences.follower import TOO_FEW, UNCALIBRATED, FrameAnswer
from indexer.sequences.motion import Step
from model.errors import ImageError

if TYPE_CHECKING:
    from tests.indexer.conftest import Handmade, Paint, World

Rows = NDArray[np.float32]
COUNT, DIM = 60, 64


def traverse(count: int = COUNT, seed: int = 0) -> Rows:
    """Descriptors of a drive, each like the ones beside it, as shards keep them."""
    generator = np.random.default_rng(seed)
    rows = [generator.standard_normal(DIM)]
    for _ in range(count - 1):
        rows.append(0.6 * rows[-1] + 0.8 * generator.standard_normal(DIM))
    matrix = np.stack(rows)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(unit.astype(np.float16), np.float32)


def seen_again(rows: Rows, numbers: Sequence[int], noise: float = 0.1, seed: int = 1) -> Rows:
    """Descriptors of frames that show these places, less alike than the places' own."""
    generator = np.random.default_rng(seed)
    frames = rows[list(numbers)] + noise * generator.standard_normal((len(numbers), DIM))
    return np.asarray(frames / np.linalg.norm(frames, axis=1, keepdims=True), np.float32)


def foreign(count: int, seed: int = 2) -> Rows:
    generator = np.random.default_rng(seed)
    frames = generator.standard_normal((count, DIM))
    return np.asarray(frames / np.linalg.norm(frames, axis=1, keepdims=True), np.float32)


@pytest.fixture
def drive(handmade: Handmade) -> tuple[Index, Rows]:
    """An index of one traverse without positions."""
    rows = traverse()
    handmade.dim = DIM
    handmade.make([(PhotoMetadata(), [row]) for row in rows], places="photo")
    return handmade.open(), rows


def follow(index: Index, frames: Rows, steps: Sequence[Step | None] | None = None) -> list[FrameAnswer]:
    follower = index.follow()
    given = steps or [None] * len(frames)
    return [follower.update_seen(row, step) for row, step in zip(frames, given, strict=True)]


def photo(answer: FrameAnswer) -> str:
    return answer.answer.places[0].photos[0].path


def test_a_traverse_is_followed_and_left(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    frames = np.concatenate([seen_again(rows, range(20, 35)), foreign(8)])
    found = follow(index, frames)
    assert [photo(answer) for answer in found[3:15]] == [f"made/{n:04}.jpg" for n in range(23, 35)]
    assert [answer.answer.known for answer in found[3:15]] == [True] * 12
    assert [answer.answer.known for answer in found[-5:]] == [False] * 5
    assert [answer.frame for answer in found] == list(range(23))
    last = found[-1]
    assert last.off_map is not None
    assert last.off_map > 0.5
    best = found[10].answer
    assert best.confidence == best.places[0].confidence
    assert best.confidence is not None
    assert 0.9 < best.confidence <= 1
    assert (best.position, best.note) == (None, UNCALIBRATED)
    assert (best.model, best.snapshot) == (index.model_fingerprint, index.snapshot)


def test_scores_are_the_frames_own_and_places_go_by_belief(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    frames = seen_again(rows, range(20, 30))
    found = follow(index, frames)
    for frame, answer in zip(frames, found, strict=True):
        cosines = {hit.path: hit.score for hit in index.nearest(frame, COUNT)}
        for place in answer.answer.places:
            assert place.score == cosines[place.photos[0].path]
    confidences = [place.confidence or 0.0 for place in found[-1].answer.places]
    assert confidences[0] == max(confidences)
    assert len(found[-1].answer.places) == 5


def test_a_frame_that_misleads_is_corrected_by_those_before(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    frames = seen_again(rows, range(20, 30))
    frames[9] = frames[9] * 0.9 + 0.9 * rows[5]
    frames[9] /= np.linalg.norm(frames[9])
    assert index.nearest(frames[9], 1)[0].path == "made/0005.jpg"
    assert photo(follow(index, frames)[9]) == "made/0029.jpg"


def test_answers_are_causal_and_the_same_again(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    frames = seen_again(rows, range(20, 34), noise=0.15)
    whole, again, part = follow(index, frames), follow(index, frames), follow(index, frames[:6])

    def plain(answer: FrameAnswer) -> dict[str, object]:
        return answer.to_json() | {"timings_ms": None}

    assert [plain(answer) for answer in whole] == [plain(answer) for answer in again]
    assert [plain(answer) for answer in whole[:6]] == [plain(answer) for answer in part]


def test_smoothing_mends_the_beginning(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    frames = seen_again(rows, range(20, 34))
    frames[0] = foreign(1)[0]
    follower = index.follow(remember=True)
    filtered = [follower.update_seen(frame) for frame in frames]
    smoothed = follower.smoothed()
    assert [answer.frame for answer in smoothed] == list(range(14))
    assert photo(smoothed[1]) == "made/0021.jpg"
    assert (smoothed[1].answer.confidence or 0) > (filtered[1].answer.confidence or 1)
    last, same = (answers[-1].to_json() | {"timings_ms": None} for answers in (filtered, smoothed))
    assert last == same
    with pytest.raises(UsageError, match="smoothing needs the frames"):
        index.follow().smoothed()


def test_folders_are_traverses_of_their_own(world: World, paint: Paint) -> None:
    for view in range(2, 12):
        paint(world.photos / "wall0" / f"view{view}.jpg", 0, view)
    world.build()
    index = world.open()
    follower = index.follow(motion="photos")
    assert follower.likeness.contrast > 0
    lengths = follower._map.lengths
    assert sorted(lengths) == [2, 2, 2, 12]


GRID = 8


@pytest.fixture
def town(handmade: Handmade) -> tuple[Index, Rows]:
    """An index of 64 spots 30 m apart, in no order, of which each has two photos that look alike."""
    generator = np.random.default_rng(5)
    rows = foreign(GRID * GRID, 7).astype(np.float16).astype(np.float32)
    photos = []
    for number in generator.permutation(2 * GRID * GRID).tolist():
        spot = number // 2
        lat, lon = from_local(30.0 * (spot % GRID), 30.0 * (spot // GRID), 52.0, 0.25)
        row = seen_again(rows, [spot], 0.05, number)[0].astype(np.float16).astype(np.float32)
        photos.append((PhotoMetadata(lat, lon, taken_at=f"2024-01-01T00:00:{number % 60:02}"), [row]))
    handmade.dim = DIM
    handmade.make(photos, places="gps", place_radius_m=10.0)
    return handmade.open(), rows


def spot_of(answer: Answer) -> int:
    place = answer.places[0]
    assert place.lat is not None
    assert place.lon is not None
    spots = [from_local(30.0 * (s % GRID), 30.0 * (s // GRID), 52.0, 0.25) for s in range(GRID * GRID)]
    return int(np.argmin([abs(lat - place.lat) + abs(lon - place.lon) for lat, lon in spots]))


def test_unordered_photos_are_followed_by_metres(town: tuple[Index, Rows]) -> None:
    index, rows = town
    way = [0, 1, 2, 3, 11, 19, 27, 26, 25, 24]
    frames = seen_again(rows, way, 0.12)
    for odometry in (None, Step(metres=30.0)):
        found = follow(index, frames, [odometry] * len(way))
        assert [spot_of(answer.answer) for answer in found[1:]] == way[1:]
        position = found[-1].answer.position
        assert position is not None
        assert position.lat == pytest.approx(from_local(0.0, 90.0, 52.0, 0.25)[0], abs=2e-4)


def test_odometry_tells_places_apart_that_look_the_same(handmade: Handmade) -> None:
    rows = foreign(30, 3).astype(np.float16).astype(np.float32)
    rows[20] = rows[10]  # 300 m apart
    photos = [
        (PhotoMetadata(*from_local(30.0 * n, 0.0, 52.0, 0.25)), [rows[n]]) for n in range(30) for _ in (0, 1)
    ]
    handmade.dim = DIM
    handmade.make(photos, places="gps", place_radius_m=10.0)
    index = handmade.open()
    for way, twin in (([8, 9, 10], 10), ([18, 19, 20], 20), ([22, 21, 20], 20)):
        steps = [Step(offset_m=(30.0 * (b - a), 0.0)) for a, b in pairwise(way)]
        found = follow(index, seen_again(rows, way), [None, *steps])
        lat, lon = from_local(30.0 * twin, 0.0, 52.0, 0.25)
        assert found[-1].answer.places[0].lon == pytest.approx(lon)
        assert found[-1].answer.places[0].lat == pytest.approx(lat)


def test_filters_narrow_the_map(town: tuple[Index, Rows]) -> None:
    index, rows = town
    lat, lon = from_local(0.0, 0.0, 52.0, 0.25)
    follower = index.follow(filters=Filters(lat=lat, lon=lon, radius_m=100))
    answer = follower.update_seen(seen_again(rows, [63])[0]).answer
    assert {place.id for place in answer.places} <= {place.id for place in index.places()}
    assert all((place.distance_m or 0) <= 110 for place in answer.places)
    with pytest.raises(IndexerError, match="the filters leave no photo"):
        index.follow(filters=Filters(place="nowhere"))


@pytest.mark.parametrize("photos", [1, 2, 19])
def test_few_photos_cannot_tell_how_sure(handmade: Handmade, photos: int) -> None:
    rows = traverse(photos)
    handmade.dim = DIM
    handmade.make([(PhotoMetadata(), [row]) for row in rows], places="photo")
    found = follow(handmade.open(), seen_again(rows, range(photos)))
    last = found[-1]
    assert (last.answer.known, last.answer.confidence, last.off_map) == (None, None, None)
    assert last.answer.note == TOO_FEW
    assert photo(last) == f"made/{photos - 1:04}.jpg"


def test_a_descriptor_of_another_model_is_refused(drive: tuple[Index, Rows]) -> None:
    follower = drive[0].follow()
    for shape in ((DIM - 1,), (1, DIM)):
        with pytest.raises(ModelMismatch, match="this index has 64-D descriptors, got one of shape"):
            follower.update_seen(np.ones(shape, np.float32))


def test_many_photos_of_one_spot(handmade: Handmade) -> None:
    rows = foreign(300, 4).astype(np.float16).astype(np.float32)
    handmade.dim = DIM
    handmade.make([(PhotoMetadata(52.0, 0.25), [row]) for row in rows], places="gps")
    found = follow(handmade.open(), seen_again(rows, range(5)))
    assert {answer.answer.places[0].lat for answer in found} == {52.0}
    assert [answer.answer.confidence for answer in found] == [
        pytest.approx(1 - (answer.off_map or 0), abs=2e-4) for answer in found
    ]


def test_metres_need_positions(drive: tuple[Index, Rows]) -> None:
    index, rows = drive
    with pytest.raises(UsageError, match="metres need positions, and the photos of this index have none"):
        index.follow(motion="metres")
    follower = index.follow()
    for step in (Step(metres=1.0), Step(offset_m=(1.0, 0.0))):
        with pytest.raises(UsageError, match="steps in metres need photo positions"):
            follower.update_seen(rows[0], step)
    assert photo(follower.update_seen(rows[0], Step(photos=1.0))) == "made/0000.jpg"


def test_views_of_panoramas_are_one_photo(handmade: Handmade) -> None:
    rows, sides = traverse(30), foreign(30, 11).astype(np.float16).astype(np.float32)
    handmade.dim = DIM
    handmade.make(
        [(PhotoMetadata(heading=10.0), [row, side]) for row, side in zip(rows, sides, strict=True)],
        places="photo",
    )
    index = handmade.open()
    found = follow(index, seen_again(sides, range(5, 15)))
    assert [photo(answer) for answer in found[3:]] == [f"made/{n:04}.jpg" for n in range(8, 15)]
    assert found[-1].answer.places[0].photos[0].heading == 190.0
    assert len({hit.id for place in found[-1].answer.places for hit in place.photos}) == 5


def test_removed_photos_are_not_answered(world: World, paint: Paint) -> None:
    for view in range(2, 8):
        for wall in range(4):
            paint(world.photos / f"wall{wall}" / f"view{view}.jpg", wall, view)
    world.build()
    index = world.open()
    follower = index.follow(motion="photos")
    first = follower.update(world.photo(2, 5))
    assert photo(first) == "photos/wall2/view5.jpg"
    remove_photos(world.index, ["wall2/view5.jpg"])
    paths = {hit.path for place in follower.update(world.photo(2, 5)).answer.places for hit in place.photos}
    assert paths
    assert "photos/wall2/view5.jpg" not in paths
    assert {hit.path for hit in index.nearest(index.embed([world.photo(2, 4)])[0], 99)} >= paths


@pytest.fixture
def many(world: World, paint: Paint) -> World:
    """Eight photos of each of four walls."""
    for view in range(2, 8):
        for wall in range(4):
            paint(world.photos / f"wall{wall}" / f"view{view}.jpg", wall, view)
    world.build()
    return world


def test_sequence_continues_after_an_unreadable_frame(many: World, tmp_path: Path) -> None:
    index = many.open()
    broken = tmp_path / "broken.jpg"
    broken.write_text("no photo")
    frames = [many.photo(1, 0), broken, many.photo(1, 1), many.photo(1, 2)]
    unread: list[object] = []
    found = index.query_sequence(frames, motion="photos", on_unreadable=lambda frame, _: unread.append(frame))
    assert unread == [broken]
    assert [answer.frame for answer in found] == [0, 2, 3]
    assert {Path(photo(answer)).parent.name for answer in found} == {"wall1"}
    without = index.query_sequence([f for f in frames if f is not broken], motion="photos")
    assert [a.answer.places for a in found] == [a.answer.places for a in without]
    with pytest.raises(ImageError, match="not an image that can be read"):
        index.query_sequence(frames)


def test_the_way_past_an_unreadable_frame_is_kept(many: World, tmp_path: Path) -> None:
    index = many.open()
    (tmp_path / "broken.jpg").write_text("no photo")
    step = index.follow()
    with pytest.raises(ImageError):
        step.update(tmp_path / "broken.jpg", Step(metres=7.0))
    step.update(many.photo(0))
    with pytest.raises(ImageError):
        step.update(tmp_path / "broken.jpg", Step(metres=3.0))
    assert step._skipped == Step(metres=3.0)
    with pytest.raises(ImageError):
        step.update(tmp_path / "broken.jpg", Step(metres=4.0))
    assert step._skipped == Step(metres=7.0)
    step.update(many.photo(0), Step(metres=1.0))
    assert step._skipped is None


def test_query_sequence_equals_following(many: World) -> None:
    index = many.open()
    frames = [many.photo(2, view) for view in range(8)]
    found = index.query_sequence([*frames[:2], frames[2].read_bytes(), *frames[3:]], k=2)
    follower = index.follow(k=2)
    for answer, frame in zip(found, frames, strict=True):
        assert answer.answer.places == follower.update(frame).answer.places
        assert len(answer.answer.places) == 2
        assert set(answer.answer.timings_ms) == {"decode", "embed", "search", "verify"}
    smooth = index.query_sequence(frames, k=2, smooth=True)
    assert smooth[-1].answer.places == found[-1].answer.places
    assert index.query_sequence([]) == []
    with pytest.raises(UsageError, match="expected a step for each of 8 frames, got 1"):
        index.query_sequence(frames, steps=[None])
    with pytest.raises(UsageError, match="`k` must be at least 1, got 0"):
        index.follow(k=0)


def test_frames_are_verified_by_default(many: World) -> None:
    index = many.open()
    frame = many.photo(2, 3)
    seen = index.see(frame)
    follower = index.follow(k=2, remember=True)
    verified = follower.update(frame)
    plain = index.follow(k=2, verify=False).update(frame)
    (best, *_), (unverified, *_) = (found.answer.places[0].photos for found in (verified, plain))
    alone = next(hit for hit in index.nearest(seen, 20) if hit.id == best.id)
    assert (best.inliers, best.score) == (alone.inliers, alone.score)
    assert best.inliers is not None
    assert best.inliers >= 4
    assert unverified.inliers is None
    assert "verify" not in plain.answer.timings_ms
    assert follower.smoothed()[0].answer.places == verified.answer.places
    by_descriptor = index.follow(k=2).update_seen(seen.descriptor)
    assert by_descriptor.answer.places == plain.answer.places
    assert (by_descriptor.off_map, by_descriptor.answer.confidence) == (
        plain.off_map,
        plain.answer.confidence,
    )
    assert (verified.off_map, verified.answer.confidence) != (plain.off_map, plain.answer.confidence)


def test_the_json_of_a_frame(many: World) -> None:
    (found,) = many.open().query_sequence([many.photo(0)])
    names = "frame known confidence position places model snapshot timings_ms note off_map"
    assert list(found.to_json()) == names.split()


def test_added_photos_are_on_the_map(
    drive: tuple[Index, Rows], handmade: Handmade, unit: Callable[..., Rows]
) -> None:
    index, rows = drive
    new = unit(np.random.default_rng(1), DIM)
    photo_id = index.posting().add(handmade.new(1, name="new.jpg"), np.stack([new]))[0].id
    found = follow(index, np.stack([new]))
    assert found[0].answer.places[0].photos[0].id == photo_id
    assert index.follow()._map.lengths == (COUNT, 1)
    assert photo(follow(index, seen_again(rows, range(3)))[-1]) == "made/0002.jpg"
