"""The ways to the outside: every program that speaks TLS trusts a private CA, and goes by the proxy of the settings."""

import hashlib
import os
import shutil
import ssl
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import certifi
import pytest
import requests
from botocore.exceptions import SSLError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.core import trusted_ca
from pipeline.core.errors import HostRefuses, RegistryRefuses
from pipeline.core.log import step
from pipeline.core.s3 import s3_client
from pipeline.core.trusted_ca import VARIABLES, trust
from pipeline.settings import read_settings
from scripts import cli, install_packages
from scripts.clients.registry import Registry
from scripts.git import fetch, git
from tests.git_server import serve_git
from tests.http_server import Answer, serve_http
from tests.proxy_server import serve_proxy

needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed; the cluster tier has it")
Rename = Callable[[str], str]
Call = Callable[[Path, Path, Rename], None]
OUTSIDE = "outside.example.com"
JSON = {"Content-Type": "application/json"}
HTML = {"Content-Type": "text/html"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server on the loopback needs: its certificate, its key, and the certificate of the CA."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName(OUTSIDE)]
    made = []
    for name, key, ca in (("A company's CA", keys[0], True), ("localhost", keys[1], False)):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A company's CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("certificate") / "server.pem"
    file.write_bytes(made[1] + secret + made[0])
    return file


def here(url: str) -> str:
    """The address of a server on the loopback."""
    return url


def outside(url: str) -> str:
    """The same server by a name that nobody but a proxy knows."""
    return url.replace("127.0.0.1", OUTSIDE)


def ask_with_requests(certificate: Path, _: Path, at: Rename) -> None:
    with serve_http(certificate) as server:
        server.serve("/data.csv", Answer(b"data"))
        assert requests.get(f"{at(server.url)}/data.csv", timeout=5).content == b"data"


def ask_with_boto3(certificate: Path, _: Path, at: Rename) -> None:
    with serve_http(certificate) as server, pytest.MonkeyPatch.context() as environment:
        server.serve("/", Answer(b"<ListAllMyBucketsResult><Owner><ID>ada</ID></Owner></ListAllMyBucketsResult>"))
        environment.setenv("AWS_S3_ENDPOINT", at(server.url))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "of-nobody")
        assert s3_client().list_buckets()["Owner"]["ID"] == "ada"


def ask_with_git(certificate: Path, folder: Path, at: Rename) -> None:
    with serve_git(folder / "git", certificate=certificate) as server:
        server.push()
        (folder / "clone").mkdir()
        git(folder / "clone", "init", "--quiet", ".")
        fetch(folder / "clone", at(server.url), "refs/heads/main", secret=None, how="--depth=1")


def ask_with_skopeo(certificate: Path, _: Path, at: Rename) -> None:
    with serve_http(certificate) as server:
        unknown = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        server.serve("/v2/", Answer(b"{}"))
        server.serve("/v2/jukebox-training/manifests/1", Answer(unknown, status=404, headers=JSON))
        assert Registry().digest(at(server.url).removeprefix("https://") + "/jukebox-training:1") == ""


def ask_with_uv(certificate: Path, folder: Path, at: Rename) -> None:
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "requirements.lock").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    with serve_http(certificate) as server, pytest.MonkeyPatch.context() as environment:
        server.serve("/tiny/", Answer(f"<a href=/{wheel.name}#sha256={digest}>{wheel.name}</a>".encode(), headers=HTML))
        server.serve(f"/{wheel.name}", Answer(wheel.read_bytes()))
        environment.chdir(folder)
        environment.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        environment.setenv("UV_HTTP_RETRIES", "0")
        environment.setattr(
            sys, "argv", ["install_packages.py", str(folder / "venv"), "--all", f"--index={at(server.url)}"]
        )
        install_packages.main()


REFUSALS = requests.exceptions.SSLError, SSLError, HostRefuses, RegistryRefuses


@pytest.mark.parametrize(
    ("ask", "refusal"),
    [
        (ask_with_requests, "certificate verify failed"),
        (ask_with_boto3, "certificate verify failed"),
        (ask_with_git, "certificate"),
        pytest.param(ask_with_skopeo, "into the ConfigMap jukebox-trusted-ca", marks=needs_skopeo),
    ],
)
def test_a_program_trusts_the_private_ca_and_no_other_way(
    ask: Call, refusal: str, certificate: Path, private_ca: Path, tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir()
    with pytest.raises(REFUSALS, match=refusal):
        ask(certificate, tmp_path / "before", here)
    trust()
    (tmp_path / "after").mkdir()
    ask(certificate, tmp_path / "after", here)


def test_what_installs_the_packages_looks_for_it_itself(
    certificate: Path, private_ca: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hidden = private_ca.rename(tmp_path / "hidden")
    with pytest.raises(SystemExit):
        ask_with_uv(certificate, tmp_path, here)
    assert "invalid peer certificate: UnknownIssuer" in capfd.readouterr().err
    hidden.rename(private_ca)
    ask_with_uv(certificate, tmp_path, here)


def trusted(file: str) -> set[bytes]:
    return {*ssl.create_default_context(cafile=file).get_ca_certs(binary_form=True)}


@pytest.mark.parametrize("by", ["the system", "a variable"])
def test_what_was_trusted_before_is_still_trusted(
    private_ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    other = private_ca.rename(tmp_path / "other.crt")
    private_ca.write_text("")
    if by == "the system":
        monkeypatch.setattr(trusted_ca, "SYSTEM", (str(other),))
    else:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
    trust()
    [file] = {os.environ[name] for name in VARIABLES}
    assert trusted(file) >= trusted(certifi.where()) | trusted(str(other))


def test_without_such_a_file_nothing_changes(private_ca: Path) -> None:
    private_ca.unlink()
    before = dict(os.environ)
    trust()
    assert dict(os.environ) == before


def test_the_command_line_and_every_step_look_for_it(
    private_ca: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jukebox", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "ca-bundle-" in os.environ["SSL_CERT_FILE"]
    monkeypatch.setenv("SSL_CERT_FILE", "")
    with step("fetch-data"):
        assert "ca-bundle-" in os.environ["SSL_CERT_FILE"]


def test_where_a_pod_has_it() -> None:
    assert str(trusted_ca.FILE) == "/etc/trusted-ca/ca-bundle.crt"


@pytest.mark.parametrize(
    "ask",
    [
        *(ask_with_requests, ask_with_boto3, ask_with_git, ask_with_uv),
        pytest.param(ask_with_skopeo, marks=needs_skopeo),
    ],
)
def test_a_program_goes_out_by_the_proxy_and_to_the_cluster_without_it(
    ask: Call, certificate: Path, private_ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust()
    with serve_proxy() as proxy:
        # Of http there is none: a task has an empty variable then, which is not taken for a proxy.
        none = {"HTTP_PROXY": "", "http_proxy": ""}
        for name, value in (none | replace(read_settings(), https_proxy=proxy.url).proxies).items():
            monkeypatch.setenv(name, value)
        for folder, at in (("here", here), ("outside", outside)):
            assert OUTSIDE not in proxy.hosts
            (tmp_path / folder).mkdir()
            ask(certificate, tmp_path / folder, at)
        assert OUTSIDE in proxy.hosts
        assert "127.0.0.1" not in proxy.hosts
