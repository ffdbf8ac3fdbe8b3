"""A proxy before a Git host that fails as it is told: before a request has its effect, or after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from tests.http_server import running

KEPT = ("content-type", "www-authenticate", "location", "link")


@dataclass(frozen=True)
class Fault:
    """What happens to the first request with this method and this text in its path.

    Attributes:
        after: whether the host gets the request first.
        status: what is answered; 0: the connection is cut.
    """

    method: str
    path: str
    after: bool
    status: int = 502


@dataclass
class Faulty:
    """The proxy: its address, the faults that are still to come, and what passed or failed."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def meet(self, method: str, path: str) -> Fault | None:
        """The fault that a request meets, which the next one does not."""
        found = next((each for each in self.faults if each.method == method and each.path in path), None)
        if found:
            self.faults.remove(found)
        return found

    @property
    def writes(self) -> list[str]:
        """The requests of the API that have an effect."""
        return [each for each in self.requests if not each.startswith("GET") and "/api/" in each]


@contextmanager
def serve_faulty(host: str) -> Iterator[Faulty]:
    """Serve as the host at this address does, but for the faults."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            served.requests.append(f"{self.command} {self.path}")
            body = self._body()
            fault = next(
                (each for each in served.faults if each.method == self.command and each.path in self.path), None
            )
            if fault:
                served.faults.remove(fault)
            if not fault or fault.after:
                answer = self._ask(body)
                status, content = answer.status_code, answer.content
                headers = {name: value for name, value in answer.headers.items() if name.lower() in KEPT}
            if fault and not fault.status:
                self.close_connection = True
                return
            if fault:
                status, content, headers = fault.status, b"<html>bad gateway</html>", {"Content-Type": "text/html"}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True

        def do_GET(self) -> None:
            self._pass()

        def do_POST(self) -> None:
            self._pass()

        def do_PATCH(self) -> None:
            self._pass()

        def do_PUT(self) -> None:
            self._pass()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _ask(self, body: bytes) -> requests.Response:
            left_out = ("host", "content-length", "transfer-encoding", "accept-encoding", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            with requests.Session() as http:
                http.trust_env = False
                headers["Accept-Encoding"] = "identity"
                return http.request(self.command, host + self.path, headers=headers, data=body, allow_redirects=False)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Faulty(f"http://127.0.0.1:{server.server_address[1]}")
        with running(server):
            yield served
