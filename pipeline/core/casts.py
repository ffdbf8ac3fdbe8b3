"""Which stored values are valid for each type of the contract, and the conversion to Parquet by these rules.

Each combination of a stored type and a type of the contract has one rule: it gives a value or an error. DuckDB applies
the rules with all options given, so that it guesses nothing, and in bounded memory. A pattern checks each text before
DuckDB's own cast, because the casts round 2.7, drop time zones and accept words as days.
"""

import errno
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from pipeline.core.csv_files import (
    LONGEST_FIELD,
    LONGEST_LINE,
    MOST_COLUMNS,
    CsvFile,
    other_line_end,
    records_at,
    shown,
)
from pipeline.core.errors import DataInvalid, DataUnavailable

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Polars panics at a time zone such as +05:30, even in a column that is not used.
os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")

MEMORY = "256MB"
# Two threads that preserve the order of the rows buffer a row group: 30 million rows take half a gigabyte.
THREADS = 1
ROW_GROUP = 122_880  # rows
EXAMPLES = 3
LONGEST_REASON = 120  # characters
TEXTS = (pl.String, pl.Categorical, pl.Enum, pl.Binary)
EXPECTED = {
    pl.String: "text in UTF-8",
    pl.Boolean: "true or false, 1 or 0",
    pl.Int64: "a whole number of 64 bits, without separators",
    pl.Float64: "a number such as 0.5, with a decimal point and without separators",
    pl.Datetime: "a date such as 2026-11-20, or a date and a time in UTC",
}
NUMBER: dict[type[pl.DataType], str] = {
    pl.Int64: r"\s*[+-]?[0-9]+(\.0*)?\s*",
    pl.Float64: r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*",
}
TIME = r"([01][0-9]|2[0-3]):[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?"
UTC = r" ?(Z|UTC|[+-]00(:?00)?)"
DAY = rf"\s*[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{TIME}({UTC})?)?\s*"

Types = Mapping[str, type[pl.DataType]]


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file at ``path``; ``columns`` have the types in which Polars reads them."""

    source: str
    path: Path
    columns: Mapping[str, pl.DataType]
    records: int
    largest_group: int  # rows


File = CsvFile | ParquetFile


def look(source: str, path: Path) -> ParquetFile:
    """Read the metadata of a Parquet file.

    Raises ``DataUnavailable`` if it is damaged, ``DataInvalid`` if two of its columns have one name, or if it has too
    many.
    """
    try:
        columns = pl.scan_parquet(path, glob=False).collect_schema()
    except pl.exceptions.DuplicateError as error:
        raise DataInvalid(f"{source} has two columns of the same name; remove one of them") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _damaged(source, error) from error
    if len(columns) > MOST_COLUMNS:
        raise DataInvalid(f"{source} has {len(columns):,} columns, expected at most {MOST_COLUMNS:,}")
    query = f"SELECT row_group_num_rows FROM parquet_metadata({_path(path)}) WHERE column_id = 0"  # noqa: S608
    with _database(path) as database, _errors(source):
        groups = [rows for (rows,) in database.execute(query).fetchall()]
    return ParquetFile(source, path, columns, sum(groups), max(groups, default=0))


def require_short(file: ParquetFile, columns: Collection[str]) -> None:
    """Refuse a file with a text that is longer than a CSV field may be: a step would hold all of it in memory.

    A few kilobytes of Parquet may contain a text of gigabytes. Raises ``DataInvalid``, which names the column, or
    ``DataUnavailable`` if the text is too long to be measured.
    """
    texts = [name for name in columns if isinstance(file.columns.get(name), TEXTS)]
    if not texts:
        return
    # Without a cast, which would copy each text.
    measures = {name: "octet_length" if file.columns[name] == pl.Binary else "strlen" for name in texts}
    lengths = ", ".join(f"max({measures[name]}(c{_position(file, name)}))" for name in texts)
    with _database(file.path) as database, _errors(file.source):
        [found] = database.execute(f"SELECT {lengths} FROM {_source(file)}").fetchall()  # noqa: S608
    for name, length in zip(texts, found, strict=True):
        if (length or 0) > LONGEST_FIELD:
            raise DataInvalid(
                f"{file.source} has a text of {length:,} bytes in the column {name!r}, expected at most "
                f"{LONGEST_FIELD:,}; check that it is the right file"
            )


def type_of(file: File, column: str) -> pl.DataType:
    """Return the type in which the column is stored; all of CSV is text."""
    return file.columns[column] if isinstance(file, ParquetFile) else pl.String()


def convert(file: File, out: Path, types: Types, others: Collection[str] = ()) -> int:
    """Write the columns ``types`` of the file, as these types, and ``others`` as they are; return the rows written.

    Raises ``DataInvalid``, which names the first values that are not of their type, with their lines or rows;
    ``DataUnavailable`` if the file is damaged.
    """
    rules = [_rule(file, name, wanted) for name, wanted in types.items()]
    selected = [f"{rule.checked} AS {_name(rule.column)}" for rule in rules]
    selected += [f"c{_position(file, name)} AS {_name(name)}" for name in others]
    # The rules and names are ours or quoted.
    query = f"SELECT {', '.join(selected)} FROM {_source(file)}"  # noqa: S608
    options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP}, USE_TMP_FILE false"
    from duckdb import InvalidInputException

    with _database(file.path, out) as database, _errors(file.source):
        try:
            rows = database.execute(f"COPY ({query}) TO {_text(str(out.absolute()))} ({options})").fetchall()
        except InvalidInputException as error:
            if wrong := _wrong_values(database, file, rules):
                raise DataInvalid(wrong) from error
            if isinstance(file, CsvFile):
                raise _unreadable(file, str(error)) from error
            raise
    return int(rows[0][0])


@dataclass(frozen=True)
class _Rule:
    """SQL of a column: ``raw`` is null if the value is missing, ``value`` is null also if it is not of its type."""

    column: str
    wanted: type[pl.DataType]
    raw: str
    value: str

    @property
    def checked(self) -> str:
        return f"coalesce({self.value}, CASE WHEN {self.raw} IS NOT NULL THEN error({self.raw}::VARCHAR) END)"

    @property
    def wrong(self) -> str:
        return f"({self.raw} IS NOT NULL AND {self.value} IS NULL)"


def _rule(file: File, name: str, wanted: type[pl.DataType]) -> _Rule:
    column, found = f"c{_position(file, name)}", type_of(file, name)
    value, raw = None, column
    if isinstance(found, TEXTS):
        if wanted != pl.String:
            raw = f"CASE WHEN {column} <> '' THEN {column} END"
        value = _from_text(f"try(decode({raw}))" if found == pl.Binary else f"({raw})", wanted)
    elif found == pl.Null:
        value = f"NULL::{SQL_TYPES[wanted]}"
    elif wanted == pl.Datetime and isinstance(found, pl.Date | pl.Datetime):
        value = f"TRY_CAST({_local(column, getattr(found, 'time_zone', None))} AS TIMESTAMP)"
    elif found == pl.Boolean or _is_number(found):
        if found.is_float() and wanted != pl.Float64:
            raw = f"CASE WHEN NOT isnan({column}) THEN {column} END"
        value = _from_number(f"({raw})", wanted)
    if value is None:
        raise DataInvalid(
            f"{file.source} has the column {name!r} as {found}{_sample(file, column)}, expected "
            f"{EXPECTED[wanted]}; convert it"
        )
    return _Rule(name, wanted, raw, value)


SQL_TYPES: dict[type[pl.DataType], str] = {
    pl.String: "VARCHAR", pl.Boolean: "BOOLEAN", pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Datetime: "TIMESTAMP",
}  # fmt: skip


def _local(column: str, zone: str | None) -> str:
    """The local time in the time zone: a row's day is the local day."""
    if zone is None:
        return column
    if offset := re.fullmatch(r"([+-])(\d\d):?(\d\d)", zone):
        sign, hours, minutes = offset.groups()
        return f"(timezone('UTC', {column}) {sign} INTERVAL '{hours} hours {minutes} minutes')"
    return f"timezone({_text(zone)}, {column})"


