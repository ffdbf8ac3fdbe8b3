"""Fetch the two tables, as Parquet, and make sure that they are the data that the run was started for."""

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath

from pipeline.core.documents import to_json
from pipeline.core.errors import DataUnavailable, SettingsInvalid
from pipeline.core.log import log
from pipeline.core.sources import Item, copy, find, place, redact
from pipeline.core.tables import Counts, to_parquet, unpack
from pipeline.models.jukebox.tables import RANKINGS, SONGS

# Ten million ranking rows are about one gigabyte of CSV: a URI that names far more is a mistake.
MAX_BYTES = 10 * 1024**3
LOG_EVERY = 10.0  # seconds, where there is no terminal to draw a bar on


@dataclass(frozen=True)
class Fetched:
    """What was fetched from where.

    ``sha256``, ``etag`` and ``bytes`` are those of the one file as it lies at its source. Of several
    files ``sha256`` is the digest of their sorted lines ``<sha256>  <name>``, which is what ``sha256sum *
    | LC_ALL=C sort | sha256sum`` prints in their folder, ``etag`` the same over their ETags, and
    ``bytes`` the sum. ``etag`` is empty where the source has none. ``records`` were counted in the files
    before they were converted; ``rows``, as many, and ``files`` count what is in the folder.
    """

    source: str
    etag: str
    sha256: str
    records: int
    rows: int
    bytes: int
    files: int

    def as_metadata(self) -> dict[str, str | int]:
        """Return the fields as JSON scalars, for the metadata of an artifact; no secret is among them."""
        return asdict(self)


@dataclass(frozen=True)
class _Downloaded:
    """A file that lies at ``path``, unpacked; ``size`` and ``sha256`` are those of its source."""

    item: Item
    path: Path
    sha256: str
    size: int


def resolve_data_version(songs: str, rankings: str) -> str:
    """Return the name of the data that the two URIs give now: 64 hex characters.

    It is the sha256 over the names and identities of all files. A file's identity is its ETag on S3, where
    an object's next version has another one unless its content is the same, which is the same data; on
    HTTP the strong ETag, else Last-Modified and length; and the sha256 of its content, which is read for
    it, in a folder and where a server tells nothing. Raises ``DataUnavailable`` where a URI names nothing
    or cannot be read.
    """
    inputs = []
    for uri in (songs, rankings):
        items = find(uri)
        for number, item in enumerate(items):
            if item.identity is None:
                items[number] = _identified(item, copy(item, None, max_bytes=MAX_BYTES)[0])
        inputs.append((uri, items))
    return _version(*inputs)


