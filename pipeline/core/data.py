"""The tables of a model, opened for a step."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from pipeline.core.contract import Data, Model, Table
from pipeline.core.parts import Parts, reading_table


def open_data(model: Model, places: Mapping[str, Path], *, scratch: Path, today: date | None = None) -> Data:
    """Open the tables of ``model``; ``places`` are their folders of Parquet parts. Raises Unusable."""
    parts = {}
    for table in model.tables:
        with reading_table(table.name):
            parts[table.name] = Parts(places[table.name], table.schema)
    tables = {table.name: lazy(table, parts[table.name]) for table in model.tables}
    return Data(parts, tables, scratch, today or datetime.now(UTC).date())


def lazy(table: Table, parts: Parts) -> pl.LazyFrame:
    """A table with its derived columns. It is read again for each ``collect``, the columns that this asks for."""
    schema = pl.Schema(parts.columns)

    def read(
        columns: Sequence[str] | None, predicate: pl.Expr | None, most: int | None, _: Any
    ) -> Iterator[pl.DataFrame]:
        wanted = columns or list(schema)
        yield pl.DataFrame(schema=schema).select(wanted)
        left = parts.rows if most is None else most
        for frame in parts.frames(wanted):
            some = frame.head(left)
            left -= len(some)
            yield some if predicate is None else some.filter(predicate)
            if not left:
                return

    derived = [pl.sql_expr(column.derived).alias(column.name) for column in table.columns if column.derived]
    return register_io_source(read, schema=schema).with_columns(derived)
