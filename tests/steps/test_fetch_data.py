"""The data that a run is started for arrives whole, as Parquet, or not at all."""

import gzip
import hashlib
import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from pipeline.core.contract import Column, Table
from pipeline.core.errors import DataUnavailable, SettingsInvalid
from pipeline.steps import fetch_data as module
from pipeline.steps.fetch_data import Fetched, fetch_data
from pipeline.steps.fetch_data import resolve_data_version as resolve
from tests import regression
from tests.http_server import Answer, HttpServer, serve_http
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]
CARS = pl.DataFrame({"number": ["a", "b", "c"], "weight": [100.0, 120.5, None], "used": [True, False, None]})
SALES = pl.DataFrame({"number": ["a", "b"], "place": ["DE", None], "times": [1, 2]})

MODEL = replace(
    regression.MODEL,
    tables=[
        Table("cars", [Column("number", pl.String), Column("weight", pl.Float64), Column("used", pl.Boolean)]),
        Table("sales", [Column("number", pl.String), Column("place", pl.String), Column("times", pl.Int64)]),
    ],
)


def parquet(table: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    table.write_parquet(file)
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serve_http() as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the two tables as files."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "cars.parquet").write_bytes(parquet(CARS))
    (folder / "sales.parquet").write_bytes(parquet(SALES))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The folder for what is fetched; it holds nothing else, so a test sees all that is left behind."""
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


Fetch = Callable[..., tuple[Fetched, Fetched]]


@pytest.fixture
def fetch(source: Path, target: Path) -> Fetch:
    """Fetch what is given; the rest comes from ``source``, and the version is what there is now."""

    def call(cars: str = "", sales: str = "", data_version: str = "", **options: object) -> tuple[Fetched, Fetched]:
        uris = {
            "cars": cars or str(source / "cars.parquet"),
            "sales": sales or str(source / "sales.parquet"),
        }
        version = data_version or resolve(uris)
        found = fetch_data(MODEL, uris, target / "tables", data_version=version, **options)  # type: ignore[arg-type]
        return found["cars"], found["sales"]

    return call


def resolve_data_version(cars: str, sales: str) -> str:
    return resolve({"cars": cars, "sales": sales})


WHOLE = [
    "tables",
    *("tables/cars", "tables/cars/part-00000.parquet", "tables/sales", "tables/sales/part-00000.parquet"),
]


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


class TestWhatArrives:
    def test_parquet_files_arrive_as_they_are(self, fetch: Fetch, source: Path, target: Path) -> None:
        cars, sales = fetch()
        assert left(target) == WHOLE
        for name, table in (("cars", CARS), ("sales", SALES)):
            assert pl.scan_parquet(target / "tables" / name / "*.parquet").collect().equals(table)
        content = (source / "cars.parquet").read_bytes()
        assert cars == Fetched(str(source / "cars.parquet"), "", sha256(content), 3, 3, len(content), 1)
        assert sales.rows == 2

    def test_a_folder_of_many_kinds_of_files_is_one_table(self, fetch: Fetch, source: Path, target: Path) -> None:
        folder = source / "many"
        folder.mkdir()
        one, two, three = (SALES.with_columns(times=pl.lit(times, pl.Int64)) for times in (1, 2, 3))
        (folder / "1.parquet").write_bytes(parquet(one))
        (folder / "2.csv").write_bytes(two.write_csv().encode())
        (folder / "3.csv.gz").write_bytes(gzip.compress(three.write_csv().encode()))
        _, sales = fetch(sales=str(folder))
        fetched = pl.scan_parquet(target / "tables" / "sales" / "*.parquet").collect()
        assert fetched.equals(pl.concat([one, two, three]))
        assert (sales.files, sales.rows) == (3, 6)
        assert sales.bytes == sum(path.stat().st_size for path in folder.iterdir())

    def test_the_digest_of_many_files_is_what_the_shell_prints(self, fetch: Fetch, source: Path) -> None:
        folder = source / "many"
        folder.mkdir()
        for name in ("b.parquet", "a.parquet", "C.parquet"):
            (folder / name).write_bytes(parquet(SALES.with_columns(name=pl.lit(name))))
        shell = subprocess.run(
            "sha256sum * | LC_ALL=C sort | sha256sum",
            shell=True,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        expected = shell.stdout.split()[0]
        for uri in (str(folder), f"{folder}/*.parquet"):
            assert fetch(sales=uri, sha256={"sales": expected})[1].sha256 == expected

    def test_a_url_gives_its_etag_and_no_secret(
        self, fetch: Fetch, server: HttpServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = server.serve("/cars", Answer(parquet(CARS), etag='"abc"')).replace("://", "://user:SECRET@")
        with caplog.at_level(logging.INFO, "jukebox"):
            cars, _ = fetch(cars=f"{url}?X-Amz-Signature=SECRET")
        assert cars.etag == '"abc"'
        assert cars.source == f"{server.url}/cars?…"
        assert "SECRET" not in caplog.text + json.dumps(cars.as_metadata())
        assert json.loads(json.dumps(cars.as_metadata())) == {
            "source": cars.source,
            "etag": '"abc"',
            "sha256": sha256(parquet(CARS)),
            "records": 3,
            "rows": 3,
            "bytes": len(parquet(CARS)),
            "files": 1,
        }

    @pytest.mark.parametrize("uri", ["s3://{}/data/1.parquet", "s3://{}/data", "s3://{}/**/?.parquet"])
    def test_an_object_a_prefix_and_a_glob_arrive_from_s3(
        self, fetch: Fetch, target: Path, s3_environment: S3Server, uri: str
    ) -> None:
        bucket = s3_environment.bucket()
        content = parquet(SALES)
        s3_environment.client.put_object(Bucket=bucket, Key="data/1.parquet", Body=content)
        s3_environment.client.put_object(Bucket=bucket, Key="data-old/1.parquett", Body=b"<html>")
        _, sales = fetch(sales=uri.format(bucket))
        assert pl.scan_parquet(target / "tables" / "sales" / "*.parquet").collect().equals(SALES)
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        assert sales == Fetched(uri.format(bucket), etag, sha256(content), 2, 2, len(content), 1)


class TestDataVersion:
    def test_it_is_the_same_for_the_same_content(self, source: Path, tmp_path: Path) -> None:
        version = resolve_data_version(f"{source}/cars.parquet", f"{source}/sales.parquet")
        elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
        assert len(bytes.fromhex(version)) == 32
        assert version == resolve_data_version(f"{elsewhere}/cars.parquet", (elsewhere / "sales.parquet").as_uri())

    def test_any_change_gives_another_one(self, source: Path) -> None:
        def version() -> str:
            return resolve_data_version(str(source / "cars.parquet"), str(source))

        found = [version(), resolve_data_version(str(source), str(source / "cars.parquet"))]
        (source / "new.csv").write_text("a,b")
        found.append(version())
        (source / "new.csv").write_text("a,c")
        found.append(version())
        (source / "new.csv").rename(source / "newer.csv")
        found.append(version())
        (source / "cars.parquet").write_bytes(parquet(SALES))
        found.append(version())
        assert len(set(found)) == len(found)

    @pytest.mark.parametrize(
        ("headers", "changed"),
        [
            ({"ETag": '"1"'}, {"ETag": '"2"'}),
            ({"Last-Modified": "Mon, 01 Jun 2026 00:00:00 GMT"}, {"Last-Modified": "Tue, 02 Jun 2026 00:00:00 GMT"}),
        ],
    )
    def test_a_server_that_tells_versions_apart_is_asked_for_nothing_more(
        self, server: HttpServer, headers: dict[str, str], changed: dict[str, str]
    ) -> None:
        def version(told: dict[str, str]) -> str:
            # The body never comes.
            return resolve_data_version(*[server.serve("/a", Answer(b"a" * 9, headers=told, stalls_after=0))] * 2)

        assert version(headers) == version(headers)
        assert version(headers) != version(changed)

    def test_the_length_tells_versions_apart_where_the_time_does_not(self, server: HttpServer) -> None:
        modified = {"Last-Modified": "Mon, 01 Jun 2026 00:00:00 GMT"}
        found = {
            resolve_data_version(*[server.serve("/a", Answer(body, headers=modified))] * 2) for body in (b"1", b"22")
        }
        assert len(found) == 2

    @pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"1"'}])
    def test_the_content_decides_where_a_server_tells_nothing(
        self, server: HttpServer, headers: dict[str, str]
    ) -> None:
        def version(body: bytes) -> str:
            return resolve_data_version(*[server.serve("/a", Answer(body, headers=headers))] * 2)

        assert version(b"1") == version(b"1")
        assert version(b"1") != version(b"2")

    def test_a_new_signature_is_no_new_version_and_another_query_is(self, server: HttpServer) -> None:
        url = server.serve("/a", Answer(b"1", etag='"1"'))
        query = ["X-Amz-Date=1&X-Amz-Signature=1", "X-Amz-Date=2&X-Amz-Signature=2", "branch=a", "branch=b"]
        found = [resolve_data_version(f"{url}?{each}", f"{url}?{each}") for each in query]
        assert found[0] == found[1]
        assert len(set(found[1:])) == 3

    def test_on_s3_it_follows_the_content(self, s3_environment: S3Server) -> None:
        bucket = s3_environment.bucket()

        def version(body: bytes) -> str:
            s3_environment.client.put_object(Bucket=bucket, Key="data/a.csv", Body=body)
            return resolve_data_version(f"s3://{bucket}/data", f"s3://{bucket}/data/a.csv")

        assert version(b"1") == version(b"1")
        assert version(b"1") != version(b"2")

    def test_a_version_of_an_object_with_the_same_content_is_the_same_data(self, s3_environment: S3Server) -> None:
        """Given a bucket with versions, then a new one counts where it brings other content, and so does a way back."""
        client, bucket = s3_environment.client, s3_environment.bucket()
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        uri = f"s3://{bucket}/a.csv"
        found = []
        for body in (b"1", b"1", b"2"):
            put = client.put_object(Bucket=bucket, Key="a.csv", Body=body)
            found.append((put["VersionId"], resolve_data_version(uri, uri)))
        assert len({version_id for version_id, _ in found}) == 3
        first, same, other = (data_version for _, data_version in found)
        assert first == same != other
        client.delete_object(Bucket=bucket, Key="a.csv", VersionId=found[-1][0])
        assert resolve_data_version(uri, uri) == first


class TestWhatIsRefused:
    """What is refused leaves nothing behind."""

    @pytest.fixture(autouse=True)
    def nothing_left(self, target: Path) -> Iterator[None]:
        yield
        assert left(target) == []

    @pytest.mark.parametrize("version", ["", "main", "0" * 63, "A" * 64])
    def test_a_run_without_a_data_version(self, source: Path, target: Path, version: str) -> None:
        with pytest.raises(SettingsInvalid, match="characters that `jukebox data-version` prints"):
            fetch_data(MODEL, {}, target / "tables", data_version=version)

    @pytest.mark.parametrize(
        ("tables", "message"),
        [
            (("cars",), "data: sales is missing; expected cars, sales"),
            (("cars", "sales", "bikes"), "data: bikes is not a table of the model used-cars; expected cars, sales"),
        ],
    )
    def test_other_tables_than_the_models(
        self, source: Path, target: Path, tables: tuple[str, ...], message: str
    ) -> None:
        with pytest.raises(SettingsInvalid, match=message):
            fetch_data(MODEL, dict.fromkeys(tables, str(source)), target / "tables", data_version="0" * 64)

    def test_a_digest_of_no_table(self, fetch: Fetch) -> None:
        with pytest.raises(SettingsInvalid, match="sha256: bikes is not a table of the model used-cars"):
            fetch(sha256={"bikes": "0" * 64})

    def test_a_file_that_changed_since_the_start(self, fetch: Fetch, source: Path) -> None:
        version = resolve_data_version(str(source / "cars.parquet"), str(source / "sales.parquet"))
        (source / "sales.parquet").write_bytes(parquet(CARS))
        with pytest.raises(DataUnavailable, match=r"the data has changed; start a new run"):
            fetch(data_version=version)

    def test_a_url_that_changed_since_the_start_before_it_is_downloaded(self, fetch: Fetch, server: HttpServer) -> None:
        body = parquet(CARS)
        url = server.serve("/a", Answer(body, etag='"1"'))
        version = resolve_data_version(url, url)
        server.serve("/a", Answer(body, etag='"2"'))
        with pytest.raises(DataUnavailable, match=r"the data has changed; start a new run"):
            fetch(url, url, version)
        assert len(server.requests) == 2, "one look at each"

    def test_a_url_that_changes_between_two_tries(self, fetch: Fetch, server: HttpServer) -> None:
        old = Answer(parquet(CARS), etag='"1"', ranges=True, breaks_after=100)
        new = Answer(parquet(SALES), etag='"2"', ranges=True)
        url = server.serve("/a", old, old, old, new)
        with pytest.raises(DataUnavailable, match=r"changed while it was fetched: start a new run"):
            fetch(cars=url)

    def test_an_object_that_changed_since_the_start(self, fetch: Fetch, s3_environment: S3Server) -> None:
        bucket = s3_environment.bucket()
        uri = f"s3://{bucket}/a.parquet"
        s3_environment.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(CARS))
        version = resolve_data_version(uri, uri)
        s3_environment.client.put_object(Bucket=bucket, Key="a.parquet", Body=parquet(SALES))
        with pytest.raises(DataUnavailable, match=r"the data has changed; start a new run"):
            fetch(uri, uri, version)

    def test_another_digest(self, fetch: Fetch, server: HttpServer, source: Path) -> None:
        url = server.serve("/a", Answer(parquet(CARS)))
        with pytest.raises(DataUnavailable, match=rf"has the sha256 {sha256(parquet(CARS))}, expected {'0' * 64}"):
            fetch(cars=url, sha256={"cars": "0" * 64})
        assert len(server.requests) == 4, "two for the version, two to fetch: no retry makes it another file"
        with pytest.raises(DataUnavailable, match=r"sales\.parquet has the sha256"):
            fetch(sha256={"sales": sha256(parquet(CARS)), "cars": ""})

    def test_a_login_page(self, fetch: Fetch, server: HttpServer) -> None:
        url = server.serve(
            "/a.parquet", Answer(b"<!doctype html><title>Sign in</title>", headers={"Content-Type": "text/html"})
        )
        with pytest.raises(DataUnavailable, match=r"/a\.parquet is an HTML or XML page, such as a login"):
            fetch(sales=url)

    def test_too_many_bytes_in_one_file_or_in_all(self, fetch: Fetch, source: Path) -> None:
        size = len(parquet(CARS))
        with pytest.raises(DataUnavailable, match=r"cars\.parquet is too large"):
            fetch(max_bytes=size - 1)
        (source / "more").mkdir()
        for name in ("1.parquet", "2.parquet"):
            (source / "more" / name).write_bytes(parquet(CARS))
        with pytest.raises(DataUnavailable, match=r"2\.parquet is too large"):
            fetch(cars=str(source / "more"), max_bytes=2 * size - 1)

    def test_endless_bytes(self, fetch: Fetch, server: HttpServer) -> None:
        with pytest.raises(DataUnavailable, match="too large"):
            fetch(cars=server.serve("/a", Answer(endless=True)), data_version="0" * 64, max_bytes=1 << 20)

    def test_a_body_that_never_gets_whole(self, fetch: Fetch, server: HttpServer) -> None:
        url = server.serve("/a", Answer(parquet(CARS), etag='"1"', ranges=True, length=10**6))
        with pytest.raises(DataUnavailable, match="was interrupted"):
            fetch(cars=url)

    @pytest.mark.parametrize("missing", ["no-such-file.parquet", "http://{}/a", "s3://no-such-bucket/a"])
    def test_what_is_not_there(self, fetch: Fetch, server: HttpServer, s3_environment: S3Server, missing: str) -> None:
        uri = missing.format(server.url.removeprefix("http://"))
        with pytest.raises(DataUnavailable, match=r"names no file|answered 404|NoSuchBucket"):
            fetch(cars=uri)


class TestWhatIsLeft:
    def test_what_a_killed_fetch_left_is_replaced(self, fetch: Fetch, target: Path) -> None:
        for name in ("tables/cars", "tables/old", ".tables.partial/cars"):
            (target / name).mkdir(parents=True)
            (target / name / "part-00001.parquet").write_bytes(b"old")
        fetch()
        assert left(target) == WHOLE

    def test_a_fetch_that_is_killed_leaves_no_data_and_can_be_done_again(
        self, fetch: Fetch, server: HttpServer, source: Path, target: Path
    ) -> None:
        body = parquet(CARS)
        whole, half = Answer(body, etag='"1"'), Answer(body, etag='"1"', stalls_after=len(body) // 2)
        url = server.serve("/a", whole)
        sales = str(source / "sales.parquet")
        version = resolve_data_version(url, sales)
        server.serve("/a", whole, half)
        code = f"""
from pathlib import Path
from pipeline.steps.fetch_data import fetch_data
from tests.steps.test_fetch_data import MODEL
target = Path({str(target)!r})
fetch_data(MODEL, {{"cars": {url!r}, "sales": {sales!r}}}, target / "tables", data_version={version!r})
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        try:
            assert server.stalled.wait(60)
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (target / "tables").exists()
        assert (target / ".tables.partial").exists(), "it was killed in the middle"
        server.serve("/a", whole)
        fetch(cars=url, data_version=version)
        assert left(target) == WHOLE

    def test_a_folder_with_something_else_is_left_alone(self, fetch: Fetch, target: Path) -> None:
        (target / "tables" / "cars").mkdir(parents=True)
        (target / "tables" / "cars" / "thesis.txt").write_text("mine")
        with pytest.raises(SettingsInvalid, match=r"tables holds thesis\.txt, which is not fetched data"):
            fetch()
        assert left(target) == ["tables", "tables/cars", "tables/cars/thesis.txt"]

    def test_a_failed_fetch_keeps_what_was_fetched_before(self, fetch: Fetch, source: Path, target: Path) -> None:
        fetch()
        (source / "sales.parquet").write_bytes(b"<html>")
        with pytest.raises(DataUnavailable):
            fetch()
        assert pl.read_parquet(target / "tables" / "cars").equals(CARS)
        assert pl.read_parquet(target / "tables" / "sales").equals(SALES)

    def test_a_place_that_cannot_be_written_is_told(self, source: Path, target: Path) -> None:
        (target / "file").touch()
        uris = {name: str(source / f"{name}.parquet") for name in ("cars", "sales")}
        with pytest.raises(DataUnavailable, match=r"cannot be written to .*file/tables: Not a directory"):
            fetch_data(MODEL, uris, target / "file" / "tables", data_version=resolve(uris))
        assert left(target) == ["file"]


class TestProgress:
    def test_the_log_tells_how_far_it_is(
        self, fetch: Fetch, server: HttpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "LOG_EVERY", 0.0)
        size = len(parquet(CARS))
        with caplog.at_level(logging.INFO, "jukebox"):
            fetch(cars=server.serve("/a", Answer(parquet(CARS))))
        assert f"fetching {server.url}/a: {size} of {size} bytes" in caplog.text
        assert f"fetched {server.url}/a: 3 rows, {size} bytes, sha256 {sha256(parquet(CARS))}" in caplog.text

    def test_a_terminal_shows_a_bar(
        self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        fetch()
        assert "cars.parquet" in capsys.readouterr().out

    def test_a_break_is_told(self, fetch: Fetch, server: HttpServer, caplog: pytest.LogCaptureFixture) -> None:
        broken, whole = (Answer(parquet(CARS), etag='"1"', breaks_after=after) for after in (9, None))
        fetch(cars=server.serve("/a", broken, broken, broken, whole))
        assert "/a was interrupted" in caplog.text
        assert "trying again in 1 s" in caplog.text or "trying again in 2 s" in caplog.text


def test_local_data_needs_no_client_library() -> None:
    """They take half a second to import, and TensorFlow three."""
    code = "import sys, pipeline.steps.fetch_data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {"boto3", "botocore", "requests", "rich", "tensorflow", "kfp"} & set(loaded.stdout.split())
