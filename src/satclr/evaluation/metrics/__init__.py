"""Metrics of multi-label tagging: scores (N,K) and targets (N,K) in, numbers out; NumPy in float64.

N tiles, K labels. A label without positives has no AP: nan, left out of means, never zero.
"""

from satclr.evaluation.metrics.bootstrap import (
    bootstrap,
    draw_counts,
    interval,
    p_value,
    paired_bootstrap,
    paired_bootstrap_average_precision,
    paired_bootstrap_over_seeds,
    resampled_average_precision,
)
from satclr.evaluation.metrics.calibration import (
    TEMPERATURE_RANGE,
    expected_calibration_error,
    fit_temperature,
    sigmoid,
)
from satclr.evaluation.metrics.decisions import Decisions, decide, tune_thresholds
from satclr.evaluation.metrics.precision import (
    average_precision,
    mean_average_precision,
    micro_average_precision,
    nan_mean,
)
from satclr.evaluation.metrics.ranking import coverage_error, label_ranking_average_precision, one_error

__all__ = [
    "TEMPERATURE_RANGE",
    "Decisions",
    "average_precision",
    "bootstrap",
    "coverage_error",
    "decide",
    "draw_counts",
    "expected_calibration_error",
    "fit_temperature",
    "interval",
    "label_ranking_average_precision",
    "mean_average_precision",
    "micro_average_precision",
    "nan_mean",
    "one_error",
    "p_value",
    "paired_bootstrap",
    "paired_bootstrap_average_precision",
    "paired_bootstrap_over_seeds",
    "resampled_average_precision",
    "sigmoid",
    "tune_thresholds",
]
