"""The model: probabilities that hold for any share of known places, and rise with the evidence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.confidence.calibration import (
    OUTCOMES,
    VERSION,
    Calibration,
    Case,
    Model,
    check_known_share,
    cross_validated_error,
    expected_calibration_error,
    fit,
)
from indexer.confidence.evidence import Evidence
from indexer.errors import UsageError

if TYPE_CHECKING:
    from indexer.confidence.calibration import Outcome

MODEL = Model(
    middle=(0.5, 0.6),
    scale=(2.0, 0.5),
    intercepts=(-1.0, 0.3),
    slopes=((0.4, 0.9), (1.1, 0.7)),
    known_share=0.4,
)


def draw(number: int, known_share: float, seed: int, *, verified: bool = False) -> list[Case]:
    """Cases whose evidence is normal about a middle of each outcome's own, both features of one spread."""
    generator = np.random.default_rng(seed)
    middles: dict[Outcome, tuple[float, float]] = {
        "right": (1.6, 0.8),
        "wrong": (0.9, 0.5),
        "absent": (0.7, 0.45),
    }
    cases = []
    for i in range(number):
        known = generator.random() < known_share
        outcome: Outcome = ("right" if generator.random() < 0.8 else "wrong") if known else "absent"
        log_contrast, agreement = generator.normal(middles[outcome], (0.4, 0.2))
        lead = (1 + int(generator.poisson(30 if outcome == "right" else 9))) / 10 if verified else None
        cases.append(Case(f"photo {i}", Evidence(math.exp(log_contrast), agreement, lead), outcome))
    return cases


def error_of(model: Model, cases: list[Case], known_share: float) -> float:
    confidence = np.array([model.probabilities(case.evidence, known_share)["right"] for case in cases])
    right = np.array([case.outcome == "right" for case in cases])
    return expected_calibration_error(confidence, right, np.ones(len(cases)))


def test_share_of_the_fit_changes_nothing() -> None:
    evidence = Evidence(3.0, 0.7)
    z = ((math.log(3.0) - 0.5) / 2.0, (0.7 - 0.6) / 0.5)
    odds = [1.0, math.exp(-1.0 - 0.4 * z[0] - 0.9 * z[1]), math.exp(0.3 - 1.1 * z[0] - 0.7 * z[1])]
    found = MODEL.probabilities(evidence, 0.4)
    assert [found[outcome] for outcome in OUTCOMES] == pytest.approx([value / sum(odds) for value in odds])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.99])
def test_known_share_shifts_the_odds(share: float) -> None:
    """Bayes: right and wrong by κ/κ₀, absent by (1 − κ)/(1 − κ₀), then made to sum to 1."""
    evidence = Evidence(4.0, 0.5)
    before = MODEL.probabilities(evidence, MODEL.known_share)
    weighed = {
        "right": before["right"] * share / 0.4,
        "wrong": before["wrong"] * share / 0.4,
        "absent": before["absent"] * (1 - share) / 0.6,
    }
    found = MODEL.probabilities(evidence, share)
    assert found == pytest.approx({name: value / sum(weighed.values()) for name, value in weighed.items()})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("fitted_on", [0.3, 0.5])
def test_probabilities_hold_for_a_share_that_they_were_not_fitted_on(share: float, fitted_on: float) -> None:
    model = fit(draw(3000, fitted_on, 1))
    assert error_of(model, draw(6000, share, 2), share) < 0.025


def test_a_wrong_share_is_worse() -> None:
    model, cases = fit(draw(3000, 0.5, 1)), draw(6000, 0.2, 2)
    assert error_of(model, cases, 0.2) < 0.025 < 0.08 < error_of(model, cases, 0.8)


def test_more_evidence_is_never_less_sure() -> None:
    """Though in these cases the features tell the wrong way round."""
    turned = [
        replace(case, evidence=Evidence(1 / case.evidence.contrast, 1 - case.evidence.agreement))
        for case in draw(300, 0.5, 3)
    ]
    for model in (fit(draw(60, 0.5, 0)), fit(turned), MODEL):
        assert min(*model.slopes[0], *model.slopes[1]) >= 0
        for share in (0.05, 0.8):
            for agreement in (0.1, 0.9):
                by_contrast = [
                    model.probabilities(Evidence(c, agreement), share)["right"]
                    for c in (-1, 0.2, 1, 2, 4, 40)
                ]
                assert by_contrast == sorted(by_contrast)
            by_agreement = [
                model.probabilities(Evidence(3, a), share)["right"] for a in np.linspace(0, 1, 9).tolist()
            ]
            assert by_agreement == sorted(by_agreement)


