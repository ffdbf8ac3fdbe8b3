"""The Parquet parts of a table in a folder, read a batch at a time, each column as the type of the contract.

Stored types vary: dictionary-encoded text is text, a Decimal is a number, an ISO date stored as text is a day. Parts
may differ in their stored types: each is converted by itself. Batches bound the memory, however many rows a row group
has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

BATCH = 1 << 19  # values
LONGEST_SAMPLE = 40
# A day in ISO 8601, optionally with a time and a zone. The day is used as written.
ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?)?(Z|[+-]\d{2}(:?\d{2})?)?$"
# The type in which each type of the contract is read.
READ_AS: dict[type[pl.DataType], type[pl.DataType]] = {
    pl.String: pl.String,
    pl.Boolean: pl.Float64,
    pl.Int64: pl.Float64,
    pl.Float64: pl.Float64,
    pl.Datetime: pl.Date,
}
EXPECTED = {
    pl.String: "a text",
    pl.Float64: "a number",
    pl.Date: "a Date, a Datetime or a text such as '2026-11-20'",
}


class Unusable(Exception):
    """A table, or its ``column``, cannot be used: ``rule`` is the rule that it breaks, the message the reason."""

    def __init__(self, rule: Literal["readable", "columns", "types"], column: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.column = column
        self.table = "the data"


@contextmanager
def reading_table(name: str) -> Iterator[None]:
    """Set the table's name on an Unusable or TooMany that is raised."""
    try:
        yield
    except (Unusable, TooMany) as error:
        error.table = name
        raise


class TooMany(Exception):
    """A table has more than a step can hold in memory: the message says how much of what, ``table`` is its name."""

    table = ""


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of one part."""

    file: Path
    first: int
    rows: int


class Parts:
    """The parts of a table, which has the columns of ``contract``: the files of a folder, or one file.

    ``types``: the columns as they are stored, in the first part that has them. ``faults``: the columns of the contract
    that cannot be used and why; they are read as null throughout. ``batches``: all rows, in order. Without a place
    it is a table without rows.

    Raises Unusable if there is no part, or one is damaged.
    """

    def __init__(self, place: Path | None, contract: Mapping[str, type[pl.DataType]]) -> None:
        self.columns = {name: READ_AS[dtype] for name, dtype in contract.items()}
        self.types: dict[str, pl.DataType] = {}
        self.faults: dict[str, Unusable] = {}
        self.batches: list[Batch] = []
        self._schemas: dict[Path, dict[str, pl.DataType]] = {}
        if place is None:
            return
        for file in [place] if place.is_file() else sorted(place.glob("*.parquet")):
            with _reading(file):
                stored = pl.scan_parquet(file, glob=False)
                schema = dict(stored.collect_schema())
                rows = stored.select(pl.len()).collect().item()
            self._schemas[file] = schema
            self.types = schema | self.types
            most = BATCH // len(contract)
            self.batches += [Batch(file, first, min(most, rows - first)) for first in range(0, rows, most)]
        if not self._schemas:
            raise Unusable("readable", "", "there is no *.parquet file")
        for name in self.columns:
            self._look(name)

    @property
    def rows(self) -> int:
        """Rows of all parts, according to their footers."""
        return sum(batch.rows for batch in self.batches)

    def read(self, batch: Batch, columns: Sequence[str]) -> pl.DataFrame:
        """The columns of a batch as text, Float64 (NaN is null) or Date.

        Raises Unusable if a value cannot be read as its column's type.
        """
        stored = [name for name in columns if name not in self.faults]
        with _reading(batch.file):
            frame = _rows(batch.file, batch.first, batch.rows, stored)
        return pl.DataFrame(
            [
                self._meant(batch.file, frame[name])
                if name in stored
                else pl.Series(name, [None], self.columns[name]).new_from_index(0, batch.rows)
                for name in columns
            ]
        )

    def frames(self, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """All batches, one after the other; see ``read``."""
        return (self.read(batch, columns) for batch in self.batches)

    def _look(self, name: str) -> None:
        """Record a fault if the column is missing, or if its type does not fit the contract."""
        having = [file for file, schema in self._schemas.items() if name in schema]
        lacking = [file for file in self._schemas if file not in having]
        if not having:
            self.faults[name] = Unusable("columns", name, f"no column {name!r}")
        elif lacking:
            text = f"{lacking[0].name} has no column {name!r}, which {having[0].name} has"
            self.faults[name] = Unusable("columns", name, text)
        for file in having:
            dtype = self._schemas[file][name]
            if name not in self.faults and not _may_mean(dtype, self.columns[name]):
                with _reading(file):
                    value = _rows(file, 0, BATCH, [name])[name].drop_nulls().head(1)
                self.faults[name] = self._of_another_type(file, value)

    def _meant(self, file: Path, values: pl.Series) -> pl.Series:
        wanted = self.columns[values.name]
        if values.dtype == pl.Null:
            return values.cast(wanted)
        if wanted == pl.Float64:
            return values.cast(pl.Float64).fill_nan(None)
        if wanted == pl.Date and values.dtype.is_temporal():
            return _days(values)
        text = self._text(file, values)
        if wanted == pl.String:
            return text
        text = text.str.strip_chars()
        days = text.str.extract(f"({ISO})").str.head(10).str.to_date("%Y-%m-%d", strict=False)
        lost = text.filter(days.is_null() & (text != ""))
        if len(lost):
            raise self._of_another_type(file, lost)
        return days

    def _text(self, file: Path, values: pl.Series) -> pl.Series:
        try:
            return values.cast(pl.String)
        except pl.exceptions.ComputeError:  # bytes that are not UTF-8
            raise self._of_another_type(file, values.filter([not _is_text(value) for value in values])) from None

    def _of_another_type(self, file: Path, values: pl.Series) -> Unusable:
        name = values.name
        where = f" in {file.name}" if len(self._schemas) > 1 else ""
        sample = f" such as {_sample(values)}" if len(values) else ""
        dtype = self._schemas[file][name].base_type()
        expected = EXPECTED[self.columns[name]]
        return Unusable("types", name, f"{name} is {dtype}{sample}{where}, expected {expected}")


class Known:
    """A set of texts, identified by their 64-bit hashes: 8 bytes each.

    ``hashes``, uint64[texts], may repeat. ``first``, int64[known], is the index of the first text of each hash.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes, self.first = np.unique(hashes, return_index=True)

    def find(self, texts: pl.Series) -> NDArray[np.int64]:
        """The index of each text in the set, int64[texts]; -1 if it is not in the set."""
        hashes, row = np.unique(texts.hash().to_numpy(), return_inverse=True)
        place = np.searchsorted(self._hashes, hashes)
        is_known = np.append(self._hashes, 0)[place] == hashes
        is_known &= place < len(self._hashes)
        return np.where(is_known, place, -1)[row]


