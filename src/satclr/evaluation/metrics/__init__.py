"""Metrics of multi-label tagging: scores (N,K) and targets (N,K) in, numbers out; NumPy in float64.

N tiles, K labels. A label without positives has no AP: it is nan and left out of means, never zero.
"""

# fmt: off
# isort: off
from satclr.evaluation.metrics.bootstrap import (
    benjamini_hochberg, draw_counts, holm, interval, jackknife_bias, p_value, paired_bootstrap_average_precision,
    paired_bootstrap_over_seeds, resampled_average_precision, standard_interval, wald_p_value,
)
from satclr.evaluation.metrics.scores import (
    TEMPERATURE_RANGE, average_precision, coverage_error, expected_calibration_error, fit_temperature,
    label_ranking_average_precision, mean_average_precision, micro_average_precision, nan_mean, one_error,
    precision_recall_f1, sigmoid, tune_thresholds, within_category_average_precision,
)

__all__ = [
    "TEMPERATURE_RANGE", "average_precision", "benjamini_hochberg", "coverage_error", "draw_counts",
    "expected_calibration_error", "fit_temperature", "holm", "interval", "jackknife_bias",
    "label_ranking_average_precision", "mean_average_precision", "micro_average_precision", "nan_mean", "one_error",
    "p_value", "paired_bootstrap_average_precision", "paired_bootstrap_over_seeds", "precision_recall_f1",
    "resampled_average_precision", "sigmoid", "standard_interval", "tune_thresholds", "wald_p_value",
    "within_category_average_precision",
]
