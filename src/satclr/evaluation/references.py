"""What a mAP is worth: the scores of predictors that look at no image, or at its colours alone.

In: the tile store. Out: scores (M,K) of its test tiles, by name. They belong to a profile and its split, not to an arm:
`compare` computes them once; `evaluate` repeats those that need no pixels, so that they stand beside each run's own
numbers. The reference of an encoder without training is the arm `random`.

| name | score of a tile for a label |
| --- | --- |
| `label_prevalence` | the label's share of all training tiles: the same for every tile, so its AP is chance |
| `category_prior` | the label's share of the training tiles of the tile's scene category |
| `colour` | a linear probe, trained to convergence, on the 12 numbers of `colour_statistics` |
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from satclr.data import tiles
from satclr.evaluation import logistic

BLOCK = 256  # tiles at a time

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def scores(store: tiles.TileStore) -> dict[str, npt.NDArray[np.floating]]:
    """Every reference's scores (M,K) of the M test tiles, learned from the training tiles."""
    x, y = colour_statistics(store.pixels), store.targets
    train, val, test = (store.rows(split) for split in tiles.SPLITS)
    parts = logistic.standardize(x[train], x[val], x[test])
    colour = logistic.best((parts[0], y[train]), (parts[1], y[val])).scores(parts[2])
    return {**without_images(store), "colour": colour}


def without_images(store: tiles.TileStore) -> dict[str, npt.NDArray[np.floating]]:
    """The references that need no pixels."""
    train, test = store.rows("train"), store.rows("test")
    prior = category_prior(store.categories, store.targets, train=train, rows=test)
    return {"label_prevalence": np.tile(store.targets[train].mean(0), (len(test), 1)), "category_prior": prior}


def category_prior(categories: Sequence[str], targets: npt.NDArray[np.uint8], *, train: Rows, rows: Rows) -> Floats:
    """The share of the training tiles of each row's category that have a label: (M,K).

    categories (N); targets (N,K). Rows of a category without training tiles take the share of all training tiles.
    """
    names, of = np.unique(np.asarray(categories), return_inverse=True)
    member = np.eye(len(names))[of[train]]  # (T,C)
    count = member.sum(0)[:, None]
    shares = member.T @ targets[train] / np.maximum(count, 1)
    known: Floats = np.where(count > 0, shares, targets[train].mean(0))
    return known[of[rows]]


def colour_statistics(pixels: tiles.Tiles) -> npt.NDArray[np.float32]:
    """Mean, standard deviation, and 10th and 90th percentile of each channel of tiles (N,H,H,3) uint8: (N,12)."""
    blocks = []
    for start in range(0, len(pixels), BLOCK):
        x = np.asarray(pixels[start : start + BLOCK]).reshape(-1, pixels.shape[1] * pixels.shape[2], 3)
        low, high = np.quantile(x, (0.1, 0.9), axis=1, method="lower")
        blocks.append(np.concatenate([x.mean(1), x.std(1), low, high], axis=1).astype(np.float32))
    return np.concatenate(blocks)
