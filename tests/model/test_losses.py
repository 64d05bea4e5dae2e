"""Losses against their formulas, written out in loops."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from model.training.losses import PlaceClassifier, multi_similarity_loss, triplet_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Unit rows."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def test_triplet_is_on_squared_distances() -> None:
    query, positive, negatives = draw(3, 5), draw(3, 5, seed=1), draw(3, 4, 5, seed=2)
    terms = [
        max(0.0, float((q - p).norm()) ** 2 + 0.1 - float((q - n).norm()) ** 2)
        for q, p, row in zip(query, positive, negatives, strict=True)
        for n in row
    ]
    assert 0 < sum(term == 0 for term in terms) < len(terms)
    loss = triplet_loss(query, positive, negatives)
    torch.testing.assert_close(loss, torch.tensor(sum(terms) / len(terms), dtype=torch.float64))


def test_triplet_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in (draw(2, 4), draw(2, 4, seed=1), draw(2, 3, 4, seed=2)))
    assert torch.autograd.gradcheck(lambda q, p, n: triplet_loss(q, p, n, margin=0.5), inputs)


def naive_multi_similarity(x: Tensor, positives: Tensor, negatives: Tensor) -> float:
    n = len(x)
    s = [[float(x[i] @ x[j]) for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        pos = [s[i][j] for j in range(n) if j != i and positives[i, j]]
        neg = [s[i][j] for j in range(n) if j != i and negatives[i, j]]
        if not pos or not neg:
            continue
        kept_pos = [value for value in pos if value < max(neg) + 0.1]
        kept_neg = [value for value in neg if value > min(pos) - 0.1]
        if kept_pos and kept_neg:
            total += math.log(1 + sum(math.exp(-2 * (value - 0.5)) for value in kept_pos)) / 2
            total += math.log(1 + sum(math.exp(50 * (value - 0.5)) for value in kept_neg)) / 50
    return total / n


def test_multi_similarity() -> None:
    x = draw(8, 3)
    places = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    same = places[:, None] == places
    unknown = torch.zeros(8, 8, dtype=torch.bool)
    unknown[0, 6] = unknown[6, 0] = True  # near, but not the same: neither
    loss = multi_similarity_loss(x, same, ~same & ~unknown)
    assert float(loss) > 0
    torch.testing.assert_close(float(loss), naive_multi_similarity(x, same, ~same & ~unknown))
    assert torch.autograd.gradcheck(lambda x: multi_similarity_loss(x, same, ~same), x.requires_grad_())


def test_multi_similarity_without_pairs_is_zero_and_has_a_gradient() -> None:
    x = draw(3, 4).requires_grad_()
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    loss = multi_similarity_loss(x, nothing, ~nothing)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_classifier_is_a_scaled_cosine() -> None:
    classifier = PlaceClassifier(5, 7)
    x = draw(2, 5).float()
    want = 16 * F.cosine_similarity(x[:, None], classifier.weight[None], dim=2)
    torch.testing.assert_close(classifier(x), want)