def _is_number(found: pl.DataType) -> bool:
    # DuckDB does not read Parquet's Int128.
    return found.is_numeric() and found != pl.Int128


def _from_text(text: str, wanted: type[pl.DataType]) -> str:
    if wanted == pl.String:
        # MySQL and PostgreSQL write null as \N.
        return rf"CASE WHEN {text} <> '\N' THEN {text} END"
    if wanted == pl.Boolean:
        word = f"lower(trim({text}))"
        return f"CASE WHEN {word} IN ('true', '1', '1.0') THEN true WHEN {word} IN ('false', '0', '0.0') THEN false END"
    if wanted == pl.Datetime:
        local = f"regexp_replace(trim({text}), '{UTC}$', '')"
        return f"CASE WHEN regexp_full_match({text}, '{DAY}') THEN TRY_CAST({local} AS TIMESTAMP) END"
    number = f"trim({text})"
    if wanted == pl.Int64:
        number = rf"regexp_replace({number}, '\.0*$', '')"
    cast = f"TRY_CAST({number} AS {SQL_TYPES[wanted]})"
    finite = f" AND isfinite({cast})" if wanted == pl.Float64 else ""
    return f"CASE WHEN regexp_full_match({text}, '{NUMBER[wanted]}'){finite} THEN {cast} END"


def _from_number(number: str, wanted: type[pl.DataType]) -> str | None:
    if wanted == pl.Boolean:
        return f"CASE {number}::DOUBLE WHEN 1 THEN true WHEN 0 THEN false END"
    if wanted == pl.Int64:
        whole = f"TRY_CAST({number} AS BIGINT)"
        return f"CASE WHEN {whole} = {number} THEN {whole} END"
    return f"{number}::DOUBLE" if wanted == pl.Float64 else None


