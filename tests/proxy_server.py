"""A forward proxy for tests: it tunnels (CONNECT), to the loopback whatever host is asked for, and notes which ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.cluster import forward_proxy
from tests.http_server import running


@dataclass
class ProxyServer:
    """Its address, and the hosts that it was asked for."""

    url: str
    hosts: list[str] = field(default_factory=list)


@contextmanager
def serve_proxy() -> Iterator[ProxyServer]:
    """Run the proxy while the context lasts."""

    class Handler(forward_proxy.Handler):
        def find(self, name: str) -> str:
            served.hosts.append(name)
            return "127.0.0.1"

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = ProxyServer(f"http://127.0.0.1:{server.server_address[1]}")
        with running(server):
            yield served
