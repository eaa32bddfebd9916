"""Metrics of multi-label tagging: scores (N,K) and targets (N,K) in, numbers out; NumPy in float64.

N tiles, K labels. A label without positives has no AP: nan, left out of means, never zero.
"""

from satclr.metrics.bootstrap import (
    bootstrap,
    draw_counts,
    paired_bootstrap,
    paired_bootstrap_average_precision,
    resampled_average_precision,
)
from satclr.metrics.precision import (
    average_precision,
    label_ranking_average_precision,
    mean_average_precision,
    micro_average_precision,
)

__all__ = [
    "average_precision",
    "bootstrap",
    "draw_counts",
    "label_ranking_average_precision",
    "mean_average_precision",
    "micro_average_precision",
    "paired_bootstrap",
    "paired_bootstrap_average_precision",
    "resampled_average_precision",
]