def fetch_data(
    songs: str,
    rankings: str,
    songs_folder: Path,
    rankings_folder: Path,
    *,
    data_version: str,
    songs_sha256: str = "",
    rankings_sha256: str = "",
    max_bytes: int = MAX_BYTES,
) -> tuple[Fetched, Fetched]:
    """Fetch the two tables into folders of ``part-00000.parquet``, … and return what was fetched.

    The folders appear whole or not at all, and fetched data that is already there is replaced. For how
    files are read see ``to_parquet``. ``max_bytes`` limits each of the two tables, at its source and
    unpacked.

    Raises ``DataUnavailable`` if the data cannot be fetched, is neither Parquet nor CSV, has not the
    given sha256 (see ``Fetched``) or is not what ``data_version`` names; ``DataInvalid`` if a record or a
    value of a file cannot be read, or files of one table do not fit together; ``SettingsInvalid`` if
    ``data_version`` is none, or a folder holds something else.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", data_version):
        raise SettingsInvalid(
            f"data_version is {data_version!r}: expected the 64 characters that `jukebox data-version SONGS "
            "RANKINGS` prints; without them a cached step would hide new data"
        )
    for folder in (songs_folder, rankings_folder):
        _refuse_foreign(folder)
    songs_items, rankings_items = find(songs), find(rankings)
    if all(item.identity for item in (*songs_items, *rankings_items)):
        _expect(data_version, (songs, songs_items), (rankings, rankings_items))
    try:
        with _staging(songs_folder) as songs_staged, _staging(rankings_folder) as rankings_staged:
            songs_files = _download(songs, songs_items, songs_staged, songs_sha256, max_bytes)
            rankings_files = _download(rankings, rankings_items, rankings_staged, rankings_sha256, max_bytes)
            _expect(
                data_version,
                (songs, [file.item for file in songs_files]),
                (rankings, [file.item for file in rankings_files]),
            )
            songs_counts = to_parquet(
                [(file.item.source, file.path) for file in songs_files], songs_staged, SONGS.schema
            )
            rankings_counts = to_parquet(
                [(file.item.source, file.path) for file in rankings_files], rankings_staged, RANKINGS.schema
            )
            _reveal(songs_staged, songs_folder)
            _reveal(rankings_staged, rankings_folder)
    except OSError as error:
        raise DataUnavailable(
            f"the data cannot be written to {songs_folder} and {rankings_folder}: {error.strerror or error}"
        ) from error
    return _fetched(songs, songs_files, songs_counts), _fetched(rankings, rankings_files, rankings_counts)


def _identified(item: Item, sha256: str) -> Item:
    return replace(item, identity=item.identity or f"sha256 {sha256}")


def _version(*inputs: tuple[str, Sequence[Item]]) -> str:
    named = [[place(uri), [[item.name, item.identity] for item in items]] for uri, items in inputs]
    return hashlib.sha256(to_json(named).encode()).hexdigest()


def _expect(data_version: str, *inputs: tuple[str, Sequence[Item]]) -> None:
    found = _version(*inputs)
    if found != data_version:
        sources = " and ".join(redact(uri) for uri, _ in inputs)
        raise DataUnavailable(
            f"{sources} are now data version {found[:12]}…, the run was started for {data_version[:12]}…: "
            "the data changed since; start a new run, which takes the new data"
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds more than what an earlier fetch left, because it will be replaced."""
    for path in folder.iterdir() if folder.exists() else ():
        if not re.fullmatch(r"part-\d+\.parquet", path.name):
            raise SettingsInvalid(
                f"{folder} holds {path.name}, which is no fetched data: name a folder that does not exist yet"
            )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder``, which is gone in the end."""
    staged = folder.with_name(f".{folder.name}.partial")
    # Left by a fetch that was killed.
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _reveal(staged: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    staged.rename(folder)


def _download(uri: str, items: Sequence[Item], folder: Path, sha256: str, max_bytes: int) -> list[_Downloaded]:
    files: list[_Downloaded] = []
    room = max_bytes
    with _progress(redact(uri), sum(item.size or 0 for item in items)) as progress:
        for number, item in enumerate(items):
            path = folder / f"download-{number:05}"
            with path.open("wb") as sink:
                done = sum(file.size for file in files)
                digest, size = copy(item, sink, max_bytes=room, progress=partial(progress, done))
            unpack(path, item.source, max_bytes=room)
            room -= max(size, path.stat().st_size)
            files.append(_Downloaded(_identified(item, digest), path, digest, size))
    found = _digest_of_all([(file.sha256, file.item.name) for file in files])
    if sha256 and sha256.lower() != found:
        raise DataUnavailable(
            f"{redact(uri)} has the sha256 {found}, expected was {sha256}: it is damaged or another file; "
            "check the source, or correct the expected sha256"
        )
    return files


def _digest_of_all(digests: Sequence[tuple[str, str]]) -> str:
    if len(digests) == 1:
        return digests[0][0]
    lines = sorted(f"{digest}  {name}\n".encode() for digest, name in digests)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _fetched(uri: str, files: Sequence[_Downloaded], counts: Counts) -> Fetched:
    etags = [(file.item.etag, file.item.name) for file in files]
    fetched = Fetched(
        source=redact(uri),
        etag=_digest_of_all(etags) if all(etag for etag, _ in etags) else "",
        sha256=_digest_of_all([(file.sha256, file.item.name) for file in files]),
        records=counts.records,
        rows=counts.rows,
        bytes=sum(file.size for file in files),
        files=len(files),
    )
    log.info("fetched %s: %d rows, %d bytes, sha256 %s", fetched.source, fetched.rows, fetched.bytes, fetched.sha256)
    return fetched


@contextmanager
def _progress(source: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is: a bar on a terminal, a line in the log now and then elsewhere.

    What is given is called with the bytes of the files that are done and of the one that is not;
    ``total`` is 0 where it is unknown.
    """
    if sys.stdout.isatty():
        from rich.progress import (
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(TextColumn("{task.description}"), *columns) as bar:
            task = bar.add_task(PurePath(source).name, total=total or None)
            yield lambda before, done: bar.update(task, completed=before + done)
        return
    next_line = time.monotonic() + LOG_EVERY

    def report(before: int, done: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LOG_EVERY
            log.info("fetching %s: %d of %s bytes", source, before + done, total or "unknown")

    yield report
