"""Git's own server on a loopback port, which can lack what a Git host has, and shows what it was asked."""

import base64
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

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
        self.git("push", "--quiet", "--force", str(self.bare), f"HEAD:refs/heads/{branch}")
        return self.git("rev-parse", "HEAD")


class Handler(BaseHTTPRequestHandler):
    """Git's own CGI program for the repositories below ``folder``."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def answer(self) -> None:
        """Answer as git does."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": url.path,
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(content)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        command = ("git", "http-backend")
        done = subprocess.run(command, input=content, stdout=subprocess.PIPE, env=environment, check=True)
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self.send(status, [(name, value) for name, value in headers if name != "Status"], body)

    def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
        pass


@contextmanager
def serve_git(folder: Path, *, filters: bool = True, certificate: Path | None = None) -> Iterator[GitServer]:
    """Serve an empty repository in ``folder``; without ``filters`` as a server that cannot leave objects out.

    With TLS where a file of certificate and key is given.
    """
    bare, work = folder / "acme" / "jukebox.git", folder / "work"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(work)], check=True)
    allowed = {"uploadpack.allowFilter": filters, "uploadpack.allowReachableSHA1InWant": True, "http.receivepack": True}
    for name, value in allowed.items():
        subprocess.run(["git", "-C", str(bare), "config", name, str(value).lower()], check=True)

    class Recorder(Handler):
        def answer(self) -> None:
            served.requests.append(self.path)
            password = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
            for begin, instead in served.redirects.items():
                if self.path.startswith(begin):
                    self.send(301, [("Location", instead + self.path.removeprefix(begin))], b"")
                    return
            served.shown.append(password)
            if served.token and password != f"git:{served.token}":
                self.send(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
            else:
                super().answer()

        do_GET = do_POST = answer  # noqa: N815 the names of the base class

    Recorder.folder = folder
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        scheme = secure(server, certificate)
        served = GitServer(f"{scheme}://127.0.0.1:{server.server_address[1]}/acme/jukebox.git", bare, work)
        with running(server):
            yield served
