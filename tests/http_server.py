"""An HTTP server on a loopback port that answers as it is told: well, badly, or not to the end."""

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """One answer. ``breaks_after`` and ``stalls_after`` count the bytes of this answer's body."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = ""
    # A server that ignores Range sends all of it again.
    ranges: bool = False
    # A server that ignores If-Range sends the range of whatever there is now.
    if_range: bool = True
    # What Content-Length says, where it is not the truth; 0 sends none.
    length: int | None = None
    breaks_after: int | None = None
    stalls_after: int | None = None
    endless: bool = False


class HttpServer:
    """What it answers for each path, and what it was asked.

    ``answers`` are given in turn, and the last of them again and again.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stalled = threading.Event()
        self.released = threading.Event()

    def serve(self, path: str, *answers: Answer) -> str:
        """Answer so from now on, and forget what was asked so far; return the URL of ``path``."""
        self.answers[path] = list(answers)
        self.requests.clear()
        return self.url + path

    def ranges(self, path: str) -> list[str | None]:
        """Return the Range header of each request for ``path``."""
        return [headers.get("Range") for asked, headers in self.requests if asked == path]

    def next_answer(self, path: str) -> Answer:
        answers = self.answers.get(path, [Answer(status=404)])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def secure(server: ThreadingHTTPServer, certificate: Path | None) -> str:
    """Have a server speak TLS if there is a file of certificate and key; returns the scheme of its addresses."""
    if not certificate:
        return "http"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return "https"


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server answer while the body runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def serve_http(certificate: Path | None = None) -> Iterator[HttpServer]:
    """Run the server while the context lasts; with TLS where a file of certificate and key is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            # Closed with something unread, the connection would be reset.
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            served.requests.append((path, dict(self.headers)))
            try:
                self._answer(served.next_answer(path))
            except OSError:
                # The client has heard enough.
                self.close_connection = True

        def _answer(self, answer: Answer) -> None:
            body, status = answer.body, answer.status
            fresh = not answer.if_range or self.headers.get("If-Range", answer.etag) == answer.etag
            headers = dict(answer.headers)
            asked = self.headers.get("Range", "")
            if answer.ranges and asked and fresh:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                status = 206 if start < len(body) else 416
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
            if answer.etag:
                headers["ETag"] = answer.etag
            length = len(body) if answer.length is None else answer.length
            if answer.endless:
                headers["Transfer-Encoding"] = "chunked"
            elif length:
                headers["Content-Length"] = str(length)
            self.send_response(status)
            for name, value in {"Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True
            if self.command == "HEAD":
                return
            while answer.endless:
                self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            if answer.stalls_after is not None:
                self.wfile.write(body[: answer.stalls_after])
                self.wfile.flush()
                served.stalled.set()
                served.released.wait()
                return
            self.wfile.write(body[: answer.breaks_after])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        scheme = secure(server, certificate)
        served = HttpServer(f"{scheme}://127.0.0.1:{server.server_address[1]}")
        with running(server):
            try:
                yield served
            finally:
                served.released.set()
