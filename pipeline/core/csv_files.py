"""The dialect of a CSV file, its number of records, and the line of each record.

Programs write CSV in dialects, and every fast reader guesses: it may read the lines between two stray quotes as one
field, or drop what it cannot read. This module does not guess. Python's ``csv``, in its strict mode, walks the file
once in constant memory; a record that does not have the header's number of fields is refused with its line. Another
reader converts the file, and must find the same number of records: see ``pipeline.core.casts``.

A record has at least one field that is not empty; blank lines and rows of empty cells are not records.
"""

import codecs
import csv
import io
import re
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import DataInvalid

if TYPE_CHECKING:
    from typing_extensions import Buffer

# A quote that is never closed ends here, not at the end of the file.
LONGEST_FIELD = 1 << 20  # characters
LONGEST_LINE = 4 * LONGEST_FIELD  # bytes
MOST_COLUMNS = 2000  # each costs time and memory in every reader
SHOWN = 40  # characters of a value in a message
DELIMITERS = (",", ";", "\t", "|")
NOT_TEXT = {
    b"\0": "a NUL character: the file is damaged, or is not UTF-8; write it again",
    b"\x1a": "a Ctrl-Z character, with which old programs end a file; write the file without it",
    b"\r\r\n": "the line ending CR CR LF, which a program made from CR LF; write the file with LF",
}
WRAPPED = "the whole line is in quotes, as Excel writes a line that is in one cell; write it without them"
LINE_END = re.compile(r"\r\n|\r|\n")
LINE_ENDS = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True)
class CsvFile:
    """A CSV file at ``path``; ``source`` is its origin, safe for a log.

    ``columns`` are the names in its header, without blanks around them; ``escape`` is the character before a quote in
    a quoted field: a quote as in RFC 4180, or a backslash as Spark and MySQL write it. ``records`` counts what follows
    the header; each of them has a value in one of the columns ``filled``.
    """

    source: str
    path: Path
    columns: tuple[str, ...]
    delimiter: str
    escape: str
    records: int = 0
    filled: tuple[str, ...] = ()

    def refused(self, line: int, reason: str) -> DataInvalid:
        """The error for ``line``; the header is line 1."""
        return DataInvalid(f"{self.source}, line {line}: {reason}")


class _Refused(Exception):
    """A line that a walk cannot read, and the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def shown(value: str) -> str:
    """The value for a message: quoted, on one line and short."""
    return repr(value if len(value) <= SHOWN else value[: SHOWN - 1] + "…")


def inspect(source: str, path: Path, contract: Collection[str]) -> CsvFile:
    """Detect the file's dialect and count its records.

    The delimiter is the one by which the header has the most columns of ``contract``. The file follows
    RFC 4180, or it has a backslash before the quotes in its quoted fields.

    Raises ``DataInvalid``, which names the line, if the header has no column of the contract or has one twice, or if a
    record cannot be read.
    """
    try:
        file = _header(source, path, contract)
        try:
            found = _counted(file, contract)
        except _Refused as refused:
            if not _has_escaped_quotes(path):
                raise
            file = replace(file, escape="\\")
            try:
                found = _counted(file, contract)
            except _Refused as other:
                # Report the dialect that gets further.
                raise max(refused, other, key=lambda each: each.line) from None
        else:
            if _has_escaped_quotes(path):
                _require_one_reading(found)
    except _Refused as refused:
        raise DataInvalid(f"{source}, line {refused.line}: {refused}") from refused
    return found


def records_at(file: CsvFile, numbers: Collection[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the fields of the records with these numbers; the first after the header is 1."""
    last = max(numbers)
    with closing(_walk(file)) as walk:
        for number, record in enumerate(walk):
            if number in numbers:
                yield record
            if number == last:
                return


def other_line_end(path: Path) -> int:
    """Return the first line with another line ending than line 1, or 0 if there is none."""
    first = None
    line = 0
    with path.open("rb") as file:
        for each in file:
            for end in LINE_ENDS.findall(each):
                line += 1
                first = first or end
                if end != first:
                    return line
    return 0


