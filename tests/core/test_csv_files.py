"""Of a CSV file each record is read as it was written, or the file is refused with the line: never a part of it."""

import contextlib
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core import casts, tables
from pipeline.core.csv_files import LONGEST_FIELD, LONGEST_LINE
from pipeline.core.errors import DataInvalid, DataUnavailable
from pipeline.core.tables import to_parquet, unpack

TABLE = {"id": pl.String, "name": pl.String, "n": pl.Int64, "x": pl.Float64}
HEAD = "id,name,n,x\n"
ONE, TWO, THREE = "a1,Ada,1,1.5\n", "b2,Bo,2,2.5\n", "c3,Cy,3,3.5\n"
PLAIN = HEAD + ONE + TWO + THREE
ROWS = [("a1", "Ada", 1, 1.5), ("b2", "Bo", 2, 2.5), ("c3", "Cy", 3, 3.5)]

Row = tuple[object, ...]
Types = dict[str, type[pl.DataType]]


def read(folder: Path, content: bytes | str, table: Types = TABLE) -> list[Row]:
    path = folder / "download"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    unpack(path, "cars.csv", max_bytes=1 << 30)
    counts = to_parquet([("cars.csv", path)], folder, table)
    rows = pl.read_parquet(folder / "part-00000.parquet").rows()
    assert counts.records == counts.rows == len(rows)
    return rows


def named(*names: str) -> list[Row]:
    """ROWS, with these names."""
    return [(*row[:1], name, *row[2:]) for row, name in zip(ROWS, names, strict=True)]


def refusal(folder: Path, content: bytes | str, table: Types = TABLE) -> str:
    with pytest.raises(DataInvalid) as refused:
        read(folder, content, table)
    return str(refused.value)


