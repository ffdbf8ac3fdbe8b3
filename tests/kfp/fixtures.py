"""Fixtures for the tests of the commands; a test module names this file in ``pytest_plugins``."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.config import kube_config
from tenacity import wait_fixed

from pipeline import kfp_server
from scripts import apply, start
from tests.kfp.cluster import Cluster, serve_cluster
from tests.kfp.execution import ScriptedExecutor
from tests.kfp.server import StaticGuard, serve
from tests.kfp.service import Service
from tests.kfp.world import NAMESPACE, TOKEN, World


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for localhost, which is its own CA, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("certificate") / "localhost.pem"
    file.write_bytes(pem)
    return file


@pytest.fixture
def world(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The stand-ins, and an environment in which commands find them; nothing is executed but in a test's words."""
    executor = ScriptedExecutor()
    tokens = {TOKEN}
    with serve_cluster(Cluster(NAMESPACE), certificate) as cluster:
        service = Service(cluster, executor, NAMESPACE)
        with serve(service, StaticGuard(tokens), certificate) as url:
            cluster.kubeconfig(tmp_path / "kubeconfig", TOKEN, certificate)
            monkeypatch.setenv("KFP_ENDPOINT", url)
            monkeypatch.setenv("JUKEBOX_NAMESPACE", NAMESPACE)
            # The client reads KUBECONFIG when it is imported.
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
            for module in (apply, kfp_server, start):
                monkeypatch.setattr(module, "BACKOFF", wait_fixed(0.02))
            yield World(cluster, service, executor, url, certificate, tokens)
