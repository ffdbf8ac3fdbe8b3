"""A real Git server on a loopback port, that of the cluster's tests."""

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path

from tests.cluster import git_server
from tests.http_server import running, secure

IDENTITY = {f"GIT_{who}_{what}": "Ada" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
NOBODYS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@dataclass
class GitServer:
    """A repository that is served, with a work tree to push from. With ``token`` nobody else may read it."""

    url: str
    bare: Path
    work: Path
    token: str = ""
    requests: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)  # user and password of each request, or nothing
    redirects: dict[str, str] = field(default_factory=dict)  # the begin of a path, and of the address instead

    def git(self, *arguments: str) -> str:
        """Run git in the work tree; return what it prints."""
        environment = {**os.environ, **IDENTITY, **NOBODYS}
        done = subprocess.run(
            ["git", *arguments], cwd=self.work, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def push(self, message: str = "Change", branch: str = "main", **files: str) -> str:
        """Commit these files (a dash for a dot in the name) on what is checked out, push it, and return its hash."""
        for name, text in (files or {"file-txt": message}).items():
            self.work.joinpath(name.replace("-", ".")).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        self.git("push", "--quiet", "--force", "--push-option=ci.skip", str(self.bare), f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")


@contextmanager
def serve_git(folder: Path, *, filters: bool = True, certificate: Path | None = None) -> Iterator[GitServer]:
    """Serve an empty repository in ``folder``; without ``filters`` as a server that cannot leave objects out.

    With TLS where a file of certificate and key is given.
    """
    bare, work = folder / "acme" / "jukebox.git", folder / "work"
    git_server.create(bare)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(work)], check=True)
    allowed = ("config", "uploadpack.allowFilter", str(filters).lower())
    subprocess.run(["git", "-C", str(bare), *allowed], check=True)

    class Handler(git_server.Handler):
        def _git(self, content: bytes) -> None:
            served.requests.append(self.path)
            password = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            for begin, instead in served.redirects.items():
                if self.path.startswith(begin):
                    self._send(301, [("Location", instead + self.path.removeprefix(begin))], b"")
                    return
            served.shown.append(password)
            if served.token and password != f"git:{served.token}":
                self._send(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
            else:
                super()._git(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    Handler.folder = folder
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        scheme = secure(server, certificate)
        served = GitServer(f"{scheme}://127.0.0.1:{server.server_address[1]}/acme/jukebox.git", bare, work)
        with running(server):
            yield served
