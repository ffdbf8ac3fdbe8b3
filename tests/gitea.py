"""A real Gitea: a process of this machine for ``make test``, and the same program in a pod of the cluster tier."""

import base64
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.cluster import build

ADMIN = "ada"
PROGRAM = Path("jukebox.test") / "gitea"  # in the folder of the part
OPTIONS = Path("config") / "code.gitea.io" / "gitea"  # languages, labels and licences: it does not start without them
PASSWORD = secrets.token_urlsafe(16)  # of the users that are made here; only to make their tokens
SETTINGS = """\
RUN_MODE = prod
WORK_PATH = {folder}
[server]
HTTP_ADDR = {address}
HTTP_PORT = {port}
ROOT_URL = {url}/
PUBLIC_URL_DETECTION = never
STATIC_ROOT_PATH = {static}
DISABLE_SSH = true
OFFLINE_MODE = true
LFS_START_SERVER = false
[database]
DB_TYPE = sqlite3
PATH = {folder}/gitea.db
SQLITE_JOURNAL_MODE = WAL
[security]
INSTALL_LOCK = true
SECRET_KEY = {secret}
PASSWORD_HASH_ALGO = pbkdf2$1000$32
PASSWORD_COMPLEXITY = off
[oauth2]
ENABLED = false
[service]
DISABLE_REGISTRATION = true
[repository]
ROOT = {folder}/repositories
DEFAULT_BRANCH = main
[git.config]
; as other Git hosts, for a fork that is made of a shallow clone
receive.shallowUpdate = true
[webhook]
ALLOWED_HOST_LIST = loopback, private
[log]
MODE = console
LEVEL = info
[indexer]
ISSUE_INDEXER_TYPE = db
[queue]
TYPE = channel
[actions]
ENABLED = false
[packages]
ENABLED = false
[i18n]
LANGS = en-US
NAMES = English
[cron.update_checker]
ENABLED = false
"""


def settings(folder: str | Path, static: str | Path, url: str, address: str, port: int) -> str:
    """The text of its app.ini, to which it adds keys that it generates.

    Args:
        folder: what it writes is below.
        static: the folder that holds its ``options``.
        url: how others address it.
        address: the local address that it listens at, with ``port``.
    """
    secret = secrets.token_hex(16)
    return SETTINGS.format(folder=folder, static=static, url=url, address=address, port=port, secret=secret)


# The first arguments of its commands that make the administrator, and print a token among lines of its log.
CREATE_ADMIN = (
    *("admin", "user", "create", "--admin", f"--username={ADMIN}", f"--email={ADMIN}@example.com"),
    *("--random-password", "--must-change-password=false"),
)
CREATE_TOKEN = (
    *("admin", "user", "generate-access-token", f"--username={ADMIN}", "--token-name=tests"),
    *("--scopes=all", "--raw"),
)