class TestWhatIsRead:
    @pytest.mark.parametrize(
        ("content", "rows"),
        [
            pytest.param(PLAIN, ROWS, id="plain"),
            pytest.param(PLAIN[:-1], ROWS, id="no line end at the end"),
            pytest.param(PLAIN + "\n\n", ROWS, id="blank lines at the end"),
            pytest.param(HEAD + "\n" + ONE + "\n\n" + TWO + THREE, ROWS, id="blank lines anywhere"),
            pytest.param(HEAD + ",,,\n" + ONE + TWO + THREE + ',"",,\n', ROWS, id="rows of empty cells"),
            pytest.param(PLAIN.replace("\n", "\r\n"), ROWS, id="CR and LF"),
            pytest.param(PLAIN.replace("\n", "\r"), ROWS, id="CR"),
            pytest.param("\ufeff" + PLAIN, ROWS, id="byte order mark"),
            pytest.param('\ufeff"id","name",n,x\r\n"a1","Ada","1","1.5"\r\n', ROWS[:1], id="all in quotes"),
            pytest.param(PLAIN.replace(",", ";"), ROWS, id="semicolons"),
            pytest.param(PLAIN.replace(",", "\t"), ROWS, id="tabs"),
            pytest.param(PLAIN.replace(",", "|"), ROWS, id="bars"),
            pytest.param(
                PLAIN.replace(",", ";").replace("Bo", '"B;o, ""o"""'), named("Ada", 'B;o, "o"', "Cy"), id="; "
            ),
            pytest.param(" id ,name , n,\tx\n" + ONE + TWO + THREE, ROWS, id="blanks around the names"),
            pytest.param(PLAIN.replace("\n", ",\n"), ROWS, id="a delimiter at the end of each line"),
            pytest.param("x,n,?,name,id\n1.5,1,,Ada,a1\n2.5,2,,Bo,b2\n3.5,3,9,Cy,c3\n", ROWS, id="other order"),
            pytest.param("id,name,n,x,ID,?,?,\n" + "a1,Ada,1,1.5,9,,,\n", ROWS[:1], id="other columns are anything"),
            pytest.param(HEAD + 'a1,"Ada\nLovelace",1,1.5\n', [("a1", "Ada\nLovelace", 1, 1.5)], id="two lines"),
            pytest.param(
                (HEAD + 'a1,"Ada\vLovelace",1,1.5\n').replace("\n", "\r\n").replace("\v", "\n"),
                [("a1", "Ada\nLovelace", 1, 1.5)],
                id="two lines as Excel writes them",
            ),
            pytest.param(
                PLAIN.replace("Bo", '"B, ""o"""'), named("Ada", 'B, "o"', "Cy"), id="quotes in a quoted field"
            ),
            pytest.param(PLAIN.replace("Bo", 'B 7" o'), named("Ada", 'B 7" o', "Cy"), id="a quote in a plain field"),
            pytest.param(PLAIN.replace("Bo", "'B o'"), named("Ada", "'B o'", "Cy"), id="apostrophes"),
            pytest.param(
                PLAIN.replace("Bo", " B\u2028o "), named("Ada", " B\u2028o ", "Cy"), id="text keeps its blanks"
            ),
            pytest.param(
                PLAIN.replace("Ada", "NA").replace("Bo", "null"), named("NA", "null", "Cy"), id="words of null"
            ),
            pytest.param(HEAD + 'a1,"",,""\n', [("a1", None, None, None)], id="an empty field is null"),
            pytest.param(HEAD, [], id="a header alone"),
        ],
    )
    def test_it_is_read_as_it_was_meant(self, tmp_path: Path, content: str, rows: list[Row]) -> None:
        assert read(tmp_path, content) == rows

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (('"Slow (7\\" Mix)"', "Bo", '"12\\""'), ('Slow (7" Mix)', "Bo", '12"')),
            (('"7\\", live"', '"\\"Bo\\""', "Cy"), ('7", live', '"Bo"', "Cy")),
            (('"7\\""', '""', '"\\\\ \\""'), ('7"', None, '\\ "')),
            (('"7\\" A\\\\B"', "AC\\DC", '""'), ('7" A\\B', "AC\\DC", None)),
            (('"7\\"\nMix"', "Bo", "Cy"), ('7"\nMix', "Bo", "Cy")),
            # RFC 4180, although a backslash stands before a quote.
            (('"C:\\Files\\"', "Bo", '"D:\\"'), ("C:\\Files\\", "Bo", "D:\\")),
            (("AC\\DC", '"A\\B"', "C:\\"), ("AC\\DC", "A\\B", "C:\\")),
        ],
    )
    def test_a_backslash_escapes_a_quote_if_the_file_is_written_so(
        self, tmp_path: Path, names: tuple[str, ...], found: tuple[str, ...]
    ) -> None:
        lines = [f"{row[0]},{name},{row[2]},{row[3]}\n" for row, name in zip(ROWS, names, strict=True)]
        assert read(tmp_path, HEAD + "".join(lines)) == named(*found)

    def test_a_quote_after_many_lines_without_one_is_a_quote(self, tmp_path: Path) -> None:
        content = HEAD + "".join(f"i{n},Ada,{n},0.5\n" for n in range(30_000)) + 'z9,"Bo, Cy",7,0.5\n'
        rows = read(tmp_path, content)
        assert (len(rows), rows[-1]) == (30_001, ("z9", "Bo, Cy", 7, 0.5))

    @pytest.mark.parametrize("border", [-1, 0, 1])
    def test_an_escaped_quote_is_seen_wherever_it_stands(self, tmp_path: Path, border: int) -> None:
        """The file is searched a mebibyte at a time."""
        begin = HEAD + "a1," + "x" * 1_000 + ",1,1.5\n"
        filling = (1 << 20) + border - 1 - len(begin) - len('a1,"7')
        rows = ONE * (filling // len(ONE)) + "\n" * (filling % len(ONE))
        content = begin + rows + 'a1,"7\\" x",1,1.5\n'
        assert content.index("\\") == (1 << 20) + border - 1
        assert read(tmp_path, content)[-1] == ("a1", '7" x', 1, 1.5)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("content", "line", "reason"),
        [
            pytest.param(PLAIN.replace("Bo", '"Bo'), 3, "a quote is not closed", id="a stray quote"),
            pytest.param(PLAIN.replace("Cy", '"Cy'), 4, "a quote is not closed", id="a stray quote in the last line"),
            pytest.param(
                PLAIN.replace("Ada", '"Ada').replace("Cy", 'Cy"'), 2, "looks like several records", id="a stray pair"
            ),
            pytest.param(
                PLAIN.replace("Ada", '"Ada').replace("Bo", 'Bo"'), 2, "looks like several records", id="in two lines"
            ),
            pytest.param(
                PLAIN.replace("\n", "\r\n").replace("a1", '"a1').replace("c3", 'c3"'), 2, "looks like", id="CRLF pair"
            ),
            pytest.param(PLAIN.replace("Bo", '"Bo" x'), 3, "text follows a quoted field", id="text after a quote"),
            pytest.param(
                PLAIN.replace("Bo", ' "Bo"'), 3, "begins with a blank before its quote", id="blank before a quote"
            ),
            pytest.param(HEAD + ONE + "b2,Bo,2\n", 3, "has 3 fields, the header has 4", id="too few fields"),
            pytest.param(HEAD + ONE + "b2,B,o,2,2.5\n", 3, "has 5 fields, the header has 4", id="too many fields"),
            pytest.param(HEAD + ONE + "  \n" + TWO, 3, "has 1 fields", id="a line of blanks"),
            pytest.param(PLAIN + HEAD + ONE, 5, "the header is repeated here", id="header again"),
            pytest.param(
                PLAIN + '"id","name","n","x"\n', 5, "the header is repeated here", id="header again, in quotes"
            ),
            pytest.param(PLAIN + "\x1a", 5, "Ctrl-Z", id="Ctrl-Z"),
            pytest.param(PLAIN.replace("Bo", "B\0o"), 3, "NUL", id="NUL"),
            pytest.param(PLAIN.replace("\n", "\r\r\n"), 1, "CR CR LF", id="CR CR LF"),
            pytest.param(
                HEAD + ONE.replace("\n", "\r\n") + TWO, 2, "its line ending is not that of line 1", id="mixed ends"
            ),
            pytest.param(PLAIN.replace("Bo", "Bé").encode("cp1252"), 3, "byte 0xE9 is not UTF-8", id="latin-1"),
            pytest.param(PLAIN.encode() + b"\xc3", 5, "0xC3 is not UTF-8", id="cut off in a character"),
            pytest.param(PLAIN.encode("utf-16-le"), 1, "NUL", id="UTF-16 without a mark"),
            pytest.param(PLAIN.replace("Bo", "B" * (LONGEST_FIELD + 1)), 3, "characters", id="a huge field"),
            pytest.param(HEAD + "y" * LONGEST_LINE + "yy", 2, "4,194,304 bytes", id="a huge line"),
            pytest.param(
                "".join(f'"{line}"\n' for line in PLAIN.split()), 1, "in quotes, as Excel", id="Excel's lines"
            ),
            pytest.param(HEAD + f'"{ONE[:-1]}"\n', 2, "in quotes, as Excel", id="Excel's line"),
            pytest.param(ONE + TWO, 1, "not a header of this table; expected the columns id, name", id="no header"),
            pytest.param("Cars\n\n" + PLAIN, 1, "not a header", id="a title"),
            pytest.param("# Cars\n" + PLAIN, 1, "not a header", id="a comment"),
            pytest.param("sep=,\n" + PLAIN, 1, "not a header", id="Excel's separator"),
            pytest.param("\n" + PLAIN, 1, "blank", id="a blank line first"),
            pytest.param('"id\n",name,n,x\n' + ONE, 1, "several lines", id="a name of two lines"),
            pytest.param("id,name,n,x,n\na1,Ada,1,1.5,2\n", 1, "the column 'n' twice", id="a column twice"),
            pytest.param("id,name,n,x, n\na1,Ada,1,1.5,2\n", 1, "the column 'n' twice", id="a column twice, nearly"),
        ],
    )
    def test_it_is_refused_with_the_line(self, tmp_path: Path, content: str | bytes, line: int, reason: str) -> None:
        told = refusal(tmp_path, content)
        assert told.startswith(f"cars.csv, line {line}: ")
        assert reason in told
        assert len(told) < 300

    @pytest.mark.parametrize(
        ("names", "line"),
        [
            # With RFC 4180 there are 3 records, with a backslash 2.
            (('"7\\", x"', "Bo", '"8\\""'), 0),
            (('"A\\nB \\""', "Bo", "Cy"), 2),
            (("Ada", '"7\\""', '"8 ""inch"""'), 4),
            (("Ada", '"7\\""', "Cy\\"), 4),
            (('"7\\""', "Bo, Cy", "Cy"), 3),
        ],
    )
    def test_a_mixture_of_dialects_is_refused(self, tmp_path: Path, names: tuple[str, ...], line: int) -> None:
        lines = [f"{row[0]},{name},{row[2]},{row[3]}\n" for row, name in zip(ROWS, names, strict=True)]
        if not line:
            assert read(tmp_path, HEAD + "".join(lines)) == named('7", x', "Bo", '8"')
        else:
            assert refusal(tmp_path, HEAD + "".join(lines)).startswith(f"cars.csv, line {line}: ")

    def test_what_can_be_read_in_two_dialects_with_other_records_is_refused(self, tmp_path: Path) -> None:
        """Given one record of two lines by RFC 4180 and two records if a backslash escapes, then nobody guesses."""
        lines = 'a1,"7\\"",1,x\n', 'b2,Bo,", y",z\n'
        told = refusal(tmp_path, HEAD + "".join(lines), dict.fromkeys(TABLE, pl.String))
        assert "cars.csv, line 2: up to this line, a backslash before a quote is ambiguous" in told

    @pytest.mark.parametrize(
        ("column", "value", "expected"),
        [
            ("n", "2.7", "a whole number"),
            ("n", "9223372036854775808", "a whole number of 64 bits"),
            ("n", '"1,234"', "without separators"),
            ("n", "1 234", "a whole number"),
            ("n", "2E+05", "a whole number"),
            ("n", "#N/A", "a whole number"),
            ("n", "first", "a whole number"),
            ("x", '"1,5"', "a decimal point"),
            ("x", "NA", "a number"),
            ("x", "NaN", "a number"),
            ("x", "inf", "a number"),
            ("x", "-Infinity", "a number"),
            ("x", "1e400", "a number"),
            ("x", "0x1p3", "a number"),
            ("x", "50%", "a number"),
            ("x", "\\N", "a number"),
            ("name", "\\N", "text"),
        ],
    )
    def test_a_value_of_another_type_is_refused_with_its_line(
        self, tmp_path: Path, column: str, value: str, expected: str
    ) -> None:
        good = {"id": "a1", "name": "Ada", "n": "1", "x": "1.5"}
        lines = [HEAD, ONE, "\n", ",".join((good | {column: value}).values()) + "\n", TWO]
        told = refusal(tmp_path, "".join(lines))
        assert told.startswith(f"cars.csv, line 4: {column} is {value.strip(chr(34))!r}, expected ")
        assert expected in told

    def test_the_first_wrong_values_of_each_column_are_told_and_how_many_there_are(self, tmp_path: Path) -> None:
        lines = [f'a,"two\nlines",{n or "-"},{n},\n' for n in range(9)]
        content = "id,name,n,x,\n" + "".join(lines) + ",,1.5,?,\n" + ",,x,?,\n" * 2000
        told = refusal(tmp_path, content)
        assert "line 2: n is '-', expected a whole number" in told
        assert "(2,002 such values; line 20: '1.5'; line 21: 'x')" in told
        assert "line 20: x is '?', expected a number" in told
        assert "(2,001 such values; line 21: '?'; line 22: '?')" in told

    def test_a_long_value_is_shown_short_and_on_one_line(self, tmp_path: Path) -> None:
        told = refusal(tmp_path, HEAD + 'a1,Ada,"12\n' + "3" * 5000 + '",1.5\n')
        assert r"line 2: n is '12\n333" in told
        assert len(told) < 200


