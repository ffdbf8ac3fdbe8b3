"""What stands before the listener, as an overlay has it: its nginx, with its command and configuration, and a stand-in.

Each test is a client of its own, by what the router adds to X-Forwarded-For.
"""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from scripts.replay import Facts, Kind, build_event
from tests.cluster.node import wait
from tests.http_server import running
from tests.manifests import building
from tests.manifests.building import of_kind

LARGEST, BURST = 64 * 1024, 5
SETTINGS = {"event-max-size": "64k", "event-rate": "1r/m", "event-burst": str(BURST)}
CLIENTS = (f"198.51.100.{number}" for number in itertools.count(1))


@dataclass
class Proxy:
    """Where nginx listens, and what has come to the stand-in of the listener: method, path, headers, body."""

    port: int
    log: Path
    came: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def send(
        self, body: Any = b"{}", *, client: str, method: str = "POST", path: str = "/", **headers: str
    ) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            known = {"X-Forwarded-For": client, **headers}
            return session.request(method, f"http://127.0.0.1:{self.port}{path}", data=body, headers=known, timeout=60)

    def open(self, client: str, *lines: str) -> socket.socket:
        """A connection whose request has begun and does not end."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = ("POST / HTTP/1.1", "Host: jukebox", f"X-Forwarded-For: {client}", "Content-Length: 100", *lines)
        connection.sendall("\r\n".join((*head, "", "{")).encode())
        return connection


@pytest.fixture(scope="module")
def proxy(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not program:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("proxy")
    overlay = building.copy(folder / "fork", SETTINGS) / "manifests/overlays/openshift-ai/prod"
    resources = building.build(kubectl, overlay)
    [config] = [
        each for each in of_kind(resources, "ConfigMap") if each["metadata"]["name"] == "jukebox-listener-proxy"
    ]
    [deployment] = of_kind(resources, "Deployment")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            made.came.append((self.command, self.path, dict(self.headers), body))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with socket.socket() as free, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        made = Proxy(port, folder / "log")
        here = {
            "listen 8080;": f"listen 127.0.0.1:{port};",
            "http://jukebox-listener:8080": f"http://127.0.0.1:{server.server_port}",
            "root /config;": f"root {folder};",
        }
        # Started by root, it would take another user, who may not read the folder.
        config["data"]["nginx.conf"] += "user root;\n" if os.geteuid() == 0 else ""
        for name, text in config["data"].items():
            for there, own in here.items():
                assert name != "nginx.conf" or there in text, there
                text = text.replace(there, own)
            (folder / name).write_text(text)
        (folder / "run").mkdir()
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        places = {"nginx": program, "/run/nginx/": f"{folder}/run/", "/config/nginx.conf": f"{folder}/nginx.conf"}
        command = [places.get(word, word) for word in container["command"]]
        free.close()
        with running(server), made.log.open("w") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log)
            try:

                def alive() -> bool:
                    assert started.poll() is None, made.log.read_text()
                    return made.send(client="", method="GET", path="/proxy-live").status_code == 200

                wait("nginx", alive)
                yield made
            finally:
                started.terminate()
                started.wait()


@pytest.fixture
def client(proxy: Proxy) -> str:
    """A client that has sent nothing yet."""
    proxy.came.clear()
    return next(CLIENTS)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_event_reaches_the_listener_as_it_was_sent(proxy: Proxy, client: str, kind: Kind) -> None:
    event = build_event(kind, Facts(repository="https://github.com/acme/jukebox", commit="c" * 40), "the-secret-of-it")
    # Beyond what is kept in memory.
    body = event.body + b" " * 20_000 + "♥".encode()
    answer = proxy.send(body, client=client, **event.headers)
    assert answer.status_code == 202
    [(method, path, headers, came)] = proxy.came
    assert (method, path, came) == ("POST", "/", body)
    assert {key.lower(): value for key, value in event.headers.items()}.items() <= {
        key.lower(): value for key, value in headers.items()
    }.items()


def test_the_largest_event_passes_and_a_larger_one_is_refused_before_the_listener(proxy: Proxy, client: str) -> None:
    assert proxy.send(b"x" * LARGEST, client=client).status_code == 202
    proxy.came.clear()
    # Of a length that is told, and in chunks.
    larger = b"x" * (LARGEST + 1)
    for body in (larger, (larger[at : at + 4096] for at in range(0, len(larger), 4096))):
        answer = proxy.send(body, client=client)
        assert answer.status_code == 413
        assert answer.text == "The event is larger than 64k bytes, the setting event-max-size.\n"
    assert proxy.came == []


def test_one_client_sends_no_more_than_it_may_and_another_is_not_affected(proxy: Proxy, client: str) -> None:
    answers = [proxy.send(client=client) for _ in range(BURST + 2)]
    assert [answer.status_code for answer in answers] == [*[202] * (BURST + 1), 429]
    told = "One client may send 1r/m and 5 at once, the settings event-rate and event-burst.\n"
    assert answers[-1].text == told
    assert len(proxy.came) == BURST + 1
    assert proxy.send(client=next(CLIENTS)).status_code == 202


def test_who_makes_up_who_it_is_stays_the_same_client(proxy: Proxy, client: str) -> None:
    """The router adds an address, behind those that the client has made up."""
    answers = [proxy.send(client=f"{made_up}, {client}").status_code for made_up in ("1.2.3.4", "::1", "x") * 3]
    assert answers == [*[202] * (BURST + 1), 429, 429, 429]


def test_a_slow_client_holds_nobody_up_and_is_cut_off(proxy: Proxy, client: str) -> None:
    with ThreadPoolExecutor(BURST) as pool:
        slow = list(pool.map(proxy.open, [client] * BURST))
    assert proxy.send(client=next(CLIENTS)).status_code == 202
    # It may have no more open, whether or not it sends.
    assert proxy.send(client=client).status_code == 429
    assert len(proxy.came) == 1
    for connection in slow:
        with connection:
            connection.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) == b""


def test_nothing_but_events_and_questions_of_life_reach_the_listener(proxy: Proxy, client: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"):
        assert proxy.send(client=client, method=method).status_code == 405
    for path in ("/jukebox", "/413.txt", "/nginx.conf", "/limits.conf", "/live/x"):
        for method in ("GET", "POST"):
            assert proxy.send(client=client, method=method, path=path).status_code == 404
    assert proxy.send(client=client, path="/live").status_code == 405
    assert proxy.came == []
    assert proxy.send(client=client, method="GET", path="/live").status_code == 202
    assert [(method, path, body) for method, path, _, body in proxy.came] == [("GET", "/live", b"")]


def test_the_log_holds_no_secret_and_the_answer_no_version(proxy: Proxy, client: str) -> None:
    token = "hidden-token-of-a-sender"
    answers = [
        proxy.send(b"hidden-body" * size, client=client, path=path, Authorization=f"Bearer {token}")
        for path, size in (("/?hidden-query", 1), ("/", LARGEST), ("/nowhere?hidden-query", 1))
    ]
    assert [answer.status_code for answer in answers] == [202, 413, 404]
    assert [answer.headers["Server"] for answer in answers] == ["nginx"] * 3
    wait("log", lambda: f'{client} "POST /nowhere" 404' in proxy.log.read_text())
    assert f'{client} "POST /" 202' in proxy.log.read_text()
    assert "hidden" not in proxy.log.read_text()
