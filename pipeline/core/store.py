"""The model store: numbered versions of a model, in a folder (a mounted claim) or in an S3 bucket.

A version is ``<root>/<model>/<number>/``, with ``model.onnx`` and the files that belong to it; without ``model.onnx``
it is incomplete and is ignored. The model server reads the same location: it serves every folder whose name is a
positive integer, and ignores names that begin with a dot. There the store keeps the rest:

    .failed/<number>/   a version that failed its checks: it has a number, and is not served
    .claims/<number>    the run that has this number, and which staged folder is its version. Claims are never deleted:
                        numbers always increase, even after the newest version was deleted, and a retried run finds
                        its version
    .runs/<digest>      a mark that the run whose name has this digest may have a claim
    .staging/           versions that are about to be published: obsolete once another version claims their number
    .deleted/           versions that are being deleted

The claim of a number publishes the version: it is complete by then and only has to be moved to its place. If the
process is killed before that, the next one moves it. A run whose number was claimed by another run meanwhile is judged
again for the next number. So versions are judged one after the other, in the order of their numbers, however many runs
publish at once; no run waits, and none publishes without having seen all earlier versions.

Only `jukebox delete-version` and `jukebox retain` delete versions. On S3, publishing writes new objects only, so it
needs no right to change or delete a version: see docs/s3.md. A file ``<number>.pinned`` beside the versions means that
a version must stay; its content does not matter. A file ``<number>.withdrawn`` means that a version must not be served;
its text says why. ``<number>.promotions.json`` has the records of how production came to serve it.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipeline.core.documents import to_json
from pipeline.core.errors import SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.s3 import explain, s3_client
from pipeline.core.texts import one_line

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL = "model.onnx"
FAILED = ".failed"
# Any publisher may write any file there, and files are read into memory. A step has 2 GiB, and an ONNX file is held
# three times when it is loaded; a network for rows needs far less than the 16 layers that this pipeline could train at
# most.
LARGEST_MODEL = 128 << 20  # bytes
LARGEST = 16 << 20  # bytes, of any other file

_NUMBER = re.compile(r"[1-9][0-9]*")
_PIN = re.compile(r"([1-9][0-9]*)\.pinned")
# Staged names of a number: a version, a version that failed, or a claim.
_APART, _CLAIM = ".failed", ".claim"
_STAGED = re.compile(r"[1-9][0-9]*(-.*)?")
_TAKEN = re.compile(r"(\.claims/|\.failed/)?([1-9][0-9]*)(/|$)")
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
# RFC 1123.
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def open_store(root: str, model_name: str) -> "ModelStore":
    """Return the store of ``model_name`` below ``root``: a folder's path, or ``s3://bucket/prefix``.

    Nothing is read or created yet; a folder that does not exist is an empty store. Raises ``SettingsInvalid`` if
    ``root`` is neither of the two, or if ``model_name`` is not a valid DNS label.
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


class Failed(dict[str, bytes]):
    """The files of a version that failed its checks: it is kept, but not served."""


