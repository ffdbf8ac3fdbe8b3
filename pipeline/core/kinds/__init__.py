"""The kinds of target. What follows from them: arrays, metrics, baseline, loss, the gate's checks."""

from pipeline.core.kinds.base import Check, Floats, Kind, Metric, Scored, interval, mean
from pipeline.core.kinds.distribution import Classification, Counts, top
from pipeline.core.kinds.regression import Regression

__all__ = [
    "Check",
    "Classification",
    "Counts",
    "Floats",
    "Kind",
    "Metric",
    "Regression",
    "Scored",
    "interval",
    "mean",
    "top",
]
