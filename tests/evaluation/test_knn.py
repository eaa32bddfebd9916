import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from satclr.evaluation import knn

rng = np.random.default_rng()


def test_scores_are_scikit_learns_neighbours_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "BLOCK", 7)
    features, queries = rng.normal(size=(70, 9)), rng.normal(size=(30, 9))
    targets = rng.integers(0, 2, (70, 5))
    distance, nearest = NearestNeighbors(n_neighbors=8, metric="cosine").fit(features).kneighbors(queries)
    weight = np.exp((1 - distance) / 0.1)
    expected = (weight[..., None] * targets[nearest]).sum(1) / weight.sum(1, keepdims=True)
    found = knn.scores(queries, features, targets, k=8, temperature=0.1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_equally_near_tiles_the_first_vote() -> None:
    features = np.eye(4)[[0, 1, 1, 1, 1, 2]]
    targets = np.eye(6, dtype=int)
    found = knn.scores(np.eye(4)[1:2], features, targets, k=2, temperature=1.0)
    np.testing.assert_allclose(found, [[0, 0.5, 0.5, 0, 0, 0]])


def test_more_neighbours_than_tiles_is_all_of_them() -> None:
    found = knn.scores(np.ones((3, 2)), np.ones((3, 2)), np.array([[1], [0], [0]]), k=20, temperature=0.07)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)
