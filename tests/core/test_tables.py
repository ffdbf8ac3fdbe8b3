"""CSV and Parquet from anywhere become Parquet parts that fit together, and no value gets lost on the way."""

import gzip
import io
import zipfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.core import casts, tables
from pipeline.core.errors import DataInvalid, DataUnavailable
from pipeline.core.tables import to_parquet, unpack

CARS: dict[str, type[pl.DataType]] = {
    "id": pl.String, "name": pl.String, "makers": pl.String, "used": pl.Boolean, "mileage": pl.Int64,
    "weight": pl.Float64,
}  # fmt: skip
SALES: dict[str, type[pl.DataType]] = {"id": pl.String, "region": pl.String, "day": pl.Datetime, "place": pl.Int64}


def convert(folder: Path, *contents: bytes, schema: dict[str, type[pl.DataType]] = SALES) -> pl.DataFrame:
    """Return the table that the files with these contents make."""
    files = []
    for number, content in enumerate(contents):
        path = folder / f"download-{number}"
        path.write_bytes(content)
        unpack(path, f"file-{number}", max_bytes=1 << 20)
        files.append((f"file-{number}", path))
    counts = to_parquet(files, folder, schema)
    parts = [folder / f"part-{number:05}.parquet" for number in range(len(contents))]
    assert sorted(folder.iterdir()) == parts, "nothing but the parts is left"
    table = pl.scan_parquet(folder / "*.parquet").collect()
    assert (counts.records, counts.rows) == (table.height, table.height)
    return table


def refusal(folder: Path, *contents: bytes, schema: dict[str, type[pl.DataType]] = SALES) -> str:
    """Return what is said of files that are refused."""
    with pytest.raises(DataInvalid) as refused:
        convert(folder, *contents, schema=schema)
    return str(refused.value)


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


