import json

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score

from satclr.data import tiles
from satclr.evaluation import maps

from .conftest import MakeRun, log


def blobs(count: int = 90) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Three far groups on the unit sphere."""
    rng = np.random.default_rng()
    group = np.arange(count) % 3
    x = np.eye(8)[group] + 0.05 * rng.normal(size=(count, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), group


@pytest.mark.parametrize("name", ["pca", "tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_groups_stay_apart_and_a_repeated_map_is_the_same(name: str) -> None:
    x, group = blobs()
    plane = maps.project(x, name, neighbours=10)
    assert plane.shape == (90, 2)
    assert np.abs(plane.mean(0)).max() < 1e-6
    np.testing.assert_array_equal(plane, maps.project(x, name, neighbours=10))
    gaps = np.linalg.norm(plane[:, None] - plane, axis=-1)
    np.fill_diagonal(gaps, np.inf)
    assert (group[gaps.argmin(1)] == group).all()


def test_label_overlap_is_the_mean_jaccard_of_neighbours() -> None:
    rng = np.random.default_rng()
    x, _ = blobs(30)
    targets = rng.integers(0, 2, (30, 6)).astype(np.uint8)
    targets[:, 0] = 1
    expected = []
    for i in range(30):
        near = [j for j in np.argsort(-(x @ x[i])) if j != i][:4]
        expected += [jaccard_score(targets[i], targets[j]) for j in near]
    assert maps.label_overlap(x, targets, k=4) == pytest.approx(np.mean(expected))


def test_distances_on_the_map_are_ranked_as_scipy_ranks_them() -> None:
    x, _ = blobs(30)
    plane = np.random.default_rng().normal(size=(30, 2))
    pairs = [(i, j) for i in range(30) for j in range(i)]
    cosine = [1 - x[i].astype(float) @ x[j] for i, j in pairs]
    expected = spearmanr(cosine, [np.linalg.norm(plane[i] - plane[j]) for i, j in pairs]).statistic
    assert maps.distance_rank_correlation(x, plane) == pytest.approx(expected, abs=1e-3)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    circle = plane / np.linalg.norm(plane, axis=1, keepdims=True)
    assert maps.distance_rank_correlation(circle.astype(np.float32), 3 * circle @ turn) > 0.999
    assert maps.distance_rank_correlation(x, np.zeros((30, 2))) == 0


def test_maps_hold_the_same_test_tiles_for_every_arm(run_of: MakeRun, store: tiles.TileStore) -> None:
    for run in (run_of("baseline"), run_of("simclr", seed=1)):
        maps.run(run, log)
        found = json.loads((run.results / "maps.json").read_text())
        assert found["tiles"] == [store.names[row] for row in store.rows("test")]
        assert len(found["projections"]["pca"]) == len(found["tiles"])
        assert 0 <= found["knn_label_overlap"] <= 1
        assert 0 <= found["trustworthiness"]["pca"] <= 1
        assert -1 <= found["distance_rank_correlation"]["pca"] <= 1


@pytest.mark.parametrize(("count", "names"), [(2, ["pca"]), (4, ["umap", "tsne"])])
def test_too_few_tiles_are_one_sentence(
    count: int, names: list[str], run_of: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "TILES", count)
    with pytest.raises(tiles.TileError, match=f"{count} test tiles are too few for {names[0]}"):
        maps.run(run_of(maps={"projections": names}), log)


def test_no_projection_is_an_empty_file(run_of: MakeRun) -> None:
    run = run_of(maps={"projections": []})
    maps.run(run, log)
    assert json.loads((run.results / "maps.json").read_text())["projections"] == {}
