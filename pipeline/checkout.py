"""The Git checkout that this code, or another folder, lies in, and the page of its repository."""

import subprocess
from pathlib import Path

DIRTY = "-dirty"


def page(repository: str) -> str:
    """The address of a repository's page: that by which it is cloned, without the ending and the slashes behind it."""
    return repository.rstrip("/").removesuffix(".git")


def head(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout that ``folder`` lies in; nothing without a checkout or git.

    It ends in ``-dirty`` where files differ from it.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={DIRTY}"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
