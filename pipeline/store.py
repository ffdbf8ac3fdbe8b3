"""The model store: numbered versions of a model, in a folder (a mounted claim) or in an S3 bucket.

A version is ``<root>/<model>/<number>/`` and holds ``model.onnx`` and what belongs to it; without that file
it is incomplete and counts for nothing. The model server reads the same place: it takes every folder that is
named by a positive integer and ignores names with a dot in front, where the store keeps its books:

    .claims/<number>    which run has this number. Claims are never deleted: numbers grow for ever, also after
                        the newest version was deleted, and a run that is tried again finds its number
    .runs/<digest>      that a run, by the digest of its name, may have a claim
    .staging/           what is being published: worthless as soon as the version of that number stands
    .deleted/           what is being deleted

A file ``<number>.pinned`` beside the versions keeps that version from being pruned; its content is free.
"""

import errno
import hashlib
import io
import os
import re
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.errors import SettingsInvalid, StoreBroken
from pipeline.s3 import explain, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL = "model.onnx"

_NUMBER = re.compile(r"[1-9][0-9]*")
_PIN = re.compile(r"([1-9][0-9]*)\.pinned")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
# RFC 1123.
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def open_store(root: str, model_name: str) -> "ModelStore":
    """Return the store of ``model_name`` below ``root``: a folder's path, or ``s3://bucket/prefix``.

    Nothing is read or created yet; a folder that does not exist is an empty store. Raises ``SettingsInvalid``
    where ``root`` is neither of the two or ``model_name`` is no DNS label.
    """
    if not _DNS_LABEL.fullmatch(model_name):
        raise SettingsInvalid(
            f"the model's name is {model_name!r}: expected a DNS label, since it becomes part of a host "
            "name; use at most 63 lower-case letters, digits and hyphens, and no hyphen at either end"
        )
    scheme, separator, path = root.partition("://")
    if root and not separator:
        return _FolderStore(Path(root).absolute() / model_name)
    bucket, _, prefix = path.partition("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        # Not shown in full: a URL may hold credentials.
        raise SettingsInvalid(
            f"the model store begins with {scheme + separator!r}: expected a folder's path or "
            "s3://bucket/prefix, with the keys in the environment; correct it"
        )
    return _S3Store(s3_client(), bucket, "/".join([*filter(None, prefix.split("/")), model_name]))


class ModelStore(ABC):
    """The versions of one model; get one from ``open_store``.

    Every method raises ``StoreBroken``, with what to do, where the folder or the bucket cannot be used.
    """

    def __init__(self, location: str) -> None:
        self._location = location

    @abstractmethod
    def versions(self) -> list[int]:
        """Return the numbers of the complete versions, ascending."""

    @abstractmethod
    def pinned(self) -> set[int]:
        """Return the numbers that have a file ``<number>.pinned``, whether or not the version exists."""

    @abstractmethod
    def read(self, number: int, name: str) -> bytes:
        """Return the file ``name`` of version ``number``."""

    def newest(self) -> int | None:
        """Return the highest complete version, or None where there is none."""
        return max(self.versions(), default=None)

    def uri(self, number: int) -> str:
        """Return where version ``number`` is: an absolute path, or an s3:// URI."""
        return f"{self._location}/{number}"

    def publish(self, run: str, build: Callable[[int], Mapping[str, bytes]]) -> int:
        """Publish the files that ``build`` makes for the version's number; return the number.

        ``run`` identifies the run. A run that publishes again, after it was killed or even at the same time,
        gets the same number, and a version that stands already is left alone: ``build`` is not called. Other
        runs get other numbers. A reader sees all of the version or none of it.
        """
        number = self._claimed(run)
        if number not in self.versions():
            files = build(number)
            if not files.get(MODEL):
                raise ValueError(f"a version needs a {MODEL}, found {sorted(files)}")
            self._write(number, files)
        self._sweep(number)
        return number

    def prune(self, keep: int, in_use: Collection[int]) -> list[int]:
        """Delete all versions but the newest ``keep``, those ``in_use`` and the pinned; return the deleted.

        A reader sees all of a version or none of it. What a killed process has left half deleted goes too.
        Raises ``ValueError`` where ``keep`` is less than 1: the newest version is never deleted.
        """
        if keep < 1:
            raise ValueError(f"cannot keep {keep} versions: expected at least 1")
        versions = self.versions()
        spared = {*versions[-keep:], *in_use, *self.pinned()}
        deleted = [number for number in versions if number not in spared and self._hide(number)]
        self._purge()
        return deleted

    def _claimed(self, run: str) -> int:
        """Return the number of ``run``; claim the next free one where it has none."""
        # Looked up before the run is registered: where this is its first attempt, all that other attempts claim for
        # it lies above, and is met further down.
        number = max((*self._claims(), *self.versions()), default=0) + 1
        if not self._register(hashlib.sha256(run.encode()).hexdigest()):
            # Claims are made in the order of their numbers. A listing may miss what is claimed meanwhile, but this
            # one misses nothing below the highest of the one before.
            for claim in sorted(self._claims(), reverse=True):
                if self._claimant(claim) == run:
                    return claim
        while not self._claim(number, run):
            if self._claimant(number) == run:
                break
            number += 1
        return number

    @abstractmethod
    def _register(self, run: str) -> bool:
        """Note that the run with this digest was here; return False where that is noted already."""

    @abstractmethod
    def _claims(self) -> set[int]:
        """Return the claimed numbers."""

    @abstractmethod
    def _claimant(self, number: int) -> str:
        """Return the run that has claimed ``number``."""

    @abstractmethod
    def _claim(self, number: int, run: str) -> bool:
        """Claim ``number`` for ``run`` in one atomic operation; return False where it is taken."""

    @abstractmethod
    def _write(self, number: int, files: Mapping[str, bytes]) -> None:
        """Make the version appear at once, unless another attempt of the same run has."""

    @abstractmethod
    def _sweep(self, number: int) -> None:
        """Delete what is staged for a version that stands, whoever has left it there.

        That endangers nobody's work: who is still staging for this number then finds that the version stands,
        or that the number is taken.
        """

    @abstractmethod
    def _hide(self, number: int) -> bool:
        """Make a version vanish at once; return False where it is seen that another process has done so."""

    @abstractmethod
    def _purge(self) -> None:
        """Delete what hidden versions still occupy."""


class _FolderStore(ModelStore):
    """Versions and claims are prepared in ``.staging/<number>-<random>`` and renamed into place.

    A rename fails where the target is a folder with something in it, on network file systems as well, so the
    first one wins, and wins with its content. Neither holds everywhere for hard links or ``O_EXCL``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def versions(self) -> list[int]:
        with self._explained("read"):
            return sorted(n for n in _numbers(self._folder) if (self._folder / str(n) / MODEL).is_file())

    def pinned(self) -> set[int]:
        with self._explained("read"):
            return {int(match[1]) for name in _names(self._folder) if (match := _PIN.fullmatch(name))}

    def read(self, number: int, name: str) -> bytes:
        with self._explained("read"):
            return (self._folder / str(number) / name).read_bytes()

    def _register(self, run: str) -> bool:
        with self._explained("write to"):
            (self._folder / ".runs").mkdir(parents=True, exist_ok=True)
            try:
                (self._folder / ".runs" / run).mkdir()
            except FileExistsError:
                return False
        return True

    def _claims(self) -> set[int]:
        with self._explained("read"):
            return set(_numbers(self._folder / ".claims"))

    def _claimant(self, number: int) -> str:
        with self._explained("read"):
            return (self._folder / ".claims" / str(number) / "run").read_text("utf-8")

    def _claim(self, number: int, run: str) -> bool:
        return self._put(number, {"run": run.encode()}, self._folder / ".claims" / str(number))

    def _write(self, number: int, files: Mapping[str, bytes]) -> None:
        if not self._put(number, files, self._folder / str(number)) and number not in self.versions():
            raise StoreBroken(
                f"{self.uri(number)} holds files but no {MODEL}, so version {number} cannot be put there; "
                "delete or move that folder, then run this step again"
            )

    def _put(self, number: int, files: Mapping[str, bytes], target: Path) -> bool:
        """Make the folder ``target`` with ``files`` appear at once; return False where it is taken."""
        staged = self._folder / ".staging" / f"{number}-{uuid4().hex}"
        with self._explained("write to"):
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.parent.mkdir(exist_ok=True)
            try:
                staged.mkdir()
                for name, content in files.items():
                    with (staged / name).open("wb") as file:
                        file.write(content)
                        file.flush()
                        # Renamed before its content is on the disk, it could be empty after a power cut.
                        os.fsync(file.fileno())
                _sync(staged)
                staged.rename(target)
            except OSError as error:
                shutil.rmtree(staged, ignore_errors=True)
                # ENOENT: the number's version stands by now, and what was staged for it has been swept.
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                    return False
                raise
            _sync(target.parent)
        return True

    def _sweep(self, number: int) -> None:
        with self._explained("delete from"):
            for name in _names(self._folder / ".staging"):
                if name.startswith(f"{number}-"):
                    self._move_away(self._folder / ".staging" / name)
        self._purge()

    def _hide(self, number: int) -> bool:
        with self._explained("delete from"):
            return self._move_away(self._folder / str(number))

    def _move_away(self, folder: Path) -> bool:
        """Make a folder vanish at once, while others may read or fill it; return False where it was not there."""
        deleted = self._folder / ".deleted"
        deleted.mkdir(exist_ok=True)
        try:
            folder.rename(deleted / uuid4().hex)
        except FileNotFoundError:
            return False
        return True

    def _purge(self) -> None:
        with self._explained("delete from"):
            for name in _names(self._folder / ".deleted"):
                # Another process may be deleting it too, and NFS keeps what is still open: what is left is for
                # the next time.
                shutil.rmtree(self._folder / ".deleted" / name, ignore_errors=True)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn an error of the file system into one that says what to do."""
        try:
            yield
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "check the disk or claim")
            where = error.filename or self._location
            raise StoreBroken(f"cannot {verb} the model store: {where}: {error.strerror}; {advice}") from error


