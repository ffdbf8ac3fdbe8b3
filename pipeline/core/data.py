"""The tables of a model, opened for a step."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

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
        columns: Sequence[str] | None, predicate: pl.Expr | None, most: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = columns or list(schema)
        # Polars takes it for granted that the rows are those that it has asked for.
        asked = [] if predicate is None else predicate.meta.root_names()
        yield pl.DataFrame(schema=schema).select(wanted)
        for frame in parts.frames(list(dict.fromkeys([*wanted, *asked]))):
            found = (frame if predicate is None else frame.filter(predicate)).select(wanted).slice(0, most)
            yield found
            most = None if most is None else most - len(found)
            if most == 0:
                return

    derived = [pl.sql_expr(column.derived).alias(column.name) for column in table.columns if column.derived]
    return register_io_source(read, schema=schema).with_columns(derived)
