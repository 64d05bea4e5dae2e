"""Reduction of descriptors by PCA with a chosen amount of whitening, also for few photos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError

POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIN_PHOTOS = 128  # below this, descriptors stay unreduced
MAX_HELD = 250  # photos held out at a time while choosing
EPSILON = 1e-9
RANK_TOLERANCE = 1e-6  # of the largest eigenvalue; below it is the rounding of an fp32 Gram matrix

Floats = NDArray[np.float32]


class Reduction(nn.Module):
    """y = P(v − µ), L2-normalised, with P = diag((λ + ε)^(−p/2))·Uᵀ; p = 0 is PCA, p = 1 whitening.

    Input: B C. Output: B d, unit length. Only training changes the parameters µ and P after the fit.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.projection = nn.Parameter(torch.zeros(dim, channels), requires_grad=False)

    def forward(self, descriptors: Tensor) -> Tensor:
        if descriptors.ndim != 2 or descriptors.shape[1] != len(self.mean):
            raise ModelError(f"reduction expects B×{len(self.mean)}, got {tuple(descriptors.shape)}")
        return F.normalize((descriptors - self.mean) @ self.projection.T, dim=1, eps=1e-12)


@dataclass(frozen=True)
class Candidate:
    """A (d, p), and how well halves of held-out photos found each other with it."""

    dim: int
    power: float
    reciprocal_rank: float = 0.0


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and all that were tried; `kept` is None if descriptors stay unreduced."""

    kept: Candidate | None
    tried: tuple[Candidate, ...] = ()


class _Basis:
    """Principal directions of n descriptors, from the eigenvectors of their n×n Gram matrix (dual PCA).

    Centres the descriptors (n C) in place: 4,096 of them are half a gigabyte.
    """

    def __init__(self, descriptors: Tensor, dim: int) -> None:
        self.mean = descriptors.mean(0)
        self.centred = descriptors.sub_(self.mean)  # n C
        n = len(descriptors)
        gram = (self.centred @ self.centred.T).double() / (n - 1)
        values, vectors = torch.linalg.eigh(gram)
        keep = min(dim, n - 1)
        self.values = values.flip(0)[:keep].clamp_min(1e-12).float()
        vectors = vectors.flip(1)[:, :keep].float()  # n d
        # repeated photos leave directions of rounding noise, which whitening would amplify: zero them
        vectors[:, self.values < RANK_TOLERANCE * self.values[0]] = 0
        self.dual = vectors / (self.values * (n - 1)).sqrt()  # U = centredᵀ · dual

    def scores(self, descriptors: Tensor) -> Tensor:
        """(v − µ)·U, B d."""
        scores: Tensor = ((descriptors - self.mean) @ self.centred.T) @ self.dual
        return scores

    def weigh(self, scores: Tensor, dim: int, power: float) -> Tensor:
        return F.normalize(scores[:, :dim] * (self.values[:dim] + EPSILON).pow(-power / 2), dim=1)


def fit_reduction(descriptors: Floats, dim: int, power: float) -> Reduction:
    """Fit PCA of `descriptors` (n C) to `dim` dimensions, whitened by `power`.

    Source: Jégou and Chum (ECCV 2012) for whitening; NetVLAD for the dual form.

    Raises:
        ModelError: `dim` is not below n: such a reduction would fit noise.
    """
    if not 0 < dim < len(descriptors):
        raise ModelError(f"a {dim}-D reduction needs more than {dim} photos, got {len(descriptors)}")
    basis = _Basis(torch.tensor(descriptors), dim)
    scale = (basis.values + EPSILON).pow(-power / 2)
    reduction = Reduction(descriptors.shape[1], dim)
    reduction.mean.data = basis.mean
    torch.mm((basis.dual * scale).T, basis.centred, out=reduction.projection.data)
    return reduction


def choose_reduction(
    descriptors: Floats, left: Floats, right: Floats, rows: NDArray[np.int64], *, max_dim: int = 512
) -> Choice:
    """Choose dimension and whitening by held-out photos.

    A held-out photo's left half must find its right half among all right halves, and vice versa, in a basis
    fitted on the other photos: two disjoint views of one place, which every collection has. The least
    whitening whose mean reciprocal rank is within one standard error of the best is chosen: whitening on few
    photos is harmful, and halves share light and weather, which favours it.

    Args:
        descriptors: n C, unreduced, of the photos to fit on.
        left, right: m C, unreduced descriptors of the left and right halves of m of those photos.
        rows: m, each half's row in `descriptors`.
        max_dim: upper bound of dimensions.
    """
    n = len(descriptors)
    if n < MIN_PHOTOS:
        return Choice(None)
    held_count = min(len(rows) // 2, n // 2, MAX_HELD)
    candidates = _candidates(n, max_dim)
    if held_count < MIN_PHOTOS // 4:
        return Choice(Candidate(min(max_dim, n // 2), 0.5))
    folds = [np.arange(held_count), np.arange(held_count, 2 * held_count)]
    ranks = np.concatenate(
        [_reciprocal_ranks(descriptors, left, right, rows, held, candidates) for held in folds], axis=1
    )
    means = ranks.mean(1)
    best = int(means.argmax())
    shortfall = ranks[best] - ranks  # candidates × halves
    error = shortfall.std(1) / np.sqrt(shortfall.shape[1])
    kept = int(np.flatnonzero(shortfall.mean(1) <= error)[0])
    tried = tuple(Candidate(c.dim, c.power, float(m)) for c, m in zip(candidates, means, strict=True))
    return Choice(tried[kept], tried)


def _candidates(n: int, max_dim: int) -> list[Candidate]:
    """Candidates, least whitening first. Unwhitened PCA only rotates, so it may keep more directions."""
    half = min(max_dim, n // 2)
    return [Candidate(min(max_dim, n - 1), 0.0), *(Candidate(half, power) for power in POWERS[1:])]


def _reciprocal_ranks(
    descriptors: Floats,
    left: Floats,
    right: Floats,
    rows: NDArray[np.int64],
    held: NDArray[np.int64],
    candidates: list[Candidate],
) -> NDArray[np.float64]:
    """Candidates × 2·held reciprocal ranks, in a basis fitted without the held-out photos."""
    rest = np.setdiff1d(np.arange(len(descriptors)), rows[held])
    basis = _Basis(torch.from_numpy(descriptors[rest]), max(c.dim for c in candidates))
    a, b = basis.scores(torch.from_numpy(left)), basis.scores(torch.from_numpy(right))
    own = torch.from_numpy(held)
    result = []
    for candidate in candidates:
        x, y = (basis.weigh(scores, candidate.dim, candidate.power) for scores in (a, b))
        ranks = [_ranks(x[own] @ y.T, own), _ranks(y[own] @ x.T, own)]
        result.append((1.0 / torch.cat(ranks)).double().numpy())
    return np.stack(result)


def _ranks(similarities: Tensor, own: Tensor) -> Tensor:
    right = similarities.gather(1, own[:, None])
    return 1 + (similarities > right).sum(1)
