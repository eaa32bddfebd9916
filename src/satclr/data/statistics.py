"""Mean and standard deviation of the encoder's input, by each way that `pretrain.normalization` names.

In: (N,2,3) int64, the sum and the sum of squares of each tile's pixel values, per channel.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from satclr import randomness
from satclr.data.tiles import IMAGENET

RELEASED_BATCH: Final = 256  # tiles per batch in the notebook's statistics

Sums = npt.NDArray[np.int64]


def of(sums: Sums, tile_px: int) -> dict[str, dict[str, list[float]]]:
    """The statistics of training tiles by each way."""
    return {
        "train": train_statistics(sums, tile_px),
        "imagenet": dict(zip(("mean", "std"), map(list, IMAGENET), strict=True)),
        "released": released_statistics(sums, tile_px),
    }


def train_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Exact mean and population standard deviation per channel, of pixels in [0, 1].

    Computed from integer sums, so the result does not depend on the order of the tiles.
    """
    count = len(sums) * tile_px**2
    first, second = sums.sum(axis=0).tolist()  # Python integers do not overflow
    variance = [(count * q - s * s) / count**2 for s, q in zip(first, second, strict=True)]
    return {"mean": [s / count / 255 for s in first], "std": [max(v, 1e-12) ** 0.5 / 255 for v in variance]}


def released_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Mean and standard deviation as in the paper's notebook, which adds up image means and variances.

    In batches of 256, a batch's "mean" is the sum of its tiles' means, its "variance" the sum of their unbiased
    variances; batches are then merged as if those were means and variances of n tiles (lbriody/simple-multilabel-cl,
    `compute_mean_std`, `agg_batch_stats=False`). On MLRSNet they are near 90 and 4 instead of 0.4 and 0.2. As in the
    notebook the tiles come shuffled: batches of one category each would differ more, and with them the deviation.
    """
    pixels, sums = tile_px**2, randomness.rng(0, "released statistics").permutation(sums)
    means = sums[:, 0] / (255 * pixels)
    variances = (sums[:, 1] / 255**2 - pixels * means**2) / (pixels - 1)
    mean, variance, m = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(sums), RELEASED_BATCH):
        batch = slice(start, start + RELEASED_BATCH)
        n = len(means[batch])
        mean_n, variance_n = means[batch].sum(axis=0), variances[batch].sum(axis=0)
        between = m * n * (mean - mean_n) ** 2 / (m + n) ** 2
        variance = (m * variance + n * variance_n) / (m + n) + between
        mean = (m * mean + n * mean_n) / (m + n)
        m += n
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 1e-24)).tolist()}
