"""The measures against values worked out by hand, and against naive loops."""

import numpy as np
import pytest

from indexer.evaluation.metrics import (
    Bin,
    calibration_error,
    paired_bootstrap,
    percentiles,
    precision_recall,
    recall_at_n,
    reliability,
)


def test_recall_by_hand() -> None:
    ranks = [0, 3, None, 1]
    assert [recall_at_n(ranks, n) for n in (1, 2, 4, 20)] == [0.25, 0.5, 0.75, 0.75]
    with pytest.raises(ValueError, match="recall needs queries"):
        recall_at_n([], 1)


def test_precision_and_recall_by_hand() -> None:
    """Right, wrong, right, foreign (so wrong); a fourth answerable query is answered wrongly, and last."""
    curve = precision_recall([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, False], 4)
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert curve.precision.tolist() == [1, 1 / 2, 2 / 3, 2 / 4, 2 / 5]
    assert curve.recall.tolist() == [1 / 4, 1 / 4, 2 / 4, 2 / 4, 2 / 4]
    assert curve.area() == pytest.approx(1 / 4 * 1 + 1 / 4 * 2 / 3)
    assert [curve.recall_at(p) for p in (1.0, 0.6, 0.3)] == [0.25, 0.5, 0.5]


def test_equal_values_are_answered_together() -> None:
    curve = precision_recall([0.5, 0.9, 0.5, 0.9], [True, True, False, False], 2)
    assert curve.thresholds.tolist() == [0.9, 0.5]
    assert curve.precision.tolist() == [0.5, 0.5]
    assert curve.recall.tolist() == [0.5, 1.0]
    assert curve.recall_at(1.0) == 0


def test_evaluation_without_answers() -> None:
    curve = precision_recall([], [], 3)
    assert (curve.area(), curve.recall_at(0.5)) == (0, 0)


@pytest.mark.parametrize(("values", "right", "answerable"), [([1.0], [], 1), ([1.0], [True], 0)])
def test_invalid_values_make_no_curve(values: list[float], right: list[bool], answerable: int) -> None:
    with pytest.raises(ValueError, match=f"{len(values)} values, {len(right)} judgements, {answerable} ans"):
        precision_recall(values, right, answerable)


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_equal_a_naive_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, right = rng.integers(0, 20, 60) / 20, rng.random(60) < 0.6
    curve = precision_recall(values.tolist(), right.tolist(), 50)
    area, before = 0.0, 0.0
    for i, threshold in enumerate(sorted(set(values.tolist()), reverse=True)):
        answered = [r for v, r in zip(values, right, strict=True) if v >= threshold]
        precision, recall = sum(answered) / len(answered), sum(answered) / 50
        area += (recall - before) * precision
        before = recall
        assert curve.thresholds[i] == threshold
        assert (curve.precision[i], curve.recall[i]) == pytest.approx((precision, recall))
    assert len(curve.thresholds) == i + 1
    assert curve.area() == pytest.approx(area)


def test_reliability_by_hand() -> None:
    bins = reliability([0.0, 0.05, 0.1, 0.95, 1.0], [False, True, True, True, False])
    assert bins[0] == Bin(0.0, 0.1, 2, 0.025, 0.5)
    assert bins[1] == Bin(0.1, 0.2, 1, 0.1, 1.0)
    assert bins[5] == Bin(0.5, 0.6, 0, None, None)
    assert (bins[9].queries, bins[9].right) == (2, 0.5)
    assert bins[9].confidence == pytest.approx(0.975)
    assert len(bins) == 10
    assert calibration_error(bins) == pytest.approx((2 * 0.475 + 1 * 0.9 + 2 * 0.475) / 5)


def test_a_calibrated_answerer_has_no_error() -> None:
    assert calibration_error(reliability([0.75] * 4 + [0.0], [True, True, True, False, False])) == 0
    assert calibration_error(reliability([], [])) == 0


def test_sure_of_nothing_and_always_right_is_the_worst_error() -> None:
    assert calibration_error(reliability([0.0, 0.0], [True, True])) == 1


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_a_naive_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sure, right = rng.random(200), rng.random(200) < 0.5
    total = 0.0
    for b in range(10):
        inside = [i for i in range(200) if b / 10 <= sure[i] < (b + 1) / 10]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            total += len(inside) / 200 * abs(accuracy - sum(sure[i] for i in inside) / len(inside))
    assert calibration_error(reliability(sure.tolist(), right.tolist())) == pytest.approx(total)


def test_percentiles_by_hand() -> None:
    assert percentiles([4.0, 1.0, 3.0, 2.0, 5.0]) == pytest.approx(
        {"p25": 2, "p50": 3, "p75": 4, "p90": 4.6, "p95": 4.8}
    )


def test_the_bootstrap_is_that_of_resampled_pairs() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(150) < 0.7, rng.random(150) < 0.55
    found = paired_bootstrap(first.tolist(), second.tolist(), seed=1)
    drawn = rng.integers(0, 150, (10_000, 150))
    naive = first[drawn].mean(axis=1) - second[drawn].mean(axis=1)
    low, high = np.percentile(naive, [2.5, 97.5])
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)
    assert paired_bootstrap(first.tolist(), second.tolist(), seed=1) == found


def test_a_bootstrap_of_equals_is_sure_of_no_difference() -> None:
    found = paired_bootstrap([True, False], [True, False])
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="2 and 1 outcomes cannot be paired"):
        paired_bootstrap([True, False], [True])
    with pytest.raises(ValueError, match="0 and 0 outcomes cannot be paired"):
        paired_bootstrap([], [])
