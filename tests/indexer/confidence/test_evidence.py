"""Evidence: what it is by hand, and that no light, season or camera that scales all scores changes it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from indexer.confidence.evidence import Level, evidence_of, share_out, weights
from indexer.search.searcher import WEIGHED
from indexer.snapshots.exact import ExactStore
from indexer.snapshots.store import SAMPLE, sample_of, sampled


def test_evidence_by_hand() -> None:
    """Scores 1, .8, .6 by a level of .2 ± .2 weigh 1, e⁻², e⁻⁴; the second is another place."""
    level = Level(0.2, 0.2)
    found = evidence_of(np.array([1.0, 0.8, 0.6]), np.array([True, False, True]), level, [7, 3, 99])
    assert found.contrast == pytest.approx(4.0)
    assert found.agreement == pytest.approx((1 + math.exp(-4)) / (1 + math.exp(-2) + math.exp(-4)))
    assert found.lead == pytest.approx(8 / 4)
    assert found.features() == pytest.approx((math.log(4.0), found.agreement, math.log(2)))


def test_lead_is_over_the_upper_quartile_elsewhere() -> None:
    near = np.array([True, False, False, False, False, False, True])
    agreeing = [19, 0, 4, 8, 12, None, 50]
    found = evidence_of(np.linspace(0.5, 0.2, 7), near, Level(0.1, 0.1), agreeing)
    assert found.lead == pytest.approx(20 / (1 + np.quantile([0, 4, 8, 12], 0.75)))
    alone = evidence_of(np.array([0.5, 0.4]), np.array([True, True]), Level(0.1, 0.1), [19, 3])
    assert alone.lead == pytest.approx(20)
    assert evidence_of(np.array([0.5]), np.array([True]), Level(0.1, 0.1), [None]).lead is None


def test_an_ordinary_score() -> None:
    normal = np.random.default_rng(0).normal(0.3, 0.05, 4000)
    level = Level.of(normal)
    assert (level.middle, level.width) == pytest.approx((0.3, 0.05), abs=0.003)
    outliers = np.concatenate([normal, np.full(40, 0.99)])  # a hundredth that shows the place
    assert Level.of(outliers).width == pytest.approx(level.width, abs=0.002)


@pytest.mark.parametrize("scores", [[], [0.5], [0.5] * 9])
def test_a_level_without_spread(scores: list[float]) -> None:
    level = Level.of(np.array(scores))
    found = evidence_of(np.array([0.5, 0.5]), np.array([True, False]), level)
    assert math.isfinite(found.contrast)
    assert found.agreement == pytest.approx(0.5)


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0.0), (1.0, 0.2), (0.6, -0.1)])
def test_scores_that_all_change_alike_are_the_same_evidence(gain: float, offset: float) -> None:
    generator = np.random.default_rng(1)
    sample = generator.normal(0.1, 0.06, 300)
    scores = np.sort(generator.normal(0.3, 0.05, 60))[::-1]
    near = np.array([True, *(generator.random(59) < 0.2)])
    before = evidence_of(scores, near, Level.of(sample))
    after = evidence_of(offset + gain * scores, near, Level.of(offset + gain * sample))
    assert (after.contrast, after.agreement) == pytest.approx((before.contrast, before.agreement))


def test_only_the_best_photos_are_weighed() -> None:
    scores = np.linspace(0.9, 0.1, WEIGHED + 30)
    near = np.arange(len(scores)) % 3 == 0
    level = Level(0.0, 0.3)
    assert evidence_of(scores, near, level) == evidence_of(scores[:WEIGHED], near[:WEIGHED], level)


def test_a_lone_photo_agrees_with_itself() -> None:
    assert evidence_of(np.array([0.4]), np.array([True]), Level(0.1, 0.1)).agreement == 1.0


def test_the_sample_is_spread_over_all_ids() -> None:
    ids = np.arange(0, 70_000, 7)
    found = sampled(ids)
    assert len(found) == SAMPLE == len(np.unique(found))
    assert (found[0], found[-1]) == (ids[0], ids[-1])
    assert np.diff(found).max() <= 7 * 11
    assert sampled(ids[:5]).tolist() == ids[:5].tolist()


def test_the_sample_of_a_store() -> None:
    vectors = np.random.default_rng(2).standard_normal((30, 4)).astype(np.float32)
    store = ExactStore.build(4, [(np.arange(30) * 3, vectors)])
    assert sample_of(store).tolist() == vectors.tolist()


def test_remaining_probability_is_shared_by_score() -> None:
    level = Level(0.0, 0.2)
    found = share_out(0.3, [0.5, 0.4, 0.1], level, most=0.6)
    assert found == pytest.approx(
        (0.3 * weights(np.array([0.5, 0.4, 0.1]), level) / (1 + math.exp(-1) + math.exp(-4))).tolist()
    )
    assert sum(found) == pytest.approx(0.3)


def test_no_further_place_exceeds_the_first() -> None:
    assert share_out(0.7, [0.5], Level(0.0, 0.2), most=0.1) == [0.1]
    assert share_out(0.7, [], Level(0.0, 0.2), most=0.1) == []
