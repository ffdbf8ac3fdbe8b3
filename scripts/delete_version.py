"""``jukebox delete-version``: make room in the model store."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from pipeline.core.champion import find_champion, read_version
from pipeline.core.errors import SettingsInvalid, VersionBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.settings import read_settings, settings_file
from scripts.pins import PIN, read_pin


def command(
    numbers: Annotated[list[int], typer.Argument(min=1, help="Numbers of the versions; also those under .failed.")],
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
) -> None:
    """Delete versions from the model store permanently. This works on a full disk.

    It deletes nothing if one of them is the newest version, which dev serves; the version that this checkout pins for
    production; the champion; or a version with a file `<number>.pinned` next to it.

    Example: `jukebox delete-version 3 4 --model-store build/models`
    """
    settings = read_settings()
    root = model_store or settings.model_store
    store = open_store(root, settings.model_name)
    needed = in_use(store, root, settings.model_name)
    if refused := [f"version {number}: {needed[number]}" for number in numbers if number in needed]:
        raise SettingsInvalid(f"Nothing is deleted: {'; '.join(refused)}. Name only versions that are not in use")
    for number in numbers:
        where = store.uri(number)
        store.delete(number)
        print(f"{where} deleted", flush=True)


def in_use(store: ModelStore, root: str, model_name: str) -> dict[int, str]:
    """Return the versions that must stay, each with what it is needed for."""
    needed = dict(needed_by_store(store, root, model_name))
    checkout = settings_file().parents[2]
    if (checkout / PIN).is_file() and (pinned := read_pin(checkout).version):
        needed[pinned] = f"production serves it, according to {checkout / PIN}"
    return needed


def needed_by_store(store: ModelStore, root: str, model_name: str) -> Iterator[tuple[int, str]]:
    """Yield the versions that the store itself needs, each with what for.

    A version that is damaged, or that an older release has put among those that passed, is not needed, though it be
    the newest.
    """
    for number in sorted(store.pinned()):
        yield number, f"{number}.pinned protects it"
    if champion := find_champion(root, model_name):
        yield champion.version, "it is the champion, with which new models are compared"
    with suppress(VersionBroken):
        if (newest := read_version(root, model_name)) and newest.passed:
            yield newest.version, "it is the newest that passed, which dev serves"
