"""Git, called so that nothing but its arguments and a token decides what it does."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
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
    "GIT_CONFIG_COUNT": "5",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "core.hooksPath",
    "GIT_CONFIG_VALUE_1": os.devnull,
    "GIT_CONFIG_KEY_2": "core.fsmonitor",
    "GIT_CONFIG_VALUE_2": "false",
    "GIT_CONFIG_KEY_3": "submodule.recurse",
    "GIT_CONFIG_VALUE_3": "false",
    "GIT_CONFIG_KEY_4": "gpg.format",
    "GIT_CONFIG_VALUE_4": "ssh",
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
RECEIVE_PACK = "git -c 'safe.directory=*' receive-pack"
# What a repository lacks, git would fetch from where that repository says.
OFFLINE = {"GIT_ALLOW_PROTOCOL": "none"}
ROLES = ("AUTHOR", "COMMITTER")
NAME = "jukebox"  # the author and committer of our commits


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


def git(
    folder: Path, *arguments: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None
) -> bytes:
    """Run git on what is in ``folder``, without any network; return what it prints.

    Raises SettingsInvalid with git's words where it fails, or is not there.
    """
    done = _run(folder, arguments, {**OFFLINE, **(environment or {})}, stdin)
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


def fetch(
    folder: Path, repository: str, *references: str, secret: Path | None, how: str = "", check: bool = False
) -> None:
    """Fetch ``references`` (branches as refs/heads/…, full hashes) into the repository in ``folder``.

    ``secret`` is a folder of the Secret jukebox-git-host, ``how`` the option that says how much of the history, if not
    all of it. With ``check``, each object is looked at as `git fsck` does. Raises HostRefuses with git's words where it
    fails, SettingsInvalid where the Secret is for another repository.
    """
    objects = ("-c", f"fetch.fsckObjects={str(check).lower()}")
    options = (
        "--quiet",
        "--no-tags",
        "--no-recurse-submodules",
        f"--upload-pack={UPLOAD_PACK}",
        *([how] if how else []),
    )
    done = _ask(folder, repository, secret, *objects, "fetch", *options, "--", repository, *references)
    if done.returncode:
        wanted = " and ".join(references)
        raise HostRefuses(
            f"{wanted} cannot be fetched from the repository: {_words(done)}\n"
            "Check that it was pushed, that the repository's address is right, and that the token may read it"
            + _without(secret, repository)
        )


@dataclass(frozen=True)
class Signing:
    """The key that signs commits, and whose it is: the Git host knows the key and the email of one of its users.

    Attributes:
        key: file of a private ssh key without a passphrase.
    """

    key: Path
    name: str
    email: str


class Clone:
    """A bare clone in an empty folder, which gets what ``fetch`` is asked for. It has no work tree, and no code runs.

    ``secret`` is a folder of the Secret jukebox-git-host, or None. All methods raise SettingsInvalid with git's words
    if something that is not there is asked of the clone; those that ask the host raise HostRefuses if it refuses.
    """

    def __init__(self, folder: Path, repository: str, secret: Path | None) -> None:
        self.folder, self.repository, self.secret = folder, repository, secret
        git(folder, "init", "--quiet", "--bare", "--template=", ".")

    def fetch(self, *branches: str, depth: int | None = None) -> None:
        """Fetch branches, or commits by their full hashes: the last ``depth`` commits of each, or all of them."""
        references = [each if is_full_hash(each) else f"refs/heads/{each}" for each in branches]
        # An option of its own gets the rest of a history of which the clone has a part.
        how = f"--depth={depth}" if depth else "--unshallow" if (self.folder / "shallow").exists() else ""
        fetch(self.folder, self.repository, *references, secret=self.secret, how=how)

    def tip(self, branch: str) -> str | None:
        """Ask the host for the newest commit of a branch; None if there is no such branch."""
        reference = f"refs/heads/{branch}"
        options = ("--quiet", f"--upload-pack={UPLOAD_PACK}", "--", self.repository, reference)
        done = _ask(self.folder, self.repository, self.secret, "ls-remote", *options)
        if done.returncode:
            raise HostRefuses(
                f"The branch {branch} cannot be read from the repository: {_words(done)}\n"
                "Check that the repository's address is right, and that the token may read it"
                + _without(self.secret, self.repository)
            )
        # A name in another folder may end as this one does.
        lines = (line.split("\t") for line in done.stdout.decode().splitlines())
        return next((commit for commit, name in lines if name == reference), None)

    def read(self, commit: str, path: str) -> bytes | None:
        """Return the content of a file of a commit; None if the commit has no such file."""
        entry = git(self.folder, "ls-tree", "-z", "--full-tree", commit, "--", path).decode(errors="surrogateescape")
        mode, kind, name = entry.partition("\t")[0].split() if entry else ("", "", "")
        # Neither a folder nor a link.
        return git(self.folder, "cat-file", kind, name) if kind == "blob" and mode.startswith("100") else None

    def changed(self, old: str, new: str) -> list[str]:
        """Return the paths of the files that differ between two commits."""
        options = ("-r", "-z", "--no-renames", "--name-only", old, new)
        return git(self.folder, "diff-tree", *options).decode(errors="surrogateescape").split("\0")[:-1]

    def is_ancestor(self, old: str, new: str) -> bool:
        """Tell whether ``new`` is ``old`` or descends from it. Both must have been fetched, with the whole history."""
        command = ("merge-base", "--is-ancestor", old, new)
        done = _run(self.folder, command, OFFLINE)
        if done.returncode not in (0, 1):
            raise SettingsInvalid(f"git {command[0]} failed in {self.folder}: {_words(done)}")
        return done.returncode == 0

    def log(self, revision: str, path: str) -> list[str]:
        """Return the commits up to ``revision`` that changed a file, newest first. It needs the whole history.

        Of a merge, git follows the side that has the file's content, so this is what the branch had one after another.
        """
        options = ("--topo-order", "--no-show-signature", "--format=%H", revision, "--", f":(literal,top){path}")
        return git(self.folder, "log", *options).decode().split()

    def commit_file(self, parent: str, path: str, content: bytes, message: str, signing: Signing | None = None) -> str:
        """Make a commit that changes one file of its parent, and return its hash.

        It is signed if a key is given. Its dates are now, or those of GIT_AUTHOR_DATE and GIT_COMMITTER_DATE, with
        which equal inputs make the same commit.
        """
        email = signing.email if signing else f"{NAME}@{urlsplit(self.repository).hostname or 'localhost'}"
        name = signing.name if signing else NAME
        who = {f"GIT_{role}_NAME": name for role in ROLES} | {f"GIT_{role}_EMAIL": email for role in ROLES}
        with TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
            git(self.folder, "read-tree", parent, environment=index)
            blob = git(self.folder, "hash-object", "-w", "--stdin", stdin=content).decode().strip()
            git(self.folder, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", environment=index)
            tree = git(self.folder, "write-tree", environment=index).decode().strip()
        options = ("-p", parent, "-F", "-", *([f"-S{signing.key.absolute()}"] if signing else []))
        return git(self.folder, "commit-tree", tree, *options, stdin=message.encode(), environment=who).decode().strip()

    def push(self, branch: str, commit: str, expected: str | None) -> bool:
        """Move a branch of the host from ``expected`` to ``commit``, and tell whether the branch is there now.

        It moves back as well as forward. If ``expected`` is None, the branch must not exist. False: somebody else has
        moved the branch, so look again. Raises HostRefuses with the host's words if the branch is where it was.
        """
        reference = f"refs/heads/{branch}"
        lease = f"--force-with-lease={reference}:{expected or ''}"
        options = ("--porcelain", lease, f"--receive-pack={RECEIVE_PACK}", "--", self.repository)
        done = _ask(self.folder, self.repository, self.secret, "push", *options, f"{commit}:{reference}")
        if not done.returncode:
            return True
        # Hosts have several words for a lost race, and an answer can be lost after the push: the branch itself says it.
        found = self.tip(branch)
        if found == commit:
            return True
        if found != expected:
            return False
        raise HostRefuses(
            f"The branch {branch} cannot be pushed to the repository: {_words(done)}\n"
            "Check that the token may push, and that no rule of the host protects this branch from it"
            + _without(self.secret, self.repository)
        )


def _ask(folder: Path, repository: str, secret: Path | None, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git with what it needs to be let in by the host of ``repository``."""
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
    return _run(folder, (*credentials, *arguments), environment)


def _without(secret: Path | None, repository: str) -> str:
    """How a message about a refusal ends."""
    return "." if token_file(secret, repository) else f"; there is none in {secret or 'a Secret'}."


def _run(
    folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str], stdin: bytes | None = None
) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env={**os.environ, **ENVIRONMENT, **environment},
            input=stdin,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise SettingsInvalid(f"git cannot be run in {folder}: {error.strerror}") from None


def _words(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