def _header(source: str, path: Path, contract: Collection[str]) -> CsvFile:
    """The file with its delimiter and columns; of two delimiters that give as many of the contract, the first."""
    found: list[CsvFile] = []
    refused = None
    for delimiter in DELIMITERS:
        try:
            with closing(_walk(CsvFile(source, path, (), delimiter, '"'))) as walk:
                _, fields = next(walk)
        except _Refused as error:
            refused = refused or error
        else:
            found.append(CsvFile(source, path, tuple(name.strip() for name in fields), delimiter, '"'))
    if refused and not found:
        raise refused

    def known(file: CsvFile) -> int:
        # Validation explains a name in another case.
        return len({name.lower() for name in file.columns} & set(contract))

    best = max(found, key=known)
    if not known(best):
        if any(name in contract for name in re.split(r"[,;\t|]", best.columns[0])):
            raise _Refused(1, WRAPPED)
        expected = ", ".join(contract)
        raise _Refused(1, f"it is not a header of this table; expected the columns {expected} in the first line")
    if len(best.columns) > MOST_COLUMNS:
        raise _Refused(1, f"the header has {len(best.columns):,} columns, expected at most {MOST_COLUMNS:,}")
    twice = [name for name in contract if best.columns.count(name) > 1]
    if twice:
        raise _Refused(1, f"the header has the column {twice[0]!r} twice; remove one of them")
    return best


def _counted(file: CsvFile, contract: Collection[str]) -> CsvFile:
    known = [position for position, name in enumerate(file.columns) if name in contract]
    first = known[0] if known else 0
    records, filled = 0, bool(known)
    with closing(_walk(file)) as walk:
        next(walk)
        for _, fields in walk:
            records += 1
            if not fields[first] and filled:
                filled = any(fields[position] for position in known)
    # A reader can then ignore the other columns, unless some record has values only there.
    names = [file.columns[position] for position in known] if filled else file.columns
    return replace(file, records=records, filled=tuple(names))


def _has_escaped_quotes(path: Path) -> bool:
    with path.open("rb") as file:
        last = b""
        # Not by lines: a line that was refused for its length would be held in memory.
        while chunk := file.read(1 << 20):
            if b'\\"' in last + chunk:
                return True
            last = chunk[-1:]
    return False


def _require_one_reading(file: CsvFile) -> None:
    """Refuse a file that is valid RFC 4180, but has other records if a backslash escapes a quote."""
    with closing(_walk(file)) as plain, closing(_walk(replace(file, escape="\\"))) as escaped:
        try:
            for (line, fields), (other, others) in zip(plain, escaped, strict=True):
                if line != other or (fields != others and _letters(fields) != _letters(others)):
                    break
            else:
                return
        except _Refused:
            return
        except ValueError:  # one of them has more records
            pass
    raise _Refused(line, 'up to this line, a backslash before a quote is ambiguous; write quotes as ""')


def _letters(fields: list[str]) -> list[str]:
    return [field.translate({ord("\\"): None, ord('"'): None}) for field in fields]


def _walk(file: CsvFile) -> Generator[tuple[int, list[str]]]:
    """Yield the line in which it begins, and the fields, of the header and of each record."""
    csv.field_size_limit(LONGEST_FIELD)
    escaped = file.escape == "\\"
    line = 1
    try:
        content = _Content(file.path)
        with io.TextIOWrapper(io.BufferedReader(content, 1 << 20), encoding="utf-8-sig", newline="") as text:
            raw: list[str] = []
            rows = csv.reader(
                _remembered(text, raw) if escaped else text,
                strict=True,
                delimiter=file.delimiter,
                escapechar="\\" if escaped else None,
            )
            header = next(rows, [])
            if not header or rows.line_num > 1:
                raise _Refused(1, "it is blank, or a name in it has several lines; expected a header")
            yield 1, header
            raw.clear()
            line, width = 2, len(header)
            for fields in rows:
                if len(fields) != width and fields:
                    raise _Refused(line, _wrong_width(fields, width, file.delimiter))
                if fields == header:
                    raise _Refused(
                        line, "the header is repeated here, as if two files had been joined; remove this line"
                    )
                if rows.line_num > line and _several_records(fields, file.delimiter):
                    raise _Refused(
                        line, "a quote opens here, and the text in it looks like several records; close the quote"
                    )
                if content.quotes and _quote_after_blank(fields):
                    raise _Refused(line, "a field begins with a blank before its quote; remove the blank")
                if escaped:
                    _require_plain_escapes("".join(raw), file.delimiter, line)
                    raw.clear()
                if any(fields):
                    yield line, fields
                line = rows.line_num + 1
    except csv.Error as error:
        raise _Refused(line, f'{_said(error)}; in a quoted field, write a quote as ""') from error


