"""The stand-in as a server: TLS, checked tokens, the REST API and the webhook.

In a cluster: ``python -m tests.kfp.server --namespace N --certificate FILE --key FILE --state FILE``; as Kubeflow's,
which knows many users and speaks http, with ``--multi-user PORT``.
"""

import argparse
import json
import os
import socket
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from tests.kfp.admission import review
from tests.kfp.service import Answer, Service

TICK = 0.05  # seconds between two looks at the workflows
# What a server in Go answers to http where it speaks https.
NOT_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


class Guard(Protocol):
    """What stands in front, and says who is let in."""

    def refusal(self, token: str, method: str) -> Answer | None: ...


@dataclass
class StaticGuard:
    """Lets those tokens in."""

    tokens: set[str] = field(default_factory=set)

    def refusal(self, token: str, method: str) -> Answer | None:
        return None if token in self.tokens else Answer(401, "Unauthorized\n", {"Content-Type": "text/plain"})


@contextmanager
def serve(
    service: Service,
    guard: Guard | None,
    certificate: Path | None,
    key: Path | None = None,
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[str]:
    """Follow the workflows and serve, while the context lasts; give the address. Without a certificate it is http."""
    stopped = threading.Event()

    def follow() -> None:
        while not stopped.wait(TICK):
            try:
                service.tick()
            except Exception:
                traceback.print_exc()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        with listen(service, guard, certificate, key, address) as url:
            yield url
    finally:
        stopped.set()
        thread.join()


@contextmanager
def listen(
    service: Service, guard: Guard | None, certificate: Path | None, key: Path | None, address: tuple[str, int]
) -> Iterator[str]:
    """Answer at an address while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes, the second of which would wait for 40 ms

        def _answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                answer = self._found(content)
            except Exception as error:
                traceback.print_exc()
                answer = Answer(500, {"code": 13, "message": f"InternalServerError: {error}"})
            if answer is None:
                self.close_connection = True
                return
            body = answer.body.encode() if isinstance(answer.body, str) else json.dumps(answer.body).encode()
            headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(body))}
            self.send_response(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _found(self, content: bytes) -> Answer | None:
            url = urlsplit(self.path)
            if url.path.startswith("/webhooks/"):
                return Answer(200, review(url.path, json.loads(content), service.resources.list("pipelines")))
            if url.path == "/healthz":
                return Answer(200, "ok")
            if front := service.faults.front:
                return front
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            token = token if scheme == "Bearer" else ""
            if guard and (refusal := guard.refusal(token, self.command)):
                return refusal
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            answer = service.answer(self.command, url.path, query, content, token)
            if service.faults.breaks_off_after_post and self.command == "POST" and url.path.endswith("/runs"):
                service.faults.breaks_off_after_post = False
                return None
            return answer

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 the names of the base class

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
            # A client that goes away is no error of ours.
            if getattr(sys.exception(), "reason", "") == "HTTP_REQUEST":
                os.write(request.fileno(), NOT_HTTP)

    with Server(address, Handler) as server:
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate, key)
            # The handshake is left to the thread of its connection: who stalls it stalls nobody else.
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http{'s' * bool(certificate)}://localhost:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    """Serve in a cluster, until ended."""
    from tests.kfp.in_cluster import KubernetesAccess, KubernetesGuard, KubernetesResources, PodExecutor

    parser = argparse.ArgumentParser()
    for option in ("namespace", "certificate", "key", "state"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--multi-user", type=int, metavar="PORT", help="As Kubeflow's, which speaks http at this port.")
    options = parser.parse_args()
    service = Service(
        KubernetesResources(options.namespace),
        PodExecutor(options.namespace),
        options.namespace,
        Path(options.state),
        KubernetesAccess() if options.multi_user else None,
        late=2.0,
    )
    tls, address = (Path(options.certificate), Path(options.key)), ("", options.port)
    with ExitStack() as stack:
        if options.multi_user:
            stack.enter_context(listen(service, None, *tls, address))
            url = stack.enter_context(serve(service, None, None, address=("", options.multi_user)))
        else:
            url = stack.enter_context(serve(service, KubernetesGuard(options.namespace), *tls, address))
        print(f"Serving {url}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