class Refused(RuntimeError):
    """Gitea refuses a request; ``status`` is its answer's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def token_in(said: str) -> str:
    """The token in what CREATE_TOKEN has printed."""
    return str(re.findall(r"\b[0-9a-f]{40}\b", said)[-1])


@dataclass(frozen=True)
class Gitea:
    """A server, and one of its users.

    Attributes:
        url: without a slash at its end.
        token: of the user; of the administrator with all rights.
    """

    url: str
    token: str = field(repr=False)
    name: str = ADMIN

    def api(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The answer of the API to a request, or None if it is empty. Raises Refused."""
        return self._request(method, path, body, headers={"Authorization": f"token {self.token}"}, **options)

    def _request(self, method: str, path: str, body: Any, **options: Any) -> Any:
        with requests.Session() as http:
            http.trust_env = False  # neither a proxy nor the user's .netrc is for it
            answer = http.request(method, f"{self.url}/api/v1/{path}", json=body, timeout=60, **options)
        if not answer.ok:
            raise Refused(answer.status_code, f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if answer.content else None

    def repository(self, name: str, *, private: bool = False) -> str:
        """Make a repository, ``owner/name``, and its organisation unless they are there; return its clone URL."""
        owner, _, repository = name.partition("/")
        self._make("orgs", {"username": owner})
        self._make(f"orgs/{owner}/repos", {"name": repository, "private": private})
        return f"{self.url}/{name}.git"

    def user(self, name: str, *scopes: str) -> "Gitea":
        """The same server for a user, who is made if there is none, with a new token of these scopes (default: all)."""
        email = f"{name}@example.com"
        made = {"username": name, "email": email, "password": PASSWORD, "must_change_password": False}
        self._make("admin/users", made)
        token = {"name": secrets.token_hex(8), "scopes": scopes or ("all",)}
        answer = self._request("POST", f"users/{name}/tokens", token, auth=(name, PASSWORD))
        return Gitea(self.url, answer["sha1"], name)

    def _make(self, path: str, body: Any) -> None:
        """Make what may be there already."""
        try:
            self.api("POST", path, body)
        except Refused as refused:
            if refused.status not in (409, 422) or "already exists" not in str(refused):
                raise

    def allow(self, repository: str, user: str, permission: str = "write") -> None:
        """Give a user a right to a repository: read, write or admin."""
        self.api("PUT", f"repos/{repository}/collaborators/{user}", {"permission": permission})

    def webhook(self, repository: str, url: str, secret: str, *events: str) -> int:
        """Have events of a repository sent, signed by the secret (default: pushes); return the webhook's number."""
        config = {"url": url, "content_type": "json", "secret": secret}
        body = {"type": "gitea", "config": config, "events": events or ("push",), "active": True}
        return int(self.api("POST", f"repos/{repository}/hooks", body)["id"])

    def protect(
        self, repository: str, branch: str = "main", *, approvals: int = 0, checks: tuple[str, ...] = ()
    ) -> None:
        """Let a branch be changed by pull requests alone, with so many approvals and these statuses."""
        rule = {
            "rule_name": branch,
            "enable_push": False,
            "required_approvals": approvals,
            "enable_status_check": bool(checks),
            "status_check_contexts": checks,
            "block_admin_merge_override": True,
        }
        self.api("POST", f"repos/{repository}/branch_protections", rule)

    @property
    def header(self) -> str:
        """The header with which git shows the token; no part of an argument or an address."""
        return f"Authorization: Basic {base64.b64encode(f'{self.name}:{self.token}'.encode()).decode()}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which git is this user of this server, and reads nobody's configuration."""
        return {
            **{f"GIT_{who}_NAME": self.name for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": f"{self.name}@example.com" for who in ("AUTHOR", "COMMITTER")},
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{self.url}/.extraHeader",
            "GIT_CONFIG_VALUE_0": self.header,
        }


def program() -> tuple[Path, str]:
    """The folder with the program, which is built if Go is there; and why there is none."""
    if not build.folder("gitea").exists() and not shutil.which("go"):
        return Path(), "Go is not installed, so Gitea cannot be built: https://go.dev/doc/install"
    try:
        return build.build("gitea"), ""
    except RuntimeError as error:
        return Path(), f"Gitea cannot be built: {error}"


@contextlib.contextmanager
def serve_gitea(folder: Path, built: Path) -> Iterator[Gitea]:
    """Run an empty one in ``folder``, which is not there yet; yields it for its administrator."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    (folder / "options").symlink_to(built / OPTIONS)
    url, file = f"http://127.0.0.1:{port}", folder / "app.ini"
    file.write_text(settings(folder, folder, url, "127.0.0.1", port))
    # It refuses to be root, which a test may be: nothing of it lasts.
    environment = {**os.environ, "HOME": str(folder), "GITEA_I_AM_BEING_UNSAFE_RUNNING_AS_ROOT": "true"}
    command = (built / PROGRAM, f"--config={file}")
    for arguments in (("migrate",), CREATE_ADMIN, CREATE_TOKEN):
        said = build.run(*command, *arguments, env=environment)
    token = token_in(said)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "web"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until_healthy(url, process, folder / "log")
        yield Gitea(url, token)
    finally:
        process.kill()
        process.wait()


@retry(
    retry=retry_if_exception_type(requests.RequestException),
    stop=stop_after_delay(120),
    wait=wait_fixed(0.05),
    reraise=True,
)
def _until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"Gitea ended with {process.returncode}:\n{log.read_text()[-3000:]}")
    with requests.Session() as http:
        http.trust_env = False
        http.get(f"{url}/api/healthz", timeout=5).raise_for_status()