class TestNotAHeader:
    """What may be a secret is not told: a token, a key or a text that was named by mistake."""

    @pytest.mark.parametrize(
        "content",
        [
            "SECRET",
            "SECRET\n",
            "AKIASECRET,SECRET\nSECRET,SECRET\n",
            '"SECRET',
            "user,password\nada,SECRET\n",
            "-----BEGIN PRIVATE KEY-----\nSECRET\n",
            '{"token": "SECRET"}',
            "<token>SECRET</token>",
            "[default]\naws_secret_access_key = SECRET",
            "SECRET\0",
            "SECRET\xff".encode("latin-1"),
            "SECRET\xff".encode("utf-16"),
            b"SECRET" + bytes(range(256)),
            "SECRET" * 1_000_000,
        ],
    )
    def test_nothing_of_it_is_told(self, tmp_path: Path, content: str | bytes) -> None:
        with pytest.raises((DataInvalid, DataUnavailable)) as refused:
            read(tmp_path, content)
        # Also not by an error that lies under it.
        error: BaseException | None = refused.value
        while error:
            assert "SECRET" not in str(error)
            error = error.__cause__


@pytest.mark.parametrize(
    "name", ["a[1]/a.csv", "a[1].csv", "*.csv", "region=DE/?.csv", 'Ada\'s data/é "x".csv', "$x;--'.csv"]
)
def test_a_path_may_have_any_character(tmp_path: Path, name: str) -> None:
    for decoy in ("a1.csv", "b.csv", "region=DE/b.csv"):
        (tmp_path / decoy).parent.mkdir(exist_ok=True)
        (tmp_path / decoy).write_text(HEAD + THREE)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEAD + ONE + TWO)
    to_parquet([(name, path)], path.parent, TABLE)
    written = path.parent / "part-00000.parquet"
    assert pl.read_parquet(written, glob=False).rows() == ROWS[:2]
    # The same of Parquet, which is looked into first.
    written.rename(path)
    assert to_parquet([(name, path)], path.parent, TABLE).rows == 2


