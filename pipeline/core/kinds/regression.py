"""Regression: one number, in its own unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.core.kinds.base import Check, Floats, Kind, Metric, Scored, mean

BINS = 10  # of the residuals: deciles


def errors(scored: Scored) -> Floats:
    """Prediction minus target, float64[examples, 1]."""
    return np.asarray(scored.predictions - scored.target, dtype=np.float64)


def root_mean(parts: Floats, rows: Floats) -> float | None:
    """The root of the mean."""
    found = mean(parts, rows)
    return None if found is None else float(np.sqrt(found))


def r_squared(parts: Floats, rows: Floats) -> float | None:  # noqa: ARG001 a row each
    """1 minus the squared errors over the squares about the mean; None if the target does not vary.

    ``parts`` are predictions and targets, float64[examples, 2].
    """
    predicted, target = parts.T
    spread = float(((target - target.mean()) ** 2).sum()) if len(target) else 0.0
    return 1 - float(((predicted - target) ** 2).sum()) / spread if spread else None


MAE = Metric("mae", "lower", lambda scored: np.abs(errors(scored)), title="mean absolute error")
RMSE = Metric("rmse", "lower", lambda scored: errors(scored) ** 2, root_mean, "root mean squared error")
R2 = Metric("r2", "higher", lambda scored: np.concatenate([scored.predictions, scored.target], axis=1), r_squared, "R²")


class RegressionFigures:
    """``residuals``: bins of the target of equal number, with the mean error and the mean absolute error of each."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []

    def add(self, scored: Scored) -> None:
        """Add examples."""
        known = scored.rows > 0
        self._parts.append(np.concatenate([scored.predictions[known], scored.target[known]], axis=1).astype(np.float64))

    def found(self) -> dict[str, Any]:
        """The bins that have examples."""
        predicted, target = np.concatenate(self._parts).T
        order = np.argsort(target, kind="stable")
        bins = [each for each in np.array_split(order, BINS) if len(each)]
        return {
            "residuals": [
                {
                    "low": float(target[each].min()),
                    "high": float(target[each].max()),
                    "error": float((predicted - target)[each].mean()),
                    "absolute_error": float(np.abs(predicted - target)[each].mean()),
                    "examples": len(each),
                }
                for each in bins
            ]
        }


@dataclass(frozen=True)
class Regression(Kind):
    """A number; ``target`` is a column of floats. A null is a row without a target."""

    output = "prediction"
    activation = "linear"
    primary = "rmse"
    headline = MAE
    metrics = (MAE, RMSE, R2)
    checks = (
        Check("r2-floor", "r2", at_least=0.1, description="share of the target's variance that is explained"),
        Check(
            "no-worse-than-champion",
            "mae",
            at_most=0.0,
            against="champion",
            description="mean absolute error above the champion's, on the same test rows",
        ),
    )
    always = "the mean of the target in training"
    answers = "a number in the unit of the target"

    def labels(self, train: pl.DataFrame) -> list[str]:  # noqa: ARG002
        """The target's name."""
        return [self.target]

    def array(self, frame: pl.DataFrame, labels: Sequence[str]) -> tuple[Floats, Floats]:  # noqa: ARG002
        """The numbers, a row each."""
        target = frame[self.target].cast(pl.Float64).to_numpy()
        return np.nan_to_num(target)[:, None], np.isfinite(target).astype(np.float64)

    def baseline(self, target: Floats, rows: float) -> Floats:
        """The mean."""
        found: Floats = target / rows
        return found

    def scale(self, total: Floats, squares: Floats, rows: float) -> tuple[list[float], list[float]]:
        """Mean and standard deviation; 1 for a target that does not vary."""
        centre = total / rows
        variance = np.maximum(squares / rows - centre**2, 0)
        return centre.tolist(), np.where(variance > 0, np.sqrt(variance), 1.0).tolist()

    def loss(self, target: Any, predictions: Any, factor: Any) -> Any:
        """Squared error in standard deviations of the training target, so that the unit does not matter."""
        import keras

        return keras.ops.mean(keras.ops.square((target - predictions) / factor), axis=1)

    def in_unit(self, loss: float, factor: Sequence[float]) -> float:
        """The root of the mean squared error."""
        return float(np.sqrt(loss)) * factor[0]

    def figures(self, labels: Sequence[str]) -> "RegressionFigures":  # noqa: ARG002
        """The residuals."""
        return RegressionFigures()

    def answer(self, prediction: Floats, labels: Sequence[str]) -> list[tuple[str, float]]:
        """The number."""
        return [(labels[0], float(prediction[0]))]
