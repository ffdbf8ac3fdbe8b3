"""A Git host for the tests: smart HTTP, a webhook as GitHub sends it, and commit statuses as GitHub takes them.

It runs in a pod, as ``python3 git_server.py FOLDER PORT``, with what it sends and asks for in the environment:
``WEBHOOK_URL``, ``WEBHOOK_SECRET``, ``TOKEN``. Repositories are served from FOLDER, where they are made when they are
first pushed to; one that holds a file ``private`` is read with the token alone. It is also its own post-receive hook:
``git_server.py --hook REPOSITORY``.
"""

import hashlib
import hmac
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NOBODY = "0" * 40
API = "/api/v3/repos/"


def git(*arguments: str) -> str:
    return subprocess.run(("git", *arguments), check=True, capture_output=True, text=True).stdout


def create(repository: Path) -> None:
    """An empty repository that takes pushes and tells of them."""
    git("init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    for setting in (
        *("http.receivepack", "receive.shallowUpdate", "receive.advertisePushOptions"),
        *("uploadpack.allowFilter", "uploadpack.allowReachableSHA1InWant"),
    ):
        git("-C", str(repository), "config", setting, "true")
    hook = repository / "hooks" / "post-receive"
    hook.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" --hook "{repository}"\n')
    hook.chmod(0o755)


def payload(repository: Path, before: str, after: str, ref: str) -> dict[str, Any]:
    """The body of a push event."""
    owner, name = repository.parent.name, repository.name.removesuffix(".git")
    page = f"{os.environ['EXTERNAL_URL']}/{owner}/{name}"
    reach = [after] if before == NOBODY else [f"{before}..{after}"]
    shas = [] if after == NOBODY else git("rev-list", "--reverse", "--max-count=20", *reach).split()
    commits = [commit(page, sha) for sha in shas]
    return {
        "ref": ref,
        "before": before,
        "after": after,
        "created": before == NOBODY,
        "deleted": after == NOBODY,
        "forced": False,
        "base_ref": None,
        "compare": f"{page}/compare/{before[:12]}...{after[:12]}",
        "commits": commits,
        "head_commit": commits[-1] if commits else None,
        "repository": {
            "name": name,
            "full_name": f"{owner}/{name}",
            "html_url": page,
            "clone_url": f"{page}.git",
            "default_branch": "main",
        },
        "pusher": {"name": "ada", "email": "ada@example.com"},
    }


def commit(page: str, sha: str) -> dict[str, Any]:
    author, email, time, message = git("log", "-1", "--format=%an%x00%ae%x00%aI%x00%B", sha).rstrip("\n").split("\0")
    changes = git("diff-tree", "--root", "--no-commit-id", "-r", "--name-status", "--no-renames", "-z", sha).split("\0")
    files: dict[str, list[str]] = {"added": [], "removed": [], "modified": []}
    for kind, path in zip(changes[::2], changes[1::2], strict=False):
        files[{"A": "added", "D": "removed"}.get(kind, "modified")].append(path)
    person = {"name": author, "email": email}
    return {"id": sha, "message": message, "timestamp": time, "url": f"{page}/commit/{sha}", "author": person, **files}


def deliver(body: bytes, delivery: str) -> int:
    """Send an event to the webhook; a redelivery is the same body under the same id."""
    digest = hmac.new(os.environ["WEBHOOK_SECRET"].encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "push",
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": f"sha256={digest}",
    }
    request = urllib.request.Request(os.environ["WEBHOOK_URL"], body, headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return int(answer.status)


def hook(repository: Path) -> None:
    """Tell of each ref that was pushed, unless with the option ``ci.skip``; who pushes sees what became of that."""
    if os.environ.get("GIT_PUSH_OPTION_0") == "ci.skip":
        return
    for line in sys.stdin:
        before, after, ref = line.split()
        body, delivery = json.dumps(payload(repository, before, after, ref)).encode(), str(uuid.uuid4())
        deliveries = repository / "deliveries"
        deliveries.mkdir(exist_ok=True)
        (deliveries / f"{len(list(deliveries.iterdir())):04}-{delivery}").write_bytes(body)
        try:
            print(f"webhook: {deliver(body, delivery)}")
        except OSError as error:
            print(f"webhook: {error}")


def login() -> str:
    """What git sends with the token, whose user is of no account."""
    return b64encode(f"git:{os.environ['TOKEN']}".encode()).decode()


class Handler(BaseHTTPRequestHandler):
    """Git's own CGI program for repositories, and a little of GitHub's API."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def _content(self) -> Iterator[bytes]:
        """The body, which git sends in chunks where it is long."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self) -> None:
        content = b"".join(self._content())
        if self.path.startswith(API):
            status, body = self._api(self.path.removeprefix(API), content)
            self._send(status, [("Content-Type", "application/json")], json.dumps(body).encode())
        else:
            self._git(content)

    do_GET = do_POST = _answer  # noqa: N815 the names of the base class

    def _api(self, path: str, content: bytes) -> tuple[int, Any]:
        owner, name, kind, *rest = path.split("/")
        repository = self.folder / owner / f"{name}.git"
        if self.headers.get("Authorization") != f"Bearer {os.environ['TOKEN']}":
            return 401, {"message": "Bad credentials"}
        if not repository.is_dir():
            return 404, {"message": "Not Found"}
        if kind == "statuses" and len(rest) == 1:
            file = repository / "statuses" / rest[0]
            found = json.loads(file.read_text()) if file.exists() else []
            if self.command == "POST":
                file.parent.mkdir(exist_ok=True)
                found.insert(0, json.loads(content))
                file.write_text(json.dumps(found))
                return 201, found[0]
            return 200, found
        if kind == "deliveries":
            found = sorted((repository / "deliveries").glob("*"))
            if self.command == "POST":
                [file] = [each for each in found if each.name.startswith(rest[0])]
                return 202, deliver(file.read_bytes(), file.name.partition("-")[2])
            return 200, [{"id": each.name[:4], **json.loads(each.read_text())} for each in found]
        return 404, {"message": "Not Found"}

    def _git(self, content: bytes) -> None:
        url = urlsplit(self.path)
        owner, name, *rest = url.path.lstrip("/").split("/")
        name = f"{name.removesuffix('.git')}.git"  # both are its address, as on GitHub
        repository = self.folder / owner / name
        if not repository.is_dir() and "git-receive-pack" in self.path:
            create(repository)
        private = "git-upload-pack" in self.path and (repository / "private").exists()
        if private and self.headers.get("Authorization") != f"Basic {login()}":
            self._send(401, [("WWW-Authenticate", "Basic")], b"")
            return
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": "/".join(("", owner, name, *rest)),
            "QUERY_STRING": url.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(content)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "ada",
        }
        done = subprocess.run(
            ("git", "http-backend"), input=content, stdout=subprocess.PIPE, env=environment, check=True
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self._send(status, [(name, value) for name, value in headers if name != "Status"], body)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    if sys.argv[1] == "--hook":
        os.chdir(sys.argv[2])
        hook(Path(sys.argv[2]))
        return
    Handler.folder = Path(sys.argv[1])
    ThreadingHTTPServer(("", int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
