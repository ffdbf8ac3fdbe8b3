"""The Git checkout of this code or of another folder, and the page of its repository."""

import subprocess
from pathlib import Path

DIRTY = "-dirty"


def page(repository: str) -> str:
    """The address of a repository's page: its clone URL without ``.git`` and trailing slashes."""
    return repository.rstrip("/").removesuffix(".git")


def head(folder: Path = Path(__file__).parent) -> str:
    """The commit of the checkout that contains ``folder``; an empty text without a checkout or git.

    It ends in ``-dirty`` if files differ from it.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={DIRTY}"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
