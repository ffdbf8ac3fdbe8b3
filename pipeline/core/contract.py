"""The contract between a model's folder and the steps: what ``pipeline/models/<name>/`` exports as ``MODEL``.

A model is one frozen value. What can be stated is data: tables, columns, bounds, thresholds. What must be computed is a
function: rules, examples, the network. Up to ``Model.examples`` everything is specific to the model; after it, a
step knows only the kind of the target.

Expressions are SQL over columns (``polars.sql_expr``), so that they can be published beside the model.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from datetime import date
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.encoders import Encoder
from pipeline.core.errors import SettingsInvalid
from pipeline.core.kinds import Check, Kind, Metric
from pipeline.core.parts import READ_AS, Parts
from pipeline.core.rules import Rule

if TYPE_CHECKING:
    import keras

# The name of the served model's one input, float32[batch, features].
INPUT = "features"
# The splits that a model learns from; every other split is a test.
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its name in the data.
        dtype: String, Boolean, Int64, Float64 or Datetime of Polars. Steps read numbers as float64, moments as days.
        feature: how it becomes numbers that the network takes; None: it is not a feature.
        low: smallest valid value, in ``unit``.
        high: largest valid value, likewise.
        usual: bounds of the median over the rows. A median outside them indicates another unit or a lost sign.
        values: the valid texts; empty: any.
        unique: whether no two rows have the same value.
        missing: largest share of nulls and empty texts, 0 to 1.
        discrete: whether the values are a few whole numbers.
        derived: an expression over the other columns, for a column that the data does not have.
        known_later: whether the value is known only after the moment for which the model predicts.
        unit: for people.
    """

    name: str
    dtype: Any
    feature: Encoder | None = None
    _: KW_ONLY
    low: float | date | None = None
    high: float | date | None = None
    usual: tuple[float, float] | None = None
    values: Sequence[str] = ()
    unique: bool = False
    missing: float = 0.0
    discrete: bool = False
    derived: str = ""
    known_later: bool = False
    unit: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in READ_AS:
            known = ", ".join(f"pl.{dtype.__name__}" for dtype in READ_AS)
            raise ValueError(f"column {self.name!r} is of type {self.dtype}, expected one of {known}")
        if self.known_later and self.feature:
            raise ValueError(
                f"column {self.name!r} is known only after the moment of the prediction, so it cannot be a feature: "
                "remove feature= or known_later="
            )
        if self.derived:
            pl.sql_expr(self.derived)  # raises here, not in a run


@dataclass(frozen=True)
class Table:
    """A table as it comes from its source. The settings name its URI by its name.

    ``most_rows`` is how many a step can hold in memory; None: the steps read it a batch at a time, and validation skips
    the checks of whole columns: ``unique``, ``usual``, and whether a feature varies.
    """

    name: str
    columns: Sequence[Column]
    most_rows: int | None = 1_000_000

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The columns that the data has, with their types."""
        return {column.name: column.dtype for column in self.columns if not column.derived}

    def __getitem__(self, name: str) -> Column:
        return {column.name: column for column in self.columns}[name]


@dataclass(frozen=True)
class Data:
    """The fetched tables, and a folder for data that does not fit into memory.

    ``today`` is the day of the run, UTC; the examples must not depend on it. ``parts`` reads a table a batch
    at a time. ``data["cars"]`` is a table as a whole, or a view of the model: texts as String, numbers as Float64, days
    as Date, and the derived columns.
    """

    parts: Mapping[str, Parts]
    tables: Mapping[str, pl.LazyFrame]
    scratch: Path
    today: date

    def __getitem__(self, table: str) -> pl.LazyFrame:
        return self.tables[table]


@dataclass(frozen=True)
class Split:
    """The examples of a split: a row each, with the features' columns in their own units, and the target's.

    ``first_day`` and ``last_day`` are those of the rows behind them, if these have days.
    """

    rows: pl.LazyFrame
    first_day: date | None = None
    last_day: date | None = None


@dataclass(frozen=True)
class Splits:
    """The splits by their names: TRAIN, VALIDATION, and at least one other, which is a test.

    ``labels`` names the outputs in their order, if they do not follow from the target's column.
    """

    splits: Mapping[str, Split]
    labels: Sequence[str] = ()


class Options(BaseModel):
    """Options of a run, checked before anything costly starts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hyperparameters(Options):
    """Those of the training loop. A model adds those of its network in a subclass; its defaults are an instance.

    Whole numbers may arrive as floats: Kubeflow passes 2 as 2.0.
    """

    epochs: int = Field(2, ge=1, le=10_000)
    """Passes over the rows of the training split, at most."""
    batch_size: int = Field(512, ge=1, le=1_000_000)
    """Rows per optimiser step; more for large tables, in which a step would otherwise have few visits."""
    learning_rate: float = Field(0.003, gt=0, le=1)
    """Adam's rate at the start; it falls to 0 along a cosine over ``epochs``."""
    patience: int = Field(3, ge=1)
    """Epochs without a better validation loss after which training stops; the best epoch's weights are kept."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the weights, the order of the examples and dropout."""


