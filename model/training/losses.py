"""Training losses over descriptors of unit length."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOSSES = ("triplet", "multi-similarity", "softmax")


def triplet_loss(query: Tensor, positive: Tensor, negatives: Tensor, *, margin: float = 0.1) -> Tensor:
    """NetVLAD's ranking loss, the mean of max(0, d²(q, p) + margin − d²(q, n)), on squared distances.

    Source: Arandjelović et al., CVPR 2016, equation 7, whose p is the best of the potential positives.

    Args:
        query, positive: Q d.
        negatives: Q n d.
    """
    near = (query - positive).square().sum(1, keepdim=True)  # Q 1
    far = (query[:, None] - negatives).square().sum(2)  # Q n
    return F.relu(near + margin - far).mean()


def multi_similarity_loss(
    descriptors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Multi-similarity loss over all pairs of a batch, with its own choice of pairs, averaged over photos.

    Kept are the negatives nearer than the furthest positive, and the positives further than the nearest
    negative, both within ε. A photo without a kept positive or without a kept negative counts as zero.

    Source: Wang et al., CVPR 2019; α, β, λ (here `base`) and ε as there.

    Args:
        descriptors: B d, unit length.
        positives, negatives: B B, bool; a pair that is neither is ignored.
    """
    similarity = descriptors @ descriptors.T  # B B
    own = torch.eye(len(descriptors), dtype=torch.bool, device=descriptors.device)
    positives, negatives = positives & ~own, negatives & ~own
    with torch.no_grad():
        furthest = similarity.masked_fill(~positives, torch.inf).amin(1, keepdim=True)
        nearest = similarity.masked_fill(~negatives, -torch.inf).amax(1, keepdim=True)
        positives = positives & (similarity < nearest + epsilon)
        negatives = negatives & (similarity > furthest - epsilon)
        counts = positives.any(1) & negatives.any(1)
    pull = (-alpha * (similarity - base)).masked_fill(~positives, -torch.inf)
    push = (beta * (similarity - base)).masked_fill(~negatives, -torch.inf)
    losses = _log1p_sum_exp(pull) / alpha + _log1p_sum_exp(push) / beta
    return torch.where(counts, losses, 0.0).sum() / len(descriptors)


def _log1p_sum_exp(x: Tensor) -> Tensor:
    """log(1 + Σ eˣ) of each row."""
    return torch.logsumexp(torch.cat([x, x.new_zeros(len(x), 1)], 1), 1)


class PlaceClassifier(nn.Module):
    """Softmax over places: logits s·cos(w_c, x), s = 16; for training only.

    Source: Wang et al., NormFace, ACM MM 2017: weights and inputs of unit length, and a scale. Input: B d,
    unit length. Output: B classes.
    """

    SCALE = 16.0

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(classes, dim), dim=1))

    def forward(self, descriptors: Tensor) -> Tensor:
        return self.SCALE * F.linear(descriptors, F.normalize(self.weight, dim=1))