def test_the_fit_has_the_largest_posterior() -> None:
    """No step away from it that the bounds allow is better by the formula as it is written."""
    cases = [replace(case, weight=1 / (1 + i % 3)) for i, case in enumerate(draw(120, 0.5, 4))]
    model = fit(cases)

    def loss(intercepts: np.ndarray, slopes: np.ndarray) -> float:
        moved = replace(
            model,
            intercepts=(float(intercepts[0]), float(intercepts[1])),
            slopes=(tuple(slopes[0].tolist()), tuple(slopes[1].tolist())),
        )
        mean = Evidence(math.exp(model.middle[0]), model.middle[1])
        value = sum(-math.log(moved.probabilities(mean, moved.known_share)[outcome]) for outcome in OUTCOMES)
        for case in cases:
            value -= case.weight * math.log(
                moved.probabilities(case.evidence, moved.known_share)[case.outcome]
            )
        return float(value + 0.5 * (slopes[1] ** 2).sum() + 1.5 * ((slopes[0] - slopes[1]) ** 2).sum())

    intercepts, slopes = np.array(model.intercepts), np.array(model.slopes)
    best = loss(intercepts, slopes)
    generator = np.random.default_rng(0)
    for _ in range(60):
        step = 0.02 * generator.standard_normal((3, 2))
        assert loss(intercepts + step[0], np.maximum(slopes + step[1:], 0)) > best - 1e-6


def test_an_outcome_that_was_never_met_stays_possible() -> None:
    cases = [case for case in draw(300, 0.5, 5) if case.outcome != "wrong"]
    found = fit(cases).probabilities(Evidence(2.0, 0.5), 0.5)
    assert 0 < found["wrong"] < 0.1
    assert sum(found.values()) == pytest.approx(1)


def test_evidence_beyond_all_bounds_gives_probabilities_all_the_same() -> None:
    for contrast, agreement in ((1e300, 1.0), (-1e300, 0.0), (0.0, 0.5)):
        found = MODEL.probabilities(Evidence(contrast, agreement), 1e-9)
        assert all(0 <= value <= 1 for value in found.values())
        assert sum(found.values()) == pytest.approx(1)


def test_cases_without_any_spread_can_be_fitted() -> None:
    same = [Case(f"{i}", Evidence(2.0, 1.0), "right" if i % 2 else "absent") for i in range(80)]
    assert fit(same).probabilities(Evidence(2.0, 1.0), 0.5)["right"] == pytest.approx(0.5, abs=0.03)


def test_lead_counts_if_present() -> None:
    model = fit(draw(2000, 0.5, 6, verified=True))
    few, many = (model.probabilities(Evidence(3.0, 0.6, lead), 0.5)["right"] for lead in (1.0, 3.5))
    assert few < 0.2 < 0.9 < many
    assert error_of(model, draw(4000, 0.8, 7, verified=True), 0.8) < 0.03


def test_a_verified_answer_is_judged_by_both_models() -> None:
    plain, verified = fit(draw(300, 0.5, 8)), fit(draw(300, 0.5, 8, verified=True))
    calibration = Calibration(photos=300, model=plain, verified=verified)
    led, without = Evidence(3.0, 0.6, 3.0), Evidence(3.0, 0.6)
    both = [model.probabilities(led, 0.8) for model in (plain, verified)]
    assert both[0] == plain.probabilities(without, 0.8)
    mean = {outcome: (both[0][outcome] + both[1][outcome]) / 2 for outcome in OUTCOMES}
    assert calibration.probabilities(led, 0.8) == pytest.approx(mean)
    assert sum(mean.values()) == pytest.approx(1)
    assert calibration.probabilities(without, 0.8) == plain.probabilities(without, 0.8)
    assert replace(calibration, verified=None).probabilities(led, 0.8) is None
    assert Calibration(photos=3, reason="too few").probabilities(without, 0.8) is None


def test_a_manifest_keeps_it_whole() -> None:
    model = fit(draw(100, 0.5, 9))
    for calibration in (
        Calibration(photos=3, reason="too few", frames=2),
        Calibration(
            photos=100, queries=90, model=model, verified=model, right=0.9, ece=0.04, radius_factor=0.7
        ),
    ):
        values = json.loads(json.dumps(calibration.to_json()))
        assert Calibration.from_json(values) == calibration
        assert Calibration.from_json(values | {"version": VERSION + 1}) is None
    assert Calibration.from_json(None) is None


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, math.nan, math.inf])
def test_invalid_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"^the share of known places must lie between 0 and 1, not "):
        check_known_share(share)


def test_the_calibration_error_by_hand() -> None:
    """Bin 9 holds .95 and 1, one of them right: .475 off by half the weight; bin 2 holds .25, wrong."""
    confidence = np.array([0.95, 1.0, 0.25])
    right = np.array([True, False, False])
    found = expected_calibration_error(confidence, right, np.array([1.0, 1.0, 2.0]))
    assert found == pytest.approx((abs(1.95 - 1) + 2 * 0.25) / 4)


def test_the_error_is_taken_of_photos_that_were_left_out() -> None:
    cases = draw(400, 0.5, 10)
    assert 0.005 < cross_validated_error(cases) < 0.1
    # Every photo met once as right and once as absent with the same evidence: nothing better than one half.
    twice = [replace(case, outcome=outcome) for case in cases for outcome in ("right", "absent")]
    assert cross_validated_error(twice) < 0.03
