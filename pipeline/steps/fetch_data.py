"""Fetch the tables of a model, as Parquet, and check that they are the data that the run was started for."""

import hashlib
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath

from pipeline.core.contract import Model
from pipeline.core.documents import to_json
from pipeline.core.errors import DataUnavailable, SettingsInvalid
from pipeline.core.log import log
from pipeline.core.sources import Item, copy, find, place, redact
from pipeline.core.tables import Counts, to_parquet, unpack

# Ten million narrow rows are about one gigabyte of CSV: a URI with far more is a mistake.
MAX_BYTES = 10 * 1024**3
LOG_EVERY = 10.0  # seconds, if there is no terminal for a progress bar


@dataclass(frozen=True)
class Fetched:
    """What was fetched, and its source.

    ``sha256``, ``etag`` and ``bytes`` are those of a single file at its source. For several
    files, ``sha256`` is the digest of their sorted lines ``<sha256>  <name>``, which is what ``sha256sum *
    | LC_ALL=C sort | sha256sum`` prints in their folder, ``etag`` the same over their ETags, and
    ``bytes`` the sum. ``etag`` is empty if the source has none. ``records`` were counted in the files
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
        """Return the fields as JSON scalars, for the metadata of an artifact; they contain no secret."""
        return asdict(self)


@dataclass(frozen=True)
class _Downloaded:
    """A file at ``path``, unpacked; ``size`` and ``sha256`` are those of its source."""

    item: Item
    path: Path
    sha256: str
    size: int


def resolve_data_version(data: Mapping[str, str]) -> str:
    """Return the version of the data that ``data``, the URI of each table, names now: 64 hex characters.

    It is the sha256 over the tables, and the names and identities of all their files. A file's identity is, on S3, its
    ETag, which changes with the content; on HTTP, the strong ETag, else Last-Modified and length; in a folder, and if a
    server sends neither, the sha256 of its content, for which it is read. Raises ``DataUnavailable`` if a URI names
    nothing or cannot be read.
    """
    found = {table: find(uri) for table, uri in data.items()}
    for items in found.values():
        for number, item in enumerate(items):
            if item.identity is None:
                items[number] = _identified(item, copy(item, None, max_bytes=MAX_BYTES)[0])
    return _version(data, found)


def fetch_data(
    model: Model,
    data: Mapping[str, str],
    folder: Path,
    *,
    data_version: str,
    sha256: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Fetched]:
    """Fetch the tables of ``model`` and return what was fetched, by the tables' names.

    ``data`` names the URI of each table. ``folder`` receives a folder for each, with ``part-00000.parquet``, …; it
    appears atomically, and replaces data that was fetched before. For how files are read see
    ``to_parquet``. ``sha256`` names the digest that a table must have (see ``Fetched``); one that is missing or
    empty is not checked. ``max_bytes`` limits each table, at its source and unpacked.

    Raises ``DataUnavailable`` if the data cannot be fetched, is neither Parquet nor CSV, does not have the given
    sha256 or is not what ``data_version`` names; ``DataInvalid`` if a record or a value of a file cannot be read,
    or files of one table do not fit together; ``SettingsInvalid`` if ``data`` or ``sha256`` names other tables
    than the model's, ``data_version`` is not valid, or the folder holds something else.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", data_version):
        raise SettingsInvalid(
            f"data_version is {data_version!r}: expected the 64 characters that `jukebox data-version` prints; without "
            "them a cached step would hide new data"
        )
    model.require_tables(data, "data")
    expected = {**dict.fromkeys(data, ""), **(sha256 or {})}
    model.require_tables(expected, "sha256")
    _refuse_foreign(folder)
    found = {table: find(uri) for table, uri in data.items()}
    if all(item.identity for items in found.values() for item in items):
        _expect(data_version, data, found)
    try:
        with _staging(folder) as staged:
            files = {}
            for table, uri in data.items():
                (staged / table).mkdir()
                files[table] = _download(uri, found[table], staged / table, expected[table], max_bytes)
            _expect(data_version, data, {table: [file.item for file in each] for table, each in files.items()})
            counts = {
                table.name: to_parquet(
                    [(file.item.source, file.path) for file in files[table.name]], staged / table.name, table.schema
                )
                for table in model.tables
            }
            _reveal(staged, folder)
    except OSError as error:
        raise DataUnavailable(f"the data cannot be written to {folder}: {error.strerror or error}") from error
    return {table: _fetched(data[table], files[table], counts[table]) for table in counts}


def _identified(item: Item, sha256: str) -> Item:
    return replace(item, identity=item.identity or f"sha256 {sha256}")


def _version(data: Mapping[str, str], found: Mapping[str, Sequence[Item]]) -> str:
    named = {
        table: [place(data[table]), [[item.name, item.identity] for item in items]] for table, items in found.items()
    }
    return hashlib.sha256(to_json(named, sort_keys=True).encode()).hexdigest()


def _expect(data_version: str, data: Mapping[str, str], items: Mapping[str, Sequence[Item]]) -> None:
    found = _version(data, items)
    if found != data_version:
        sources = " and ".join(redact(uri) for uri in data.values())
        raise DataUnavailable(
            f"{sources} are now data version {found[:12]}…, expected {data_version[:12]}…, for which the run was "
            "started: the data has changed; start a new run, which uses the new data"
        )


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that contains anything but fetched data, because it will be replaced."""
    for path in folder.rglob("*") if folder.exists() else ():
        if not (path.is_dir() or re.fullmatch(r"part-\d+\.parquet", path.name)):
            raise SettingsInvalid(
                f"{folder} holds {path.name}, which is not fetched data: name a folder that does not exist yet"
            )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``, and delete it in the end."""
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
            f"{redact(uri)} has the sha256 {found}, expected {sha256}: it is damaged or another file; "
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
    """Show the progress: a bar on a terminal, otherwise a log line every ``LOG_EVERY`` seconds.

    The yielded function takes the bytes of the finished files and of the current one; ``total`` is 0 if it is unknown.
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
