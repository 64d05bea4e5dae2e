"""Calibration: a small monotone model from evidence to the probability that an answer is right.

A query has one of three outcomes: the index has its place and the first answer is it (*right*), the index has
its place and the first answer is another (*wrong*), or the index does not have its place (*absent*). `fit`
learns from cases of all three, which come from the index's own photos (`indexer.confidence.self_queries`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from indexer.confidence.evidence import Evidence
from indexer.errors import UsageError
from indexer.options import PLACE_RADIUS_M

VERSION = 1
KNOWN_FROM = 0.5
"""Least confidence of a known place: below, the answer is more likely wrong than right."""
BINS = 10

Outcome = Literal["right", "wrong", "absent"]
OUTCOMES: tuple[Outcome, ...] = ("right", "wrong", "absent")
Floats = NDArray[np.float64]

_RIDGE = 1.0
_APART = 3.0
_FOLDS = 5


@dataclass(frozen=True)
class Case:
    """A query whose outcome is known."""

    photo: str
    evidence: Evidence
    outcome: Outcome
    weight: float = 1.0


@dataclass(frozen=True)
class Model:
    """Log-odds of wrong and of absent against right; each falls in every feature.

    log P₀(o|x)/P₀(right|x) = aₒ − bₒ·(x − m)/s with bₒ ≥ 0, for o wrong or absent, where the share κ₀ of the
    fitted queries shows a place of the index. For another share κ, P(o|x) ∝ P₀(o|x)·κ/κ₀ for right and wrong,
    and ∝ P₀(absent|x)·(1 − κ)/(1 − κ₀), so

        P(right|x) = 1 / (1 + e^{a_w − b_w·z} + (1 − κ)/κ · κ₀/(1 − κ₀) · e^{a_a − b_a·z}).

    This is exact for every κ without a new fit, and rises in every feature.
    """

    middle: tuple[float, ...]
    scale: tuple[float, ...]
    intercepts: tuple[float, float]
    """The two of wrong and absent."""
    slopes: tuple[tuple[float, ...], tuple[float, ...]]
    known_share: float
    """κ₀."""

    def probabilities(self, evidence: Evidence, known_share: float) -> dict[Outcome, float]:
        """Return the probabilities of the outcomes, if `known_share` of the queries show a place of the
        index.
        """
        z = (np.array(evidence.features()[: len(self.middle)]) - self.middle) / self.scale
        shift = math.log((1 - known_share) / known_share * self.known_share / (1 - self.known_share))
        logs = np.array([0.0, *(np.array(self.intercepts) - np.array(self.slopes) @ z)])
        logs[2] += shift
        odds = np.exp(logs - logs.max())
        right, wrong, absent = (odds / odds.sum()).tolist()
        return {"right": right, "wrong": wrong, "absent": absent}


@dataclass(frozen=True)
class Calibration:
    """The calibration of a snapshot's confidence."""

    photos: int
    """Photos that share a place with another photo."""
    of: int = 0
    """Photos of the index at the time."""
    queries: int = 0
    """Photos that were used as queries."""
    reason: str | None = None
    """Why there is no model; None if there is one."""
    model: Model | None = None
    """The model by contrast and agreement."""
    verified: Model | None = None
    """The model with the lead as well, for verified answers; None if none was verified."""
    right: float | None = None
    """Share of the present queries that were answered rightly."""
    ece: float | None = None
    """Expected calibration error over ten bins, by five-fold cross-validation."""
    radius_factor: float = 1.0
    """Factor of a position's radius, so that it holds the truth two times in three."""
    frames: int | None = None
    """Number of neighbouring frames that count as the same place; None if position or place decides."""
    named: bool = False
    """Whether folders define places."""
    place_radius_m: float = PLACE_RADIUS_M
    version: int = field(default=VERSION)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Calibration | None:
        """Read a manifest's calibration; None if it has another version."""
        if values is None or values.get("version") != VERSION:
            return None
        models = {name: _read_model(values[name]) for name in ("model", "verified")}
        return cls(**{**values, **models})

    def summary(self) -> dict[str, Any]:
        """Return the part that `Index.info` shows."""
        names = ("photos", "queries", "reason", "right", "ece", "radius_factor")
        return {name: getattr(self, name) for name in names}

    def probabilities(self, evidence: Evidence, known_share: float) -> dict[Outcome, float] | None:
        """Return the probabilities of the outcomes; None if there is no model for such an answer.

        For a verified answer, this is the mean of both models. Photos of one day agree on more features than
        photos of two days, by an unknown factor, so neither model is better everywhere.
        """
        models = [self.model] if evidence.lead is None else [self.model, self.verified]
        told = [model.probabilities(evidence, known_share) for model in models if model is not None]
        if len(told) < len(models):
            return None
        return {outcome: sum(one[outcome] for one in told) / len(told) for outcome in OUTCOMES}