def _said(error: csv.Error) -> str:
    if "field larger" in str(error):
        return f"a field has more than {LONGEST_FIELD:,} characters, as if a quote were not closed"
    return "a quote is not closed" if "unexpected end" in str(error) else "text follows a quoted field"


def _wrong_width(fields: list[str], width: int, delimiter: str) -> str:
    if len(fields) == 1 and fields[0].count(delimiter) == width - 1:
        return WRAPPED
    hint = "put fields that contain the delimiter in quotes" if len(fields) > width else "complete the line"
    return f"it has {len(fields)} fields, the header has {width}; {hint}"


def _several_records(fields: list[str], delimiter: str) -> bool:
    """Tell whether a record of several lines looks like several records between two stray quotes.

    Each of its lines, the last one of more than two aside, then has the header's number of delimiters.
    """
    ends = len(fields) - 1
    # In a field of one line a delimiter is text.
    text = delimiter.join(field if "\n" in field or "\r" in field else "" for field in fields)
    *lines, last = [part.count(delimiter) for part in LINE_END.split(text)]
    return bool(lines) and ends > 0 and all(n == ends for n in lines) and (len(lines) > 1 or last == ends)


def _quote_after_blank(fields: list[str]) -> bool:
    """Other readers treat such a field as quoted."""
    return any('"' in field and field[0] in " \t" and field.lstrip(" \t")[0] == '"' for field in fields if field)


def _remembered(lines: io.TextIOWrapper, seen: list[str]) -> Iterator[str]:
    for line in lines:
        if "\\" in line or seen:
            seen.append(line)
        yield line


def _require_plain_escapes(record: str, delimiter: str, line: int) -> None:
    """In a quoted field a backslash may stand before a quote or a backslash; elsewhere it is plain text."""
    if not record:
        return
    outside = rf'[^"\\]|\\(?!["\r\n{re.escape(delimiter)}])'
    if not re.fullmatch(rf'(?:{outside}|"(?:[^"\\]|\\["\\])*+")*+', record):
        raise _Refused(line, 'a backslash escapes something other than a quote; write quotes as ""')


class _Content(io.RawIOBase):
    """The bytes of a file; refuses those that are not text, with their line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("rb", buffering=0)
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.offset = 0
        self.line_length = 0
        self.tail = b""
        self.quotes = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def readinto(self, buffer: "Buffer") -> int:
        with memoryview(buffer) as view:
            count = self.file.readinto(view) or 0
            chunk = bytes(view[:count])
        begun = self.tail + chunk
        for what, reason in NOT_TEXT.items():
            if (at := begun.find(what)) >= 0:
                raise _Refused(self._line(self.offset - len(self.tail) + at), f"there is {reason}")
        pending = len(self.decoder.getstate()[0])
        try:
            self.decoder.decode(chunk, final=not count)
        except UnicodeDecodeError as error:
            at = self.offset - pending + error.start
            byte = f"0x{error.object[error.start]:02X}"
            raise _Refused(self._line(at), f"the byte {byte} is not UTF-8; save the file as UTF-8") from error
        self.offset += count
        last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
        self.line_length = count - last - 1 + (self.line_length if last < 0 else 0)
        if self.line_length > LONGEST_LINE:
            raise _Refused(
                self._line(self.offset), f"it has more than {LONGEST_LINE:,} bytes; check that the file is a table"
            )
        self.quotes = self.quotes or b'"' in chunk
        self.tail = begun[-2:]
        return count

    def _line(self, offset: int) -> int:
        """The line of the byte at ``offset``."""
        line, last = 1, b""
        with self.path.open("rb") as file:
            while chunk := file.read(min(1 << 20, offset - file.tell())):
                line += len(LINE_ENDS.findall(chunk)) - (last == b"\r" and chunk[:1] == b"\n")
                last = chunk[-1:]
        return line
