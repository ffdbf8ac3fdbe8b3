"""Fixtures for the tests of the commands; a test module names this file in ``pytest_plugins``."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes import config
from kubernetes.config import kube_config
from tenacity import wait_fixed

from scripts import apply, start
from scripts.clients import kfp_server
from tests.kfp.cluster import Cluster, serve_cluster
from tests.kfp.execution import ScriptedExecutor
from tests.kfp.in_cluster import KubernetesAccess
from tests.kfp.server import StaticGuard, serve
from tests.kfp.service import Service
from tests.kfp.world import AUDIENCE_TOKEN, CI_NAMESPACE, NAMESPACE, TOKEN, World
from tests.settings_file import SETTINGS_FILE


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
    with _cluster(certificate, tmp_path, monkeypatch) as cluster:
        service = Service(cluster, executor, NAMESPACE)
        with serve(service, StaticGuard(tokens), certificate) as url:
            monkeypatch.setenv("KFP_ENDPOINT", url)
            yield World(cluster, service, executor, url, certificate, tokens)


@pytest.fixture
def kubeflow(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same as it is on Kubeflow: the server is for many users and speaks http; settings and a file lead there."""
    executor = ScriptedExecutor()
    with _cluster(certificate, tmp_path, monkeypatch) as cluster:
        cluster.tokens = {
            TOKEN: ("system:serviceaccount:ada-jukebox:developer", "https://kubernetes.default.svc"),
            AUDIENCE_TOKEN: ("system:serviceaccount:ada-jukebox:jukebox-release", "pipelines.kubeflow.org"),
        }
        access = KubernetesAccess(config.new_client_from_config(str(tmp_path / "kubeconfig")))
        service = Service(cluster, executor, NAMESPACE, access=access)
        with serve(service, None, None) as url:
            monkeypatch.delenv("KFP_ENDPOINT", raising=False)
            document = yaml.safe_load(SETTINGS_FILE.read_text())
            document["data"] |= {"platform": "kubeflow", "kfp-endpoint": url}
            (tmp_path / "settings.yaml").write_text(yaml.safe_dump(document))
            (tmp_path / "token").write_text(f"{AUDIENCE_TOKEN}\n")
            monkeypatch.setenv("JUKEBOX_SETTINGS", str(tmp_path / "settings.yaml"))
            monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
            yield World(cluster, service, executor, url, certificate, set())


@contextmanager
def _cluster(certificate: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster's API, with a kubeconfig, where commands find it; they are impatient."""
    with serve_cluster(Cluster(NAMESPACE), certificate) as cluster:
        cluster.kubeconfig(folder / "kubeconfig", TOKEN, certificate)
        monkeypatch.setenv("JUKEBOX_NAMESPACE", NAMESPACE)
        monkeypatch.setenv("JUKEBOX_CI_NAMESPACE", CI_NAMESPACE)
        cluster.others[CI_NAMESPACE] = Cluster(CI_NAMESPACE)
        # The client reads KUBECONFIG when it is imported.
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(folder / "kubeconfig"))
        for module in (apply, kfp_server, start):
            monkeypatch.setattr(module, "BACKOFF", wait_fixed(0.02))
        yield cluster
