"""A paired bootstrap at MLRSNet's size against drawing rows and scoring them again.

    python benchmarks/bootstrap.py

Ours is measured whole: 1,000 resamples, 10,917 tiles, 60 labels, 2 arms. The other way (scikit-learn's
average precision on the drawn rows) is measured on a few resamples before and after ours, scaled to 1,000.
"""

import numpy as np
import sklearn.metrics
from common import Row, seconds

from satclr.evaluation import metrics

TILES, LABELS, ARMS, RESAMPLES = 10_917, 60, 2, 1_000
FEW = 4


def rows() -> list[Row]:
    """One row a comparison: name, ours, theirs, ratio (theirs / ours), unit."""
    rng = np.random.default_rng(0)
    targets = rng.random((TILES, LABELS)) < rng.uniform(0.005, 0.3, LABELS)
    arms = [rng.normal(size=targets.shape) + gain * targets for gain in (1.0, 1.2)]
    before = seconds(lambda: again(arms, targets))
    ours = seconds(lambda: metrics.paired_bootstrap_average_precision(arms, targets, resamples=RESAMPLES, seed=0))
    theirs = (before + seconds(lambda: again(arms, targets))) / 2 / FEW * RESAMPLES
    name = f"paired bootstrap, {RESAMPLES} resamples x {TILES} tiles x {LABELS} labels x {ARMS} arms"
    return [{"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"}]


def again(arms: list[np.ndarray], targets: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(FEW):
        drawn = rng.integers(TILES, size=TILES)
        for scores in arms:
            sklearn.metrics.average_precision_score(targets[drawn], scores[drawn])


if __name__ == "__main__":
    for row in rows():
        print("{name}: ours {ours:.1f} {unit}, theirs {theirs:.1f} {unit}, ratio {ratio:.1f}".format(**row))