class ModelStore(ABC):
    """The versions of one model; get one from ``open_store``.

    Every method raises ``StoreBroken``, with what to do, if the folder or the bucket cannot be used.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def versions(self) -> list[int]:
        """Return the numbers of the complete versions that passed, ascending."""
        return sorted(self._complete(""))

    def failed(self) -> list[int]:
        """Return the numbers of the complete versions that failed their checks, ascending."""
        return sorted(self._complete(f"{FAILED}/"))

    @abstractmethod
    def pinned(self) -> set[int]:
        """Return the numbers that have a file ``<number>.pinned``, whether or not the version exists."""

    def withdrawn(self, number: int) -> str | None:
        """Return why version ``number`` was withdrawn, in one line; None if it was not."""
        content = self._get(f"{number}.withdrawn")
        return None if content is None else one_line(content.decode(errors="replace")) or "without a reason"

    def withdraw(self, number: int, reason: str) -> bool:
        """Record that version ``number`` must not be served; return False if it was withdrawn before.

        Raises VersionBroken if there is no such version.
        """
        self._require(number)
        return self._put_new(f"{number}.withdrawn", f"{one_line(reason)}\n".encode())

    def promotions(self, number: int) -> list[dict[str, Any]]:
        """Return the records of the promotions of version ``number``, the last one that was served first.

        Raises VersionBroken if the file does not have them.
        """
        content = self._get(_promotions(number))
        try:
            found = [] if content is None else json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(each, dict) and "commit" in each for each in found):
            raise VersionBroken(
                f"{self.location}/{_promotions(number)} is damaged, expected a list of records in JSON: delete it. The "
                "nightly job writes those again that the cluster has"
            )
        return found

    def add_promotions(self, number: int, records: Iterable[Mapping[str, Any]]) -> int:
        """Write records beside version ``number``; return how many were added. Nothing is written if none is new.

        A commit has one record, and one that is there already stays as it is. Only one process may do this at a time.
        Raises VersionBroken if there is no such version, or as ``promotions``.
        """
        self._require(number)
        there = self.promotions(number)
        commits = {each["commit"] for each in there}
        if new := [dict(each) for each in records if each["commit"] not in commits]:
            found = sorted([*there, *new], key=lambda each: str(each.get("served_since", "")), reverse=True)
            self._replace(_promotions(number), to_json(found, indent=1).encode())
        return len(new)

    def read(self, number: int, name: str) -> bytes:
        """Return the file ``name`` of version ``number``, whether it passed or not.

        Raises VersionBroken if it does not exist, or if it exceeds the size limit of a version's files.
        """
        for place in _places(number):
            content = self._get(f"{place}/{name}")
            if content is not None and len(content) > _limit(name):
                raise VersionBroken(
                    f"Version {number} ({self.uri(number)}) is damaged: its {name} has more than {_limit(name)} bytes, "
                    f"which no version of this pipeline has. Delete it: `jukebox delete-version {number}`."
                )
            if content is not None:
                return content
        raise VersionBroken(
            f"cannot read the model store: {self.uri(number)}/{name} does not exist; "
            "the version was never published or was deleted: list the versions in the store"
        )

    def newest(self) -> int | None:
        """Return the highest complete version that passed, or None if there is none."""
        return max(self.versions(), default=None)

    def uri(self, number: int) -> str:
        """Return where version ``number`` is, or would be: an absolute path, or an s3:// URI."""
        passed, failed = _places(number)
        return f"{self.location}/{failed if number in self.failed() else passed}"

    def publish(self, run: str, build: Callable[[int], Mapping[str, bytes]]) -> int:
        """Publish the files that ``build`` makes for the version's number; return the number.

        ``build`` is called when all versions before that number can be read, and again, for a higher number, if
        another run publishes meanwhile. If it raises, nothing is published. If it returns ``Failed``, the version is
        kept apart from those that are served.

        ``run`` identifies the run. A run that publishes again, after it was killed or even at the same time, gets the
        same number, and an existing version is not changed. Other runs get other numbers. A reader sees all
        of the version or none of it.
        """
        # Read before the run is registered: if this is its first attempt, whatever other attempts claim for it is
        # higher, and is found below.
        known = self._highest()
        if not self._register(hashlib.sha256(run.encode()).hexdigest()):
            # Numbers are claimed in ascending order. A listing may miss new claims, but this one misses none below the
            # highest number of the previous listing.
            for number in sorted(self._claims(), reverse=True):
                if self._stands(number, run):
                    return number
        while True:
            number = self._highest() + 1
            for other in range(known + 1, number):
                if self._stands(other, run):
                    return other
            known = number - 1
            self._finish()
            files = build(number)
            if not files.get(MODEL):
                raise ValueError(f"a version needs a {MODEL}, found {sorted(files)}")
            for name, content in files.items():
                if len(content) > _limit(name):
                    raise StoreBroken(
                        f"{name} has {len(content)} bytes, expected at most {_limit(name)}: train a smaller network"
                    )
            staged = f"{number}-{uuid4().hex}" + (_APART if isinstance(files, Failed) else "")
            try:
                ours = self._stage(staged, files) and self._claim(number, f"{run}\n{staged}")
            except StoreBroken:
                with suppress(StoreBroken):
                    self._drop(staged)
                raise
            self._finish()
            if ours:
                return number

    def delete(self, number: int) -> None:
        """Delete version ``number`` with its records, whether it passed or not; also what a killed deletion left.

        A reader sees all of the version or none of it. This works on a full disk.
        """
        # First: if this is killed later, the version is still there, and so is deleted again.
        if self._get(_promotions(number)) is not None:
            self._discard(_promotions(number))
        # Not any(), which would stop at the first: a version may be in both places if it was copied by hand.
        if not sum([self._remove(place) for place in _places(number)]):
            raise StoreBroken(f"{self.uri(number)} does not exist: list the versions in the store")

    def files(self) -> list[str]:
        """Return the paths of the files of all complete versions, and of those beside the versions; sorted."""
        complete = {"", *map(str, self.versions()), *(f"{FAILED}/{number}" for number in self.failed())}
        return sorted(name for name in self._names() if name.rpartition("/")[0] in complete)

    def content(self, path: str) -> bytes:
        """Return a file that ``files`` has named; raises VersionBroken if it does not exist any more."""
        found = self._get(path)
        if found is None or len(found) > _limit(path):
            what = "does not exist any more" if found is None else f"has more than {_limit(path)} bytes"
            raise VersionBroken(f"{self.location}/{path} {what}: delete that version, or run this again")
        return found

    def numbering(self) -> tuple[dict[int, str], list[str]]:
        """Return the claim of each number, and the digests of the names of the runs that may have one."""
        claims = {number: claim for number in self._claims() if (claim := self._claimed(number)) is not None}
        return dict(sorted(claims.items())), sorted(self._registered())

    def restore_numbering(self, claims: Mapping[int, str], runs: Iterable[str]) -> None:
        """Take over what ``numbering`` has returned elsewhere; what is there already stays."""
        for run in runs:
            self._register(run)
        for number, claim in claims.items():
            self._claim(number, claim)

    def restore_version(self, place: str, files: Mapping[str, bytes]) -> None:
        """Put a version to the place that it had elsewhere, as 7 or .failed/7: all of it or nothing."""
        staged = f"{place.rpartition('/')[2]}-{uuid4().hex}"
        self._stage(staged, files)
        self._move(staged, place)

    @abstractmethod
    def restore_file(self, name: str, content: bytes) -> None:
        """Put a file beside the versions; one that is there already stays."""

    def _require(self, number: int) -> None:
        if number not in self._complete("") | self._complete(f"{FAILED}/"):
            raise VersionBroken(f"{self.uri(number)} does not exist: list the versions in the store")

    def _highest(self) -> int:
        return max(self._taken(), default=0)

    def _stands(self, number: int, run: str) -> bool:
        """Whether ``run`` has claimed the number and its version still exists."""
        claim = self._claimed(number)
        if claim is None or claim.partition("\n")[0] != run:
            return False
        self._finish()
        return number in self._complete("") | self._complete(f"{FAILED}/")

    def _finish(self) -> None:
        """Move every claimed version to its place, whichever run has claimed it, and delete obsolete staged ones.

        A staged version whose number is not claimed stays: its run may be about to claim it.
        """
        for staged in self._staged():
            number = int(staged.partition("-")[0])
            claim = self._claimed(number)
            if claim is None:
                continue
            if claim.endswith(f"\n{staged}"):
                passed, failed = _places(number)
                self._move(staged, failed if staged.endswith(_APART) else passed)
            else:
                self._drop(staged)

    @abstractmethod
    def _complete(self, folder: str) -> set[int]:
        """Return the numbers in ``folder`` (empty, or ``.failed/``) that have a model."""

    @abstractmethod
    def _taken(self) -> set[int]:
        """Return the numbers that are claimed or have any file."""

    @abstractmethod
    def _get(self, name: str) -> bytes | None:
        """Return the content of a file by its path below the model's folder, or None if there is none.

        At most one byte more than ``_limit`` allows is read.
        """

    @abstractmethod
    def _put_new(self, name: str, content: bytes) -> bool:
        """Write a file, whole or not at all; return False if it exists. On a folder, two writers may both succeed."""

    @abstractmethod
    def _replace(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, in place of one that may be there."""

    @abstractmethod
    def _discard(self, name: str) -> None:
        """Delete a file beside the versions."""

    @abstractmethod
    def _register(self, run: str) -> bool:
        """Register the run with this digest; return False if it is registered already."""

    @abstractmethod
    def _registered(self) -> list[str]:
        """Return the digests of the registered runs."""

    @abstractmethod
    def _names(self) -> list[str]:
        """Return the paths of all files."""

    @abstractmethod
    def _claims(self) -> set[int]:
        """Return the claimed numbers."""

    @abstractmethod
    def _claimed(self, number: int) -> str | None:
        """Return the claim of ``number``: the run and, on a second line, the name of what it has staged."""

    @abstractmethod
    def _claim(self, number: int, text: str) -> bool:
        """Claim ``number`` in one atomic operation; return False if it is taken."""

    @abstractmethod
    def _staged(self) -> list[str]:
        """Return the staged names, each of which begins with its number."""

    @abstractmethod
    def _stage(self, staged: str, files: Mapping[str, bytes]) -> bool:
        """Store files durably under this name; return False if its number was claimed meanwhile."""

    @abstractmethod
    def _move(self, staged: str, place: str) -> None:
        """Move staged files to their place atomically, unless another process has done so."""

    @abstractmethod
    def _drop(self, staged: str) -> None:
        """Delete staged files, while other processes may read or write them."""

    @abstractmethod
    def _remove(self, place: str) -> bool:
        """Remove a version atomically, then delete its files; return False if it has none."""


def _limit(name: str) -> int:
    """The largest size of a file in bytes; a staged object on S3 is a whole version."""
    return LARGEST_MODEL if name.endswith(MODEL) else LARGEST_MODEL + 4 * LARGEST if ".staging/" in name else LARGEST


def _places(number: int) -> tuple[str, str]:
    """The place of a version that passed, and that of one that failed."""
    return str(number), f"{FAILED}/{number}"


def _promotions(number: int) -> str:
    return f"{number}.promotions.json"


class _FolderStore(ModelStore):
    """Versions and claims are prepared in ``.staging/<number>-<random>`` and renamed into place.

    A rename fails if the target is a folder that is not empty, on network file systems as well, so the first one wins,
    with its content. Hard links and ``O_EXCL`` do not guarantee this everywhere.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self._folder = folder

    def pinned(self) -> set[int]:
        with self._explained("read"):
            return {int(match[1]) for name in _names(self._folder) if (match := _PIN.fullmatch(name))}

    def _complete(self, folder: str) -> set[int]:
        parent = self._folder / folder
        with self._explained("read"):
            return {number for number in _numbers(parent) if (parent / str(number) / MODEL).is_file()}

    def _taken(self) -> set[int]:
        with self._explained("read"):
            return {n for name in ("", FAILED, ".claims") for n in _numbers(self._folder / name)}

    def _get(self, name: str) -> bytes | None:
        with self._explained("read"):
            try:
                with open(self._folder / name, "rb", opener=_open_file) as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        raise OSError(errno.EINVAL, "it is not a file", str(self._folder / name))
                    return file.read(_limit(name) + 1)
            except FileNotFoundError:
                return None

    def _put_new(self, name: str, content: bytes) -> bool:
        with self._explained("write to"):
            if (self._folder / name).exists():
                return False
        self._replace(name, content)
        return True

    def _replace(self, name: str, content: bytes) -> None:
        with self._explained("write to"):
            unfinished = self._folder / f".{name}-{uuid4().hex}"
            try:
                with unfinished.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(self._folder / name)
            finally:
                unfinished.unlink(missing_ok=True)

    def _discard(self, name: str) -> None:
        with self._explained("delete from"):
            (self._folder / name).unlink(missing_ok=True)

    def _register(self, run: str) -> bool:
        with self._explained("write to"):
            (self._folder / ".runs").mkdir(parents=True, exist_ok=True)
            try:
                (self._folder / ".runs" / run).mkdir()
            except FileExistsError:
                return False
        return True

    def restore_file(self, name: str, content: bytes) -> None:
        with self._explained("write to"), suppress(FileExistsError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / name).open("xb") as file:
                file.write(content)

    def _registered(self) -> list[str]:
        with self._explained("read"):
            return _names(self._folder / ".runs")

    def _names(self) -> list[str]:
        with self._explained("read"):
            return [str(path.relative_to(self._folder)) for path in self._folder.rglob("*") if path.is_file()]

    def _claims(self) -> set[int]:
        with self._explained("read"):
            return set(_numbers(self._folder / ".claims"))

    def _claimed(self, number: int) -> str | None:
        claim = self._get(f".claims/{number}/run")
        return None if claim is None else claim.decode()

    def _claim(self, number: int, text: str) -> bool:
        staged = f"{number}-{uuid4().hex}{_CLAIM}"
        try:
            return self._stage(staged, {"run": text.encode()}) and self._rename(staged, f".claims/{number}")
        finally:
            shutil.rmtree(self._folder / ".staging" / staged, ignore_errors=True)

    def _staged(self) -> list[str]:
        with self._explained("read"):
            return [name for name in _names(self._folder / ".staging") if _STAGED.fullmatch(name)]

    def _stage(self, staged: str, files: Mapping[str, bytes]) -> bool:
        folder = self._folder / ".staging" / staged
        with self._explained("write to"):
            try:
                folder.mkdir(parents=True)
                for name, content in files.items():
                    with (folder / name).open("wb") as file:
                        file.write(content)
                        file.flush()
                        # Without this, a renamed file could be empty after a power failure.
                        os.fsync(file.fileno())
                _sync(folder)
            except FileNotFoundError:
                return False  # another run has claimed the number, and this staged version was dropped
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return True

    def _move(self, staged: str, place: str) -> None:
        if self._rename(staged, place):
            return
        if not (self._folder / place / MODEL).is_file() and staged in self._staged():
            raise StoreBroken(
                f"{self._folder / place} holds files but no {MODEL}, so a version cannot be moved there; "
                "delete or move that folder, then run this step again"
            )
        self._drop(staged)

    def _rename(self, staged: str, place: str) -> bool:
        """Move staged files atomically; return False if the place is taken or another process has moved them."""
        source, target = self._folder / ".staging" / staged, self._folder / place
        with self._explained("write to"):
            try:
                target.parent.mkdir(exist_ok=True)
                source.rename(target)
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
                    return False
                raise
            _sync(target.parent)
        return True

    def _drop(self, staged: str) -> None:
        with self._explained("delete from"):
            self._vanish(self._folder / ".staging" / staged)
        self._purge()

    def _remove(self, place: str) -> bool:
        with self._explained("delete from"):
            found = self._vanish(self._folder / place)
        self._purge()
        return found

    def _vanish(self, folder: Path) -> bool:
        """Remove a folder atomically, while others may read or fill it; return False if it does not exist."""
        deleted = self._folder / ".deleted"
        try:
            deleted.mkdir(exist_ok=True)
            folder.rename(deleted / uuid4().hex)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # No space for a new name. A version without its model is ignored.
            (folder / MODEL).unlink(missing_ok=True)
            shutil.rmtree(folder)
        return True

    def _purge(self) -> None:
        with self._explained("delete from"):
            for name in _names(self._folder / ".deleted"):
                # Another process may be deleting it too, and NFS keeps open files: the next purge removes the rest.
                shutil.rmtree(self._folder / ".deleted" / name, ignore_errors=True)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        """Turn an error of the file system into one that says what to do."""
        try:
            yield
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "check the disk or claim")
            where = error.filename or self.location
            raise StoreBroken(f"cannot {verb} the model store: {where}: {error.strerror}; {advice}") from error


