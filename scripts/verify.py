"""``jukebox verify``: tell whether the model store has the version that Git pins, with the pinned content."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.champion import CARD, GOLDEN, LABELS, LINEAGE, SCHEMA, read_lineage, read_version
from pipeline.core.errors import SettingsInvalid, VersionBroken
from pipeline.core.store import MODEL, ModelStore, open_store
from pipeline.settings import read_settings

# Pods on a cluster name both; the settings in their image may be another fork's.
Model = Annotated[str, typer.Option(help="The model's name; default: that of the settings.")]
Store = Annotated[str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")]
_TO_DO = "Restore it with `jukebox restore`, or pin a version that the store has with `jukebox rollback`"


def command(
    version: Annotated[str, typer.Option(help="The pinned version's number; empty if none is pinned.")],
    sha256: Annotated[str, typer.Option(help="The pinned sha256 of its model.onnx.")] = "",
    model: Model = "",
    model_store: Store = "",
) -> None:
    """Check that the model store has the version that Git pins, with the pinned content, and that it may be served.

    Argo CD runs this before a sync serves a version. If it fails, the version that was served stays.

    Example: `jukebox verify --version 7 --sha256 3f0c… --model-store build/models`
    """
    if not version:
        print("No version is pinned, so production serves nothing")
        return
    if not sha256:
        raise SettingsInvalid(f"--sha256 is empty, expected the sha256 of the {MODEL} of version {version}")
    name, root = model or read_settings().model_name, model_store or read_settings().model_store
    number = number_of(version)
    check_version(root, name, number, sha256)
    print(f"The model store has version {number} of {name} with the pinned {MODEL} ({sha256[:12]}…), and it passed")


def number_of(version: str) -> int:
    """The number that an option gives; raises SettingsInvalid if it is not a valid one."""
    if not (version.isascii() and version.isdigit() and int(version)):
        raise SettingsInvalid(f"--version is {version!r}, expected the number of a version, such as 7")
    return int(version)


def is_readable(root: str) -> bool:
    """Whether the model store can be read from here: it is in S3, or a folder that exists."""
    return root.startswith("s3://") or Path(root).is_dir()


def check_version(root: str, model_name: str, number: int, sha256: str | None = None) -> str:
    """Return the sha256 of the version's ``model.onnx`` if it may be served: it is intact, passed, and not withdrawn.

    ``sha256`` is what it must be; None: what the version's lineage records. Raises VersionBroken, with what the store
    has and what to do, if the version may not be served; StoreBroken if the store cannot be used.
    """
    store = open_store(root, model_name)
    where, passed = store.uri(number), store.versions()
    if number in store.failed():
        summary = read_lineage(store, number)["verdict"].get("summary", "its verdict gives no reason.")
        raise VersionBroken(f"Version {number} ({where}) did not pass its checks: {summary} Pin a version that passed")
    if number not in passed:
        there = ", ".join(map(str, passed)) or "none"
        raise VersionBroken(f"Version {number} ({where}) does not exist; there are: {there}. {_TO_DO}")
    found = hashlib.sha256(store.read(number, MODEL)).hexdigest()
    if sha256 and found != sha256:
        raise VersionBroken(
            f"Version {number} ({where}) has another content than the pinned one: the sha256 of its {MODEL} is "
            f"{found}, expected {sha256}. {_TO_DO}"
        )
    if (why := store.withdrawn(number)) is not None:
        raise VersionBroken(f"Version {number} ({where}) was withdrawn: {why}. Pin another version")
    version = read_version(root, model_name, number)
    if version is None or not version.passed:
        raise VersionBroken(
            f"Version {number} ({where}) was published without having passed. Pin a version that passed"
        )
    return found


def find_damage(store: ModelStore, number: int) -> str:
    """Return which file of a version is not the published one, by the digests in its lineage; empty if all are.

    Only bytes are compared: whether this release can use the version says nothing about damage, so one of a newer
    release counts as intact. Raises StoreBroken if the store cannot be read.
    """
    try:
        lineage = json.loads(store.read(number, LINEAGE))
        schema, recorded = lineage.get("schema", 0), dict(lineage["sha256"])
    except VersionBroken as error:
        return str(error)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"its {LINEAGE} does not have the digests of its files"
    if isinstance(schema, int) and schema > SCHEMA:
        return ""
    for name in (MODEL, LABELS, GOLDEN, CARD):
        expected = recorded.get(name)
        if name in (GOLDEN, CARD) and not expected:
            continue  # an older release did not have it
        try:
            found = hashlib.sha256(store.read(number, name)).hexdigest()
        except VersionBroken as error:
            return str(error)
        if found != expected:
            return f"the sha256 of its {name} is {found[:12]}…, expected {str(expected or 'none')[:12]}…"
    return ""
