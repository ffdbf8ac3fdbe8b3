"""What a URI names, and that what is read of it is whole and one version, however the source behaves."""

import hashlib
import io
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import sources
from pipeline.core.errors import DataUnavailable, SettingsInvalid
from pipeline.core.s3 import s3_client
from pipeline.core.sources import copy, find, redact
from tests.http_server import Answer, HttpServer, serve_http
from tests.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BODY = bytes(range(256)) * 40
# What could be read as something else: by a glob, a URL, a shell, an option.
ODD = (
    *("a[1]b", "a*b", "a?b", "a[!x]", "[", "]", "**", "a#b", "a%20b", "a b", " a ", "Ada's", '"a"', "$HOME", "`id`"),
    *("a\\b", "a\nb", "日本é", "-a", "~", "~root", "url: a?b", "u:p@host", "k=v", "{a,b}", "python3"),
)
ROOMY = 1 << 40


@pytest.fixture(scope="module")
def pauses() -> Iterator[list[float]]:
    """The seconds that would have been slept."""
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        yield slept


@pytest.fixture(scope="module")
def server(pauses: list[float]) -> Iterator[HttpServer]:
    with serve_http() as running:
        yield running


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that nobody trusts, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    command = "openssl req -x509 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1 -newkey ec "
    command += f"-pkeyopt ec_paramgen_curve:prime256v1 -keyout {file} -out {file}.crt"
    subprocess.run(command.split(), check=True, capture_output=True)
    with file.open("a") as pem:
        pem.write(Path(f"{file}.crt").read_text())
    return file


def read(uri: str, max_bytes: int = ROOMY) -> bytes:
    """Return the content of the one file that ``uri`` names, as it was written and digested."""
    (item,) = find(uri)
    sink = io.BytesIO()
    digest, size = copy(item, sink, max_bytes=max_bytes)
    assert digest == hashlib.sha256(sink.getvalue()).hexdigest()
    assert size == len(sink.getvalue())
    return sink.getvalue()


