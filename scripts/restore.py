"""``jukebox restore``: bring a model store back from a backup, with its numbering."""

import hashlib
from collections import defaultdict
from typing import Annotated

import typer

from pipeline.core.errors import StoreBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.settings import read_settings
from scripts.backup import Manifest, Place, Store, Target, open_place, progress, read_manifest


def command(
    source: Target,
    model_store: Store = "",
    name: Annotated[
        str, typer.Option(help="Name of the backup, as `jukebox backup` prints it; default: the newest.")
    ] = "",
) -> None:
    """Restore a backup into an empty model store; numbers of later versions continue after those of the backup.

    Each file is compared with its sha256 before it is written, and again when all are there. A restore that was
    interrupted may be repeated. Let no run publish meanwhile.

    Example: `jukebox restore s3://backups/models --model-store /models`
    """
    settings = read_settings()
    store = open_store(model_store or settings.model_store, settings.model_name)
    place = open_place(source, settings.model_name)
    found, manifest = read_manifest(place, settings.model_name, name)
    restore(store, place, manifest)
    print(f"{found}: {len(manifest.files)} files restored to {store.location}")


def restore(store: ModelStore, place: Place, manifest: Manifest) -> None:
    """Restore a backup into a store that is empty, or that has nothing but a part of it.

    Raises StoreBroken if the store has something else, or if the backup is damaged.
    """
    claims = {int(number): claim for number, claim in manifest.claims.items()}
    _refuse_other(store, manifest, claims)
    # Before any version: a run that publishes nevertheless gets a number that no version has had.
    store.restore_numbering(claims, manifest.runs)
    there = {*store.files()}
    versions: dict[str, list[str]] = defaultdict(list)
    for path in manifest.files:
        if path not in there:
            versions[path.rpartition("/")[0]].append(path)
    for version in progress(sorted(versions, key=lambda each: (len(each), each)), "Restore"):
        files = {path.rpartition("/")[2]: _read(place, manifest.files[path]) for path in versions[version]}
        if version:
            store.restore_version(version, files)
            continue
        for name, content in files.items():
            store.restore_file(name, content)
    _refuse_other(store, manifest, claims)
    if missing := manifest.files.keys() - {*store.files()}:
        raise StoreBroken(f"{store.location} lacks {min(missing)}: did a run publish meanwhile? Restore again")


def _read(place: Place, digest: str) -> bytes:
    content = place.read(f"objects/{digest}")
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise StoreBroken(f"{place.location}/objects/{digest} is damaged: its sha256 is {found}. Use another backup")
    return content


def _refuse_other(store: ModelStore, manifest: Manifest, claims: dict[int, str]) -> None:
    """Raise StoreBroken if the store has what is not in the backup."""
    other = [path for path in store.files() if manifest.files.get(path) != _digest(store, path)]
    other += [f".claims/{number}" for number, claim in store.numbering()[0].items() if claims.get(number) != claim]
    if other:
        raise StoreBroken(
            f"{store.location} is not empty: its {other[0]} is not what the backup has. Restore into an empty store"
        )


def _digest(store: ModelStore, path: str) -> str:
    return hashlib.sha256(store.content(path)).hexdigest()
