"""A forward proxy, as companies have it: it tunnels (CONNECT) to the hosts that it is told, and to no other.

It is a program of its own: ``python3 forward_proxy.py PORT NAME=HOST...``, where NAME is what is asked for.
"""

import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    hosts: Mapping[str, str] = {}

    def find(self, name: str) -> str | None:
        """The host to connect to if this name is asked for; None: it is refused."""
        return self.hosts.get(name)

    def do_CONNECT(self) -> None:
        name, _, port = self.path.partition(":")
        host = self.find(name)
        if not host:
            self.send_error(403, "that host is not for you")
            return
        print(name, flush=True)
        with closing(socket.create_connection((host, int(port)))) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=hand_on, args=(there, self.connection))
            back.start()
            hand_on(self.connection, there)
            back.join()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
        pass


def hand_on(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until its end, also if one of the two breaks off."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    Handler.hosts = dict(each.split("=") for each in sys.argv[2:])
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
