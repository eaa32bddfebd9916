"""Metrics of multi-label tagging: scores (N,K) and targets (N,K) in, numbers out; NumPy in float64.

N tiles, K labels. A label without positives has no AP: it is nan and left out of means, never zero.
"""

# fmt: off
# isort: off
from satclr.evaluation.metrics.bootstrap import (
    draw_counts, interval, p_value, paired_bootstrap, paired_bootstrap_average_precision,
    paired_bootstrap_over_seeds, resampled_average_precision,
)
from satclr.evaluation.metrics.decisions import (
    TEMPERATURE_RANGE, expected_calibration_error, fit_temperature, precision_recall_f1, sigmoid, tune_thresholds,
)
from satclr.evaluation.metrics.ranking import (
    average_precision, coverage_error, label_ranking_average_precision, mean_average_precision,
    micro_average_precision, nan_mean, one_error,
)

__all__ = [
    "TEMPERATURE_RANGE", "average_precision", "coverage_error", "draw_counts",
    "expected_calibration_error", "fit_temperature", "interval", "label_ranking_average_precision",
    "mean_average_precision", "micro_average_precision", "nan_mean", "one_error", "p_value", "paired_bootstrap",
    "paired_bootstrap_average_precision", "paired_bootstrap_over_seeds", "precision_recall_f1",
    "resampled_average_precision", "sigmoid",
    "tune_thresholds",
]