_WRITABLE = "mount it writable, and give this process' user write permission"
_SPACE = (
    "make the claim larger, or delete versions that nothing serves, the ones below .failed first: "
    "`jukebox delete-version NUMBER`, which works on a full disk"
)
_ADVICE = {
    errno.EROFS: _WRITABLE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.ENOTDIR: "a file exists at the path of a folder; use another folder, or move the file",
}


def _open_file(path: str, flags: int) -> int:
    """Open a file without blocking, as a pipe would block the reader; refuse a link, which may leave the store."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def _numbers(folder: Path) -> Iterator[int]:
    return (int(name) for name in _names(folder) if _NUMBER.fullmatch(name))


def _sync(folder: Path) -> None:
    """Make the names in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _S3Store(ModelStore):
    """Objects are put one by one, ``model.onnx`` last, and deleted in the opposite order.

    A version is staged as one object that contains its files; the process that moves it to its place unpacks it.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        super().__init__(f"s3://{bucket}/{prefix}")
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    def pinned(self) -> set[int]:
        return {int(match[1]) for name in self._list("") if (match := _PIN.fullmatch(name))}

    def _complete(self, folder: str) -> set[int]:
        found = (name.removeprefix(folder) for name in self._list(folder))
        models = (name.removesuffix(f"/{MODEL}") for name in found if name.endswith(f"/{MODEL}"))
        return {int(name) for name in models if _NUMBER.fullmatch(name)}

    def _taken(self) -> set[int]:
        return {int(match[2]) for name in self._list("") if (match := _TAKEN.match(name))}

    def _register(self, run: str) -> bool:
        if not self._put_new(f".runs/{run}", b""):
            return False
        if self._put_new(f".runs/{run}", b""):
            raise StoreBroken(f"the S3 server of {self.location} ignores If-None-Match; {_NEEDS_EXCLUSIVE_PUTS}")
        return True

    def restore_file(self, name: str, content: bytes) -> None:
        self._put_new(name, content)

    def _registered(self) -> list[str]:
        return [name.removeprefix(".runs/") for name in self._list(".runs/")]

    def _names(self) -> list[str]:
        return self._list("")

    def _claims(self) -> set[int]:
        return self._numbers(".claims/")

    def _claimed(self, number: int) -> str | None:
        claim = self._get(f".claims/{number}")
        return None if claim is None else claim.decode()

    def _claim(self, number: int, text: str) -> bool:
        return self._put_new(f".claims/{number}", text.encode())

    def _staged(self) -> list[str]:
        names = (name.removeprefix(".staging/") for name in self._list(".staging/"))
        return [name for name in names if _STAGED.fullmatch(name)]

    def _stage(self, staged: str, files: Mapping[str, bytes]) -> bool:
        self._add(f".staging/{staged}", _pack(files))
        return True

    def _move(self, staged: str, place: str) -> None:
        packed = self._get(f".staging/{staged}")
        if packed is None:
            return  # another process has done this
        try:
            unpacked = _unpack(packed)
        except (zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError) as error:
            raise StoreBroken(
                f"{self.location}/.staging/{staged} was not staged by a run ({error}): another program has put "
                "it there; delete it, then run this step again"
            ) from None
        for name in sorted(unpacked, key=lambda name: name == MODEL):
            self._add(f"{place}/{name}", unpacked[name])
        self._drop(staged)

    def _drop(self, staged: str) -> None:
        self._delete([f".staging/{staged}"])

    def _remove(self, place: str) -> bool:
        names = self._list(f"{place}/")
        self._delete(sorted(names, key=lambda name: name != f"{place}/{MODEL}"))
        return bool(names)

    def _numbers(self, prefix: str) -> set[int]:
        names = (name.removeprefix(prefix) for name in self._list(prefix))
        return {int(name) for name in names if _NUMBER.fullmatch(name)}

    def _list(self, prefix: str) -> list[str]:
        """Return the names below ``prefix``, without the prefix of this store."""
        common = f"{self._prefix}/"
        with self._explained():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=common + prefix)
            return [entry["Key"].removeprefix(common) for page in pages for entry in page.get("Contents", [])]

    def _get(self, name: str) -> bytes | None:
        with self._explained():
            try:
                return self._get_object(name)
            except self._client.exceptions.NoSuchKey:
                return None
            except self._client.exceptions.ClientError as error:
                if _status(error) != 403:
                    raise
                # S3 also answers so for a missing object if the identity may list only a part of the bucket.
                return self._get_object(name) if name in self._list(name) else None

    def _get_object(self, name: str) -> bytes:
        answer = self._client.get_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}")
        with answer["Body"] as body:
            return body.read(_limit(name) + 1)

    def _add(self, name: str, content: bytes) -> None:
        """Put a new object, or accept an identical one: another process may have finished the same version."""
        if not self._put_new(name, content) and self._get(name) not in (None, content):
            raise StoreBroken(
                f"{self.location}/{name} exists, and differs from what the run with this number published: "
                "another program has put it there; check who may write to the store, delete this version with "
                "`jukebox delete-version`, then run this step again"
            )

    def _put_new(self, name: str, content: bytes) -> bool:
        """Put a new object; return False if it exists."""
        with self._explained():
            try:
                self._put_if_none_matches(f"{self._prefix}/{name}", content)
            except self._client.exceptions.ClientError as error:
                if _status(error) == 412:
                    return False
                if _status(error) == 501:
                    raise StoreBroken(
                        f"the S3 server of {self.location} does not support If-None-Match; {_NEEDS_EXCLUSIVE_PUTS}"
                    ) from error
                raise
        return True

    def _replace(self, name: str, content: bytes) -> None:
        with self._explained():
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{name}", Body=content)

    def _discard(self, name: str) -> None:
        self._delete([name])

    # 409 is undecided: another request for the same key was in progress.
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
            raise StoreBroken(f"cannot use the model store {self.location}: {explain(error)}") from error


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
        # The files are stored uncompressed: one that is larger than its archive is a zip bomb.
        if sum(entry.file_size for entry in archive.infolist()) > len(packed):
            raise ValueError("it unpacks to more bytes than it has")
        return {name: archive.read(name) for name in archive.namelist()}
