"""The kinds of target, each with its arrays, metrics, baseline, loss and checks of the gate."""

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