class TestCsv:
    def test_the_columns_of_the_contract_get_their_types(self, tmp_path: Path) -> None:
        table = convert(
            tmp_path,
            b"id,used,mileage,weight,stars\nid1,True,200000,120.5,7\nid2,false,0,1e2,8\n",
            schema=CARS,
        )
        assert table.to_dict(as_series=False) == {
            "id": ["id1", "id2"],
            "used": [True, False],
            "mileage": [200000, 0],
            "weight": [120.5, 100.0],
            # Other columns are taken if some of the contract are missing.
            "stars": ["7", "8"],
        }
        assert table.schema == {name: CARS.get(name, pl.String) for name in table.columns}

    def test_other_columns_are_kept_only_if_one_of_the_contract_is_missing(self, tmp_path: Path) -> None:
        table = {"region": pl.String, "place": pl.Int64}
        csv = b"region,Place,note,\nDE,1,x,\n"
        assert convert(tmp_path, csv, schema=table).rows(named=True) == [{"region": "DE", "Place": "1", "note": "x"}]
        found = convert(tmp_path, csv.replace(b"Place", b"place"), schema=table)
        assert found.rows(named=True) == [{"region": "DE", "place": 1}]

    def test_an_empty_region_is_null_and_namibia_is_none_such(self, tmp_path: Path) -> None:
        table = convert(tmp_path, b'region,place\n,1\n"",2\nNA,3\nDE,4\n')
        assert table["region"].to_list() == [None, None, "NA", "DE"]

    @pytest.mark.parametrize(
        "day",
        [
            "2023-10-18",
            " 2023-10-18 ",
            "2023-10-18 00:00:00",
            "2023-10-18T00:00",
            "2023-10-18T00:00:00Z",
            "2023-10-18 00:00:00.000",
            "2023-10-18T00:00:00.000000000",
            "2023-10-18T00:00:00+00:00",
            "2023-10-18 00:00:00+00",
            "2023-10-18 00:00:00 UTC",
        ],
    )
    def test_a_day_is_read_in_the_usual_layouts(self, tmp_path: Path, day: str) -> None:
        table = convert(tmp_path, f"day,region\n{day},DE\n,DE\n".encode())
        assert table["day"].to_list() == [datetime(2023, 10, 18), None]

    @pytest.mark.parametrize(
        "day",
        [
            "03/04/2026", "18.10.2023", "2023/10/18", "20231018", "2023-10-8", "23-10-18", "Oct 18 2023", "45217",
            "2023-02-30", "0000-00-00", "2023-10-18 24:00:00", "2023-10-18 10:00 PM", "2023-10-18T00:00:00+02:00",
            "2023-10-18 00:00:00-05", "2023-10-18 00:00:00 CET", "2023-10-18x", "infinity", "today", "NaT",
        ],
    )  # fmt: skip
    def test_a_day_in_another_layout_is_refused_with_its_line(self, tmp_path: Path, day: str) -> None:
        told = refusal(tmp_path, f"day,region\n2023-10-18,DE\n{day},DE\n".encode())
        assert told.startswith(f"file-0, line 3: day is {day!r}, expected a date such as 2026-11-20")

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (("true", "FALSE", "True", ""), [True, False, True, None]),
            (("1", "0", "1.0", "0.0"), [True, False, True, False]),
        ],
    )
    def test_truth_is_written_in_words_or_numbers(
        self, tmp_path: Path, words: tuple[str, ...], found: list[bool | None]
    ) -> None:
        csv = "used,name\n" + "".join(f"{word},a\n" for word in words)
        assert convert(tmp_path, csv.encode(), schema=CARS)["used"].to_list() == found

    @pytest.mark.parametrize("word", ["yes", "t", "2", "NA", "wahr"])
    def test_other_words_for_truth_are_refused(self, tmp_path: Path, word: str) -> None:
        told = refusal(tmp_path, f"used,name\n{word},a\n".encode(), schema=CARS)
        assert f"line 2: used is {word!r}, expected true or false, 1 or 0" in told

    def test_whole_numbers_may_be_written_as_floats(self, tmp_path: Path) -> None:
        table = convert(tmp_path, b"place,region\n5.0,DE\n,DE\n1,DE\n")
        assert table["place"].to_list() == [5, None, 1]

    def test_quotes_line_ends_and_a_byte_order_mark_are_read(self, tmp_path: Path) -> None:
        text = '\ufeff"id","name","makers"\r\n"id","a, ""b""\nc","\u00c5 & B"\r\n'
        table = convert(tmp_path, text.encode(), schema=CARS)
        assert table.rows() == [("id", 'a, "b"\nc', "\u00c5 & B")]

    def test_gzip_is_unpacked(self, tmp_path: Path) -> None:
        table = convert(
            tmp_path,
            gzip.compress(b"region,place\nDE,1\n"),
            gzip.compress(parquet(region=["AT"], place=[2])),
        )
        assert table.rows() == [("DE", 1), ("AT", 2)]

    def test_a_header_alone_is_a_table_without_rows(self, tmp_path: Path) -> None:
        assert convert(tmp_path, b"region,place\n").shape == (0, 2)

    def test_files_are_kept_in_their_order(self, tmp_path: Path) -> None:
        files = [f"region,place\nDE,{number}\n".encode() for number in range(12)]
        assert convert(tmp_path, *files)["place"].to_list() == list(range(12))

    @pytest.mark.parametrize("ranks", [["1", "one"], ["one", "1"]])
    def test_the_file_with_a_wrong_value_is_named(self, tmp_path: Path, ranks: list[str]) -> None:
        contents = [f"region,place\nDE,{rank}\n".encode() for rank in ranks]
        told = refusal(tmp_path, *contents)
        assert told.startswith(f"file-{ranks.index('one')}, line 2: place is 'one', expected a whole number")

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(data=st.data())
    def test_what_was_written_is_what_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        # A blank before a quote, and how MySQL writes null, are refused.
        text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
        values = {
            pl.String: text.filter(lambda value: value != "\\N" and not value.startswith(' "')),
            pl.Boolean: st.booleans(),
            pl.Int64: st.integers(-(2**63), 2**63 - 1),
            pl.Float64: st.floats(allow_nan=False, allow_infinity=False),
            pl.Datetime: st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
        }
        for schema in (CARS, SALES):
            row = st.fixed_dictionaries({name: st.none() | values[dtype] for name, dtype in schema.items()})
            table = pl.DataFrame(data.draw(st.lists(row, max_size=5)), schema=schema)
            found = convert(tmp_path_factory.mktemp("csv"), table.write_csv().encode(), schema=schema)
            # A row of empty cells is no record.
            assert_frame_equal(found, table.filter(~pl.all_horizontal(pl.all().is_null())))


