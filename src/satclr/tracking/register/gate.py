"""Is the candidate better than the champion? A paired bootstrap over the tiles of the same test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from satclr import tensorfile
from satclr.evaluation import metrics


@dataclass(frozen=True)
class Split:
    """Scores of one model on the test split: (N,K), with the names of tiles and labels."""

    scores: npt.NDArray[np.float32]
    targets: npt.NDArray[np.uint8]
    labels: tuple[str, ...]
    tiles: tuple[str, ...]

    def same_as(self, other: Split) -> bool:
        """Whether both hold the same tiles, labels and truth, in the same order."""
        named = self.labels == other.labels and self.tiles == other.tiles
        return named and np.array_equal(self.targets, other.targets)


@dataclass(frozen=True)
class Contrast:
    """Difference of test mAP, candidate minus champion, with its 95% interval."""

    delta_mAP: float  # noqa: N815 - the field's spelling
    low: float
    high: float

    @property
    def better(self) -> bool:
        return self.low > 0


def read_split(path: Path) -> Split:
    """Read the test part of a scores.npz. Raises `tensorfile.TensorFileError` for one that is damaged."""
    arrays = tensorfile.load_arrays(path)
    try:
        return Split(
            arrays["test_scores"],
            arrays["test_targets"],
            tuple(map(str, arrays["labels"])),
            tuple(map(str, arrays["test_tiles"])),
        )
    except KeyError as error:
        raise tensorfile.TensorFileError(f"{path} lacks {error}; publish its run anew") from None


def contrast(candidate: Split, champion: Split, *, resamples: int = 1000, seed: int = 0) -> Contrast:
    """Resample the tiles, the same ones for both; the percentile interval of the difference in mAP.

    Raises ValueError where the two were tested on different tiles or labels.
    """
    if not candidate.same_as(champion):
        raise ValueError("candidate and champion were tested on different tiles or labels")
    both = [candidate.scores, champion.scores]
    plain = [metrics.mean_average_precision(metrics.average_precision(s, candidate.targets)) for s in both]
    samples = metrics.paired_bootstrap(both, candidate.targets, resamples=resamples, seed=seed)
    low, high = np.nanpercentile(samples[:, 0] - samples[:, 1], [2.5, 97.5])
    return Contrast(plain[0] - plain[1], float(low), float(high))
