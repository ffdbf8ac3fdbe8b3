"""Encoders, which turn a column into numbers.

An encoder is fitted on the training rows; its parameters are JSON, which is published beside the model. ``encode``
needs nothing else: training, the evaluation of a champion, and ``jukebox predict`` share it, and a published version
explains its inputs, independently of the checkout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.errors import DataInvalid

if TYPE_CHECKING:
    from pipeline.core.contract import Column

Parameters = Mapping[str, Any]
DAYS_OF_A_YEAR = 365.2425  # of the Gregorian calendar, in the mean


class Encoder(Protocol):
    """It has no state: ``fit`` returns the parameters, and ``features`` takes them."""

    def fit(self, column: pl.Series) -> Parameters:
        """The parameters from the training rows, as JSON values."""

    @staticmethod
    def features(column: str, parameters: Parameters) -> dict[str, pl.Expr]:
        """The features of a column: expressions by their names."""

    @staticmethod
    def in_words(parameters: Parameters) -> str:
        """How a value becomes these features, for people; "" if it stays as it is."""


@dataclass(frozen=True)
class Number:
    """The value itself.

    ``missing`` replaces a null: a number, or "median", that of the training rows; a second feature then marks the
    missing values. Without it, a null is an error.
    """

    missing: float | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.missing, str) and self.missing != "median":
            raise ValueError(f"missing is {self.missing!r}, expected a number or 'median'")

    def fit(self, column: pl.Series) -> Parameters:
        """The value that replaces a null, if there is one."""
        if self.missing is None:
            return {}
        return {"missing": column.cast(pl.Float64).median() or 0.0 if self.missing == "median" else self.missing}

    @staticmethod
    def features(column: str, parameters: Parameters) -> dict[str, pl.Expr]:
        """The column, and a mark where it was missing."""
        value = pl.col(column).cast(pl.Float64).fill_nan(None)
        if "missing" not in parameters:
            return {column: value}
        return {column: value.fill_null(parameters["missing"]), f"{column}: missing": value.is_null()}

    @staticmethod
    def in_words(parameters: Parameters) -> str:
        """What a missing value becomes."""
        return f"if missing: {parameters['missing']:.6g}, and then 1 in a second feature" if parameters else ""


@dataclass(frozen=True)
class OneHot:
    """A feature for each value that has ``least_rows`` of the training rows. Any other value is 0 in all of them."""

    least_rows: int = 10

    def fit(self, column: pl.Series) -> Parameters:
        """The values, sorted."""
        counts = column.cast(pl.String).drop_nulls().value_counts(name="rows")
        return {"values": counts.filter(pl.col("rows") >= self.least_rows)[column.name].sort().to_list()}

    @staticmethod
    def features(column: str, parameters: Parameters) -> dict[str, pl.Expr]:
        """One for each value."""
        text = pl.col(column).cast(pl.String)
        return {f"{column}: {value}": text.eq_missing(pl.lit(value)) for value in parameters["values"]}

    @staticmethod
    def in_words(parameters: Parameters) -> str:
        """Its values."""
        return f"1 in the feature of its value, else 0: {', '.join(parameters['values'])}"


@dataclass(frozen=True)
class Elapsed:
    """Years since the first day of the training rows."""

    def fit(self, column: pl.Series) -> Parameters:
        """That day."""
        return {"since": str(column.cast(pl.Date).min())}

    @staticmethod
    def features(column: str, parameters: Parameters) -> dict[str, pl.Expr]:
        """The years."""
        days = (pl.col(column).cast(pl.Date) - date.fromisoformat(parameters["since"])).dt.total_days()
        return {f"{column}: years": days / DAYS_OF_A_YEAR}

    @staticmethod
    def in_words(parameters: Parameters) -> str:
        """The day from which it counts."""
        return f"years since {parameters['since']}"


@dataclass(frozen=True)
class Season:
    """The day of the year as a point on a circle, so that December is near January."""

    def fit(self, column: pl.Series) -> Parameters:  # noqa: ARG002 nothing to learn
        """Nothing."""
        return {}

    @staticmethod
    def features(column: str, parameters: Parameters) -> dict[str, pl.Expr]:  # noqa: ARG004
        """Its sine and its cosine."""
        angle = pl.col(column).cast(pl.Date).dt.ordinal_day() * (2 * np.pi / DAYS_OF_A_YEAR)
        return {f"{column}: sine of the year": angle.sin(), f"{column}: cosine of the year": angle.cos()}

    @staticmethod
    def in_words(parameters: Parameters) -> str:  # noqa: ARG004
        """Both."""
        return "sine and cosine of the day of the year"


ENCODERS: Mapping[str, type[Encoder]] = {each.__name__: each for each in (Number, OneHot, Elapsed, Season)}


def fit(columns: Sequence["Column"], train: pl.LazyFrame) -> list[dict[str, Any]]:
    """Fit the encoders of ``columns`` on the training rows. The result is JSON, an entry a column."""
    entries = []
    for column in columns:
        if column.feature is None:
            continue
        parameters = column.feature.fit(train.select(column.name).collect().to_series())
        entries.append(
            {
                "column": column.name,
                "unit": column.unit,
                "derived": column.derived,
                "encoder": type(column.feature).__name__,
                "parameters": parameters,
                "features": list(column.feature.features(column.name, parameters)),
            }
        )
    return entries


def names(encoding: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all features, in the order in which the network takes them."""
    return [name for entry in encoding for name in entry["features"]]


def encode(frame: pl.DataFrame, encoding: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Return float32[rows, features] of rows that have the columns of ``encoding``, which ``fit`` has returned.

    Raises DataInvalid if a value is missing and its encoder has no replacement, or if it is not a finite float32.
    """
    if lacking := [each["column"] for each in encoding if each["column"] not in frame.columns and not each["derived"]]:
        raise DataInvalid(f"missing columns: {', '.join(lacking)}; found {', '.join(frame.columns)}")
    derived = [
        pl.sql_expr(each["derived"]).alias(each["column"])
        for each in encoding
        if each["derived"] and each["column"] not in frame.columns
    ]
    found = [ENCODERS[each["encoder"]].features(each["column"], each["parameters"]) for each in encoding]
    numbers = [value.cast(pl.Float32).alias(name) for features in found for name, value in features.items()]
    encoded = frame.with_columns(derived).select(numbers)
    array = np.ascontiguousarray(encoded.to_numpy(), dtype=np.float32)
    if not np.isfinite(array).all():
        wrong = [name for name, values in zip(encoded.columns, array.T, strict=True) if not np.isfinite(values).all()]
        raise DataInvalid(
            f"{', '.join(wrong)}: a value is missing or not finite, and its encoder has no replacement for it; "
            "give its column an encoder with missing=, or correct the data"
        )
    return array