_WRITABLE = "mount it writable, and let this process' user write there"
_SPACE = "make the claim larger, or keep fewer versions"
_ADVICE = {
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.ENOTDIR: "a file stands where a folder is expected; name another folder, or move the file away",
    errno.ENOENT: "the version does not exist or was pruned; see which ones do",
}


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def _numbers(folder: Path) -> Iterator[int]:
    return (int(name) for name in _names(folder) if _NUMBER.fullmatch(name))


def _sync(folder: Path) -> None:
    """Have the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _S3Store(ModelStore):
    """Objects are put one by one, ``model.onnx`` last, and deleted in the opposite order.

    Two attempts of a run may write the same version, and their files must not mix: whoever is the first to
    put them, packed into the object ``.staging/<number>``, decides, and every attempt unpacks that object.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        super().__init__(f"s3://{bucket}/{prefix}")
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def versions(self) -> list[int]:
        names = (name.removesuffix(f"/{MODEL}") for name in self._list("") if name.endswith(f"/{MODEL}"))
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def pinned(self) -> set[int]:
        return {int(match[1]) for name in self._list("") if (match := _PIN.fullmatch(name))}

    def read(self, number: int, name: str) -> bytes:
        content = self._get(f"{number}/{name}")
        if content is None:
            raise StoreBroken(
                f"cannot read the model store: there is no {self.uri(number)}/{name}; {_ADVICE[errno.ENOENT]}"
            )
        return content

    def _register(self, run: str) -> bool:
        if not self._put_new(f".runs/{run}", b""):
            return False
        if self._put_new(f".runs/{run}", b""):
            raise StoreBroken(f"the S3 server of {self._location} ignores If-None-Match; {_NEEDS_EXCLUSIVE_PUTS}")
        return True

    def _claims(self) -> set[int]:
        return self._numbers(".claims/")

    def _claimant(self, number: int) -> str:
        return (self._get(f".claims/{number}") or b"").decode()

    def _claim(self, number: int, run: str) -> bool:
        return self._put_new(f".claims/{number}", run.encode())

    def _write(self, number: int, files: Mapping[str, bytes]) -> None:
        staging = f".staging/{number}"
        ours = _pack(files)
        packed = ours if self._put_new(staging, ours) else self._get(staging)
        # An attempt deletes that object once the model is there: if ours came after that, the version stands.
        if packed is None or number in self.versions():
            return
        unpacked = _unpack(packed)
        for name in sorted(unpacked, key=lambda name: name == MODEL):
            self._put(f"{number}/{name}", unpacked[name])

    def _sweep(self, number: int) -> None:
        self._delete([f".staging/{number}"])

    def _hide(self, number: int) -> bool:
        self._put(f".deleted/{number}", b"")
        self._delete([f"{number}/{MODEL}"])
        return True

    def _purge(self) -> None:
        hidden = self._numbers(".deleted/")
        # The model of one may still stand: another process is about to delete it, or was killed before it could.
        for number in hidden.difference(self.versions()):
            self._delete([*self._list(f"{number}/"), f".deleted/{number}"])

    def _numbers(self, prefix: str) -> set[int]:
        names = (name.removeprefix(prefix) for name in self._list(prefix))
        return {int(name) for name in names if _NUMBER.fullmatch(name)}

    def _list(self, prefix: str) -> list[str]:
        """Return the names below ``prefix``, without what all names of this store have in common."""
        common = f"{self._prefix}/"
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=common + prefix)
            return [entry["Key"].removeprefix(common) for page in pages for entry in page.get("Contents", [])]

    def _get(self, name: str) -> bytes | None:
        with self._explained():
            try:
                return self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None

    def _put(self, name: str, content: bytes) -> None:
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=content)

    def _put_new(self, name: str, content: bytes) -> bool:
        """Put an object where there is none; return False where there is one."""
        with self._explained():
            try:
                self._put_if_none_matches(f"{self._prefix}/{name}", content)
            except self._client.exceptions.ClientError as error:
                if _status(error) == 412:
                    return False
                if _status(error) == 501:
                    raise StoreBroken(
                        f"the S3 server of {self._location} lacks If-None-Match; {_NEEDS_EXCLUSIVE_PUTS}"
                    ) from error
                raise
        return True

    # 409 means neither yes nor no: another request for the same key was under way.
    @retry(
        retry=retry_if_exception(lambda error: _status(error) == 409),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        stop=stop_after_attempt(8),
        reraise=True,
    )
    def _put_if_none_matches(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*")

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with self._explained():
                self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of botocore into one that says what to do."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StoreBroken(f"cannot use the model store {self._location}: {explain(error)}") from error


_NEEDS_EXCLUSIVE_PUTS = (
    "without it two runs could publish the same version, so nothing is published; "
    "upgrade the server, or use a folder on a claim"
)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", {})
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _pack(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _unpack(packed: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