class TestParquet:
    def test_it_is_kept_to_the_byte(self, tmp_path: Path) -> None:
        content = parquet(region=["DE", None], place=[1, 2], more=[0.5, None])
        convert(tmp_path, content)
        assert (tmp_path / "part-00000.parquet").read_bytes() == content

    def test_files_with_the_columns_in_another_order_fit(self, tmp_path: Path) -> None:
        table = convert(tmp_path, parquet(region=["DE"], place=[1]), parquet(place=[2], region=["AT"]))
        assert table.rows() == [("DE", 1), ("AT", 2)]

    def test_a_part_without_a_column_that_another_has_is_named(self, tmp_path: Path) -> None:
        whole = parquet(region=["DE"], place=[1])
        for other in (parquet(region=["DE"]), b"region,rank\nDE,1\n"):
            for contents, lacking, having in (((whole, other), 1, 0), ((other, whole), 0, 1)):
                told = refusal(tmp_path, *contents)
                assert told.startswith(f"file-{lacking} has no column 'place', but file-{having}, another file")

    def test_if_all_parts_lack_a_column_what_they_share_is_kept_for_validation(self, tmp_path: Path) -> None:
        one = parquet(land=["DE"], place=[1], only_here=[1], other_type=[1])
        two = parquet(other_type=[0.5], place=[2], land=["AT"])
        assert convert(tmp_path, one, two).to_dict(as_series=False) == {"land": ["DE", "AT"], "place": [1, 2]}

    def test_files_with_rows_in_one_large_group_are_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "LARGEST_GROUP", 200_000)
        monkeypatch.setattr(casts, "ROW_GROUP", 2048)
        frame = pl.select(region=pl.lit("DE"), place=pl.int_range(200_001))
        file = io.BytesIO()
        frame.write_parquet(file, row_group_size=200_001)
        assert_frame_equal(convert(tmp_path, file.getvalue()), frame)
        groups = pq.ParquetFile(tmp_path / "part-00000.parquet").metadata
        assert max(groups.row_group(number).num_rows for number in range(groups.num_row_groups)) == 2048


DAYS = [datetime(2026, 11, 20), datetime(2026, 11, 21)]
GOOD: dict[str, Sequence[object]] = {
    "id": ["a", "b"],
    "region": ["DE", None],
    "day": DAYS,
    "place": [1, 2],
}


def arrow(**columns: pa.Array) -> bytes:
    """A file as Arrow writes it: GOOD, and these columns."""
    file = io.BytesIO()
    pq.write_table(pa.table({**{name: pa.array(values) for name, values in GOOD.items()}, **columns}), file)
    return file.getvalue()


def times(hour: int, unit: str, zone: str | None = None) -> pa.Array:
    return pa.array([day - timedelta(hours=hour) for day in DAYS], pa.timestamp(unit, zone))