def test_a_file_that_takes_too_much_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casts, "MEMORY", "4MB")
    with pytest.raises(DataUnavailable, match=r"cars\.csv cannot be read in 4MB of memory"):
        read(tmp_path, HEAD + ONE.replace("Ada", "A" * LONGEST_FIELD) * 20)


def test_a_record_that_gets_lost_in_the_conversion_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = casts.convert

    def lossy(file: casts.File, out: Path, types: casts.Types, others: Sequence[str]) -> int:
        file.path.write_text(HEAD + ONE)
        return convert(file, out, types, others)

    monkeypatch.setattr(tables, "convert", lossy)
    assert "cars.csv has 3 records, but 1 rows were read from it" in refusal(tmp_path, PLAIN)


def test_a_record_that_has_a_value_in_another_column_alone_is_a_record(tmp_path: Path) -> None:
    assert read(tmp_path, "id,name,n,x,note\n" + ",,,,x\n,,,,\na1,Ada,1,1.5,\n") == [(None,) * 4, ROWS[0]]


def test_sql_in_a_name_or_a_value_is_text(tmp_path: Path) -> None:
    bad = "x'); COPY (SELECT 1) TO '/tmp/x'; --"
    content = f'id,name,n,x,"{bad}",{{0}}\na1,"{bad}",1,1.5,2,3\n'
    assert read(tmp_path, content) == [("a1", bad, 1, 1.5)]
    renamed = read(tmp_path, content.replace(",n,x,", ",m,x,"))
    assert renamed == [("a1", bad, 1.5, "1", "2", "3")]


