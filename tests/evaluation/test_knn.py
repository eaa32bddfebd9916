from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from satclr.evaluation import knn


def test_scores_are_scikit_learns_neighbours_weighted() -> None:
    rng = np.random.default_rng()
    features, queries = rng.normal(size=(70, 9)), rng.normal(size=(30, 9))
    targets = rng.integers(0, 2, (70, 5))
    distance, nearest = NearestNeighbors(n_neighbors=8, metric="cosine").fit(features).kneighbors(queries)
    weight = np.exp((1 - distance) / 0.1)
    expected = (weight[..., None] * targets[nearest]).sum(1) / weight.sum(1, keepdims=True)
    found = knn.scores(
        torch.from_numpy(queries), torch.from_numpy(features), torch.from_numpy(targets), k=8, temperature=0.1
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_blocks_and_the_length_of_features_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, queries = torch.randn(40, 6), torch.randn(11, 6)
    targets = torch.randint(0, 2, (40, 3))
    whole = knn.scores(queries, features, targets, k=5, temperature=0.07)
    monkeypatch.setattr(knn, "BLOCK", 4)
    cut = knn.scores(7 * queries, features * torch.rand(40, 1), targets, k=5, temperature=0.07)
    torch.testing.assert_close(whole, cut)


def test_more_neighbours_than_tiles_is_all_of_them() -> None:
    targets = torch.tensor([[1], [0], [0]])
    same = torch.ones(3, 2)
    assert knn.scores(same, same, targets, k=20, temperature=0.07) == pytest.approx(1 / 3)


def test_nonsense_is_refused() -> None:
    x = torch.randn(3, 2)
    with pytest.raises(ValueError, match="k is 0"):
        knn.scores(x, x, x > 0, k=0, temperature=0.07)