class TestStorageIsNotType:
    @pytest.mark.parametrize("beside", [True, False], ids=["beside", "alone"])
    @pytest.mark.parametrize(
        "columns",
        [
            pytest.param({"extra": pa.array([1, 2])}, id="another column"),
            pytest.param({"extra": pa.array([{"a": [1]}] * 2)}, id="a nested column"),
            pytest.param({"extra": times(0, "us", "+05:30")}, id="a column of a time zone that Polars does not know"),
            pytest.param({"__index_level_0__": pa.array([0, 1])}, id="the index of pandas"),
            pytest.param({"Region": pa.array(["x", "y"])}, id="a name in two cases"),
            pytest.param({"region": pa.array(["DE", None]).dictionary_encode()}, id="a dictionary"),
            pytest.param({"region": pa.array(["DE", None], pa.large_string())}, id="large text"),
            pytest.param({"region": pa.array(["DE", None], pa.string_view())}, id="text by views"),
            pytest.param({"region": pa.array([b"DE", None])}, id="binary text"),
            pytest.param({"region": pa.array([b"DE", None], pa.binary(2))}, id="binary text of one length"),
            pytest.param({"place": pa.array([1, 2], pa.int8())}, id="int8"),
            pytest.param({"place": pa.array([1, 2], pa.uint64())}, id="uint64"),
            pytest.param({"place": pa.array([1, 2], pa.float32())}, id="float32"),
            pytest.param({"place": pa.array([Decimal("1.00"), Decimal("2.00")])}, id="decimal"),
            pytest.param({"place": pa.array(["1", " 2.0"])}, id="numbers as text"),
            pytest.param({"place": pa.array(["1", "2"]).dictionary_encode()}, id="numbers as a dictionary"),
            pytest.param({"day": times(0, "s")}, id="seconds"),
            pytest.param({"day": times(0, "ms")}, id="milliseconds"),
            pytest.param({"day": times(0, "ns")}, id="nanoseconds"),
            pytest.param({"day": pa.array(DAYS, pa.date32())}, id="days"),
            pytest.param({"day": pa.array(DAYS, pa.date64())}, id="days in milliseconds"),
            pytest.param({"day": times(0, "us", "UTC")}, id="UTC"),
            # Midnight by the clocks there.
            pytest.param({"day": times(1, "ns", "Europe/Berlin")}, id="a time zone"),
            pytest.param({"day": times(2, "us", "+02:00")}, id="an offset of hours"),
            pytest.param({"day": times(-5, "us", "-05:00")}, id="an offset to the west"),
            pytest.param({"day": pa.array(["2026-11-20", "2026-11-21T00:00:00Z"])}, id="days as text"),
            pytest.param({"day": pa.array([b"2026-11-20", b"2026-11-21"])}, id="days as binary text"),
        ],
    )
    def test_what_means_the_same_is_read_the_same(
        self, tmp_path: Path, columns: dict[str, pa.Array], beside: bool
    ) -> None:
        good = pl.DataFrame(GOOD)
        found = convert(tmp_path, *([arrow()] if beside else []), arrow(**columns))
        expected = pl.concat([good] * (2 if beside else 1))
        assert_frame_equal(found.select(good.columns).cast(good.schema), expected)

    @pytest.mark.parametrize("name", GOOD)
    def test_a_column_without_a_value_fits_any_type(self, tmp_path: Path, name: str) -> None:
        empty = arrow(**{name: pa.nulls(2)})
        for contents, values in (((empty,), [None, None]), ((empty, arrow()), [None, None, *GOOD[name]])):
            folder = tmp_path / str(len(contents))
            folder.mkdir()
            found = convert(folder, *contents)
            assert found[name].to_list() == values
            assert found.schema[name] == pl.DataFrame(GOOD).schema[name]

    def test_a_number_that_is_none_is_missing_in_a_column_of_whole_numbers(self, tmp_path: Path) -> None:
        found = convert(tmp_path, arrow(place=pa.array([1.0, float("nan")])))
        assert found["place"].to_list() == [1, None]

    @pytest.mark.parametrize("words", [[1, 0], [1.0, 0.0], [True, False], ["True", "0"]])
    def test_truth_may_be_numbers_or_words(self, tmp_path: Path, words: list[object]) -> None:
        found = convert(tmp_path, arrow(used=pa.array(words)), schema={"used": pl.Boolean})
        assert found["used"].to_list() == [True, False]

    @pytest.mark.parametrize(
        ("column", "told"),
        [
            ({"place": pa.array([1.0, 2.7])}, "row 2: place (Float64) is '2.7', expected a whole number"),
            ({"place": pa.array([1.0, float("inf")])}, "row 2: place (Float64) is 'inf', expected"),
            ({"place": pa.array([1.0, 1e300])}, "row 2: place (Float64) is '1e+300', expected"),
            ({"place": pa.array([Decimal("1.5"), Decimal(2)])}, "row 1: place (Decimal(precision="),
            ({"place": pa.array(["1", "x"])}, "row 2: place (String) is 'x', expected a whole number"),
            ({"place": pa.array([[1], [2]])}, "has the column 'place' as List(Int64) such as '[1]', expected a whole"),
            ({"place": pa.array(DAYS)}, "has the column 'place' as Datetime"),
            (
                {"region": pa.array([b"DE", b"\xff"])},
                "row 2: region (Binary) is '\\\\xFF', expected text in UTF-8",
            ),
            ({"region": pa.array([1, 2])}, "has the column 'region' as Int64 such as '1', expected text in UTF-8"),
            ({"region": pa.array([True, None])}, "has the column 'region' as Boolean such as 'true', expected text"),
            (
                {"day": pa.array(["11/20/2026"] * 2)},
                "row 1: day (String) is '11/20/2026', expected",
            ),
            (
                {"day": pa.array(["2026-11-20", "x"]).dictionary_encode()},
                "row 2: day (Categorical)",
            ),
            (
                {"day": pa.array([20261120, 20261121])},
                "has the column 'day' as Int64 such as '20261120', expected a date",
            ),
            ({"day": pa.array([1e9, 1e9])}, "such as '1000000000.0', expected"),
        ],
    )
    def test_what_cannot_be_that_is_refused_with_part_column_and_value(
        self, tmp_path: Path, column: dict[str, pa.Array], told: str
    ) -> None:
        found = refusal(tmp_path, arrow(), arrow(**column))
        assert found.startswith("file-1")
        assert told in found

    def test_a_part_may_be_csv_and_another_parquet(self, tmp_path: Path) -> None:
        csv = b"place;day;region;id;note\n2.0;2026-11-21;;b;\n"
        found = convert(tmp_path, arrow(place=pa.array([1, 2], pa.int16())), csv)
        assert_frame_equal(found, pl.concat([pl.DataFrame(GOOD), pl.DataFrame(GOOD)[1:]]))

    def test_old_timestamps_of_spark_are_days(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        pq.write_table(pa.table(GOOD), file, use_deprecated_int96_timestamps=True)
        assert convert(tmp_path, file.getvalue(), arrow())["day"].to_list() == DAYS * 2

    def test_a_column_twice_is_told(self, tmp_path: Path) -> None:
        file = io.BytesIO()
        pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["place"] * 2), file)
        assert refusal(tmp_path, file.getvalue()).startswith("file-0 has two columns of the same name")


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", "a,b")
    return file.getvalue()


