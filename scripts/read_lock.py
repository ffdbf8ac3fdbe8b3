"""``jukebox read-lock``: what a commit wants installed, as far as that can be done without running what was pushed."""

import re
import tomllib
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.errors import SettingsInvalid
from pipeline.settings import read_settings
from scripts.find_images import LOCK, PRODUCT, Commit
from scripts.install_packages import BUILT, INDEX

# name==version, an environment, and hashes: no option, no address, no folder.
_LOCKED = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)==[A-Za-z0-9.!+_-]+(\s*;[^@#\n]*?)?((\s+--hash=sha256:[0-9a-f]{64})+)"
)
_WANTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._ -]+\])?\s*[^@:/#\n\r-][^@:/#\n\r]*")


def command(
    target: Annotated[Path, typer.Argument(help="Folder to write the files to.")],
    folder: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
    commit: Annotated[str, typer.Option(help="The commit to read.")] = "HEAD",
) -> None:
    """Write a commit's lock and the names of the packages for training to a folder, for install_packages.py.

    It refuses packages that an installation would build, because a build runs their code. The settings name the package
    index.

    Example: `jukebox read-lock /tmp/lock`
    """
    found = Commit(folder, commit)
    lock = found.read(LOCK).decode(errors="replace")
    require_unpackable(lock, (PRODUCT / LOCK).read_text())
    names = wanted(found.read("pyproject.toml").decode(errors="replace"))
    target.mkdir(parents=True, exist_ok=True)
    (target / LOCK).write_text(lock)
    (target / "pyproject.toml").write_text(f"[project]\ndependencies = {names!r}\n")
    (target / INDEX).write_text(read_settings().package_index)
    print(f"{len(hashes(lock))} packages are locked, {len(names)} of them are named in pyproject.toml")


def require_unpackable(lock: str, known: str) -> None:
    """Raise SettingsInvalid unless a lock holds packages by hash alone, and of what is built only what is ``known``."""
    found, ours = hashes(lock), hashes(known)
    for name in BUILT:
        if found.get(name, set()) - ours.get(name, set()):
            raise SettingsInvalid(
                f"{LOCK} has another {name} than the image of the tasks. It has no wheel, so installing it runs "
                "its code, which no task does: build the image of the tasks from this commit, and set "
                "it as ci-image in the settings"
            )


def hashes(lock: str) -> dict[str, set[str]]:
    """The hashes of each package of a lock; raises SettingsInvalid if a line of it is something else."""
    found: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n?", "", lock)).strip()):
        locked = _LOCKED.fullmatch(entry.strip())
        if not locked:
            raise SettingsInvalid(
                f"{LOCK} holds {entry.strip()[:80]!r}, expected only name==version with hashes; "
                "write the file with `make lock`"
            )
        name = re.sub(r"[-_.]+", "-", locked[1]).lower()
        found.setdefault(name, set()).update(re.findall(r"sha256:[0-9a-f]{64}", locked[3]))
    return found


def wanted(project: str) -> list[str]:
    """The dependencies that a pyproject.toml names; raises SettingsInvalid if one is an address or not text."""
    try:
        names = tomllib.loads(project)["project"]["dependencies"]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise SettingsInvalid(f"pyproject.toml has no list of dependencies under project: {error}") from None
    for name in names:
        if not isinstance(name, str) or not _WANTED.fullmatch(name):
            raise SettingsInvalid(f"pyproject.toml requires {name!r}, expected name==version")
    return list(names)
