"""CSV and Parquet from anywhere become Parquet parts that fit together, and no value gets lost on the way."""

import gzip
import io
import zipfile
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.errors import DataInvalid, DataUnavailable
from pipeline.schema import RANKINGS, SONGS
from pipeline.tables import to_parquet, unpack

REAL = Path(__file__).parents[2] / "shared" / "data"


def convert(folder: Path, *contents: bytes, schema: dict[str, type[pl.DataType]] = RANKINGS) -> pl.DataFrame:
    """Return the table that the files with these contents make."""
    files = []
    for number, content in enumerate(contents):
        path = folder / f"download-{number}"
        path.write_bytes(content)
        unpack(path, f"file-{number}", max_bytes=1 << 20)
        files.append((f"file-{number}", path))
    rows = to_parquet(files, folder, schema)
    parts = [folder / f"part-{number:05}.parquet" for number in range(len(contents))]
    assert sorted(folder.iterdir()) == parts, "nothing but the parts is left"
    table = pl.scan_parquet(folder / "*.parquet").collect()
    assert rows == table.height
    return table


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


class TestCsv:
    def test_the_columns_of_the_contract_get_their_types(self, tmp_path: Path) -> None:
        table = convert(
            tmp_path,
            b"spotify_id,is_explicit,duration_ms,tempo,popularity\nid1,True,200000,120.5,7\nid2,false,0,1e2,8\n",
            schema=SONGS,
        )
        assert table.to_dict(as_series=False) == {
            "spotify_id": ["id1", "id2"],
            "is_explicit": [True, False],
            "duration_ms": [200000, 0],
            "tempo": [120.5, 100.0],
            "popularity": ["7", "8"],
        }
        assert [table.schema[name] for name in table.columns] == [
            pl.String,
            pl.Boolean,
            pl.Int64,
            pl.Float64,
            pl.String,
        ]

    def test_an_empty_country_is_null_and_namibia_is_none_such(self, tmp_path: Path) -> None:
        table = convert(tmp_path, b'country,daily_rank\n,1\n"",2\nNA,3\nDE,4\n')
        assert table["country"].to_list() == [None, None, "NA", "DE"]

    @pytest.mark.parametrize(
        "day",
        ["2023-10-18", "2023-10-18 00:00:00", "2023-10-18T00:00:00", "2023-10-18T00:00:00Z", "2023-10-18 00:00:00.000"],
    )
    def test_a_day_is_read_in_the_usual_layouts(self, tmp_path: Path, day: str) -> None:
        table = convert(tmp_path, f"snapshot_date,country\n{day},DE\n,DE\n".encode())
        assert table["snapshot_date"].to_list() == [datetime(2023, 10, 18), None]

    def test_whole_numbers_may_be_written_as_floats(self, tmp_path: Path) -> None:
        table = convert(tmp_path, b"daily_rank,country\n5.0,DE\n,DE\n1,DE\n")
        assert table["daily_rank"].to_list() == [5, None, 1]

    @pytest.mark.parametrize(
        ("column", "bad"),
        [("daily_rank", "5.5"), ("daily_rank", "first"), ("daily_rank", "nan"), ("snapshot_date", "18.10.2023")],
    )
    def test_a_column_with_a_value_of_another_type_stays_text(self, tmp_path: Path, column: str, bad: str) -> None:
        good = {"daily_rank": "1", "snapshot_date": "2023-10-18"}
        lines = [",".join(good), ",".join(good.values()), ",".join((good | {column: bad}).values())]
        table = convert(tmp_path, "\n".join(lines).encode())
        assert table[column].to_list() == [good[column], bad]
        (other,) = set(good) - {column}
        assert table.schema[other] == RANKINGS[other]

    def test_quotes_line_ends_and_a_byte_order_mark_are_read(self, tmp_path: Path) -> None:
        text = '\ufeff"spotify_id","name","artists"\r\n"id","a, ""b""\nc","\u00c5 & B"\r\n'
        table = convert(tmp_path, text.encode(), schema=SONGS)
        assert table.rows() == [("id", 'a, "b"\nc', "\u00c5 & B")]

    def test_gzip_is_unpacked(self, tmp_path: Path) -> None:
        table = convert(
            tmp_path,
            gzip.compress(b"country,daily_rank\nDE,1\n"),
            gzip.compress(parquet(country=["AT"], daily_rank=[2])),
        )
        assert table.rows() == [("DE", 1), ("AT", 2)]

    def test_a_header_alone_is_a_table_without_rows(self, tmp_path: Path) -> None:
        assert convert(tmp_path, b"country,daily_rank\n").shape == (0, 2)

    def test_files_are_kept_in_their_order(self, tmp_path: Path) -> None:
        files = [f"country,daily_rank\nDE,{number}\n".encode() for number in range(12)]
        assert convert(tmp_path, *files)["daily_rank"].to_list() == list(range(12))

    @pytest.mark.parametrize("ranks", [["1", "one"], ["one", "1"]])
    def test_all_files_decide_about_a_type(self, tmp_path: Path, ranks: list[str]) -> None:
        table = convert(tmp_path, *[f"country,daily_rank\nDE,{rank}\n".encode() for rank in ranks])
        assert table["daily_rank"].to_list() == ranks

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(data=st.data())
    def test_what_was_written_is_what_is_read(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        values = {
            pl.String: st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
            pl.Boolean: st.booleans(),
            pl.Int64: st.integers(-(2**63), 2**63 - 1),
            pl.Float64: st.floats(allow_nan=False),
            pl.Datetime: st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
        }
        for schema in (SONGS, RANKINGS):
            row = st.fixed_dictionaries({name: st.none() | values[dtype] for name, dtype in schema.items()})
            table = pl.DataFrame(data.draw(st.lists(row, max_size=5)), schema=schema)
            found = convert(tmp_path_factory.mktemp("csv"), table.write_csv().encode(), schema=schema)
            assert_frame_equal(found, table)

    @pytest.mark.skipif(not REAL.is_dir(), reason="the real rows are not here")
    @pytest.mark.parametrize(("name", "schema"), [("song_properties", SONGS), ("song_rankings", RANKINGS)])
    def test_real_rows_are_the_same_from_csv(
        self, tmp_path: Path, name: str, schema: dict[str, type[pl.DataType]]
    ) -> None:
        real = pl.read_parquet(REAL / f"{name}.parquet")
        (tmp_path / "in").mkdir()
        real.write_csv(tmp_path / "in" / "download")
        to_parquet([("csv", tmp_path / "in" / "download")], tmp_path / "in", schema)
        found = pl.read_parquet(tmp_path / "in" / "part-00000.parquet")
        assert_frame_equal(found.select(*schema), real.select(*schema), check_dtypes=False)


class TestParquet:
    def test_it_is_kept_to_the_byte(self, tmp_path: Path) -> None:
        content = parquet(country=["DE", None], daily_rank=[1, 2], more=[0.5, None])
        convert(tmp_path, content)
        assert (tmp_path / "part-00000.parquet").read_bytes() == content

    def test_files_with_the_columns_in_another_order_fit(self, tmp_path: Path) -> None:
        table = convert(tmp_path, parquet(country=["DE"], daily_rank=[1]), parquet(daily_rank=[2], country=["AT"]))
        assert table.rows() == [("DE", 1), ("AT", 2)]

    @pytest.mark.parametrize(
        ("other", "told"),
        [
            (parquet(country=["DE"]), "'daily_rank': Int64 in the one, no such column in the other"),
            (parquet(country=["DE"], daily_rank=["1"]), "'daily_rank': Int64 in the one, String in the other"),
            (b"country,rank\nDE,1\n", "differ in 2 columns, such as 'daily_rank'"),
        ],
    )
    def test_files_with_other_columns_are_refused_by_name(self, tmp_path: Path, other: bytes, told: str) -> None:
        with pytest.raises(DataInvalid, match=f"file-0 and file-1 are files of one table .*{told}"):
            convert(tmp_path, parquet(country=["DE"], daily_rank=[1]), other)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.csv", "a,b")
    return file.getvalue()


WHOLE = parquet(country=["DE"] * 1000, daily_rank=list(range(1000)))


class TestWhatIsNoData:
    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "file-0 is empty"),
            (b"\n \n", "file-0 is empty"),
            (gzip.compress(b"", mtime=0), "file-0 is empty"),
            (b"<!DOCTYPE html>\n<html><title>Sign in</title>", r"begins with '<!DOCTYPE html>.*login or an error page"),
            (b"\xef\xbb\xbf  <html>", "an HTML or XML page"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
            (gzip.compress(b"<html>", mtime=0), "an HTML or XML page"),
            (b'{"message": "Not Found", "status": 404}', "this is JSON"),
            (b"[1, 2]", "this is JSON"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0,\n", "a Git LFS pointer"),
            (b"a;b;c\n1;2;3\n", "begins with 'a;b;c.*a header and commas in UTF-8"),
            (b"only words", "something else"),
            (bytes(range(256)) * 4, "something else"),
            ("country,daily_rank\nDE,1\n".encode("utf-16"), "something else"),
        ],
    )
    def test_it_is_named_for_what_it_is(self, tmp_path: Path, content: bytes, told: str) -> None:
        with pytest.raises(DataUnavailable, match=f"(?s)file-0 .*{told}" if "file-0" not in told else told):
            convert(tmp_path, content)

    def test_a_zip_archive_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataUnavailable, match="a ZIP archive: unpack it"):
            convert(tmp_path, zipped())

    @pytest.mark.parametrize(
        "content",
        [
            WHOLE[:-1],
            WHOLE[: len(WHOLE) // 2],
            b"PAR1",
            b"country,daily_rank\nDE,1\nDE,1,2\n",
            b"country,daily_rank\nD\xfcsseldorf,1\n",
        ],
    )
    def test_a_damaged_file_is_told(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(DataUnavailable, match="file-0 is damaged or cut off"):
            convert(tmp_path, content)

    @pytest.mark.parametrize("damage", [slice(0, -9), slice(0, 12)])
    def test_damaged_gzip_is_told(self, tmp_path: Path, damage: slice) -> None:
        packed = gzip.compress(b"country,daily_rank\n" + b"DE,1\n" * 1000)
        with pytest.raises(DataUnavailable, match="file-0 is a damaged gzip file"):
            convert(tmp_path, packed[damage])

    def test_gzip_that_unpacks_to_more_than_the_limit_is_refused(self, tmp_path: Path) -> None:
        bomb = gzip.compress(b"a,b\n" + b"1,2\n" * (1 << 20))
        with pytest.raises(DataUnavailable, match="file-0 is too large unpacked: the limit leaves 1048576 bytes"):
            convert(tmp_path, bomb)
