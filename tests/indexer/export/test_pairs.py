import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.export import pairs as module
from indexer.export.pairs import retrieval_pairs


def unit(n: int, d: int = 8) -> NDArray[np.float32]:
    rows = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def naive(ids: list[str], descriptors: NDArray[np.float32], neighbours: int) -> list[tuple[str, str]]:
    names = sorted(set(ids))
    rows = {name: [i for i, id in enumerate(ids) if id == name] for name in names}
    pairs = []
    for name in names:
        scores = {
            other: (descriptors[rows[name]] @ descriptors[rows[other]].T).max()
            for other in names
            if other != name
        }
        pairs += [(name, other) for other in sorted(scores, key=lambda o: (-scores[o], o))[:neighbours]]
    return pairs


@pytest.mark.parametrize("block", [1, 50, 10_000])
@pytest.mark.parametrize("ids", [[f"p{i}" for i in range(12)], list("abcabbcddeaf")])
def test_pairs_equal_naive_pairs(monkeypatch: pytest.MonkeyPatch, block: int, ids: list[str]) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    found = retrieval_pairs(ids, unit(12), 3)
    assert [(a, b) for a, b, _ in found] == naive(ids, unit(12), 3)


def test_scores_are_cosines() -> None:
    rows = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    pairs = retrieval_pairs(["a", "b", "c"], rows, 1)
    assert [(a, b) for a, b, _ in pairs] == [("a", "b"), ("b", "c"), ("c", "b")]
    assert [score for *_, score in pairs] == pytest.approx([0.6, 0.8, 0.8])


def test_neighbours_are_limited_by_other_photos() -> None:
    assert len(retrieval_pairs(["a", "b", "c"], unit(3), 20)) == 6


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "a"]])
def test_single_photo_has_no_pairs(ids: list[str]) -> None:
    assert retrieval_pairs(ids, unit(max(len(ids), 1))[: len(ids)], 20) == []
