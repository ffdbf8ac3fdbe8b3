"""Parquet and CSV files of a table, as they come from anywhere, into Parquet parts that fit together."""

import codecs
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pipeline.errors import DataInvalid, DataUnavailable

Columns = dict[str, pl.DataType]

PARQUET = b"PAR1"
GZIP = b"\x1f\x8b"
NOT_DATA = {
    b"<": "an HTML or XML page, such as a login or an error page: check the URL and its credentials",
    b"{": "JSON",
    b"[": "JSON",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"version https://git-lfs": "a Git LFS pointer: use the URL of the file that it stands for",
}
DATETIMES = ("%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ")
# In ten million rows `replace("", None)` takes 2.7 GB for this, and `when` 0.4 GB.
EMPTY_AS_NULL = pl.when(pl.all() != "").then(pl.all())
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def unpack(path: Path, source: str, *, max_bytes: int) -> None:
    """Unpack the file in place where it is gzip, and make sure that it looks like Parquet or CSV.

    Raises ``DataUnavailable``, which says what was found, where it does not, or has more than
    ``max_bytes``.
    """
    with path.open("rb") as file:
        packed = file.read(len(GZIP)) == GZIP
    if packed:
        unpacked = path.with_name(f"{path.name}-unpacked")
        try:
            with gzip.open(path) as packed_file, unpacked.open("wb") as file:
                while chunk := packed_file.read(1 << 20):
                    if file.tell() + len(chunk) > max_bytes:
                        raise DataUnavailable(
                            f"{source} is too large unpacked: the limit leaves {max_bytes} bytes for it; "
                            "check that it is the right file, or raise max_bytes"
                        )
                    file.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataUnavailable(f"{source} is a damaged gzip file ({error}): write it anew") from error
        unpacked.replace(path)
    _require_data(path, source)


def to_parquet(files: Sequence[tuple[str, Path]], folder: Path, schema: Mapping[str, type[pl.DataType]]) -> int:
    """Turn files, each a source and where it lies, into ``part-00000.parquet``, …; return their rows.

    Parquet is kept as it is. Of CSV, an empty field is null, and a column of ``schema`` gets its type
    where all its values in all files can be read as such. It stays text otherwise, and so does a column
    that ``schema`` lacks.

    Raises ``DataUnavailable`` where a file is damaged, ``DataInvalid`` where files differ in their
    columns.
    """
    csv: dict[Path, pl.LazyFrame] = {}
    unreadable: set[str] = set()
    for source, path in files:
        if not _is_parquet(path):
            with _readable(source):
                csv[path] = pl.scan_csv(path, infer_schema=False).with_columns(EMPTY_AS_NULL)
                unreadable |= _unreadable_columns(csv[path], schema)
    readable = {column: dtype for column, dtype in schema.items() if column not in unreadable}
    first = None
    for number, (source, path) in enumerate(files):
        part = folder / f"part-{number:05}.parquet"
        with _readable(source):
            if path in csv:
                csv[path].with_columns(_typed(csv[path], readable)).sink_parquet(part)
                path.unlink()
            else:
                path.replace(part)
            columns = pl.read_parquet_schema(part)
        first = first or (source, columns)
        _require_same_columns(first, (source, columns))
    return int(pl.scan_parquet(folder / "part-*.parquet").select(pl.len()).collect().item())


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def _require_data(path: Path, source: str) -> None:
    if _is_parquet(path):
        return
    with path.open("rb") as file:
        text = file.read(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip()
    if not text:
        raise DataUnavailable(f"{source} is empty: expected Parquet or CSV; check that its upload has ended")
    known = next((what for begin, what in NOT_DATA.items() if text.startswith(begin)), None)
    if known or b"," not in text.partition(b"\n")[0] or b"\0" in text:
        raise DataUnavailable(
            f"{source} begins with {text[:40].decode(errors='replace')!r}: expected Parquet, or CSV with a "
            f"header and commas in UTF-8; this is {known or 'something else'}"
        )


@contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise DataUnavailable(
            f"{source} is damaged or cut off: it cannot be read ({str(error).splitlines()[0]}); write it anew"
        ) from error


def _typed(table: pl.LazyFrame, schema: Mapping[str, type[pl.DataType]]) -> list[pl.Expr]:
    """Return the columns of ``table``, which are text, as their types; null where a value is no such."""
    names = table.collect_schema().names()
    return [_parsed(pl.col(name), dtype).alias(name) for name, dtype in schema.items() if name in names]


def _parsed(text: pl.Expr, dtype: type[pl.DataType]) -> pl.Expr:
    if dtype == pl.Boolean:
        return text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
    if dtype == pl.Datetime:
        return pl.coalesce(text.str.to_datetime(layout, strict=False, time_unit="us") for layout in DATETIMES)
    if dtype == pl.Int64:
        # Other tools write the whole numbers of a column with nulls as 5.0.
        number = text.cast(pl.Float64, strict=False)
        whole = pl.when(number == number.round()).then(number.cast(pl.Int64, strict=False))
        return pl.coalesce(text.cast(pl.Int64, strict=False), whole)
    return text.cast(dtype, strict=False)


def _unreadable_columns(table: pl.LazyFrame, schema: Mapping[str, type[pl.DataType]]) -> set[str]:
    """Return the columns in which a value would be lost."""
    lost = [(typed.is_null() & pl.col(typed.meta.output_name()).is_not_null()).any() for typed in _typed(table, schema)]
    row = table.select(lost).collect(engine="streaming").to_dicts()
    return {name for name, is_lost in row[0].items() if is_lost} if row else set()


def _require_same_columns(first: tuple[str, Columns], other: tuple[str, Columns]) -> None:
    differing = {name for name, _ in first[1].items() ^ other[1].items()}
    if differing:
        name = min(differing)
        first_has, other_has = first[1].get(name, "no such column"), other[1].get(name, "no such column")
        raise DataInvalid(
            f"{first[0]} and {other[0]} are files of one table but differ in {len(differing)} columns, such "
            f"as {name!r}: {first_has} in the one, {other_has} in the other; write them alike"
        )
