"""The kinds of target, and the metrics of their predictions."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Two-sided 95 % of the normal distribution.
Z = 1.96


@dataclass(frozen=True)
class Scored:
    """Predictions with the observed targets.

    Args:
        predictions: float[examples, outputs].
        target: float64[examples, outputs], in the outputs' unit; for a distribution, the rows of each label.
        rows: float64[examples], the rows behind each example; 0 if the target is not among the model's outputs.
    """

    predictions: NDArray[Any]
    target: Floats
    rows: Floats

    def where(self, some: NDArray[Any]) -> "Scored":
        """Some of the examples, by their numbers or as bool[examples]."""
        return replace(self, predictions=self.predictions[some], target=self.target[some], rows=self.rows[some])


def mean(parts: Floats, rows: Floats) -> float | None:
    """Sum over sum: ``parts`` float64[examples, 1] are sums over the rows of an example."""
    return float(parts[:, 0].sum() / rows.sum()) if rows.sum() else None


@dataclass(frozen=True)
class Metric:
    """A metric of predictions.

    ``parts`` returns the values that each example contributes, float64[examples, any], a slice of the examples at a
    time; ``combine`` computes the metric from all parts and the rows behind them, or returns None if it is not defined.
    A ``mean`` has an interval.
    """

    name: str
    better: Literal["higher", "lower"]
    parts: Callable[[Scored], Floats]
    combine: Callable[[Floats, Floats], float | None] = mean
    title: str = ""
    """For people."""
    percent: bool = False
    """Whether it is a share, shown as a percentage."""

    def interval(self, parts: Floats, rows: Floats) -> list[float] | None:
        """The 95 % interval of a mean if examples are drawn at random; None if the metric is not a mean."""
        return interval(parts[:, 0], rows) if self.combine is mean and rows.sum() else None


def interval(parts: Floats, rows: Floats) -> list[float]:
    """The 95 % interval of sum(parts) / sum(rows) if examples, each with its (part, rows), are drawn at random.

    The linearised variance of a ratio over clusters: Cochran, Sampling Techniques (3rd ed. 1977), section 6.4. The rows
    of an example are all alike, so a hundred of them are not a hundred observations.
    """
    found = float(parts.sum() / rows.sum())
    count = len(parts)
    if count < 2:
        return [found, found]
    deviation = np.sqrt(count / (count - 1) * ((parts - found * rows) ** 2).sum()) / rows.sum()
    return [float(found - Z * deviation), float(found + Z * deviation)]


@dataclass(frozen=True)
class Check:
    """A check that the gate makes of a model.

    Args:
        name: also the name of its threshold, which a run may change.
        metric: the metric that is checked.
        at_least: the threshold, in the metric's unit; or
        at_most: likewise.
        against: "" for the value itself; "baseline" or "champion" for how much better (``at_least``) or worse
            (``at_most``) it is than theirs, on the same rows. Each check against the champion is also made against
            the version that production serves, see ``of_served``.
        split: a test split, or "all" of them.
        slice: the worst value of this slice with at least ``min_rows`` rows is checked; "": the whole split.
        min_rows: the rows that a value of the slice needs to be checked.
        description: for people.
    """

    name: str
    metric: str
    _: KW_ONLY
    at_least: float | None = None
    at_most: float | None = None
    against: Literal["", "baseline", "champion", "served"] = ""
    split: str = "all"
    slice: str = ""
    min_rows: int = 100
    description: str = ""

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"check {self.name!r} needs either at_least= or at_most=")

    @property
    def threshold(self) -> float:
        """The threshold, whichever of the two."""
        return next(each for each in (self.at_least, self.at_most) if each is not None)

    def of_served(self) -> "Check":
        """A check against the champion, made against the version that production serves."""
        name = self.name.replace("champion", "served") if "champion" in self.name else f"{self.name}-than-served"
        description = self.description.replace("the champion's", "those of the version that production serves")
        return replace(self, name=name, against="served", description=description)

    def with_threshold(self, value: float) -> "Check":
        """The same check with another threshold."""
        return replace(self, at_most=value) if self.at_least is None else replace(self, at_least=value)


class Figures(Protocol):
    """Gathers the data of a report's figures, a slice of the examples at a time."""

    def add(self, scored: Scored) -> None:
        """Add examples."""

    def found(self) -> dict[str, Any]:
        """The data, by the figures' names, as JSON values."""


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of target, and everything that follows from it.

    ``target`` is the column of the examples that holds it. ``output`` is the name of the served model's output,
    ``primary`` that of the metric that early stopping uses, ``headline`` the metric that people understand at once.
    """

    target: str

    output: ClassVar[str]
    activation: ClassVar[Literal["softmax", "linear"]]
    primary: ClassVar[str]
    headline: ClassVar[Metric]
    metrics: ClassVar[Sequence[Metric]]
    checks: ClassVar[Sequence[Check]]
    always: ClassVar[str]
    """The baseline's constant prediction, for people."""
    answers: ClassVar[str]
    """What the model's output is, for people."""
    slices: ClassVar[Sequence[str]] = ()
    """Names of the slices that each model of this kind has."""

    @abstractmethod
    def labels(self, train: pl.DataFrame) -> list[str]:
        """The names of the outputs in their order, from the training examples."""

    @abstractmethod
    def array(self, frame: pl.DataFrame, labels: Sequence[str]) -> tuple[Floats, Floats]:
        """``target`` and ``rows`` of ``Scored``."""

    @abstractmethod
    def baseline(self, target: Floats, rows: float) -> Floats:
        """The prediction of a model without features, float64[outputs], from sums over the training examples.

        ``target`` is float64[outputs] and ``rows`` float64, both summed.
        """

    @abstractmethod
    def loss(self, target: Any, predictions: Any, factor: Any) -> Any:
        """The loss of each example, a tensor float32[examples]. It imports Keras itself."""

    def in_unit(self, loss: float, factor: Sequence[float]) -> float:  # noqa: ARG002
        """A mean ``loss`` in the unit of the primary metric, next to which it is shown."""
        return loss

    def scale(self, total: Floats, squares: Floats, rows: float) -> tuple[list[float], list[float]]:  # noqa: ARG002
        """Offset and factor of the outputs, from the sums of the training target and of its squares."""
        return [0.0] * len(total), [1.0] * len(total)

    def sliced(self, scored: Scored, labels: Sequence[str]) -> Mapping[str, Mapping[str, Scored]]:  # noqa: ARG002
        """The kind's own slices: by the name of the slice, by its value."""
        return {}

    @abstractmethod
    def figures(self, labels: Sequence[str]) -> Figures:
        """The figures of the report."""

    def restrict(
        self, target: NDArray[Any], rows: NDArray[Any], some: Sequence[int]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """``target`` and ``rows`` for ``some`` of the labels only."""
        return target[:, some], rows

    def given(self, predictions: NDArray[Any]) -> NDArray[Any]:
        """Predictions of some of the labels, given that it is one of them."""
        return predictions

    @abstractmethod
    def answer(self, prediction: Floats, labels: Sequence[str]) -> list[tuple[str, float]]:
        """One prediction, float[outputs], for people: pairs of a name and its value, the most important first."""