WHOLE = parquet(region=["DE"] * 1000, place=list(range(1000)))


class TestWhatIsNoData:
    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "file-0 is empty"),
            (b"\n \n", "file-0 is empty"),
            (gzip.compress(b"", mtime=0), "file-0 is empty"),
            (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "an HTML or XML page, such as a login or an error page"),
            (b"\xef\xbb\xbf  <html>", "an HTML or XML page"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
            (gzip.compress(b"<html>", mtime=0), "an HTML or XML page"),
            (b'{"message": "Not Found", "status": 404}', "is JSON"),
            (b"[1, 2]", "is JSON"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0,\n", "a Git LFS pointer"),
            ("region,place\nDE,1\n".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
            (zipped(), "a ZIP archive or an Excel workbook: unpack it"),
            (b"-----BEGIN PRIVATE KEY-----\n", "a key or a certificate"),
            (b"SQLite format 3\0", "an SQLite database"),
            (b"\x28\xb5\x2f\xfd1234", "a Zstandard file: unpack it"),
        ],
    )
    def test_it_is_named_for_what_it_is(self, tmp_path: Path, content: bytes, told: str) -> None:
        with pytest.raises(DataUnavailable, match=f"(?s)file-0 .*{told}" if "file-0" not in told else told):
            convert(tmp_path, content)

    @pytest.mark.parametrize(
        "content", [WHOLE[:-1], WHOLE[: len(WHOLE) // 2], b"PAR1", WHOLE[:4] + bytes(len(WHOLE) - 12) + WHOLE[-8:]]
    )
    def test_a_damaged_file_is_told(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(DataUnavailable, match="file-0 is damaged or truncated"):
            convert(tmp_path, content)

    @pytest.mark.parametrize("damage", [slice(0, -9), slice(0, 12)])
    def test_damaged_gzip_is_told(self, tmp_path: Path, damage: slice) -> None:
        packed = gzip.compress(b"region,place\n" + b"DE,1\n" * 1000)
        with pytest.raises(DataUnavailable, match="file-0 is a damaged gzip file"):
            convert(tmp_path, packed[damage])

    def test_gzip_that_unpacks_to_more_than_the_limit_is_refused(self, tmp_path: Path) -> None:
        bomb = gzip.compress(b"a,b\n" + b"1,2\n" * (1 << 20))
        with pytest.raises(DataUnavailable, match="file-0 is too large unpacked: the limit leaves 1048576 bytes"):
            convert(tmp_path, bomb)


class TestBombs:
    """Small files that would fill the memory of whatever reads them."""

    @pytest.mark.parametrize("kind", [pa.large_string(), pa.large_binary()])
    def test_a_text_longer_than_a_field_of_csv_is_refused(self, tmp_path: Path, kind: pa.DataType) -> None:
        text = "a" * ((1 << 20) + 1)
        table = pa.table({"id": pa.array([text, "id"], kind), "region": ["DE", "DE"]})
        file = io.BytesIO()
        pq.write_table(table, file)
        said = refusal(tmp_path, file.getvalue())
        assert "file-0 has a text of 1,048,577 bytes in the column 'id', expected at most 1,048,576" in said

    def test_a_text_too_long_to_be_measured_is_refused(self, tmp_path: Path) -> None:
        table = pa.table({"id": pa.array(["a" * 600_000_000], pa.large_string()), "region": ["DE"]})
        path = tmp_path / "bomb"
        pq.write_table(table, path, compression="zstd", write_statistics=False)
        assert path.stat().st_size < 100_000
        with pytest.raises(DataUnavailable, match="cannot be read in 256MB of memory: its values are far longer"):
            to_parquet([("file-0", path)], tmp_path, SALES)

    def test_more_columns_than_any_table_has_are_refused(self, tmp_path: Path) -> None:
        columns = [*SALES, *(f"c{number}" for number in range(2000))]
        expected = "2,004 columns, expected at most 2,000"
        assert expected in refusal(tmp_path, (",".join(columns) + "\n").encode())
        assert expected in refusal(tmp_path, parquet(**{name: ["1"] for name in columns}))
