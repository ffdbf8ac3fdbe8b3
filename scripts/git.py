"""Git, called so that nothing but its arguments and a token decides what it does."""

import os
import re
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import HostRefuses, SettingsInvalid

TokenFile = Annotated[Path | None, typer.Option(help="File with a token that may read it; missing: it is public.")]

ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    # The volume may belong to another uid; and what the pushed code left in the repository is not run.
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.fsmonitor",
    "GIT_CONFIG_VALUE_2": "false",
}
# The token goes from the file to git, through no argument and no log. The first, empty one forgets others.
HELPER = """!f() { test "$1" != get || printf 'username=git\\npassword=%s\\n' "$(cat "$JUKEBOX_TOKEN_FILE")"; }; f"""


def is_full_hash(commit: str) -> bool:
    """Tell whether this is the full hash of a commit, of either kind: nothing shorter is of one commit for ever."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) is not None


def git(folder: Path, *arguments: str) -> bytes:
    """Run git on what is in ``folder``, without any network; return what it prints.

    Raises SettingsInvalid with git's words where it fails, or is not there.
    """
    # It would fetch what a repository lacks from where that repository says.
    done = _run(folder, arguments, {"GIT_ALLOW_PROTOCOL": "none"})
    if done.returncode:
        raise SettingsInvalid(f"git {arguments[0]} fails in {folder}: {_words(done)}")
    return done.stdout


def commit_time(folder: Path, commit: str) -> str:
    """When a commit was made (the committer's date, ISO 8601 with its zone); nothing if it is not in ``folder``."""
    if not is_full_hash(commit):
        return ""
    try:
        return git(folder, "show", "--no-patch", "--no-show-signature", "--format=%cI", commit, "--").decode().strip()
    except SettingsInvalid:
        return ""


def fetch(folder: Path, repository: str, *references: str, token_file: Path | None, how: str) -> None:
    """Fetch ``references`` (branches as refs/heads/…, full hashes) into the repository in ``folder``.

    ``how`` is the option that says how much of the history. Raises HostRefuses with git's words where it fails.
    """
    authenticated = token_file is not None and token_file.is_file()
    credentials = ("-c", "credential.helper=", *(("-c", f"credential.helper={HELPER}") if authenticated else ()))
    environment = {"JUKEBOX_TOKEN_FILE": str(token_file)}
    arguments = (*credentials, "fetch", "--quiet", "--no-tags", how, "--", repository, *references)
    done = _run(folder, arguments, environment)
    if done.returncode:
        wanted = " and ".join(references)
        raise HostRefuses(
            f"{wanted} cannot be fetched from the repository: {_words(done)}\n"
            "Check that it was pushed there, the repository's address, and that the token may read it"
            + ("." if authenticated else f"; there is none in {token_file or 'a file'}.")
        )


def _run(folder: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, **environment},
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise SettingsInvalid(f"git cannot be run in {folder}: {error.strerror}") from None


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode(errors="replace").strip() or f"it ends with {done.returncode}"
