"""``jukebox backup``: copy a model store with its numbering, so that it can be restored."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import uuid4

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import track

from pipeline.core.champion import LINEAGE
from pipeline.core.documents import to_json
from pipeline.core.errors import SettingsInvalid, StoreBroken
from pipeline.core.s3 import explain, s3_client
from pipeline.core.store import ModelStore, open_store
from pipeline.settings import read_settings
from scripts.output import console

SCHEMA = 1
T = TypeVar("T")
Target = Annotated[str, typer.Argument(help="A folder or s3://bucket/prefix, with the keys in the environment.")]
Store = Annotated[str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")]


class Manifest(BaseModel):
    """What a backup holds: the digest of each file, by its path in the store, and how versions are numbered."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: int = SCHEMA
    model: str
    created: str
    files: dict[str, str]
    claims: dict[Annotated[str, Field(pattern=r"^[0-9]+$")], str]
    runs: list[str]


def command(destination: Target, model_store: Store = "") -> None:
    """Copy the model store with its numbering to a folder or a bucket; only what is not there yet is copied.

    Each backup is a list of files by their sha256, which is written last, so a backup that was interrupted does not
    exist. Earlier backups stay.

    Example: `jukebox backup s3://backups/models`
    """
    settings = read_settings()
    store = open_store(model_store or settings.model_store, settings.model_name)
    name, new, total = backup(store, open_place(destination, settings.model_name), settings.model_name)
    print(f"{name}: {total} files, {new} of them new")


def backup(store: ModelStore, place: "Place", model: str) -> tuple[str, int, int]:
    """Back up a store; return the backup's name, how many files were copied, and how many it has.

    Raises StoreBroken if the store has no versions, or one of the two places cannot be used.
    """
    paths = store.files()
    if not any("/" in path for path in paths):
        raise StoreBroken(f"{store.location} has no versions, so there is nothing to back up: check that it is mounted")
    there, files, lineages, new = {*place.list("objects")}, dict[str, str](), dict[str, bytes](), 0
    for path in progress(paths, "Back up"):
        content = store.content(path)
        files[path] = digest = hashlib.sha256(content).hexdigest()
        if path.endswith(f"/{LINEAGE}"):
            lineages[path.removesuffix(LINEAGE)] = content
        if digest not in there:
            place.write(f"objects/{digest}", content)
            there.add(digest)
            new += 1
    for version, content in lineages.items():
        _warn_if_damaged(version, content, files)
    claims, runs = store.numbering()
    now = datetime.now(UTC)
    name = f"{now:%Y-%m-%dT%H-%M-%S.%fZ}.json"
    manifest = Manifest(
        model=model,
        created=f"{now:%Y-%m-%dT%H:%M:%SZ}",
        files=files,
        claims={str(number): claim for number, claim in claims.items()},
        runs=runs,
    )
    place.write(f"backups/{name}", to_json(manifest.model_dump(), indent=1).encode())
    return name, new, len(files)


def read_manifest(place: "Place", model: str, name: str = "") -> tuple[str, Manifest]:
    """Return a backup's name and what it holds; the newest one if no name is given.

    Raises StoreBroken if there is none, or if it is not of this model.
    """
    names = sorted(each for each in place.list("backups") if each.endswith(".json"))
    name = name or (names[-1] if names else "")
    if name not in names:
        there = ", ".join(names[-5:]) or "none"
        raise StoreBroken(
            f"{place.location} has no backup{name and f' {name}'}: found {there}. Check the place and the model's name"
        )
    try:
        manifest = Manifest.model_validate_json(place.read(f"backups/{name}"))
    except ValidationError as error:
        [why, *_] = str(error).splitlines()
        raise StoreBroken(f"{place.location}/backups/{name} is not a backup: {why}. Use another one") from None
    if (manifest.format, manifest.model) != (SCHEMA, model):
        raise StoreBroken(
            f"{place.location}/backups/{name} is of the model {manifest.model!r} in format {manifest.format}, expected "
            f"{model!r} in format {SCHEMA}"
        )
    return name, manifest


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield the items, with a bar on a terminal."""
    screen = console()
    return iter(track(items, what, console=screen, disable=not screen.is_terminal, transient=True))


def _warn_if_damaged(version: str, lineage: bytes, files: Mapping[str, str]) -> None:
    """Say so if a version's files are not those that were published: they are copied as they are."""
    try:
        recorded = {str(name): digest for name, digest in json.loads(lineage)["sha256"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        recorded = {LINEAGE: ""}
    if wrong := [name for name, digest in recorded.items() if files.get(version + name) != digest]:
        typer.echo(f"Warning: {version}{wrong[0]} is not what was published; it is copied as it is", err=True)


def open_place(root: str, model: str) -> "Place":
    """Return the place of the backups of a model; raises SettingsInvalid if it is neither a folder nor a bucket."""
    scheme, separator, path = root.partition("://")
    if root and not separator:
        return _Folder(Path(root).absolute() / model)
    bucket, _, prefix = path.partition("/")
    if scheme != "s3" or not bucket:
        raise SettingsInvalid(f"the place begins with {scheme + separator!r}: expected a folder or s3://bucket/prefix")
    return _Bucket(bucket, "/".join([*filter(None, prefix.split("/")), model]))


class Place(ABC):
    """Where backups are: ``objects/<sha256>`` is a file of the store, ``backups/<name>.json`` a backup.

    All methods raise StoreBroken if the place cannot be used.
    """

    location: str

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Return the names in a folder."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return a file."""

    @abstractmethod
    def write(self, path: str, content: bytes) -> None:
        """Write a file, whole or not at all."""


class _Folder(Place):
    def __init__(self, folder: Path) -> None:
        self._folder, self.location = folder, str(folder)

    def list(self, folder: str) -> list[str]:
        with self._explained():
            found = self._folder / folder
            return [each.name for each in found.iterdir()] if found.is_dir() else []

    def read(self, path: str) -> bytes:
        with self._explained():
            return (self._folder / path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        file = self._folder / path
        unfinished = self._folder / f"unfinished-{uuid4().hex}"
        with self._explained():
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with unfinished.open("xb") as opened:
                    opened.write(content)
                    opened.flush()
                    os.fsync(opened.fileno())
                unfinished.replace(file)
            finally:
                unfinished.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.location
            raise StoreBroken(f"cannot use the backup: {where}: {error.strerror}; check the disk or claim") from error


class _Bucket(Place):
    def __init__(self, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = s3_client(), bucket, prefix
        self.location = f"s3://{bucket}/{prefix}"

    def list(self, folder: str) -> list[str]:
        prefix = f"{self._prefix}/{folder}/"
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]

    def read(self, path: str) -> bytes:
        with self._explained():
            answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{path}")
            with answer["Body"] as body:
                return body.read()

    def write(self, path: str, content: bytes) -> None:
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{path}", Body=content)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreBroken(f"cannot use the backup {self.location}: {explain(error)}") from error
