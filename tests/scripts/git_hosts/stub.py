"""A Git host that answers as it is told, and remembers what it was asked."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.http_server import running


@dataclass(frozen=True)
class Answer:
    """A status with JSON, or with a text as it is."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What was asked: ``path`` is as it was sent, below the address of the API."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Stub:
    """The answers to a method and a path are given in turn, and the last of them again and again."""

    url: str
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[method, path] = list(answers)

    def next_answer(self, call: Call) -> Answer:
        left = self.answers.get((call.method, call.path), [Answer({"message": "Not Found"}, 404)])
        return left.pop(0) if len(left) > 1 else left[0]

    def made(self, method: str) -> list[Call]:
        return [each for each in self.calls if each.method == method]


@contextmanager
def serve_stub(base: str) -> Iterator[Stub]:
    """Serve an API whose paths begin with ``base``."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            where = urlsplit(self.path)
            path = where.path.removeprefix(base)
            body = json.loads(content) if content else None
            call = Call(self.command, path, dict(parse_qsl(where.query)), dict(self.headers), body)
            served.calls.append(call)
            answer = served.next_answer(call)
            is_text = isinstance(answer.body, str)
            sent = answer.body.encode() if is_text else json.dumps(answer.body).encode()
            kind = "text/html" if is_text else "application/json"
            self.send_response(answer.status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(sent)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(sent)

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PATCH(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Stub(f"http://127.0.0.1:{server.server_address[1]}{base}")
        with running(server):
            yield served
