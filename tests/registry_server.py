"""A real image registry for tests that need one: Debian's docker-registry, on a loopback port, behind TLS."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tenacity import retry, stop_after_delay, wait_fixed

from tests.cluster.build import REGISTRY

CONFIG = """
version: 0.1
log: {{ level: warn }}
storage: {{ filesystem: {{ rootdirectory: {folder} }}, delete: {{ enabled: {delete} }} }}
http: {{ addr: "127.0.0.1:{port}", tls: {{ certificate: {certificate}, key: {certificate} }} }}
"""


def program() -> str | None:
    """Where the registry is installed, or unpacked for the cluster tier; None if it is not."""
    return shutil.which("docker-registry") or (str(REGISTRY) if REGISTRY.exists() else None)


@contextlib.contextmanager
def serve_registry(folder: Path, certificate: Path, *, delete: bool = True) -> Iterator[str]:
    """Serve what a registry has stored in a folder, at first nothing; yields host and port."""
    found = program()
    assert found
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(
        CONFIG.format(folder=folder / "data", port=port, certificate=certificate, delete=str(delete).lower())
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([found, "serve", str(file)], stdout=log, stderr=log)
    try:
        _until_listening(port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@retry(stop=stop_after_delay(60), wait=wait_fixed(0.05), reraise=True)
def _until_listening(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        pass
