"""A distribution over labels: one of two or more classes, or counts of rows for each label.

A classified row is a count of one, so both kinds differ only in how they read their target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.kinds.base import Check, Floats, Kind, Metric, Scored

# A probability of 0 for an observed label would have an infinite loss; a float32 softmax is not accurate below this.
SMALLEST = 1e-7
# Bins of confidence for the calibration error: Guo et al., On Calibration of Modern Neural Networks (2017), use 15.
BINS = 15


def surprise(scored: Scored) -> Floats:
    """Nats of cross entropy, summed over the rows of each example, float64[examples, 1]."""
    likelihood = np.log(np.clip(scored.predictions, SMALLEST, 1))
    nats: Floats = -(scored.target * likelihood).sum(axis=1, keepdims=True)
    return nats


def top(count: int) -> Metric:
    """The share of the rows whose label is among the ``count`` most probable ones."""

    def hits(scored: Scored) -> Floats:
        if count == 1:
            best = scored.predictions.argmax(axis=1)[:, None]
        else:
            last = min(count, scored.predictions.shape[1]) - 1
            best = np.argpartition(-scored.predictions, last, axis=1)[:, :count]
        found: Floats = np.take_along_axis(scored.target, best, axis=1).sum(axis=1, keepdims=True)
        return found

    return Metric(f"top{count}", "higher", hits, title=f"top-{count}", percent=True)


def confidence(scored: Scored) -> Floats:
    """The probability of the most probable label, and its rows, float64[examples, 2]."""
    best = scored.predictions.argmax(axis=1)[:, None]
    return np.concatenate(
        [np.take_along_axis(array, best, axis=1) for array in (scored.predictions, scored.target)], axis=1
    ).astype(np.float64)


def reliability(parts: Floats, rows: Floats) -> list[dict[str, Any]]:
    """The bins of confidence that hold rows: how sure the model was, and how often it was right.

    ``parts`` is what ``confidence`` returns.
    """
    sure, right = parts.T
    where = np.minimum((sure * BINS).astype(int), BINS - 1)
    total, summed, hits = (np.bincount(where, weights, BINS) for weights in (rows, rows * sure, right))
    return [
        {
            "low": each / BINS,
            "high": (each + 1) / BINS,
            "confidence": float(summed[each] / total[each]),
            "accuracy": float(hits[each] / total[each]),
            "rows": int(total[each]),
        }
        for each in np.flatnonzero(total)
    ]


def calibration_error(parts: Floats, rows: Floats) -> float | None:
    """The expected calibration error: the mean distance of confidence and accuracy, over the rows."""
    if not rows.sum():
        return None
    away = sum(bin_["rows"] * abs(bin_["confidence"] - bin_["accuracy"]) for bin_ in reliability(parts, rows))
    return float(away / int(rows.sum()))


CROSS_ENTROPY = Metric("cross_entropy", "lower", surprise, title="cross entropy (nats)")
TOP1 = top(1)
CALIBRATION_ERROR = Metric("calibration_error", "lower", confidence, calibration_error, "calibration error")


class DistributionFigures:
    """``confusion``, int[labels, labels]: rows by the true and by the most probable label; ``calibration``."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        self._parts: list[Floats] = []
        self._rows: list[Floats] = []

    def add(self, scored: Scored) -> None:
        """Add examples."""
        np.add.at(self._confusion.T, scored.predictions.argmax(axis=1), scored.target.astype(np.int64))
        self._parts.append(confidence(scored))
        self._rows.append(scored.rows)

    def found(self) -> dict[str, Any]:
        """Both."""
        bins = reliability(np.concatenate(self._parts), np.concatenate(self._rows))
        return {"confusion": self._confusion.tolist(), "calibration": bins}


@dataclass(frozen=True)
class _Distribution(Kind):
    output = "probabilities"
    activation = "softmax"
    primary = "cross_entropy"
    headline = TOP1
    metrics = (TOP1, CROSS_ENTROPY, CALIBRATION_ERROR)
    checks = (
        Check(
            "gain-over-baseline",
            "cross_entropy",
            at_least=0.02,
            against="baseline",
            description="nats of cross entropy below the training rows' frequencies",
        ),
        Check(
            "no-worse-than-champion",
            "cross_entropy",
            at_most=0.05,
            against="champion",
            description="nats of cross entropy above the champion's, on the same test rows",
        ),
        Check("calibration-ceiling", "calibration_error", at_most=0.15, description="expected calibration error"),
    )
    always = "how often each label occurs in training"
    answers = "a probability for each label; they sum to 1"
    slices = ("label",)

    def baseline(self, target: Floats, rows: float) -> Floats:
        """The frequencies, with one more row for each label (Laplace's rule), so that none has probability 0."""
        found: Floats = (target + 1) / (rows + len(target))
        return found

    def loss(self, target: Any, predictions: Any, factor: Any) -> Any:  # noqa: ARG002
        """Cross entropy; ``target`` holds shares."""
        import keras

        return keras.losses.categorical_crossentropy(target, predictions)

    def sliced(self, scored: Scored, labels: Sequence[str]) -> Mapping[str, Mapping[str, Scored]]:
        """The rows of each label separately."""
        return {"label": dict(self._by_label(scored, labels))}

    def _by_label(self, scored: Scored, labels: Sequence[str]) -> Any:
        for number, label in enumerate(labels):
            some = np.flatnonzero(scored.target[:, number])
            only = np.zeros((len(some), len(labels)))
            only[:, number] = scored.target[some, number]
            yield label, replace(scored.where(some), target=only, rows=only[:, number])

    def figures(self, labels: Sequence[str]) -> DistributionFigures:
        """Confusion and calibration."""
        return DistributionFigures(labels)

    def restrict(
        self,
        target: NDArray[Any],
        rows: NDArray[Any],  # noqa: ARG002
        some: Sequence[int],
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The rows of these labels alone."""
        return target[:, some], target[:, some].sum(axis=1)

    def given(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """Each divided by their sum; if nothing is left for these labels, they are equally likely."""
        sums = predictions.sum(axis=1, keepdims=True)
        shares = np.full_like(predictions, 1 / predictions.shape[1])
        np.divide(predictions, sums, out=shares, where=sums > 0)
        return shares

    def answer(self, prediction: Floats, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The labels with their probabilities."""
        return sorted(zip(labels, map(float, prediction), strict=True), key=lambda pair: (-pair[1], pair[0]))


@dataclass(frozen=True)
class Classification(_Distribution):
    """One of two or more classes; ``target`` is a column of texts. A null is a row without a target."""

    def labels(self, train: pl.DataFrame) -> list[str]:
        """The classes, sorted."""
        return train[self.target].drop_nulls().unique().sort().to_list()

    def array(self, frame: pl.DataFrame, labels: Sequence[str]) -> tuple[Floats, Floats]:
        """One row each; 0 rows for a class that training did not have."""
        target = np.column_stack([frame[self.target].eq_missing(label).to_numpy() for label in labels]).astype(float)
        return target, target.sum(axis=1)


@dataclass(frozen=True)
class Counts(_Distribution):
    """Rows for each label; ``target`` is a column of arrays, uint32[labels], whose labels ``Splits`` names."""

    def labels(self, train: pl.DataFrame) -> list[str]:  # noqa: ARG002
        """Not known from the numbers alone."""
        raise ValueError("a target of counts needs Splits(labels=…)")

    def array(self, frame: pl.DataFrame, labels: Sequence[str]) -> tuple[Floats, Floats]:  # noqa: ARG002
        """The counts, and their sums."""
        target = frame[self.target].to_numpy()
        return target, target.sum(axis=1, dtype=np.int64)