class Sums:
    """Sums over the batches of a table: frames of partial sums go in, ``total`` comes out.

    ``keys`` identify a row, ``added`` aggregates the other columns; both apply to partial sums of partial sums as well.
    Memory is that of the total, not of the table.
    """

    def __init__(self, keys: Sequence[str], added: Sequence[pl.Expr], most: int | None = None, what: str = "") -> None:
        self._keys = keys
        self._added = added
        self._most = most
        self._what = what
        self._frames: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        """Add a frame. Raises TooMany if the total has more than ``most`` rows."""
        self._frames.append(frame)
        # Aggregation costs time and memory in proportion to the total: wait until half as much is new.
        if sum(map(len, self._frames[1:])) > max(BATCH, len(self._frames[0]) // 2):
            self.total()

    def total(self) -> pl.DataFrame:
        """The sums of all that was added."""
        # The in-memory engine would keep the rows of each group, several times the size of their sums.
        frames = pl.concat([frame.lazy() for frame in self._frames])
        total = frames.group_by(self._keys).agg(self._added).collect(engine="streaming")
        if self._most is not None and len(total) > self._most:
            raise TooMany(f"more than {self._most:,} {self._what}")
        self._frames = [total]
        return total


def _rows(file: Path, first: int, rows: int, columns: Sequence[str]) -> pl.DataFrame:
    scan = pl.scan_parquet(file, glob=False, hive_partitioning=False)
    return scan.select(columns).slice(first, rows).collect(engine="streaming")


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        # Polars panics at some damaged files; in the file names of its messages, the folder is noise.
        reason = (str(error).replace(f"{file.parent}/", "").splitlines() or [type(error).__name__])[0]
        raise Unusable("readable", "", reason if file.name in reason else f"{file.name}: {reason}") from error


def _may_mean(dtype: pl.DataType, wanted: type[pl.DataType]) -> bool:
    is_text = isinstance(dtype, (pl.String, pl.Categorical, pl.Enum, pl.Binary))
    return (
        dtype == pl.Null
        or {
            pl.String: is_text,
            pl.Float64: dtype.is_numeric() or dtype == pl.Boolean,
            pl.Date: is_text or isinstance(dtype, (pl.Date, pl.Datetime)),
        }[wanted]
    )


def _days(moments: pl.Series) -> pl.Series:
    """The days of a Date or a Datetime; with a time zone, the days there."""
    if isinstance(moments.dtype, pl.Datetime):
        moments = moments.dt.replace_time_zone(None)
    # A wrong unit gives years that Python cannot represent.
    return moments.cast(pl.Date, strict=False).clip(date.min, date.max)


def _is_text(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _sample(values: pl.Series) -> str:
    try:
        text = repr(values.to_list()[0])
    except (ValueError, OverflowError):  # a time that Python cannot represent
        text = str(values.to_physical()[0])
    return text if len(text) <= LONGEST_SAMPLE else f"{text[: LONGEST_SAMPLE - 1]}…"
