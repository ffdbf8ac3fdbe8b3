"""Conversion of a table's Parquet and CSV files, from any writer, to Parquet parts with the same columns."""

import codecs
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.core.casts import File, ParquetFile, Types, convert, look, require_short, type_of
from pipeline.core.csv_files import inspect
from pipeline.core.errors import DataInvalid, DataUnavailable

PARQUET = b"PAR1"
GZIP = b"\x1f\x8b"
NOT_DATA = {
    b"<": "an HTML or XML page, such as a login or an error page: check the URL and its credentials",
    b"{": "JSON",
    b"[": "JSON",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save its sheet as CSV",
    b"version https://git-lfs": "a Git LFS pointer: use the URL of the file itself",
    b"-----BEGIN ": "a key or a certificate",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"ORC": "an ORC file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"SQLite format 3": "an SQLite database: export its table as Parquet",
    b"\x28\xb5\x2f\xfd": "a Zstandard file: unpack it, or pack it with gzip",
    b"BZh": "a bzip2 file: unpack it, or pack it with gzip",
    b"\xfd7zXZ": "an xz file: unpack it, or pack it with gzip",
    codecs.BOM_UTF16_LE: "text in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "text in UTF-16: save it as UTF-8",
}
# Later steps read a row group at once. Other writers use up to this many rows, and their files are kept.
LARGEST_GROUP = 1 << 20  # rows


@dataclass(frozen=True)
class Counts:
    """``records`` were counted in the files of a table before they were converted, ``rows`` in what was written."""

    records: int
    rows: int


def unpack(path: Path, source: str, *, max_bytes: int) -> None:
    """Unpack the file in place if it is gzip, and make sure that it may be Parquet or CSV.

    Raises ``DataUnavailable``, which says what was found, if it is something else, or has more than ``max_bytes``. Its
    content is not shown: it may be secret.
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
            raise DataUnavailable(f"{source} is a damaged gzip file ({error}): write or upload it again") from error
        unpacked.replace(path)
    _require_data(path, source)


def to_parquet(files: Sequence[tuple[str, Path]], folder: Path, schema: Types) -> Counts:
    """Convert files, each a source and its path, to ``part-00000.parquet``, …; return how many rows they have.

    Parquet files that have the same columns, in which those of ``schema`` have its types, are kept as they are; an
    integer or a float of another width and a day of another unit are of its type. Of other files the columns of
    ``schema`` are taken and get its types, part by part, by the rules of ``casts``. If all files lack one of
    these columns, the other columns that they share are taken as well, so that validation can tell which one was
    renamed.

    Raises ``DataUnavailable`` if a file is damaged, ``DataInvalid`` if a record or a value cannot be read, which is
    named with its line, or if only some of the files have a column.
    """
    parts = [look(source, path) if _is_parquet(path) else inspect(source, path, schema) for source, path in files]
    for part in parts:
        if isinstance(part, ParquetFile):
            require_short(part, schema)
    columns = _shared_columns(parts, schema)
    kept = _fit(parts, schema)
    types = {name: dtype for name, dtype in schema.items() if name in columns}
    others = [name for name in columns if name not in schema] if len(types) < len(schema) else []
    targets = [folder / f"part-{number:05}.parquet" for number in range(len(parts))]
    for part, target in zip(parts, targets, strict=True):
        if kept:
            part.path.replace(target)
            continue
        rows = convert(part, target, types, others)
        if rows != part.records:
            raise DataInvalid(
                f"{part.source} has {part.records:,} records, but {rows:,} rows were read from it: two readers "
                "disagree about the file; write it again, as RFC 4180 or as Parquet"
            )
        part.path.unlink()
    rows = int(pl.scan_parquet(targets, glob=False).select(pl.len()).collect().item())
    return Counts(sum(part.records for part in parts), rows)


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
    if known := next((what for begin, what in NOT_DATA.items() if text.startswith(begin)), None):
        raise DataUnavailable(f"{source} is {known}; expected Parquet, or CSV with a header in UTF-8")


def _shared_columns(parts: Sequence[File], schema: Mapping[str, object]) -> list[str]:
    """The columns that all parts have: those of ``schema``, which all or none must have, and others of equal type."""
    for name in schema:
        lacking = [part for part in parts if name not in part.columns]
        if lacking and len(lacking) < len(parts):
            having = next(part for part in parts if name in part.columns)
            raise DataInvalid(
                f"{lacking[0].source} has no column {name!r}, but {having.source}, another file of the table, has "
                "it; write all files with the same columns"
            )
    first, *more = parts
    return [
        name
        for name in dict.fromkeys(first.columns)
        if name
        and all(
            name in part.columns and (name in schema or type_of(part, name) == type_of(first, name)) for part in more
        )
    ]


def _fit(parts: Sequence[File], schema: Types) -> bool:
    """Whether the parts are Parquet that needs no conversion."""
    files = [part for part in parts if isinstance(part, ParquetFile)]
    return (
        len(files) == len(parts)
        # Later steps read with Polars, which does not support all time zones.
        and not any(getattr(found, "time_zone", None) for found in files[0].columns.values())
        and all(dict(file.columns) == dict(files[0].columns) and file.largest_group <= LARGEST_GROUP for file in files)
        and all(_is_of(files[0].columns[name], wanted) for name, wanted in schema.items() if name in files[0].columns)
    )


def _is_of(found: pl.DataType, wanted: type[pl.DataType]) -> bool:
    if wanted == pl.Int64:
        return found.is_integer() and found != pl.Int128
    if wanted == pl.Float64:
        return found.is_numeric() and found != pl.Int128
    if wanted == pl.Datetime:
        return found == pl.Date or (isinstance(found, pl.Datetime) and found.time_zone is None)
    return found == wanted