@dataclass(frozen=True)
class Inputs:
    """The inputs from which a network is built.

    Args:
        features: names of the inputs, in their order.
        mean: of each feature over the training rows.
        variance: likewise; 1 for a constant feature.
        labels: names of the outputs, in their order.
        offset: of each output, in its unit: the mean of the target; 0 for a distribution.
        factor: of each output, in its unit: the standard deviation of the target; 1 for a distribution.
        output: the name of the last layer, which is that of the served output.
        activation: of the last layer.
    """

    features: Sequence[str]
    mean: Sequence[float]
    variance: Sequence[float]
    labels: Sequence[str]
    offset: Sequence[float]
    factor: Sequence[float]
    output: str
    activation: Literal["softmax", "linear"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """All that the steps know about a model; only the first seven fields have no default."""

    name: str
    """Lower case letters, digits and dashes; the folder has underscores for dashes."""
    title: str
    """One sentence: what the model predicts from what."""
    tables: Sequence[Table]
    kind: Kind
    examples: Callable[[Data], AbstractContextManager[Splits]]
    """Its temporary files are deleted when the context ends."""
    network: Callable[[Inputs, Any], "keras.Model"]
    """From float32[batch, features] to float32[batch, outputs], given the hyperparameters. It imports Keras itself."""
    hyperparameters: Hyperparameters
    rules: Sequence[Rule] = ()
    """The rules that the data must meet besides those of the columns."""
    views: Callable[[Data], Mapping[str, pl.LazyFrame]] = lambda _: {}
    """Frames that several rules need, computed once: by name, beside the tables."""
    slices: Mapping[str, str] = field(default_factory=dict)
    """Expressions over the columns of the examples; each of their values is evaluated separately."""
    metrics: Sequence[Metric] = ()
    """Metrics besides the kind's."""
    tests: Mapping[str, str] = field(default_factory=dict)
    """What each test split contains, for people, by its name without "test-"; the most important one first."""
    limits: Sequence[str] = ()
    """The limits that a reader of the model card must know, a sentence each."""
    checks: Sequence[Check] = ()
    """Checks of the gate besides the kind's; one of the same name replaces it."""

    def __post_init__(self) -> None:
        known = {metric.name for metric in self.all_metrics}
        if unknown := [check for check in self.all_checks if check.metric not in known]:
            raise ValueError(
                f"check {unknown[0].name!r} names the unknown metric {unknown[0].metric!r}; expected one of "
                f"{', '.join(known)}"
            )
        slices = {*self.slices, *self.kind.slices}
        if unknown := [check for check in self.all_checks if check.slice and check.slice not in slices]:
            raise ValueError(
                f"check {unknown[0].name!r} names the unknown slice {unknown[0].slice!r}; expected one of "
                f"{', '.join(slices)}"
            )

    def require_tables(self, named: Mapping[str, str], what: str) -> None:
        """Raise SettingsInvalid, which calls ``named`` by ``what``, unless its keys are the tables' names."""
        tables = [table.name for table in self.tables]
        wrong = [f"{name} is missing" for name in tables if name not in named]
        wrong += [f"{name} is not a table of the model {self.name}" for name in named if name not in tables]
        if wrong:
            raise SettingsInvalid(f"{what}: {'; '.join(wrong)}; expected {', '.join(tables)}")

    @cached_property
    def features(self) -> list[Column]:
        """The columns that become features, in the order in which the network takes them."""
        return [column for table in self.tables for column in table.columns if column.feature]

    @cached_property
    def unit(self) -> str:
        """That of the target's column; "" if no table has that column."""
        columns = (column for table in self.tables for column in table.columns)
        return next((column.unit for column in columns if column.name == self.kind.target), "")

    @cached_property
    def all_metrics(self) -> list[Metric]:
        """The kind's and the model's own."""
        return [*self.kind.metrics, *self.metrics]

    @cached_property
    def all_checks(self) -> list[Check]:
        """The kind's, unless the model has one of the same name, and the model's own."""
        return list({check.name: check for check in (*self.kind.checks, *self.checks)}.values())


def folder_of(name: str) -> str:
    """The name of the folder of a model."""
    return name.replace("-", "_")


def load(name: str) -> Model:
    """Return the model of that name; raises SettingsInvalid if there is no such folder."""
    found = [module.name for module in iter_modules([str(Path(__file__).parents[1] / "models")])]
    if folder_of(name) not in found:
        raise SettingsInvalid(
            f"the model is {name!r}, but the folder pipeline/models/{folder_of(name)} does not exist; found "
            f"{', '.join(found) or 'none'}. Name one of them in the settings (model-name), or add the folder"
        )
    model: Model = import_module(f"pipeline.models.{folder_of(name)}").MODEL
    return model
