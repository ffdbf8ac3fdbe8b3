"""A forward proxy for tests: it tunnels (CONNECT), to the loopback whatever host is asked for, and notes which ones."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_server import running


@dataclass
class ProxyServer:
    """Its address, and the hosts that it was asked for."""

    url: str
    hosts: list[str] = field(default_factory=list)


@contextmanager
def serve_proxy() -> Iterator[ProxyServer]:
    """Run the proxy while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            host, _, port = self.path.partition(":")
            served.hosts.append(host)
            try:
                connection = socket.create_connection(("127.0.0.1", int(port)))
            except OSError:
                self.send_error(502)
                return
            with closing(connection) as there:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pump, args=(there, self.connection))
                back.start()
                _pump(self.connection, there)
                back.join()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = ProxyServer(f"http://127.0.0.1:{server.server_address[1]}")
        with running(server):
            yield served


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until its end, also if one of the two breaks off."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