def _read_model(values: dict[str, Any] | None) -> Model | None:
    if values is None:
        return None
    (wrong, absent), (first, second) = values["intercepts"], values["slopes"]
    return Model(
        middle=tuple(values["middle"]),
        scale=tuple(values["scale"]),
        intercepts=(wrong, absent),
        slopes=(tuple(first), tuple(second)),
        known_share=values["known_share"],
    )


def check_known_share(value: float) -> float:
    """Return a share if it is one; raise UsageError otherwise."""
    if not 0 < value < 1:
        raise UsageError(f"the share of known places must lie between 0 and 1, not {value:g}")
    return value


def fit(cases: Sequence[Case]) -> Model:
    """Fit the model with the largest posterior to cases; some are absent and some are not.

    Weighted log-likelihood minus ½|b_a|² and 3/2·|b_w − b_a|²: wrong answers are few and resemble those of
    absent places. One case of each outcome at the mean evidence is added, so that no outcome becomes
    impossible. Either all cases were verified or none was.
    """
    x = np.array([case.evidence.features() for case in cases], np.float64)
    outcome = np.array([OUTCOMES.index(case.outcome) for case in cases])
    weight = np.array([case.weight for case in cases], np.float64)
    middle = weight @ x / weight.sum()
    scale = np.maximum(np.sqrt(weight @ (x - middle) ** 2 / weight.sum()), 1e-6)
    z = np.concatenate([(x - middle) / scale, np.zeros((3, x.shape[1]))])
    answer = np.eye(3)[np.concatenate([outcome, np.arange(3)])]
    found = _maximise(z, answer, np.concatenate([weight, np.ones(3)]))
    absent = float(weight[outcome == 2].sum() / weight.sum())
    d = x.shape[1]
    return Model(
        middle=tuple(middle.tolist()),
        scale=tuple(scale.tolist()),
        intercepts=(float(found[0]), float(found[1])),
        slopes=(tuple(found[2 : 2 + d].tolist()), tuple(found[2 + d :].tolist())),
        known_share=1 - absent,
    )


def _maximise(z: Floats, answer: Floats, weight: Floats) -> Floats:
    """Intercepts of wrong and absent, then the slopes of each, from features n d and outcomes n 3."""
    d = z.shape[1]

    def loss(p: Floats) -> tuple[float, Floats]:
        wrong, absent = p[2 : 2 + d], p[2 + d :]
        logs = np.stack([np.zeros(len(z)), p[0] - z @ wrong, p[1] - z @ absent], axis=1)
        logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
        apart = wrong - absent
        value = -(weight[:, None] * answer * logs).sum()
        value += _RIDGE / 2 * absent @ absent + _APART / 2 * apart @ apart
        gradient = weight[:, None] * (np.exp(logs) - answer)
        slopes = [
            -gradient[:, 1] @ z + _APART * apart,
            -gradient[:, 2] @ z + _RIDGE * absent - _APART * apart,
        ]
        return float(value), np.concatenate([gradient[:, 1:].sum(axis=0), *slopes])

    start = np.concatenate([[-1.0, 0.0], np.full(2 * d, 0.5)])
    bounds = [(None, None)] * 2 + [(0.0, None)] * (2 * d)
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x, np.float64)


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], weight: Floats) -> float:
    """Σ over ten equal bins of (share of the weight) · |mean confidence − share of the right|."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weight * (confidence - right), BINS)
    return float(np.abs(gaps).sum() / weight.sum())


def cross_validated_error(cases: Sequence[Case]) -> float:
    """Return the calibration error by five-fold cross-validation."""
    folds = np.array([_fold(case.photo) for case in cases])
    confidence = np.zeros(len(cases))
    for fold in np.unique(folds).tolist():
        model = fit([case for case, own in zip(cases, folds, strict=True) if own != fold])
        for i in np.flatnonzero(folds == fold).tolist():
            confidence[i] = model.probabilities(cases[i].evidence, model.known_share)["right"]
    right = np.array([case.outcome == "right" for case in cases])
    return expected_calibration_error(confidence, right, np.array([case.weight for case in cases]))


def _fold(photo: str) -> int:
    return int(hashlib.sha256(photo.encode()).hexdigest(), 16) % _FOLDS