class TestHttp:
    def test_a_break_is_resumed_where_it_was(self, server: HttpServer) -> None:
        url = server.serve(
            "/a",
            *[Answer(BODY, etag='"1"', ranges=True, breaks_after=3000) for _ in range(3)],
            Answer(BODY, etag='"1"', ranges=True),
        )
        assert read(url) == BODY
        assert server.ranges("/a") == [None, None, "bytes=3000-", "bytes=6000-"]
        assert server.requests[-1][1]["If-Range"] == '"1"'

    def test_a_break_begins_anew_where_the_server_cannot_resume(self, server: HttpServer) -> None:
        broken, whole = Answer(BODY, etag='"1"', breaks_after=3000), Answer(BODY, etag='"1"')
        assert read(server.serve("/a", broken, broken, whole)) == BODY

    @pytest.mark.parametrize("etag", ["", 'W/"1"'])
    def test_a_break_begins_anew_where_nothing_says_that_it_is_the_same_version(
        self, server: HttpServer, etag: str
    ) -> None:
        broken, whole = (Answer(BODY, etag=etag, ranges=True, breaks_after=n) for n in (3000, None))
        assert read(server.serve("/a", broken, broken, whole)) == BODY
        assert server.ranges("/a") == [None, None, None]

    @pytest.mark.parametrize("if_range", [True, False])
    def test_two_versions_are_never_glued_together(self, server: HttpServer, if_range: bool) -> None:
        old = Answer(BODY, etag='"1"', ranges=True, breaks_after=3000)
        new = Answer(BODY[::-1], etag='"2"', ranges=True, if_range=if_range)
        with pytest.raises(DataUnavailable, match=r"changed while it was fetched: start a new run"):
            read(server.serve("/a", old, old, new))

    def test_a_range_that_was_not_asked_for_is_not_taken(self, server: HttpServer) -> None:
        broken = Answer(BODY, etag='"1"', ranges=True, breaks_after=3000)
        wrong = Answer(
            BODY[5000:] + bytes(2000), 206, {"Content-Range": f"bytes 5000-{len(BODY) - 1}/{len(BODY)}"}, etag='"1"'
        )
        assert read(server.serve("/a", broken, broken, wrong, Answer(BODY, etag='"1"'))) == BODY

    @settings(deadline=None, derandomize=True, max_examples=40)
    @given(
        body=st.binary(max_size=300),
        breaks=st.lists(st.tuples(st.integers(0, 300), st.booleans()), max_size=4),
        etag=st.sampled_from(["", '"1"', 'W/"1"']),
    )
    def test_however_it_breaks_the_content_is_whole(
        self, server: HttpServer, body: bytes, breaks: list[tuple[int, bool]], etag: str
    ) -> None:
        tries = [Answer(body, etag=etag, ranges=ranges, breaks_after=after) for after, ranges in breaks]
        probe = Answer(body, etag=etag)
        assert read(server.serve("/a", probe, *tries, Answer(body, etag=etag))) == body

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_a_passing_trouble_is_waited_for(self, server: HttpServer, status: int) -> None:
        trouble, good = Answer(status=status), Answer(BODY)
        assert read(server.serve("/a", trouble, good, trouble, trouble, good)) == BODY

    def test_the_pauses_grow_and_are_as_long_as_the_server_asks(self, server: HttpServer, pauses: list[float]) -> None:
        busy = Answer(status=503)
        pauses.clear()
        url = server.serve("/a", *[busy] * 4, Answer(status=429, headers={"Retry-After": "40"}), Answer(BODY))
        find(url)
        assert pauses[:4] == sorted(pauses[:4])
        assert 1 <= pauses[0] < 3
        assert pauses[3] >= 8
        assert pauses[4] == 40

    def test_a_trouble_that_stays_is_told(self, server: HttpServer) -> None:
        with pytest.raises(DataUnavailable, match=r"answered 503, after 6 attempts"):
            find(server.serve("/a", Answer(status=503)))
        assert len(server.requests) == 6

    @pytest.mark.parametrize(
        ("status", "advice"),
        [(401, "requires credentials"), (403, "may have expired"), (404, "no such file"), (410, "gone")],
    )
    def test_what_no_retry_helps_is_not_retried(self, server: HttpServer, status: int, advice: str) -> None:
        with pytest.raises(DataUnavailable, match=f"answered {status}: .*{advice}"):
            find(server.serve("/a", Answer(status=status)))
        assert len(server.requests) == 1

    def test_a_body_shorter_than_its_length_is_refused(self, server: HttpServer) -> None:
        with pytest.raises(DataUnavailable, match=r"was interrupted: .*IncompleteRead"):
            read(server.serve("/a", Answer(BODY, length=len(BODY) + 1)))

    def test_a_body_of_another_length_than_was_told_is_refused(self, server: HttpServer) -> None:
        with pytest.raises(DataUnavailable, match=rf"sent {len(BODY) - 1} bytes of {len(BODY)}"):
            read(server.serve("/a", Answer(BODY, etag='"1"'), Answer(BODY[:-1], etag='"1"')))

    def test_nothing_is_left_of_a_longer_try_that_broke(self, server: HttpServer) -> None:
        chunked = {"Transfer-Encoding": "chunked"}
        long = Answer(b"400\r\n" + bytes(1024) + b"\r\n", headers=chunked, length=0)
        short = Answer(b"3\r\nabc\r\n0\r\n\r\n", headers=chunked, length=0)
        assert read(server.serve("/a", long, long, short)) == b"abc"

    def test_a_body_is_refused_at_the_limit_whatever_the_server_says(self, server: HttpServer) -> None:
        too_large = r"too large: the limit leaves 10000 bytes"
        with pytest.raises(DataUnavailable, match=too_large):
            read(server.serve("/a", Answer(BODY)), max_bytes=10000)
        assert len(server.requests) == 1, "the length told enough"
        with pytest.raises(DataUnavailable, match=too_large):
            read(server.serve("/a", Answer(BODY, length=0)), max_bytes=10000)
        with pytest.raises(DataUnavailable, match=too_large):
            read(server.serve("/a", Answer(endless=True)), max_bytes=10000)
        assert read(server.serve("/a", Answer(BODY)), max_bytes=len(BODY)) == BODY

    def test_a_redirect_is_followed(self, server: HttpServer) -> None:
        server.serve("/b", Answer(BODY, etag='"1"'))
        url = server.serve("/a", Answer(status=302, headers={"Location": "/b"}))
        assert read(url) == BODY
        assert find(url)[0].identity == find(f"{server.url}/b")[0].identity

    def test_redirects_in_a_circle_are_told(self, server: HttpServer) -> None:
        with pytest.raises(DataUnavailable, match="redirects"):
            find(server.serve("/a", Answer(status=302, headers={"Location": "/a"})))

    def test_the_content_is_taken_as_it_is_on_the_wire(self, server: HttpServer) -> None:
        packed = Answer(BODY, headers={"Content-Encoding": "gzip"})
        assert read(server.serve("/a", packed)) == BODY

    def test_a_server_that_is_not_there_is_told(self, pauses: list[float]) -> None:
        with serve_http() as gone:
            url = gone.url
        with pytest.raises(DataUnavailable, match=r"does not answer: .*refused"):
            find(f"{url}/a")

    def test_a_certificate_that_nobody_vouches_for_is_refused(
        self, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_http(certificate) as server:
            url = server.serve("/a", Answer(BODY))
            with pytest.raises(DataUnavailable, match=r"is not trusted .*REQUESTS_CA_BUNDLE"):
                find(url)
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
            assert read(url) == BODY

    def test_a_redirect_from_https_to_http_is_refused(
        self, server: HttpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", f"{certificate}.crt")
        plain = server.serve("/b", Answer(BODY))
        with serve_http(certificate) as safe, pytest.raises(DataUnavailable, match="not encrypted"):
            find(safe.serve("/a", Answer(status=302, headers={"Location": plain})))

    @pytest.mark.parametrize(
        "answers",
        [
            [Answer(status=404)],
            [Answer(status=503)],
            [Answer(status=302, headers={"Location": "/a?X-Amz-Signature=SECRET"})],
            [Answer(BODY, length=len(BODY) + 1)],
            [Answer(BODY, etag='"1"'), Answer(BODY, etag='"2"')],
        ],
    )
    def test_no_secret_of_a_url_is_told(
        self, server: HttpServer, caplog: pytest.LogCaptureFixture, answers: list[Answer]
    ) -> None:
        url = server.serve("/a", *answers).replace("://", "://SECRETUSER:SECRET@") + "?X-Amz-Signature=SECRET"
        with pytest.raises(DataUnavailable) as caught:
            read(url)
        told = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert "SECRET" not in told
        assert "/a?…" in told

    @pytest.mark.parametrize("url", ["http://[::1/a?SECRET", "http://?SECRET", "https://127.0.0.1:99999/?SECRET"])
    def test_a_url_that_is_none_is_told_without_its_secret(self, url: str) -> None:
        with pytest.raises(DataUnavailable) as caught:
            find(url)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


FILES = (
    "a.parquet",
    "b.csv",
    "C.CSV.GZ",
    "notes.txt",
    "_SUCCESS",
    "_a.parquet",
    ".a.parquet",
    "sub/d.parquet",
    "sub/.hidden/e.parquet",
    "sub/deep/f.csv",
    "subset.csv",
    "x[1].csv",
    "y[1]/g.csv",
    "y1/h.csv",
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and sub-folders that one may meet."""
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


@pytest.fixture(scope="module")
def bucket(s3: S3Server, tree: Path) -> Iterator[str]:
    """The URI of a bucket that holds what the folder ``tree`` holds; the environment names its server."""
    name = s3.bucket()
    for key in FILES:
        s3.client.put_object(Bucket=name, Key=key, Body=key.encode())
    # Consoles make such objects, which stand for folders.
    s3.client.put_object(Bucket=name, Key="sub/", Body=b"")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in s3.environment.items():
            patch.setenv(variable, value)
        patch.setattr(sources, "s3_client", client_of_this_environment)
        yield f"s3://{name}"


def client_of_this_environment() -> "S3Client":
    return _client(*sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@cache
def _client(*_environment: tuple[str, str]) -> "S3Client":
    """To make a client takes longer than all that a test asks it."""
    return s3_client()


def names(uri: str) -> list[str]:
    return [item.name for item in find(uri)]


class TestNames:
    """A URI names the same files wherever they lie."""

    @pytest.fixture(params=["path", "file", "s3"])
    def root(self, request: pytest.FixtureRequest, tree: Path) -> str:
        if request.param == "s3":
            return str(request.getfixturevalue("bucket"))
        return {"path": str(tree), "file": tree.as_uri()}[request.param]

    def test_one_file(self, root: str) -> None:
        assert names(f"{root}/sub/d.parquet") == ["d.parquet"]
        assert names(f"{root}/notes.txt") == ["notes.txt"], "the content decides, not the name"

    def test_a_folder_gives_the_data_files_directly_in_it(self, root: str) -> None:
        assert names(root) == names(f"{root}/") == ["C.CSV.GZ", "a.parquet", "b.csv", "subset.csv", "x[1].csv"]
        assert names(f"{root}/sub") == names(f"{root}/sub/") == ["d.parquet"]

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("*.csv", ["b.csv", "subset.csv", "x[1].csv"]),
            ("?.*", ["C.CSV.GZ", "a.parquet", "b.csv"]),
            ("sub/*", ["d.parquet"]),
            ("sub/**/*", ["d.parquet", "deep/f.csv"]),
            ("s*/d*/*.csv", ["sub/deep/f.csv"]),
            ("[ab].*", ["a.parquet", "b.csv"]),
        ],
    )
    def test_a_glob_gives_the_files_that_match(self, root: str, pattern: str, expected: list[str]) -> None:
        assert names(f"{root}/{pattern}") == expected

    @pytest.mark.parametrize("missing", ["none.csv", "none/", "*.json", "sub/deep/none/*"])
    def test_nothing_is_told_with_what_was_expected(self, root: str, missing: str) -> None:
        with pytest.raises(DataUnavailable, match=r"names no file: expected a file, a folder .* or a glob"):
            find(f"{root}/{missing}")

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(
        pattern=st.lists(
            st.text("*?[]!ab.cdefsuv", min_size=1, max_size=5) | st.sampled_from(["*", "**", "sub", "deep", "*.csv"]),
            min_size=1,
            max_size=4,
        ).map("/".join)
    )
    def test_a_glob_means_on_s3_what_it_means_in_a_folder(self, tree: Path, bucket: str, pattern: str) -> None:
        def found(root: str) -> list[str]:
            try:
                return [item.source.removeprefix(root) for item in find(f"{root}/{pattern}")]
            except DataUnavailable:
                return []

        # On S3 a name has no folders, so `.` and `..` mean nothing there.
        if not {".", ".."} & set(pattern.split("/")):
            assert found(bucket) == found(str(tree))

    def test_a_path_may_be_relative(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree)
        assert names("a.parquet") == ["a.parquet"]
        assert names("./sub") == ["d.parquet"]
        assert names("s*/*.parquet") == ["sub/d.parquet"]

    def test_what_is_there_by_a_name_is_no_pattern(self, root: str) -> None:
        """Given a name with brackets, then it is not another one that it would match as a pattern."""
        quote = "y%5B1%5D" if root.startswith("file") else "y[1]"
        assert names(f"{root}/x[1].csv") == ["x[1].csv"]
        for folder in ("y[1]", "y[1]/", quote):
            assert names(f"{root}/{folder}") == ["g.csv"]
        assert [item.source.rpartition("/y")[2] for item in find(f"{root}/y[1]/*.csv")] == ["[1]/g.csv"]
        assert [item.source.rpartition("/y")[2] for item in find(f"{root}/y[1-2]/*.csv")] == ["1/h.csv"]

    @pytest.mark.parametrize("odd", ODD)
    @pytest.mark.parametrize("relative", [False, True])
    def test_a_path_may_hold_any_character(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, relative: bool
    ) -> None:
        folder = tmp_path / odd
        folder.mkdir()
        for name in (f"{odd}.csv", "other.csv"):
            (folder / name).write_bytes(name.encode())
        # What the name would match, were it a pattern.
        (tmp_path / "a1b").mkdir()
        (tmp_path / "a1b" / "wrong.csv").touch()
        monkeypatch.chdir(tmp_path)
        root = odd if relative else str(folder)
        assert read(f"{root}/{odd}.csv") == f"{odd}.csv".encode()
        assert [item.source for item in find(f"{root}/{odd}.csv")] == [f"{root}/{odd}.csv"]
        assert names(root) == names(f"{root}/*.csv") == names(f"{root}/*") == sorted([f"{odd}.csv", "other.csv"])
        assert names(f"{folder.as_uri()}/o*.csv") == ["other.csv"]
        assert redact(f"{root}/{odd}.csv") == f"{root}/{odd}.csv"

    def test_a_tilde_that_no_shell_has_taken_is_the_home(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tree))
        assert names("~/a.parquet") == ["a.parquet"]
        assert names("~/sub") == names("~/sub/*.parquet") == ["d.parquet"]
        with pytest.raises(DataUnavailable, match=r"~nobody-of-that-name/a\.csv names no file"):
            find("~nobody-of-that-name/a.csv")

    @pytest.mark.parametrize("uri", ["ftp://u:SECRET@host/a", "gs://bucket/a", "file://a.csv", "s3:///a", "", "://"])
    def test_what_cannot_be_fetched_is_told_with_what_can(self, uri: str) -> None:
        with pytest.raises(DataUnavailable, match="expected") as caught:
            find(uri)
        assert "SECRET" not in str(caught.value)

    def test_a_file_that_goes_away_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("a,b")
        (item,) = find(str(tmp_path))
        (tmp_path / "a.csv").unlink()
        with pytest.raises(DataUnavailable, match=r"a\.csv cannot be read: No such file"):
            copy(item, None, max_bytes=ROOMY)


class TestS3:
    def test_an_object_is_read(self, bucket: str) -> None:
        assert read(f"{bucket}/sub/d.parquet") == b"sub/d.parquet"

    def test_an_empty_object_is_read(self, s3: S3Server, bucket: str) -> None:
        s3.client.put_object(Bucket=bucket.removeprefix("s3://"), Key="empty/a.csv", Body=b"")
        assert read(f"{bucket}/empty") == b""

    def test_an_object_that_changes_meanwhile_is_refused(self, s3: S3Server, bucket: str) -> None:
        name = bucket.removeprefix("s3://")
        s3.client.put_object(Bucket=name, Key="changing/a.csv", Body=b"old")
        (item,) = find(f"{bucket}/changing")
        s3.client.put_object(Bucket=name, Key="changing/a.csv", Body=b"new")
        with pytest.raises(DataUnavailable, match="changed while it was fetched: start a new run"):
            copy(item, None, max_bytes=ROOMY)

    def test_more_objects_than_one_answer_lists_are_found(
        self, server: HttpServer, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def page(name: str, more: str) -> Answer:
            found = f"<Contents><Key>many/{name}</Key><ETag>1</ETag><Size>1</Size></Contents>"
            return Answer(f"<ListBucketResult>{found}{more}</ListBucketResult>".encode())

        monkeypatch.setenv("AWS_S3_ENDPOINT", server.url)
        more = "<IsTruncated>true</IsTruncated><NextContinuationToken>2</NextContinuationToken>"
        server.serve("/bucket", page("a.csv", more), page("b.csv", ""))
        assert names("s3://bucket/many/") == ["a.csv", "b.csv"]

    @pytest.mark.parametrize("key", ["a.csv", "folder/", "*.csv"])
    def test_a_missing_bucket_is_told(self, bucket: str, key: str) -> None:
        with pytest.raises(DataUnavailable, match="NoSuchBucket: there is no such bucket"):
            find(f"s3://no-such-bucket/{key}")

    @pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
    @pytest.mark.parametrize("key", ["a.parquet", "*.csv"])
    def test_wrong_keys_are_told_without_them(
        self, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, key: str
    ) -> None:
        monkeypatch.setenv(variable, "WRONGKEY")
        with pytest.raises(DataUnavailable, match="check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") as caught:
            find(f"{bucket}/{key}")
        told = "".join(traceback.format_exception(caught.value))
        assert "WRONGKEY" not in told
        assert s3.secret_key not in told

    def test_missing_keys_are_told(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", "/nonexistent")
        with pytest.raises(DataUnavailable, match="there are no credentials; check AWS_ACCESS_KEY_ID"):
            find(f"{bucket}/a.parquet")

    def test_a_server_that_is_not_there_is_told(
        self, bucket: str, pauses: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serve_http() as gone:
            monkeypatch.setenv("AWS_S3_ENDPOINT", gone.url)
        with pytest.raises(DataUnavailable, match="check AWS_S3_ENDPOINT of the data connection"):
            find(f"{bucket}/a.parquet")

    def test_an_endpoint_that_is_no_url_is_told(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_S3_ENDPOINT", "minio:9000")
        with pytest.raises(SettingsInvalid, match=r"'minio:9000': expected a URL that begins with https://"):
            find(f"{bucket}/a.parquet")

    @pytest.mark.parametrize("variable", ["AWS_S3_ENDPOINT", "AWS_ENDPOINT_URL"])
    def test_a_server_of_ones_own_needs_no_name_for_each_bucket(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str
    ) -> None:
        monkeypatch.delenv("AWS_S3_ENDPOINT")
        monkeypatch.setenv(variable, "http://minio.storage.svc:9000")
        asked = s3_client().generate_presigned_url("get_object", Params={"Bucket": "data", "Key": "a"})
        assert asked.startswith("http://minio.storage.svc:9000/data/a?")

    def test_the_endpoint_may_have_the_name_that_other_tools_use(
        self, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An empty field of a data connection is an empty variable.
        monkeypatch.setenv("AWS_S3_ENDPOINT", "")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        assert read(f"{bucket}/a.parquet") == b"a.parquet"

    def test_a_break_is_resumed_where_it_was(
        self, server: HttpServer, bucket: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_S3_ENDPOINT", server.url)
        broken = Answer(BODY, etag='"1"', ranges=True, breaks_after=3000)
        server.serve("/bucket/a", broken, broken, broken, Answer(BODY, etag='"1"', ranges=True))
        assert read("s3://bucket/a") == BODY
        assert server.ranges("/bucket/a") == [None, None, "bytes=3000-", "bytes=6000-"]


class TestRedact:
    @settings(deadline=None, derandomize=True, max_examples=200)
    @given(
        scheme=st.sampled_from(["https", "http", "ftp"]),
        user=st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"])),
        query=st.text(),
        before=st.sampled_from(["", "cannot fetch "]),
    )
    def test_neither_credentials_nor_query_are_left(self, scheme: str, user: str, query: str, before: str) -> None:
        text = redact(f"{before}{scheme}://{user}KEY@host/path?{query}KEY")
        assert text == f"{before}{scheme}://host/path?…"

    @pytest.mark.parametrize("uri", ["s3://bucket/a?.csv", "file:///a?.csv", "/data/a?.csv", "https://host/a@b"])
    def test_what_is_no_secret_is_left(self, uri: str) -> None:
        assert redact(uri) == uri
