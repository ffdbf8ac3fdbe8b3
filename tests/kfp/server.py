"""The stand-in as a server: TLS, checked tokens, the REST API and the webhook.

In a cluster: ``python -m tests.kfp.server --namespace N --certificate FILE --key FILE --state FILE``.
"""

import argparse
import json
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from tests.kfp.admission import review
from tests.kfp.service import Answer, Service

TICK = 0.05  # seconds between two looks at the workflows


class Guard(Protocol):
    """Who is let in."""

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
    guard: Guard,
    certificate: Path,
    key: Path | None = None,
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[str]:
    """Serve while the context lasts; give the address."""
    stopped = threading.Event()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

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
            if refusal := guard.refusal(token if scheme == "Bearer" else "", self.command):
                return refusal
            query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
            answer = service.answer(self.command, url.path, query, content)
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

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # A client that goes away is no error of ours.

    def follow() -> None:
        while not stopped.wait(TICK):
            try:
                service.tick()
            except Exception:
                traceback.print_exc()

    with Server(address, Handler) as server:
        # The handshake is left to the thread of its connection: who stalls it stalls nobody else.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}),
            threading.Thread(target=follow),
        ]
        for thread in threads:
            thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}"
        finally:
            stopped.set()
            server.shutdown()
            for thread in threads:
                thread.join()


def main() -> None:
    """Serve in a cluster, until ended."""
    from tests.kfp.in_cluster import KubernetesGuard, KubernetesResources, PodExecutor

    parser = argparse.ArgumentParser()
    for option in ("namespace", "certificate", "key", "state"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--port", type=int, default=8443)
    options = parser.parse_args()
    service = Service(
        KubernetesResources(options.namespace),
        PodExecutor(options.namespace),
        options.namespace,
        Path(options.state),
        late=2.0,
    )
    guard = KubernetesGuard(options.namespace)
    with serve(service, guard, Path(options.certificate), Path(options.key), ("", options.port)) as url:
        print(f"Serving {url}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