# What a file is made of in which readers differ: quotes, backslashes, line ends, delimiters, blanks, no value.
PIECES = st.sampled_from(['"', '""', "\\", '\\"', "\\\\", "\n", "\r\n", "\r", ",", ";", " ", "\t", "a", "7", "é", ""])
TEXT = st.lists(PIECES, max_size=6).map("".join)
NAMES = ("id", "name", "more")


def written(rows: list[tuple[str, ...]], dialect: str, end: str) -> str:
    def field(value: str) -> str:
        if dialect == "backslash":
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return '"' + value.replace('"', '""') + '"' if re.search(r'[",\r\n]', value) else value

    return "".join(",".join(map(field, row)) + end for row in rows)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=5),
    dialect=st.sampled_from(["rfc", "backslash"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_was_written_is_what_is_read_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]], dialect: str, end: str
) -> None:
    # By RFC 4180 these are text, by a backslash dialect an escaped backslash: a file with nothing else does not tell.
    assume(dialect == "rfc" or any('"' in value for row in rows for value in row))
    content = written([NAMES, *rows], dialect, end)
    with contextlib.suppress(DataInvalid):
        found = read(tmp_path_factory.mktemp("csv"), content, dict.fromkeys(NAMES, pl.String))
        assert found == [tuple(value or None for value in row) for row in rows if any(row)]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(lines=st.lists(st.lists(PIECES, max_size=9).map("".join), max_size=5))
def test_two_readers_agree_on_whatever_a_file_holds(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    content = "\n".join([",".join(NAMES), *lines])
    try:
        found = read(tmp_path_factory.mktemp("csv"), content, dict.fromkeys(NAMES, pl.String))
    except DataInvalid:
        return
    readings = []
    for escape in (None, "\\"):
        reader = csv.reader(io.StringIO(content, newline=""), strict=True, escapechar=escape)
        try:
            rows = [tuple(value or None for value in row) for row in reader if any(row)][1:]
        except csv.Error:
            continue
        # Outside of quotes a backslash is text.
        readings.append([tuple(value and value.replace("\\", "") for value in row) for row in rows])
    assert [tuple(value and str(value).replace("\\", "") for value in row) for row in found] in readings