def _wrong_values(database: "DuckDBPyConnection", file: File, rules: Sequence[_Rule]) -> str:
    """Describe the values that are not of their types: the number in each column, and the first ones with places."""
    figures = [
        f"count(*) FILTER ({rule.wrong}), min(n, {EXAMPLES}) FILTER ({rule.wrong}), "
        f"arg_min({rule.raw}::VARCHAR, n, {EXAMPLES}) FILTER ({rule.wrong})"
        for rule in rules
    ]
    query = f"SELECT {', '.join(figures)} FROM (SELECT row_number() OVER () AS n, * FROM {_source(file)})"  # noqa: S608
    from duckdb import Error

    try:
        (found,) = database.execute(query).fetchall()
    except Error:
        return ""
    wrong = [
        (rule, count, numbers, values)
        for rule, count, numbers, values in zip(rules, found[::3], found[1::3], found[2::3], strict=True)
        if count
    ]
    places = {number: f"row {number}" for _, _, numbers, _ in wrong for number in numbers}
    if wrong and isinstance(file, CsvFile):
        records = records_at(file, places)
        places = {number: f"line {line}" for number, (line, _) in zip(sorted(places), records, strict=True)}
    said = []
    for rule, count, numbers, values in wrong:
        stored = f" ({file.columns[rule.column]})" if isinstance(file, ParquetFile) else ""
        (first, value), *more = [(places[number], shown(value)) for number, value in zip(numbers, values, strict=True)]
        others = "; ".join(f"{place}: {value}" for place, value in more)
        said.append(
            f"{first}: {rule.column}{stored} is {value}, expected {EXPECTED[rule.wanted]}"
            + (f" ({count:,} such values; {others})" if more else "")
        )
    return f"{file.source}, {'; '.join(said)}" if said else ""


def _sample(file: File, column: str) -> str:
    """A value of the column, for a message."""
    query = f"SELECT {column}::VARCHAR FROM {_source(file)} WHERE {column} IS NOT NULL LIMIT 1"  # noqa: S608
    with _database(file.path) as database, _errors(file.source):
        rows = database.execute(query).fetchall()
    return f" such as {shown(rows[0][0])}" if rows else ""


def _unreadable(file: CsvFile, error: str) -> DataInvalid:
    """The error for a file that DuckDB refuses although the walk has read it; it names the line."""
    if line := re.search(r"\bLine: (\d+)", error):
        return file.refused(int(line[1]), "two readers disagree about this line; write the file as RFC 4180")
    if line_number := other_line_end(file.path):
        return file.refused(line_number, "its line ending is not that of line 1; write the file with LF throughout")
    return file.refused(1, "two readers disagree about the file; write it as RFC 4180")


def _source(file: File) -> str:
    """The SQL that reads the file's columns as c0, c1, …: DuckDB's own names ignore case."""
    names = [f"c{number}" for number in range(len(file.columns))]
    if isinstance(file, ParquetFile):
        return f"read_parquet({_path(file.path)}, hive_partitioning = false) AS t({', '.join(names)})"
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in names)
    filled = ", ".join(f"c{number}" for number, name in enumerate(file.columns) if name in file.filled)
    return (
        f"(SELECT * FROM read_csv({_path(file.path)}, auto_detect = false, header = true, strict_mode = true, "  # noqa: S608
        f"columns = {{{columns}}}, delim = {_text(file.delimiter)}, quote = '\"', escape = {_text(file.escape)}, "
        f"nullstr = '', comment = '', encoding = 'utf-8', hive_partitioning = false, max_line_size = {LONGEST_LINE}, "
        f"null_padding = false, ignore_errors = false) WHERE coalesce({filled}) IS NOT NULL)"
    )


def _position(file: File, column: str) -> int:
    return list(file.columns).index(column)


@contextmanager
def _database(*paths: Path) -> Iterator["DuckDBPyConnection"]:
    """A database that can access only the files at these paths."""
    import duckdb

    with duckdb.connect(
        config={
            "memory_limit": MEMORY,
            "threads": THREADS,
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    ) as database:
        # DuckDB checks the pattern of a path as well as the path.
        allowed = [allowed for path in paths for allowed in (_text(str(path.absolute())), _path(path))]
        database.execute(f"SET allowed_paths = [{', '.join(allowed)}]")
        database.execute("SET enable_external_access = false")
        database.execute("SET lock_configuration = true")
        yield database


@contextmanager
def _errors(source: str) -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DataUnavailable(
            f"{source} cannot be read in {MEMORY} of memory: its values are far longer than those of such a table; "
            "check that it is the right file"
        ) from error
    except duckdb.Error as error:
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise _damaged(source, error) from error


def _damaged(source: str, error: Exception) -> DataUnavailable:
    # An error may quote the file's content, which may be secret.
    said = str(error).splitlines()[0].partition('"')[0].strip()
    return DataUnavailable(
        f"{source} is damaged or truncated: it cannot be read ({said[:LONGEST_REASON]}); write or upload it again"
    )


def _path(path: Path) -> str:
    """The path as SQL; DuckDB reads it as a glob."""
    return _text(re.sub(r"[*?\[]", r"[\g<0>]", str(path.absolute())))


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
