"""Git, called so that nothing but its arguments and a token decides what it does."""

import os
import re
import subprocess
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from pipeline.checkout import page
from pipeline.core.errors import HostRefuses, SettingsInvalid

GitSecret = Annotated[
    Path | None,
    typer.Option(help="Folder of the Secret jukebox-git-host: a token and the repository it is for. May be empty."),
]

ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    # The volume may belong to another uid; and what the pushed code left in the repository is not run.
    "GIT_CONFIG_COUNT": "4",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.fsmonitor",
    "GIT_CONFIG_VALUE_2": "false",
    "GIT_CONFIG_KEY_3": "submodule.recurse",
    "GIT_CONFIG_VALUE_3": "false",
}
# The token goes from the file to git, through no argument and no log, and only for the repository that it is for: git
# says who asks, which after a redirection is another.
HELPER = """!f() {
  test "$1" = get || exit 0
  asked=$(cat)
  has() { printf '%s\\n' "$asked" | grep -qxF -e "$@"; }
  has "protocol=$JUKEBOX_GIT_PROTOCOL" && has "host=$JUKEBOX_GIT_HOST" || exit 0
  has "path=$JUKEBOX_GIT_PATH" -e "path=$JUKEBOX_GIT_PATH.git" || exit 0
  printf 'username=git\\npassword=%s\\n' "$(cat "$JUKEBOX_TOKEN_FILE")"
}; f"""
# Of this machine's own repositories, which may belong to another uid, too.
UPLOAD_PACK = "git -c 'safe.directory=*' upload-pack"


def is_full_hash(commit: str) -> bool:
    """Tell whether this is the full hash of a commit, of either kind: nothing shorter is of one commit for ever."""
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) is not None


def token_file(secret: Path | None, repository: str) -> Path | None:
    """The file with the token in a folder of the Secret jukebox-git-host, or None if there is no token.

    Raises SettingsInvalid if it is not for ``repository``: a token goes nowhere but where its Secret says.
    """
    file = secret / "token" if secret else None
    if not file or not file.is_file() or not file.read_text().strip():
        return None
    named = file.with_name("repository")
    meant = named.read_text().strip() if named.is_file() else ""
    if page(meant) != page(repository):
        raise SettingsInvalid(
            f"The token in the Secret jukebox-git-host is for {meant or 'an unnamed repository'}, expected "
            f"{repository}, the repository of the settings. Store a token for it with `jukebox secrets "
            "--git-token-file FILE`, which records the repository, too"
        )
    return file


def git(folder: Path, *arguments: str) -> bytes:
    """Run git on what is in ``folder``, without any network; return what it prints.

    Raises SettingsInvalid with git's words where it fails, or is not there.
    """
    # It would fetch what a repository lacks from where that repository says.
    done = _run(folder, arguments, {"GIT_ALLOW_PROTOCOL": "none"})
    if done.returncode:
        raise SettingsInvalid(f"git {arguments[0]} failed in {folder}: {_words(done)}")
    return done.stdout


def commit_time(folder: Path, commit: str) -> str:
    """When a commit was made (the committer's date, ISO 8601 with its zone); nothing if it is not in ``folder``."""
    if not is_full_hash(commit):
        return ""
    try:
        return git(folder, "show", "--no-patch", "--no-show-signature", "--format=%cI", commit, "--").decode().strip()
    except SettingsInvalid:
        return ""


def fetch(folder: Path, repository: str, *references: str, secret: Path | None, how: str, check: bool = False) -> None:
    """Fetch ``references`` (branches as refs/heads/…, full hashes) into the repository in ``folder``.

    ``secret`` is a folder of the Secret jukebox-git-host, ``how`` the option that says how much of the history. With
    ``check``, each object is looked at as `git fsck` does. Raises HostRefuses with git's words where it fails,
    SettingsInvalid where the Secret is for another repository.
    """
    file, where = token_file(secret, repository), urlsplit(page(repository))
    credentials: tuple[str, ...] = ("-c", "credential.helper=", "-c", "credential.useHttpPath=true")
    environment = {}
    if file:
        credentials += ("-c", f"credential.helper={HELPER}")
        environment = {
            "JUKEBOX_TOKEN_FILE": str(file),
            "JUKEBOX_GIT_PROTOCOL": where.scheme,
            "JUKEBOX_GIT_HOST": where.netloc,
            "JUKEBOX_GIT_PATH": unquote(where.path).strip("/"),
        }
    objects = ("-c", f"fetch.fsckObjects={str(check).lower()}")
    options = ("--quiet", "--no-tags", "--no-recurse-submodules", how, f"--upload-pack={UPLOAD_PACK}")
    done = _run(folder, (*credentials, *objects, "fetch", *options, "--", repository, *references), environment)
    if done.returncode:
        wanted = " and ".join(references)
        raise HostRefuses(
            f"{wanted} cannot be fetched from the repository: {_words(done)}\n"
            "Check that it was pushed, that the repository's address is right, and that the token may read it"
            + ("." if file else f"; there is none in {secret or 'a Secret'}.")
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
    return done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
