"""Data URIs: the files that a URI names, the identity of each file's version, and reading.

A URI is ``https://…`` or ``http://…`` (one file), ``s3://bucket/…``, ``file:///…`` or a path (a file, a
folder or a glob, in which ``**`` matches any folders). A folder means the Parquet, CSV and CSV.gz files directly in it.
Names that begin with ``.`` or ``_`` are skipped: other tools give such names to what they write beside their data.
"""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from pipeline.core.errors import DataUnavailable
from pipeline.core.log import log
from pipeline.core.s3 import explain, s3_client
from pipeline.core.trusted_ca import REMEDY

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from requests import Response

T = TypeVar("T")

SUFFIXES = (".parquet", ".csv", ".csv.gz")
CHUNK = 1 << 20  # bytes
TIMEOUT = (10, 60)  # seconds to connect, and between two reads
ATTEMPTS = 6
BACKOFF = wait_exponential_jitter(initial=1, max=30)  # seconds
LONGEST_PAUSE = 60.0  # seconds that a server's Retry-After may ask for

WILDCARD = re.compile(r"[*?\[]")
# The query parameters that sign a URL: AWS (version 4 and 2), Google, Azure, CloudFront.
SIGNED = re.compile(r"(^|&)(x-amz-signature|x-goog-signature|signature|sig)=", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One file that a URI names.

    ``source`` is its location, safe for a log; ``name`` is its path below the folder that the URI names, or its file
    name. ``identity`` identifies this version of the file, or is None if only the content can; ``size`` is in bytes, or
    None if the source does not report it. ``open(start)`` gives the byte at which the source begins (``start``, or 0 if
    it cannot resume) and the chunks from there.
    """

    source: str
    name: str
    etag: str
    identity: str | None
    size: int | None
    open: Callable[[int], AbstractContextManager[tuple[int, Iterator[bytes]]]]


class _Interrupted(Exception):
    """The source failed in a way that a retry may fix, after ``retry_after`` seconds if it asked for a pause."""

    def __init__(self, message: str, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def find(uri: str) -> list[Item]:
    """Return the files that ``uri`` names, sorted by name; at least one.

    Raises ``DataUnavailable`` if there are none, or if the source cannot be listed.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri:
        raise DataUnavailable("no URI is given: expected an https://, s3:// or file:// URI, or a path")
    if not separator:
        items = _find_local(uri)
    elif scheme == "file" and rest.startswith("/"):
        items = _find_local(unquote(rest))
    elif scheme in ("https", "http"):
        items = [_persist(partial(_find_http, uri))]
    elif scheme == "s3":
        items = _find_s3(uri, rest)
    else:
        raise DataUnavailable(
            f"{redact(uri)} cannot be fetched: expected https://…, http://…, s3://…, file:///… or a path"
        )
    if not items:
        raise DataUnavailable(
            f"{uri} names no file: expected a file, a folder that directly holds {', '.join(SUFFIXES)} "
            "files, or a glob that matches some; a path is looked up where the step runs"
        )
    return sorted(items, key=lambda item: item.name)


def place(uri: str) -> str:
    """Return the part of ``uri`` that enters a data version.

    This is empty for a path, because a file's content is its identity. Credentials are left out, and so is a query that
    signs the URL, because each signature differs.
    """
    if uri.startswith(("https://", "http://")):
        url = urlsplit(uri)
        query = "" if SIGNED.search(url.query) else url.query
        return url._replace(netloc=url.netloc.rpartition("@")[2], query=query, fragment="").geturl()
    return uri if uri.startswith("s3://") else ""


def redact(text: str) -> str:
    """Return ``text`` without the credentials of a URL in it, and without all that follows its ``?``."""
    text = re.sub(r"(?<=://)[^/]*@", "", text)
    # In a path or an S3 URI, a question mark is part of a glob.
    return re.sub(r"((?:(?<!s3)(?<!file)://|with url: )[^?]*\?).+", r"\1…", text, flags=re.DOTALL)


def copy(
    item: Item, sink: BinaryIO | None, *, max_bytes: int, progress: Callable[[int], None] = lambda _: None
) -> tuple[str, int]:
    """Write the file to ``sink`` (or only read it); return its sha256 and its size in bytes.

    A broken connection is retried with backoff, and resumed if the source can resume the same version. ``progress`` is
    called with the bytes copied so far. Raises ``DataUnavailable`` if the file cannot be read, is not the version that
    was found, or has more than ``max_bytes``; the content of ``sink`` is then undefined.
    """
    digest = hashlib.sha256()
    done = 0

    def attempt() -> None:
        nonlocal digest, done
        with item.open(done) as (start, chunks):
            if start != done:
                digest, done = hashlib.sha256(), 0
                if sink:
                    sink.seek(0)
                    sink.truncate()
            for chunk in chunks:
                done += len(chunk)
                _limit(item, done, max_bytes)
                digest.update(chunk)
                if sink:
                    sink.write(chunk)
                progress(done)
        if item.size is not None and done != item.size:
            raise _Interrupted(f"{item.source} sent {done} bytes of {item.size}")

    _limit(item, item.size or 0, max_bytes)
    _persist(attempt)
    return digest.hexdigest(), done


def _limit(item: Item, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise DataUnavailable(
            f"{item.source} is too large: the limit leaves {max_bytes} bytes for it; check that it is the "
            "right file, or raise max_bytes"
        )


def _changed(source: str) -> DataUnavailable:
    return DataUnavailable(f"{source} changed while it was fetched: start a new run, which uses the new data")


def _persist(action: Callable[[], T]) -> T:
    """Retry ``action`` until it is not interrupted."""
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=_pause,
        retry=retry_if_exception_type(_Interrupted),
        before_sleep=_announce,
        reraise=True,
    )
    try:
        return retrying(action)
    except _Interrupted as error:
        raise DataUnavailable(
            f"{error}, after {ATTEMPTS} attempts: check that the source is available, then try again"
        ) from None


def _pause(state: RetryCallState) -> float:
    error = state.outcome and state.outcome.exception()
    asked = error.retry_after if isinstance(error, _Interrupted) else 0
    return max(BACKOFF(state), min(asked, LONGEST_PAUSE))


def _announce(state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    log.warning("%s; trying again in %.0f s", error, state.upcoming_sleep)


# https:// and http://


def _find_http(url: str) -> Item:
    # A GET whose body is not read: a presigned URL does not allow HEAD.
    with _get(url, {}) as response:
        return Item(
            source=redact(url),
            name=PurePosixPath(urlsplit(url).path).name,
            etag=response.headers.get("ETag", ""),
            identity=_http_identity(response),
            size=_http_size(response),
            open=partial(_open_http, url, response.headers.get("ETag", ""), _http_identity(response)),
        )


def _http_size(response: "Response") -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Transfer-Encoding" not in response.headers else None


def _http_identity(response: "Response") -> str | None:
    """RFC 9110, section 8.8: a weak ETag may name two contents, so it is not an identity."""
    etag, modified = response.headers.get("ETag", ""), response.headers.get("Last-Modified")
    if _is_strong(etag):
        return f"etag {etag}"
    size = _http_size(response)
    return f"modified {modified}, {size} bytes" if modified and size is not None else None


def _is_strong(etag: str) -> bool:
    return etag != "" and not etag.startswith("W/")


@contextmanager
def _open_http(url: str, etag: str, identity: str | None, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    resume = start > 0 and _is_strong(etag)
    response = _get(url, {"Range": f"bytes={start}-", "If-Range": etag} if resume else {})
    if response.status_code != 200 and not (
        # A server may ignore If-Range.
        response.headers.get("ETag") == etag and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    ):
        response.close()
        response = _get(url, {})
    with response:
        if response.status_code != 200:
            yield start, _http_chunks(response)
        elif _http_identity(response) == identity:
            yield 0, _http_chunks(response)
        else:
            raise _changed(redact(url))


def _http_chunks(response: "Response") -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        # As they are on the wire: length, range and digest refer to these bytes.
        yield from response.raw.stream(CHUNK, decode_content=False)
    except (HTTPError, OSError) as error:
        raise _Interrupted(f"{redact(response.url)} was interrupted: {redact(str(error))}") from None


def _get(url: str, resume: dict[str, str]) -> "Response":
    """Return a response with 200, or 206 or 416 to ``resume``; its body is unread, the caller closes it."""
    # Imported here, because data in a folder or on S3 does not need it.
    import requests

    # Errors are not chained: those of requests contain the URL with its secrets.
    try:
        response = requests.get(url, headers={"Accept-Encoding": "identity", **resume}, stream=True, timeout=TIMEOUT)
    except requests.exceptions.SSLError as error:
        raise DataUnavailable(
            f"{redact(url)} has a certificate that is not trusted ({_reason(error)}): {REMEDY}, or outside a "
            "cluster name its file in REQUESTS_CA_BUNDLE"
        ) from None
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _Interrupted(f"{redact(url)} does not answer: {_reason(error)}") from None
    except requests.RequestException as error:
        raise DataUnavailable(f"{redact(url)} cannot be fetched: {_reason(error)}; check the URL") from None
    status = response.status_code
    downgraded = url.startswith("https:") and not all(
        each.url.startswith("https:") for each in (*response.history, response)
    )
    if not downgraded and (status == 200 or (resume and status in (206, 416))):
        return response
    response.close()
    if downgraded:
        raise DataUnavailable(
            f"{redact(url)} redirects to {redact(response.url)}, which is not encrypted: use a URL that stays on https"
        )
    if status in (408, 429) or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise _Interrupted(f"{redact(url)} answered {status}", float(after) if after.isdecimal() else 0)
    advice = {
        401: "it requires credentials: use a URL that contains them, such as a presigned one",
        403: "access is denied: check the URL's credentials; a presigned URL may have expired",
        404: "there is no such file: check the URL",
        410: "the file is gone: check the URL",
    }
    raise DataUnavailable(f"{redact(url)} answered {status}: {advice.get(status, 'expected 200: check the URL')}")


def _reason(error: Exception) -> str:
    """Return the cause of an error of requests, whose own text is about pools and retries."""
    cause = error.args[0] if error.args else error
    return redact(str(getattr(cause, "reason", cause)))


# s3://


def _find_s3(uri: str, rest: str) -> list[Item]:
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise DataUnavailable(f"{uri} has no bucket: expected s3://bucket/key")
    client = s3_client()
    with _s3_errors(uri):
        # An existing object of this name takes precedence over a pattern.
        if key and not key.endswith("/") and (item := _head_s3(client, bucket, key)):
            return [item]
        folder = key.rstrip("/") + "/" if key else ""
        items = [item for item in _list_s3(client, bucket, folder, delimiter="/") if _is_data(item.name)]
        if items or not WILDCARD.search(key):
            return items
        pattern = key.split("/")
        folder = next(
            folder
            for number in range(len(pattern) - 1, -1, -1)
            if not WILDCARD.search(folder := "".join(f"{part}/" for part in pattern[:number]))
            or client.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1).get("Contents")
        )
        rest = key[len(folder) :]
        prefix = WILDCARD.split(rest)[0]
        listed = _list_s3(client, bucket, folder, prefix=prefix)
        return [item for item in listed if _matches(item.name.split("/"), rest.split("/"))]


def _head_s3(client: "S3Client", bucket: str, key: str) -> Item | None:
    from botocore.exceptions import ClientError

    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        # S3 also answers 403 for a missing object if the identity may list only a part of the bucket.
        if status == 404 or (status == 403 and not _is_listed(client, bucket, key)):
            return None
        raise
    return _s3_item(client, bucket, key, PurePosixPath(key).name, head["ETag"], head["ContentLength"])


def _is_listed(client: "S3Client", bucket: str, key: str) -> bool:
    # An object whose name is the prefix comes first.
    listed = client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
    return [each["Key"] for each in listed] == [key]


def _list_s3(client: "S3Client", bucket: str, folder: str, *, prefix: str = "", delimiter: str = "") -> Iterator[Item]:
    """Yield the objects in the folder whose names begin with ``prefix``."""
    pages = client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=folder + prefix, Delimiter=delimiter):
        for found in page.get("Contents", []):
            key = found["Key"]
            # Consoles create an empty object for a folder.
            if not key.endswith("/"):
                yield _s3_item(client, bucket, key, key.removeprefix(folder), found["ETag"], found["Size"])


def _s3_item(client: "S3Client", bucket: str, key: str, name: str, etag: str, size: int) -> Item:
    opener = partial(_open_s3, client, bucket, key, etag)
    return Item(f"s3://{bucket}/{key}", name, etag, f"etag {etag}", size, opener)


@contextmanager
def _open_s3(client: "S3Client", bucket: str, key: str, etag: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    from botocore.exceptions import ClientError

    uri = f"s3://{bucket}/{key}"
    get = partial(client.get_object, Bucket=bucket, Key=key, IfMatch=etag)
    with _s3_errors(uri):
        try:
            answer = get(Range=f"bytes={start}-") if start else get()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                raise _changed(uri) from error
            raise
    with closing(answer["Body"]) as body:
        yield start, _s3_chunks(uri, body)


def _s3_chunks(uri: str, body: "StreamingBody") -> Iterator[bytes]:
    from botocore.exceptions import BotoCoreError

    try:
        yield from body.iter_chunks(CHUNK)
    except (BotoCoreError, OSError) as error:
        raise _Interrupted(f"{uri} was interrupted: {error}") from error


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise DataUnavailable(f"{uri} cannot be read: {explain(error)}") from error


# Files


def _find_local(text: str) -> list[Item]:
    """The files at a path; a part of it that exists literally is not a pattern, whatever characters it has."""
    path = Path(text)
    try:
        if text.startswith("~") and not Path(path.parts[0]).exists():
            # Not every shell expands this in `TABLE=~/table.csv`.
            path = Path(os.path.expanduser(text))  # noqa: PTH111 Path's raises for an unknown user
        if path.is_file():
            return [_local_item(path, path.name)]
        if path.is_dir():
            return [_local_item(each, each.name) for each in path.iterdir() if each.is_file() and _is_data(each.name)]
        root = next(parent for parent in path.parents if parent.exists())
        pattern = Path(glob.escape(str(root)), *path.parts[len(root.parts) :])
        # A set, because glob returns a file once for each way in which `**/**` matches it.
        found = {Path(each) for each in glob.glob(str(pattern), recursive=True)}  # noqa: PTH207 Path's is relative
        return [_local_item(each, each.relative_to(root).as_posix()) for each in found if each.is_file()]
    except OSError as error:
        raise DataUnavailable(f"{text} cannot be read: {error.strerror}") from error


def _local_item(path: Path, name: str) -> Item:
    return Item(str(path), name, "", None, path.stat().st_size, partial(_open_local, path))


@contextmanager
def _open_local(path: Path, _start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    yield 0, _local_chunks(path)


def _local_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from iter(partial(file.read, CHUNK), b"")
    except OSError as error:
        raise DataUnavailable(f"{path} cannot be read: {error.strerror}") from error


def _is_data(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", "_"))


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Tell whether a name matches a glob as it would in a folder: ``glob`` itself works on folders only."""
    if not pattern or not parts:
        return not pattern and not parts
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        return _matches(parts, rest) or (not hidden and _matches(parts[1:], pattern))
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
