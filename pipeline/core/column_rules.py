"""The rules of a table that follow from what it and its columns declare.

A table is read once, a batch at a time, to check single rows: types, missing values, values out of range. Checks of
whole columns (unique, median, most common value) run only for tables that fit into memory, a column at a time.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.core.contract import Column, Data, Table
from pipeline.core.parts import READ_AS, Parts, Unusable
from pipeline.core.rules import EXAMPLES, Finding, Rule, told

MOST_COMMON = 0.99  # share of the rows that may have one value of a feature
LARGEST = float(np.finfo(np.float32).max)  # the network takes float32
SHOWN_NAMES = 40
SHOWN_COLUMNS = 3


@dataclass
class Seen:
    """A table that was read once. ``faults`` are the reasons, by the rule, why it or a column of it cannot be used.

    ``parts`` is the usable part of the table: an unusable column is null, an unusable table has no rows.
    """

    table: Table
    parts: Parts
    faults: dict[str, Finding] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], pl.DataFrame] = field(default_factory=dict)

    def refuse(self, rule: str, text: str) -> None:
        """Record that the whole table cannot be used."""
        self.parts = Parts(None, self.table.schema)
        self.faults[rule] = Finding(text, 1)
        self.unusable.update(column.name for column in self.table.columns)


def look_at(table: Table, folder: Path, others: Sequence[Table]) -> Seen:
    """Read the table; ``others`` are those that it may have been swapped with."""
    seen = Seen(table, Parts(None, table.schema))
    try:
        seen.parts = Parts(folder, table.schema)
        if table.most_rows is not None and seen.parts.rows > table.most_rows:
            text = f"{table.name} has {seen.parts.rows:,} rows, expected at most {table.most_rows:,}"
            seen.refuse("size", text)
            return seen
        _scan(seen)
    except Unusable as error:
        seen.refuse("readable", f"{table.name} cannot be read: {error}")
        return seen
    missing = [name for name in seen.parts.faults if name not in seen.parts.types]
    if missing:
        seen.faults["columns"] = Finding(_missing(table, missing, seen.parts.types, others), len(missing))
    for name, fault in seen.parts.faults.items():
        if name not in missing:
            known = seen.faults.get(fault.rule)
            text = f"{known.text}; {fault}" if known else str(fault)
            seen.faults[fault.rule] = Finding(text, known.count + 1 if known else 1)
    return seen


def rules_of(seen: Seen) -> Iterator[Rule]:
    """The rules of the table, those of its columns that can be used."""
    table, name = seen.table, seen.table.name
    usable = [column for column in table.columns if column.name not in seen.unusable]

    def fault(rule: str) -> Any:
        return lambda _: [seen.faults[rule]] if rule in seen.faults else []

    yield Rule(f"{name}-readable", fault("readable"), "Write or fetch the files again.", "the files can be read")
    yield Rule(
        f"{name}-size",
        fault("size"),
        "Check that this is the right table. The model's folder has the limits, which follow from the steps' memory.",
        "the table fits into the memory of the steps"
        if table.most_rows
        else "what the steps keep of it fits into memory",
    )
    yield Rule(f"{name}-columns", fault("columns"), "Name the columns as the contract does.", "all columns exist")
    yield Rule(
        f"{name}-types",
        fault("types"),
        "Convert the columns in the program that writes them.",
        "all columns have their types",
    )
    if some := [column for column in usable if column.missing < 1]:
        yield Rule(
            f"{name}-complete",
            partial(_incomplete, seen, some),
            "Fill in the missing values, or leave out these rows.",
            "no value is missing" if not any(column.missing for column in some) else "few values are missing",
        )
    if some := [column for column in usable if _bounded(column)]:
        yield Rule(
            f"{name}-in-range",
            partial(_outside, seen, some),
            "Correct the values, or leave out these rows.",
            "all values are in their ranges",
        )
    if table.most_rows is None:
        return
    if some := [column for column in usable if column.unique]:
        yield Rule(
            f"{name}-unique",
            partial(_repeated, table, some),
            f"Keep one row for each {' and '.join(column.name for column in some)}.",
            f"no two rows have the same {' or the same '.join(column.name for column in some)}",
        )
    if some := [column for column in usable if column.usual]:
        yield Rule(
            f"{name}-usual",
            partial(_unusual, table, some),
            "Convert the column to the unit of the contract.",
            "the medians of the columns fit the units of the contract",
        )
    if some := [column for column in usable if column.feature]:
        yield Rule(
            f"{name}-vary",
            partial(_constant, table, some),
            "Check the program that writes the feature: a default may have replaced its values.",
            "no feature is nearly constant",
        )


def _scan(seen: Seen) -> None:
    """Read all values once: count missing values and values out of range, and find values of another type."""
    table, parts = seen.table, seen.parts
    while True:
        seen.counts, seen.examples = {}, {}
        seen.unusable = {*parts.faults}
        for column in table.columns:
            if column.derived and seen.unusable.intersection(pl.sql_expr(column.derived).meta.root_names()):
                seen.unusable.add(column.name)
        try:
            for frame in parts.frames(list(table.schema)):
                _count(seen, frame)
        except Unusable as error:
            if not error.column:
                raise
            parts.faults[error.column] = error  # a later value shows that the column has another type
        else:
            return


def _count(seen: Seen, frame: pl.DataFrame) -> None:
    columns = [column for column in seen.table.columns if column.name not in seen.unusable]
    frame = frame.with_columns(pl.sql_expr(column.derived).alias(column.name) for column in columns if column.derived)
    masks = {("missing", column.name): _is_missing(column) for column in columns if column.missing < 1}
    masks |= {("outside", column.name): ~_is_inside(column) for column in columns if _bounded(column)}
    sums = frame.select(mask.sum().alias("/".join(key)) for key, mask in masks.items()).row(0) if masks else ()
    shown = [column.name for column in columns if not column.feature][:SHOWN_COLUMNS]
    for (key, mask), count in zip(masks.items(), sums, strict=True):
        if not count:
            continue
        if key not in seen.counts:
            seen.examples[key] = frame.filter(mask).select(list(dict.fromkeys([*shown, key[1]]))).head(EXAMPLES)
        seen.counts[key] = seen.counts.get(key, 0) + int(count)


def _is_missing(column: Column) -> pl.Expr:
    value = pl.col(column.name)
    return value.is_null() | (value == "").fill_null(False) if column.dtype == pl.String else value.is_null()


def _kind_of(column: Column) -> type[pl.DataType]:
    return READ_AS[column.dtype]


def _bounded(column: Column) -> bool:
    """Whether some values are not valid: an infinite number never is."""
    return _kind_of(column) == pl.Float64 or bool(column.values) or column.low is not None or column.high is not None


def _is_inside(column: Column) -> pl.Expr:
    """True if a value is valid, null if it is missing."""
    value = pl.col(column.name)
    if column.values:
        return value.is_in(list(column.values)) | (value == "")
    low, high = column.low, column.high
    if _kind_of(column) == pl.Float64:
        low, high = -LARGEST if low is None else low, LARGEST if high is None else high
    inside = pl.lit(True) if low is None else value >= low
    inside = inside if high is None else inside & (value <= high)
    return inside & (value % 1 == 0) if column.discrete else inside


def _expected(column: Column) -> str:
    if column.values:
        return f"one of {_quoted(column.values)}"
    low, high = (f"{each:,}" if isinstance(each, int | float) else each for each in (column.low, column.high))
    if column.low is None and column.high is None:
        return "a whole number" if column.discrete else "a number that float32 can hold"
    if column.high is None:
        bounds = f"at least {low}"
    else:
        bounds = f"at most {high}" if column.low is None else f"{low} to {high}"
    if column.discrete:
        return f"a whole number, {bounds}" if None in (column.low, column.high) else f"a whole number from {bounds}"
    return f"{bounds} {column.unit}".strip()


def _incomplete(seen: Seen, columns: Sequence[Column], _: Data) -> Iterator[Finding]:
    for column in columns:
        key = ("missing", column.name)
        count, rows = seen.counts.get(key, 0), seen.parts.rows
        if count > column.missing * rows:
            most = f"at most {column.missing:.1%} without" if column.missing else "one in each row"
            text = f"{column.name}: {count:,} of {rows:,} {seen.table.name} have no value, expected {most}"
            yield Finding(text, count, seen.examples[key])


def _outside(seen: Seen, columns: Sequence[Column], _: Data) -> Iterator[Finding]:
    for column in columns:
        key = ("outside", column.name)
        if count := seen.counts.get(key, 0):
            text = f"{column.name}: {count:,} of {seen.parts.rows:,} {seen.table.name} are not valid"
            yield Finding(f"{text}, expected {_expected(column)}", count, seen.examples[key])


def _values(data: Data, table: Table, column: Column) -> pl.Series:
    values = data[table.name].select(column.name).collect().to_series()
    return values.set(values == "", None) if column.dtype == pl.String else values


def _repeated(table: Table, columns: Sequence[Column], data: Data) -> Iterator[Finding]:
    for column in columns:
        values = _values(data, table, column)
        repeated = ~values.is_first_distinct() & values.is_not_null()
        if repeated.any():
            again = values.filter(repeated).unique()
            of = values.is_in(again.implode())
            shown = data[table.name].filter(pl.col(column.name).is_in(again.head(EXAMPLES).implode()))
            others = [each.name for each in table.columns if not each.feature][:SHOWN_COLUMNS]
            examples = shown.select(list(dict.fromkeys([column.name, *others]))).head(EXAMPLES).collect()
            text = f"{column.name}: {of.sum():,} of {len(values):,} {table.name} share their value"
            yield Finding(f"{text}, expected a different value in each row", int(of.sum()), examples)


def _unusual(table: Table, columns: Sequence[Column], data: Data) -> Iterator[Finding]:
    rows = []
    for column in columns:
        low, high = column.usual or (None, None)
        median = _values(data, table, column).median()
        rows.append({"column": column.name, "median": median, "low": low, "high": high, "unit": column.unit})
    numbers = dict.fromkeys(("median", "low", "high"), pl.Float64)
    said = "the median of {column} is {median:,.6g}, expected {low:,.6g} to {high:,.6g} {unit}"
    usual = pl.col("median").is_between("low", "high")
    for found in told(pl.DataFrame(rows, schema_overrides=numbers), usual, said):
        yield Finding(found.text.replace(" ;", ";").strip(), found.count, found.examples)


def _constant(table: Table, columns: Sequence[Column], data: Data) -> Iterator[Finding]:
    rows = []
    for column in columns:
        values = _values(data, table, column).drop_nulls()
        if len(values):
            rows.append({"column": column.name, "most_common": values.unique_counts().to_numpy().max() / len(values)})
    said = f"{{most_common:.2%}} of the {table.name} have the same {{column}}, expected at most {MOST_COMMON:.0%}"
    frame = pl.DataFrame(rows, schema={"column": pl.String, "most_common": pl.Float64})
    yield from told(frame, pl.col("most_common") <= MOST_COMMON, said)


def _missing(table: Table, missing: Sequence[str], found: Mapping[str, pl.DataType], others: Sequence[Table]) -> str:
    """Which columns are missing, and which other columns may be these under another name."""
    for other in others:
        if set(other.schema) <= set(found):
            return (
                f"{table.name} has the columns of {other.name}, as if the two were swapped; it lacks {_quoted(missing)}"
            )
    extra = [name for name in found if name not in table.schema]
    said = []
    for column in missing:
        near = [name for name in extra if len(name) > 1 and (name.lower() in column or column in name.lower())]
        near = near or difflib.get_close_matches(column, extra, n=1)
        alike = [name for name in extra if _alike(found[name]) == _alike(table.schema[column]())]
        if near:
            said.append(f"{column!r} (is it {near[0]!r}, renamed?)")
        elif alike:
            said.append(f"{column!r} (columns of its type that the contract does not have: {_quoted(alike[:5])})")
        else:
            said.append(repr(column))
    return f"{table.name} has no column {', '.join(said)}; found {_quoted(found)}"


def _quoted(names: Iterable[str]) -> str:
    quoted = [repr(name) for name in names]
    more = [f"and {len(quoted) - SHOWN_NAMES} more"] if len(quoted) > SHOWN_NAMES else []
    return ", ".join(quoted[:SHOWN_NAMES] + more)


def _alike(dtype: pl.DataType) -> str:
    if dtype.is_numeric() or dtype == pl.Boolean:
        return "number"
    return "day" if dtype.is_temporal() else str(dtype)
