"""The filter against a hidden Markov model written out in matrices, and what it promises."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.answers import KNOWN_SHARE
from indexer.errors import UsageError
from indexer.sequences import bayes_filter as sequences
from indexer.sequences.bayes_filter import (
    CHANCE,
    GAPS,
    MOST_CONTRAST,
    RESTART,
    USUAL_CONTRAST,
    Belief,
    Likeness,
    SequenceFilter,
    learn,
    likelihoods,
)
from indexer.sequences.motion import MetricMotion, Motion, OrderedMotion, Step

Floats = NDArray[np.float64]


def metric_map(photos: int) -> MetricMotion:
    return MetricMotion(52 + np.arange(photos, dtype=np.float64) * 2e-4, np.full(photos, 0.25))  # 22 m apart


def transition(model: Motion, step: Step) -> Floats:
    """P(y | x) between all states, the last of which is off the map, row x."""
    states, prior = model.ways * model.photos, prior_of(model)
    matrix = np.zeros((states + 1, states + 1))
    for x in range(states):
        belief = np.zeros(states)
        belief[x] = 1
        shaped = belief.reshape(model.ways, model.photos)
        moved, astray = model.move(shaped, step).forward(shaped)
        matrix[x, :states] = moved.ravel()
        matrix[x, states] = 1 - moved.sum() - astray
        matrix[x] += astray * prior
    matrix[states, states] = 1
    restart = max(RESTART, step.cut)
    return (1 - restart) * matrix + restart * prior


def prior_of(model: Motion) -> Floats:
    states = model.ways * model.photos
    return np.append(np.full(states, KNOWN_SHARE / states), 1 - KNOWN_SHARE)


def naive_likelihood(model: Motion, scores: Floats, contrast: float, step: Step | None) -> Floats:
    """`step` is None for the first frame."""
    z = (scores - np.mean(scores)) / np.std(scores)
    novelty, chance = (1.0, 0.0) if step is None else (step.novelty, (1 - step.cut) * CHANCE)
    at = [np.exp(novelty * contrast * (value - (contrast + chance) / 2)) for value in z]
    return np.array([*(at * model.ways), 1.0])


def frames(photos: int, count: int, seed: int = 3) -> list[tuple[Floats, Step]]:
    generator = np.random.default_rng(seed)
    steps = [Step(), Step(photos=0.7, metres=20.0, novelty=0.6), Step(photos=1.4, metres=40.0, cut=0.3)]
    return [(generator.random(photos), steps[frame % 3]) for frame in range(count)]


@pytest.mark.parametrize("model", [OrderedMotion([12]), OrderedMotion([5, 1, 6]), metric_map(12)])
def test_it_is_the_filter_of_a_hidden_markov_model(model: Motion) -> None:
    followed = SequenceFilter(model, 2.5)
    expected = prior_of(model)
    for number, (scores, step) in enumerate(frames(12, 9)):
        if number:
            expected = expected @ transition(model, step)
        expected = expected * naive_likelihood(model, scores, 2.5, step if number else None)
        expected = expected / expected.sum()
        belief = followed.update(scores, step)
        np.testing.assert_allclose(belief.photos, expected[:-1].reshape(-1, 12).sum(axis=0), atol=1e-12)
        assert belief.off == pytest.approx(expected[-1], abs=1e-12)


@pytest.mark.parametrize("model", [OrderedMotion([3]), OrderedMotion([2, 1]), metric_map(3)])
def test_smoothing_equals_the_sum_over_all_paths(model: Motion) -> None:
    seen = frames(3, 4)
    followed = SequenceFilter(model, 2.0, remember=True)
    filtered = [followed.update(scores, step) for scores, step in seen]
    states = model.ways * 3 + 1
    prior = prior_of(model)
    likely = [naive_likelihood(model, s, 2.0, step if n else None) for n, (s, step) in enumerate(seen)]
    matrices = [transition(model, step) for _, step in seen]
    expected = np.zeros((4, states))
    for way in itertools.product(range(states), repeat=4):
        chance = prior[way[0]] * likely[0][way[0]]
        for frame in range(1, 4):
            chance *= matrices[frame][way[frame - 1], way[frame]] * likely[frame][way[frame]]
        for frame in range(4):
            expected[frame, way[frame]] += chance
    expected /= expected.sum(axis=1, keepdims=True)
    smoothed = followed.smoothed()
    for belief, row in zip(smoothed, expected, strict=True):
        np.testing.assert_allclose(belief.photos, row[:-1].reshape(-1, 3).sum(axis=0), atol=1e-6)
        assert belief.off == pytest.approx(row[-1], abs=1e-6)
    np.testing.assert_allclose(smoothed[-1].photos, filtered[-1].photos, atol=1e-6)


def test_later_frames_do_not_change_earlier_answers_and_runs_agree() -> None:
    seen = frames(30, 12)
    runs: list[list[Belief]] = []
    for until in (12, 12, 5):
        followed = SequenceFilter(OrderedMotion([30]), 3.0)
        runs.append([followed.update(scores, step) for scores, step in seen[:until]])
    for one, again, shorter in zip(runs[0], runs[1], runs[2], strict=False):
        assert np.array_equal(one.photos, again.photos)
        assert np.array_equal(one.photos, shorter.photos)
        assert one.off == again.off == shorter.off


def showing(photo: int | None, photos: int, generator: np.random.Generator, z: float = 3.5) -> Floats:
    scores = generator.standard_normal(photos)
    if photo is not None:
        scores[photo] = z
    return np.asarray(scores * 0.05 + 0.3)


def test_a_stretch_off_the_map_is_found_and_left() -> None:
    generator = np.random.default_rng(0)
    way = [*range(10, 20), *[None] * 10, *range(60, 70)]
    followed = SequenceFilter(OrderedMotion([100]), 3.5)
    beliefs = [followed.update(showing(photo, 100, generator), Step(photos=1.0)) for photo in way]
    known = [belief.photos.max() > 0.5 for belief in beliefs]
    assert known[5:10] == [True] * 5
    assert [belief.off > 0.5 for belief in beliefs[14:20]] == [True] * 6
    assert known[25:] == [True] * 5
    best = [int(belief.photos.argmax()) for belief in beliefs]
    assert best[5:10] == list(range(15, 20))
    assert best[25:] == list(range(65, 70))


def test_carried_camera_is_found_again() -> None:
    generator = np.random.default_rng(1)
    way = [*range(10, 30), *range(80, 90)]
    followed = SequenceFilter(OrderedMotion([100]), 3.5)
    best = [
        int(followed.update(showing(photo, 100, generator), Step(photos=1.0)).photos.argmax())
        for photo in way
    ]
    assert best[3:20] == way[3:20]
    assert best[24:] == way[24:]


def test_order_corrects_a_frame_that_looks_like_another_place() -> None:
    generator = np.random.default_rng(2)
    followed = SequenceFilter(OrderedMotion([100]), 3.5)
    for photo in range(10, 20):
        followed.update(showing(photo, 100, generator), Step(photos=1.0))
    scores = showing(20, 100, generator, 3.0)
    scores[77] = 0.05 * 4.0 + 0.3
    assert scores.argmax() == 77
    assert followed.update(scores, Step(photos=1.0)).photos.argmax() == 20


def test_driven_backwards_it_follows_too() -> None:
    generator = np.random.default_rng(3)
    followed = SequenceFilter(OrderedMotion([100]), 3.5)
    for photo in range(60, 40, -1):
        belief = followed.update(showing(photo, 100, generator), Step(photos=1.0))
    assert belief.photos.argmax() == 41
    assert belief.photos[41] > 0.8


def test_looking_twice_at_the_same_makes_nothing_surer() -> None:
    generator = np.random.default_rng(4)
    scores = showing(50, 100, generator, 3.2)

    def sure(novelty: float) -> list[float]:
        followed = SequenceFilter(OrderedMotion([100]), 3.5)
        beliefs = [followed.update(scores)]
        beliefs += [followed.update(scores, Step(photos=0.0, novelty=novelty)) for _ in range(20)]
        return [float(belief.photos[48:53].sum()) for belief in beliefs]

    still, moving = sure(0.0), sure(1.0)
    assert still[0] == moving[0] < 0.9
    assert still == sorted(still, reverse=True)
    assert moving[-1] > 0.9


def test_first_frame_has_no_chance_level() -> None:
    scores = showing(50, 100, np.random.default_rng(4), 3.0)
    first, off = likelihoods(scores, 3.5, fresh=1.0)
    later, off_later = likelihoods(scores, 3.5)
    assert (first / off)[50] / (later / off_later)[50] == pytest.approx(np.exp(3.5 * CHANCE / 2))
    belief = SequenceFilter(OrderedMotion([100]), 3.5).update(scores)
    prior = prior_of(OrderedMotion([100]))
    expected = prior * np.array([*first, *first, off])
    np.testing.assert_allclose(belief.off, (expected / expected.sum())[-1])


def test_cut_forgets_the_position() -> None:
    generator = np.random.default_rng(5)
    followed = SequenceFilter(OrderedMotion([100]), 3.5)
    for photo in range(10, 20):
        followed.update(showing(photo, 100, generator), Step(photos=1.0))
    scores = showing(80, 100, generator)
    fresh = SequenceFilter(OrderedMotion([100]), 3.5).update(scores)
    after = followed.update(scores, Step(photos=1.0, cut=1.0))
    np.testing.assert_allclose(after.photos, fresh.photos)
    assert after.off == pytest.approx(fresh.off)


def test_a_photo_that_more_features_agree_with_is_likelier() -> None:
    scores = np.random.default_rng(6).random(50)
    plain, off = likelihoods(scores, 3.0, novelty=0.5)
    inliers = {4: 59, 9: 5, 11: 2} | dict.fromkeys(range(20, 37), 5)
    found, found_off = likelihoods(scores, 3.0, novelty=0.5, inliers=inliers)
    ratio = (found / found_off) / (plain / off)
    # 60/6 and 3/6, to the power of 2 · 0.5; 5 of 20 photos stay as they are, and those not compared.
    np.testing.assert_allclose(ratio[[4, 11]], [10.0, 0.5])
    np.testing.assert_allclose(np.delete(ratio, [4, 11]), 1.0)


def test_inliers_as_of_every_pair_say_nothing() -> None:
    scores = np.random.default_rng(6).random(50)
    plain = likelihoods(scores, 3.0)
    for inliers in ({}, {3: 17}, dict.fromkeys(range(20), 8)):
        found = likelihoods(scores, 3.0, inliers=inliers)
        np.testing.assert_allclose(found[0], plain[0])
        assert found[1] == pytest.approx(plain[1])


@pytest.mark.parametrize("scale", [(1.0, 0.0), (0.01, 5.0), (300.0, -40.0)])
def test_only_the_form_of_the_scores_matters(scale: tuple[float, float]) -> None:
    scores = np.random.default_rng(6).random(50)
    plain, off = likelihoods(scores, 3.0)
    scaled, off_scaled = likelihoods(scores * scale[0] + scale[1], 3.0)
    np.testing.assert_allclose(scaled, plain, rtol=1e-9)
    assert off_scaled == pytest.approx(off)


def test_likelihoods_of_a_sure_photo_do_not_overflow() -> None:
    scores = np.zeros(1_000_000)
    scores[7] = 1.0  # a thousand standard deviations
    at, off = likelihoods(scores, 4.0)
    assert (at[7], off) == (1.0, 0.0)
    followed = SequenceFilter(OrderedMotion([1_000_000]), 4.0)
    for step in (None, Step(photos=0.0)):
        belief = followed.update(scores, step)
        assert belief.photos[7] == pytest.approx(1.0)
        assert np.isfinite(belief.photos).all()


def test_a_map_of_one_photo_and_scores_without_spread() -> None:
    one = SequenceFilter(OrderedMotion([1]), 3.0)
    for _ in range(3):
        belief = one.update(np.array([0.4]))
        assert belief.photos.sum() + belief.off == pytest.approx(1)
    flat = SequenceFilter(OrderedMotion([30]), 3.0).update(np.full(30, 0.2))
    np.testing.assert_allclose(flat.photos, flat.photos[0])
    assert flat.off > 0.5


def test_what_cannot_be() -> None:
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="known_share must be more than 0 and less than 1, not"):
            SequenceFilter(OrderedMotion([3]), 3.0, known_share=share)
    with pytest.raises(UsageError, match=r"expected scores of 3 photos, got an array of \(4,\)"):
        SequenceFilter(OrderedMotion([3]), 3.0).update(np.zeros(4))


def test_smoothing_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "MOST_REMEMBERED", 10 * 12 * 3)
    followed = SequenceFilter(OrderedMotion([10]), 3.0, remember=True)
    for _ in range(3):
        followed.update(np.arange(10.0))
    with pytest.raises(
        UsageError, match="smoothing 4 frames over 10 photos takes more than 0 GB: smooth fewer"
    ):
        followed.update(np.arange(10.0))


def drive(photos: int, seed: int = 0, near: float = 0.7, dim: int = 256) -> NDArray[np.float32]:
    """Descriptors of a traverse, each a mix of the one before and something new."""
    generator = np.random.default_rng(seed)
    rows = [generator.standard_normal(dim)]
    for _ in range(photos - 1):
        new = generator.standard_normal(dim)
        rows.append(near * rows[-1] + (1 - near**2) ** 0.5 * new)
    matrix = np.stack(rows)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def test_likeness_of_a_traverse() -> None:
    rows = drive(400)
    likeness = learn(lambda photos: rows[photos], OrderedMotion([400]))
    cosines = rows.astype(float) @ rows.T
    np.fill_diagonal(cosines, np.nan)
    z = (cosines - np.nanmean(cosines, axis=1, keepdims=True)) / np.nanstd(cosines, axis=1, keepdims=True)
    contrast = np.median(np.concatenate([np.diagonal(z, 1), np.diagonal(z, 2)]))
    assert contrast > MOST_CONTRAST
    assert likeness.contrast == MOST_CONTRAST
    assert len(likeness.by_gap) == 1 + len(GAPS)
    for gap, cosine in zip(GAPS[:3], likeness.by_gap[1:4], strict=True):
        assert cosine == pytest.approx(np.median(np.diagonal(cosines, gap)), abs=1e-5)
    assert list(likeness.by_gap) == sorted(likeness.by_gap, reverse=True)
    assert likeness.others[0] == pytest.approx(np.nanmean(cosines), abs=1e-5)
    assert likeness.others[1] == pytest.approx(np.nanstd(cosines), abs=1e-5)


def test_contrast_is_a_median_over_neighbours() -> None:
    rows = drive(60, near=0.35)
    cosines = rows.astype(float) @ rows.T
    np.fill_diagonal(cosines, np.nan)
    z = (cosines - np.nanmean(cosines, axis=1, keepdims=True)) / np.nanstd(cosines, axis=1, keepdims=True)
    contrast = np.median(np.concatenate([np.diagonal(z, 1), np.diagonal(z, 2)]))
    assert 1 < contrast < MOST_CONTRAST
    learnt = learn(lambda photos: rows[photos], OrderedMotion([60]))
    assert learnt.contrast == pytest.approx(contrast, abs=1e-4)


def test_frames_tell_how_far_the_camera_went() -> None:
    rows = drive(400)
    likeness = learn(lambda photos: rows[photos], OrderedMotion([400]))
    still = likeness.step(1.0)
    assert still.photos == 0.0
    assert still.novelty == still.cut < 0.001
    passed = [likeness.step(cosine).photos for cosine in likeness.by_gap[1:5]]
    assert passed == pytest.approx([1, 2, 3, 5])
    assert likeness.step(likeness.by_gap[1]).novelty == pytest.approx(1.0)
    assert likeness.step((1 + likeness.by_gap[1]) / 2).novelty == pytest.approx(0.5, abs=0.01)
    assert likeness.step(0.0).cut > 0.5
    assert likeness.step(-1.0).cut <= 1.0


def test_neighbours_on_a_metric_map_are_the_most_alike_about() -> None:
    rows = drive(60, near=0.9)
    turned = drive(60, seed=9)  # a second photo at each spot that looks elsewhere
    both = np.stack([rows, turned], axis=1).reshape(120, -1)
    lat = np.asarray(np.repeat(52 + np.arange(60) * 2e-4, 2), np.float64)
    likeness = learn(lambda photos: both[photos], MetricMotion(lat, np.full(120, 0.25)))
    assert likeness.contrast == MOST_CONTRAST
    assert len(likeness.by_gap) == 2
    assert likeness.step(1.0) == Step(novelty=0.0)
    assert likeness.step(-1.0) == Step(novelty=1.0)


def test_unordered_photos_are_refused_as_traverses() -> None:
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for lengths in ([100], [1] * 100):
        with pytest.raises(
            UsageError, match="a camera cannot be followed in this index: its photos have no pos"
        ):
            learn(lambda photos: rows[photos], OrderedMotion(lengths))
    lonely = learn(
        lambda photos: rows[photos], MetricMotion(np.arange(100, dtype=np.float64) * 0.01, np.zeros(100))
    )
    assert lonely.contrast == USUAL_CONTRAST


@pytest.mark.parametrize("photos", [1, 2, 3])
def test_small_maps_are_learnt_without_a_warning(photos: int) -> None:
    rows = drive(photos)
    likeness = learn(lambda photos: rows[photos], OrderedMotion([photos]))
    assert isinstance(likeness, Likeness)
    step = likeness.step(0.5)
    assert np.isfinite([step.photos or 0.0, step.cut, step.novelty]).all()
