"""Test tiles laid out in the plane by their features, and how far to trust the picture.

In: the tile store, features.npy. Out: maps.json, in results/<profile>/<arm>-s<seed>/.

    satclr maps --profile sample --arm simclr --seed 0

`maps.projections: []` skips it and leaves an empty maps.json.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import files, progress, randomness
from satclr.data import tiles
from satclr.project import Run

TILES = 2000  # of the test split, at most
NEIGHBOURS = 10
DECIMALS = 4  # of coordinates, scaled to a spread of 1

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]  # (N,D), at unit length: neighbours are by cosine, as in `evaluate.knn`


def run(run: Run, _log: object) -> None:
    """Project at most TILES test tiles, the same for every arm and seed, and write maps.json.

    `knn_label_overlap` tells of the features' local structure; `trustworthiness` (how far neighbours on the map are
    neighbours in the features, Venna & Kaski 2001) and `distance_rank_correlation` of each map's local and global
    structure. Raises `tiles.TileError` when the features are not this store's, or the test tiles too few.
    """
    projections = run.settings.maps.projections
    result: dict[str, Any] = {
        "tiles": [], "projections": {},
        "knn_label_overlap": None, "trustworthiness": {}, "distance_rank_correlation": {},
    }  # fmt: skip
    if projections:
        from sklearn.manifold import trustworthiness

        store = tiles.open_store(run.store)
        test = store.rows("test")
        rows = np.sort(test[randomness.rng(0, "maps").permutation(len(test))[:TILES]])
        x = np.asarray(tiles.load_features(run.features, store)[rows], dtype=np.float32)
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        neighbours = min(NEIGHBOURS, (len(rows) - 1) // 2)  # UMAP needs two
        if neighbours < 1 + ("umap" in projections):
            raise tiles.TileError(
                f"{len(rows)} test tiles are too few for {', '.join(projections)}; set maps.projections: []"
            )
        result["tiles"] = [store.names[row] for row in rows]
        result["knn_label_overlap"] = label_overlap(x, store.targets[rows], k=neighbours)
        with progress.bar("maps", len(projections), "projections") as advance:
            for name in projections:
                plane = project(x, name, neighbours=neighbours)
                result["projections"][name] = plane.round(DECIMALS).tolist()
                result["trustworthiness"][name] = float(trustworthiness(x, plane, n_neighbors=neighbours))
                result["distance_rank_correlation"][name] = distance_rank_correlation(x, plane)
                advance(1)
    files.write_json(run.results / "maps.json", result, indent=None)


def project(x: Features, name: str, *, neighbours: int) -> Floats:
    """Coordinates (N,2) of features, centred, of spread 1; `name`: umap, tsne or pca.

    t-SNE starts at the principal components, as Kobak & Berens 2019 advise, and UMAP at a spectral layout, so that the
    large structure is the data's and not a draw's.
    Source: McInnes et al. 2018, arXiv:1802.03426; van der Maaten & Hinton 2008, JMLR 9.
    """
    seed = randomness.derive(0, "maps", name) % 2**32
    if name == "umap":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of umap's own dependencies, and that a seed means one thread
            from umap import UMAP

            model = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
            plane = model.fit_transform(x)
    elif name == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(x)
    else:
        from sklearn.decomposition import PCA

        plane = PCA(2, svd_solver="full").fit_transform(x)
    placed: Floats = np.asarray(plane, dtype=np.float64)
    placed -= placed.mean(0)
    placed /= max(placed.std(), 1e-12)
    return placed


def label_overlap(x: Features, targets: npt.NDArray[np.uint8], *, k: int) -> float:
    """Mean Jaccard overlap of a tile's labels (N,K) with those of its k nearest others by cosine; in [0, 1].

    Two tiles without labels overlap fully.
    """
    similarity = x @ x.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    own, other = targets[:, None].astype(bool), targets[nearest].astype(bool)
    shared, either = (own & other).sum(-1), (own | other).sum(-1)
    return float(np.where(either > 0, shared / np.maximum(either, 1), 1.0).mean())


def distance_rank_correlation(x: Features, plane: Floats) -> float:
    """Spearman's correlation, over all pairs of tiles, of cosine distance and distance on the map; in [-1, 1].

    1: what is farther apart in the features is so on the map. 0 where either has no distances to rank.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata

    ranks = [rankdata(pdist(points)) for points in (x.astype(float), plane)]  # at unit length, as by cosine
    if any(rank.std() == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])
