"""Intervals, calibration, frontiers, agreement: statistics on NumPy arrays; nothing here loads torch."""

from preferl.statistics.calibration import bayes_accuracy, expected_calibration_error
from preferl.statistics.intervals import mean_interval, paired_bootstrap, wilson_interval
from preferl.statistics.text import distinct_n, repetition

__all__ = [
    "bayes_accuracy",
    "distinct_n",
    "expected_calibration_error",
    "mean_interval",
    "paired_bootstrap",
    "repetition",
    "wilson_interval",
]
