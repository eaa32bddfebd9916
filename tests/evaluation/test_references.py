"""References on made-up stores, and on real label tables, whose values an independent implementation gave."""

from pathlib import Path

import numpy as np
import pytest

from satclr import files
from satclr.data import labels, splits, tiles
from satclr.evaluation import metrics, references
from tests.conftest import ROOT


def prior_map(folder: Path, split_of: dict[str, str] | None = None) -> float:
    """mAP of the category prior of label tables, split as given or 70:20:10."""
    table = labels.read(folder)
    drawn = splits.split(table.tiles, fractions=(0.7, 0.2, 0.1), seed=0)
    split = np.array([split_of[name] for name in table.tiles] if split_of else drawn)
    train, test = (np.flatnonzero(split == name) for name in ("train", "test"))
    scores = references.category_prior(table.categories, table.targets, train=train, rows=test)
    return metrics.mean_average_precision(scores, table.targets[test])


def test_category_prior_equals_a_double_loop_and_is_chance_within_categories(store: tiles.TileStore) -> None:
    train, test = store.rows("train"), store.rows("test")
    found = references.without_images(store)
    for i, row in enumerate(test):
        same = [t for t in train if store.categories[t] == store.categories[row]]
        for k in range(len(store.labels)):
            assert found["category_prior"][i, k] == pytest.approx(sum(store.targets[t, k] for t in same) / len(same))
    np.testing.assert_allclose(found["label_prevalence"], np.tile(store.targets[train].mean(0), (len(test), 1)))
    categories = np.array(store.categories)[test]
    within = metrics.average_precision(found["category_prior"], store.targets[test], categories.tolist())
    for k, targets in enumerate(store.targets[test].T):
        shares = [targets[categories == name].mean() for name in sorted(set(categories))]
        varying = [share for share in shares if 0 < share < 1]
        assert within[k] == pytest.approx(np.mean(varying) if varying else np.nan, nan_ok=True)


def test_a_category_without_training_tiles_takes_the_share_of_all() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 1]], np.uint8)
    found = references.category_prior(["a", "a", "b"], targets, train=np.array([0, 1]), rows=np.array([2]))
    np.testing.assert_allclose(found, [[0.5, 0]])


def test_colour_statistics_are_those_of_each_channel_and_tell_colours_apart(store: tiles.TileStore) -> None:
    found = references.colour_statistics(store.pixels)
    assert found.shape == (len(store.names), 12)
    for row in (0, len(found) - 1):
        channels = store.pixels[row].reshape(-1, 3).astype(float)
        ranked = np.sort(channels, 0)
        low, high = (ranked[int(share * (len(ranked) - 1))] for share in (0.1, 0.9))
        np.testing.assert_allclose(found[row], [*channels.mean(0), *channels.std(0), *low, *high], rtol=1e-5)
    scores, test = references.scores(store), store.rows("test")  # a label of this store is a patch of its own colour
    value = {n: np.nanmean(metrics.average_precision(s, store.targets[test])) for n, s in scores.items()}
    assert list(value) == ["label_prevalence", "category_prior", "colour"]
    assert value["colour"] > value["label_prevalence"] + 0.2


def test_category_prior_of_uc_merced_is_known(external_data: Path) -> None:
    folder = external_data / "ucmerced"
    split_of = {row["image"]: row["split"] for row in files.read_csv(folder / "aitlas_split.csv")}
    assert prior_map(folder / "Labels", split_of) == pytest.approx(0.915, abs=5e-4)


@pytest.mark.parametrize(("release", "known"), [("2020-06-30", 0.935), ("2021-05-19", 0.900)])
def test_category_prior_of_mlrsnet_is_known(external_data: Path, release: str, known: float) -> None:
    """The split is drawn, hence the tolerance; the paper's 0.9133 is below the first."""
    assert prior_map(external_data / "mlrsnet-labels" / f"release-{release}") == pytest.approx(known, abs=0.005)


def test_category_prior_of_the_sample_is_known() -> None:
    folder = ROOT / "data" / "sample" / "Labels"
    if not folder.is_dir():
        pytest.skip("the sample is not here; run `dvc pull`")
    assert prior_map(folder) == pytest.approx(0.856, abs=5e-4)
