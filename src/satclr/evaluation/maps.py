"""Test tiles laid out in the plane by their features, and how far to trust the picture.

In: the tile store, features.npy. Out: maps.json, in results/<profile>/<arm>/.

    satclr maps --profile sample --arm simclr --seed 0

`maps.projections: []` leaves it out; the file then says so.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import atomic, progress, randomness
from satclr.data import tiles
from satclr.params import Arm

Floats = npt.NDArray[np.float64]
DECIMALS = 4  # of coordinates, scaled to a spread of 1


def run(store: tiles.TileStore, *, features: Path, out: Path, arm: Arm) -> dict[str, Any]:
    """Project at most `maps.tiles` test tiles, the same for every arm and seed; write and return maps.json.

    {"tiles": names, "projections": {name: [[x, y], ...]}, "knn_label_overlap", "trustworthiness": {name: value},
    "distance_rank_correlation": {name: value}}: local structure of the features and of the maps, and the maps'
    global structure. Features are taken at unit length: neighbours are by cosine, as in `knn`. Raises
    `tiles.TileError` when the features are not this store's.
    """
    settings = arm.settings.maps
    result: dict[str, Any] = {
        "tiles": [], "projections": {},
        "knn_label_overlap": None, "trustworthiness": {}, "distance_rank_correlation": {},
    }  # fmt: skip
    if settings.projections:
        rows = chosen_rows(store, settings.tiles)
        x = np.asarray(tiles.load_features(features, store)[rows], dtype=np.float32)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        neighbours = min(settings.neighbours, (len(rows) - 1) // 2)
        if neighbours < 1:
            raise tiles.TileError(f"{len(rows)} test tiles are too few for a map; set maps.projections: []")
        result["tiles"] = [store.names[row] for row in rows]
        result["knn_label_overlap"] = label_overlap(x, store.targets[rows], k=neighbours)
        with progress.bar("maps", len(settings.projections)) as advance:
            for name in settings.projections:
                plane = project(x, name, neighbours=neighbours)
                result["projections"][name] = plane.round(DECIMALS).tolist()
                result["trustworthiness"][name] = _trustworthiness(x, plane, k=neighbours)
                result["distance_rank_correlation"][name] = distance_rank_correlation(x, plane)
                advance(1)
    atomic.write_json(out, result, indent=None)
    return result


def chosen_rows(store: tiles.TileStore, most: int) -> npt.NDArray[np.int64]:
    """At most `most` rows of the test split, drawn once whatever the arm and seed, in index order."""
    rows = store.rows("test")
    drawn = randomness.permutation(len(rows), 0, "maps").numpy()[:most]
    return np.sort(rows[drawn])


def project(x: npt.NDArray[np.float32], name: str, *, neighbours: int) -> Floats:
    """Coordinates (N,2) of features (N,D), centred, of spread 1; `name`: umap, tsne or pca.

    Source: McInnes et al. 2018, arXiv:1802.03426; van der Maaten & Hinton 2008, JMLR 9. t-SNE starts at the
    principal components, as Kobak & Berens 2019 advise, and UMAP at a spectral layout, so that the large
    structure is the data's and not a draw's.
    """
    from sklearn.decomposition import PCA

    seed = randomness.derive(0, "maps", name) % 2**32
    if name == "umap":
        plane = _umap(x, neighbours=neighbours, seed=seed)
    elif name == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x)
    else:
        plane = PCA(2, svd_solver="full").fit_transform(x)
    plane = np.asarray(plane, dtype=np.float64)
    plane -= plane.mean(0)
    scaled: Floats = plane / max(plane.std(), 1e-12)
    return scaled


def label_overlap(x: npt.NDArray[np.float32], targets: npt.NDArray[np.uint8], *, k: int) -> float:
    """Mean Jaccard overlap of a tile's labels with those of its k nearest others by cosine; in [0, 1].

    x (N,D) of unit length; targets (N,K). Two tiles without labels overlap fully.
    """
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    own, other = targets[:, None].astype(bool), targets[nearest].astype(bool)
    shared, either = (own & other).sum(-1), (own | other).sum(-1)
    return float(np.where(either > 0, shared / np.maximum(either, 1), 1.0).mean())


def distance_rank_correlation(x: npt.NDArray[np.float32], plane: Floats) -> float:
    """Spearman's correlation, over all pairs of tiles, of cosine distance and distance on the map; in [-1, 1].

    x (N,D) of unit length; plane (N,2). 1: what is farther apart in the features is so on the map. 0 where
    either has no distances to rank.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata

    ranks = [rankdata(pdist(points)) for points in (x.astype(float), plane)]  # at unit length, as by cosine
    if any(rank.std() == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _umap(x: npt.NDArray[np.float32], *, neighbours: int, seed: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap warns of its own dependencies, and that a seed means one thread
        from umap import UMAP

        model = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
        plane: Floats = model.fit_transform(x)
    return plane


def _trustworthiness(x: npt.NDArray[np.float32], plane: Floats, *, k: int) -> float:
    """How far neighbours in the plane are neighbours in the features (Venna & Kaski 2001); in [0, 1]."""
    from sklearn.manifold import trustworthiness

    return float(trustworthiness(x, plane, n_neighbors=k))
