"""The Git checkout that this code lies in, where it lies in one."""

import subprocess
from pathlib import Path

DIRTY = "-dirty"


def head() -> str:
    """The checkout's commit, with ``-dirty`` where files differ from it; nothing without a checkout or git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={DIRTY}"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
