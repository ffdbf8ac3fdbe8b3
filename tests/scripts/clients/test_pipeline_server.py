import base64
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kubernetes.config import kube_config
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError

from pipeline import prod_train_save_pipeline
from pipeline.core.errors import ServerUnavailable, SettingsInvalid
from pipeline.prod_train_save_pipeline import start_run
from pipeline.settings import Settings, read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts.clients import pipeline_server as server
from scripts.clients.kfp_server import Kfp
from scripts.clients.pipeline_server import Server, find_server, said
from tests import http_server
from tests.active_model import write_tables
from tests.http_server import serve_http

SCRIPT = Path(prod_train_save_pipeline.__file__)
TOKEN = "sha256~a-token-that-nobody-may-read"
HEALTHZ = "/apis/v2beta1/healthz"
EXPERIMENTS = "/apis/v2beta1/experiments"
RUNS = "/apis/v2beta1/runs"
JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    kind: str = JSON
    location: str = ""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str | None
    body: Any


@dataclass
class StandIn:
    """Takes the place of a pipeline server behind TLS: says what it is told to say, and keeps what it was asked."""

    url: str
    ca: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def server(self, token: str | None = TOKEN, ca: str | None = None) -> Server:
        return Server(self.url, "ada-jukebox", token, ca or str(self.ca))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificate of a CA, and a file with a key and a certificate for localhost that this CA has signed."""
    folder = tmp_path_factory.mktemp("certificates")

    def certificate(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer)]
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(names[0])
            .issuer_name(names[1])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signed = [
        certificate("a CA", "a CA", ca_key),
        certificate("localhost", "a CA", key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False
        ),
    ]
    pem = [one.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) for one in signed]
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    ca, chain = folder / "ca.pem", folder / "server.pem"
    ca.write_bytes(pem[0])
    chain.write_bytes(private + pem[1])
    return ca, chain


@pytest.fixture
def stand_in(certificates: tuple[Path, Path]) -> Iterator[StandIn]:
    """A server that is in order and has no experiment yet."""
    ca, chain = certificates

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            known.requests.append(
                Request(self.command, path, self.headers.get("Authorization"), json.loads(body) if body else None)
            )
            answer = known.answers.get(f"{self.command} {path}")
            if answer is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            if answer.location:
                self.send_header("Location", answer.location)
            self.end_headers()
            self.wfile.write(answer.body.encode())

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that refuse the certificate break off: that is no news."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with QuietServer(("localhost", 0), Handler) as http:
        # The handshake is made in the thread of the connection, so that one that is refused harms no other.
        http.socket = context.wrap_socket(http.socket, server_side=True, do_handshake_on_connect=False)
        known = StandIn(f"https://localhost:{http.server_port}", ca)
        known.answers = {
            f"GET {HEALTHZ}": Answer(200, '{"multi_user": false}'),
            f"GET {EXPERIMENTS}": Answer(200, "{}"),
            f"POST {EXPERIMENTS}": Answer(200, '{"experiment_id": "an-experiment"}'),
            f"POST {RUNS}": Answer(200, '{"run_id": "a-run"}'),
        }
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield known
        http.shutdown()
        thread.join()


@pytest.fixture
def settings() -> Settings:
    return replace(read_settings(), namespace="settings-jukebox")


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No pod, no kubeconfig, nothing in the environment. Returns where a kubeconfig would be read."""
    for name in ("JUKEBOX_NAMESPACE", "KFP_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server, "POD", tmp_path / "no-pod")
    monkeypatch.setattr(server, "AUDIENCE_TOKEN", tmp_path / "no-token")
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))
    return kubeconfig


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    for name, text in {"namespace": "pod-jukebox\n", "token": f"{TOKEN}\n", "ca.crt": "", "service-ca.crt": ""}.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(server, "POD", folder)
    return folder


def kubeconfig(user: dict[str, Any], ca: bytes = b"a CA") -> str:
    cluster = {"server": "https://api.cluster:6443", "certificate-authority-data": base64.b64encode(ca).decode()}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "jukebox",
            "contexts": [{"name": "jukebox", "context": {"cluster": "cluster", "user": "ada"}}],
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "ada", "user": user}],
        }
    )


# Where it is, and who we are


def test_the_namespace_is_that_of_the_environment_else_the_settings_never_the_pods(
    settings: Settings, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pods of Tekton are in another than the pipeline server."""
    assert find_server(settings).host == "https://ds-pipeline-dspa.settings-jukebox.svc:8443"
    request.getfixturevalue("pod")
    assert find_server(settings).host == "https://ds-pipeline-dspa.settings-jukebox.svc:8443"
    monkeypatch.setenv("JUKEBOX_NAMESPACE", "ada-jukebox")
    assert find_server(settings).host == "https://ds-pipeline-dspa.ada-jukebox.svc:8443"
    assert find_server(settings).namespace == "ada-jukebox"


def test_a_pod_brings_its_token_and_the_ca_of_the_services(settings: Settings, pod: Path) -> None:
    found = find_server(settings)
    assert (found.token, found.ca) == (TOKEN, str(pod / "service-ca.crt"))


def test_a_pod_without_a_ca_of_services_brings_the_clusters(settings: Settings, pod: Path) -> None:
    (pod / "service-ca.crt").unlink()
    assert find_server(settings).ca == str(pod / "ca.crt")


def test_a_kubeconfig_brings_token_and_ca(settings: Settings, laptop: Path) -> None:
    laptop.write_text(kubeconfig({"token": TOKEN}, ca=b"the CA of the kubeconfig"))
    found = find_server(settings)
    assert found.token == TOKEN
    assert found.ca
    assert Path(found.ca).read_bytes() == b"the CA of the kubeconfig"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("clusters: [", id="no YAML"),
        pytest.param("kind: Config", id="no context"),
        pytest.param(kubeconfig({"username": "ada", "password": "secret"}), id="a password"),
    ],
)
def test_a_kubeconfig_without_a_token_gives_none(settings: Settings, laptop: Path, text: str) -> None:
    laptop.write_text(text)
    assert find_server(settings).token is None


def test_without_a_kubeconfig_there_are_no_credentials(settings: Settings) -> None:
    found = find_server(settings)
    assert (found.token, found.ca) == (None, None)


def test_the_endpoint_of_the_environment_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "https://pipelines.example.com/kfp/")
    assert find_server(settings).host == "https://pipelines.example.com/kfp"


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:8888",
        "https://ada:hidden@host",
        "https://",
        "https://host/?token=hidden",
        "ftp://host",
        "https://a b",
    ],
)
def test_an_endpoint_that_is_no_address_is_refused_without_showing_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", endpoint)
    with pytest.raises(SettingsInvalid, match="KFP_ENDPOINT") as raised:
        find_server(settings)
    assert "hidden" not in str(raised.value)


def test_the_token_does_not_travel_unencrypted(settings: Settings, pod: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://localhost:8888")
    assert find_server(settings).token is None


@pytest.fixture
def kubeflow(settings: Settings) -> Settings:
    return replace(settings, platform="kubeflow", kfp_endpoint="http://ml-pipeline.kubeflow.svc:8888/")


@pytest.fixture
def audience_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which a pod has the token for Kubeflow's pipeline server."""
    file = tmp_path / "audience-token"
    file.write_text("for-kubeflow-alone\n")
    monkeypatch.setattr(server, "AUDIENCE_TOKEN", file)
    return file


def test_on_kubeflow_the_settings_say_where_it_is_for_laptops_and_pods(
    kubeflow: Settings, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_server(kubeflow).host == "http://ml-pipeline.kubeflow.svc:8888"
    request.getfixturevalue("pod")
    assert find_server(kubeflow).host == "http://ml-pipeline.kubeflow.svc:8888"
    assert find_server(kubeflow).namespace == "settings-jukebox"
    monkeypatch.setenv("KFP_ENDPOINT", "http://localhost:8888")
    assert find_server(kubeflow).host == "http://localhost:8888"


@pytest.mark.parametrize(
    ("endpoint", "token"),
    [
        ("http://ml-pipeline.kubeflow.svc:8888", "for-kubeflow-alone"),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", "for-kubeflow-alone"),
        ("http://10.96.1.2:8888", "for-kubeflow-alone"),
        ("http://localhost:8888", "for-kubeflow-alone"),
        ("https://kubeflow.example.com/pipeline", "for-kubeflow-alone"),
        ("http://kubeflow.example.com/pipeline", None),
        ("http://ml-pipeline.svc.example.com", None),
        ("http://8.8.8.8:8888", None),
    ],
)
def test_kubeflows_own_token_travels_in_clear_within_the_cluster_alone(
    kubeflow: Settings, pod: Path, audience_token: Path, endpoint: str, token: str | None
) -> None:
    assert find_server(replace(kubeflow, kfp_endpoint=endpoint)).token == token


def test_another_token_never_travels_in_clear(kubeflow: Settings, pod: Path, laptop: Path) -> None:
    assert find_server(kubeflow).token is None
    assert find_server(replace(kubeflow, kfp_endpoint="https://ml-pipeline.kubeflow.svc:8888")).token == TOKEN
    pod.joinpath("namespace").unlink()
    laptop.write_text(kubeconfig({"token": TOKEN}))
    assert find_server(kubeflow).token is None


def test_kubeflows_own_token_comes_from_a_file_that_the_environment_names(
    kubeflow: Settings, audience_token: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "made-by-kubectl"))
    with pytest.raises(SettingsInvalid, match=r"KF_PIPELINES_SA_TOKEN_PATH is .*made-by-kubectl, .*No such file"):
        find_server(kubeflow)
    (tmp_path / "made-by-kubectl").write_text("mine\n")
    assert find_server(kubeflow).token == "mine"


def test_kubeflows_own_token_is_nothing_to_a_dspa(settings: Settings, pod: Path, audience_token: Path) -> None:
    assert find_server(settings).token == TOKEN


def test_the_token_is_not_shown_with_the_server(settings: Settings, pod: Path) -> None:
    assert TOKEN not in repr(find_server(settings))


# Does it answer?


def refusal(found: Server) -> tuple[str, str]:
    """The two lines that a user sees."""
    with pytest.raises(ServerUnavailable) as raised:
        found.probe()
    assert TOKEN not in str(raised.value)
    what, to_do = str(raised.value).splitlines()
    return what, to_do


def test_a_server_in_order_passes_and_gets_the_token(stand_in: StandIn) -> None:
    stand_in.server().probe()
    # Kubeflow tells everybody how it is; its experiments only those who have access.
    asked = [Request("GET", path, f"Bearer {TOKEN}", None) for path in (HEALTHZ, EXPERIMENTS)]
    assert stand_in.requests == asked


def test_a_certificate_of_another_ca_is_refused_before_the_token_is_sent(stand_in: StandIn) -> None:
    what, to_do = refusal(Server(stand_in.url, "ada-jukebox", TOKEN, None))
    assert "certificate is not trusted: unable to get local issuer certificate" in what
    assert "public CAs" in to_do
    assert stand_in.requests == []


def test_a_certificate_for_another_host_is_refused(stand_in: StandIn) -> None:
    what, to_do = refusal(replace(stand_in.server(), host=stand_in.url.replace("localhost", "127.0.0.1")))
    assert "certificate is not trusted" in what
    assert "127.0.0.1" in what
    assert str(stand_in.ca) in to_do
    assert stand_in.requests == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_lets_nobody_in_says_how_to_get_in(stand_in: StandIn, status: int) -> None:
    stand_in.answers[f"GET {HEALTHZ}"] = Answer(status, '{"message": "no"}')
    what, to_do = refusal(stand_in.server())
    assert "denies access" in what
    assert str(status) in what
    assert "oc login" in to_do
    assert "ds-pipeline-user-access-dspa" in to_do


def test_a_redirect_to_a_login_is_not_followed(stand_in: StandIn) -> None:
    login = "https://oauth.example.com/authorize?state=hidden"
    stand_in.answers[f"GET {HEALTHZ}"] = Answer(302, "", location=login)
    what, _ = refusal(stand_in.server())
    assert what == "The server denies access: it answers 302 and redirects to https://oauth.example.com."


def test_a_login_page_is_no_pipeline_server(stand_in: StandIn) -> None:
    stand_in.answers[f"GET {HEALTHZ}"] = Answer(200, "<html>Log in</html>", kind="text/html")
    what, to_do = refusal(stand_in.server())
    assert "not a pipeline server: it answers 200 (content type: text/html)" in what
    assert "oc login" in to_do


def test_another_program_is_no_pipeline_server(stand_in: StandIn) -> None:
    stand_in.answers[f"GET {HEALTHZ}"] = Answer(404, '{"message": "Not Found"}')
    assert "not a pipeline server: it answers 404" in refusal(stand_in.server())[0]


def test_a_server_out_of_order_is_waited_for(stand_in: StandIn) -> None:
    stand_in.answers[f"GET {HEALTHZ}"] = Answer(503, "Application is not available", kind="text/html")
    what, to_do = refusal(stand_in.server())
    assert "The server failed: it answers 503" in what
    assert "oc get dspa" in to_do


def test_a_server_that_keeps_us_out_of_its_experiments_is_no_use(stand_in: StandIn) -> None:
    stand_in.answers[f"GET {EXPERIMENTS}"] = Answer(403, "Forbidden (user=system:serviceaccount:ada:viewer, verb=get)")
    what, to_do = refusal(stand_in.server())
    assert what == "The server denies access: it answers 403 to system:serviceaccount:ada:viewer."
    assert "ds-pipeline-user-access-dspa" in to_do


@pytest.mark.parametrize(
    "text",
    [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><center>The plain HTTP request was sent to HTTPS port</center></html>",
    ],
    ids=["Go", "nginx"],
)
def test_a_server_that_speaks_https_is_told_from_one_that_does_not(text: str) -> None:
    with serve_http() as http:
        http.serve(HEALTHZ, http_server.Answer(text.encode(), 400, {"Content-Type": "text/html"}))
        what, to_do = refusal(Server(http.url, "ada-jukebox", None, None))
    assert what == "The server uses https, and the address says http."
    assert to_do.startswith("Write https:// in KFP_ENDPOINT, or in kfp-endpoint of")


def test_a_server_that_speaks_http_is_told_from_one_that_does_not() -> None:
    with serve_http() as http:
        what, to_do = refusal(Server(http.url.replace("http", "https"), "ada-jukebox", TOKEN, None))
    assert what == "The server uses http, and the address says https."
    assert to_do.startswith("Write http:// in KFP_ENDPOINT, or in kfp-endpoint of")


def test_a_server_that_breaks_off_is_none(stand_in: StandIn) -> None:
    del stand_in.answers[f"GET {HEALTHZ}"]
    what, _ = refusal(stand_in.server())
    assert what == "The server does not answer: Remote end closed connection without response."


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(server, "TIMEOUT", (0.2, 0.2))
    with socket.create_server(("localhost", 0)) as silent:
        what, _ = refusal(Server(f"{scheme}://localhost:{silent.getsockname()[1]}", "ada-jukebox", None, None))
    assert "The server does not answer" in what
    assert "timed out" in what
    assert "timeout=0.2" in what


def test_a_closed_port_is_no_server() -> None:
    with socket.create_server(("localhost", 0)) as closed:
        port = closed.getsockname()[1]
    what, to_do = refusal(Server(f"https://localhost:{port}", "ada-jukebox", TOKEN, None))
    assert "The server does not answer" in what
    assert "Connection refused" in what
    assert "KFP_ENDPOINT" in to_do


def test_a_ca_file_that_is_gone_is_named(stand_in: StandIn, tmp_path: Path) -> None:
    what, _ = refusal(stand_in.server(ca=str(tmp_path / "gone.crt")))
    assert "gone.crt" in what


def test_a_namespace_that_nobody_has_filled_in_is_named(settings: Settings) -> None:
    what, to_do = refusal(find_server(replace(settings, namespace="<USER_NAME>-jukebox")))
    assert "<USER_NAME>-jukebox" in what
    assert "settings.yaml" in to_do
    assert "JUKEBOX_NAMESPACE" in to_do


# Starting a run

SPEC = {"pipelineInfo": {"name": "tiny"}, "schemaVersion": "2.1.0", "root": {"dag": {}}}


@pytest.fixture
def start(stand_in: StandIn) -> Callable[[], str]:
    kfp, arguments = Kfp(stand_in.server), {"data_version": "abc"}
    return lambda: start_run(kfp, SPEC, arguments, name="tiny-by-hand", experiment="jukebox")


def test_a_run_is_started_with_our_spec_and_arguments_in_our_name(stand_in: StandIn, start: Callable[[], str]) -> None:
    assert start() == "a-run"
    (posted,) = stand_in.asked("POST", RUNS)
    assert posted.body["pipeline_spec"] == SPEC
    assert posted.body["runtime_config"] == {"parameters": {"data_version": "abc"}}
    assert posted.body["display_name"] == "tiny-by-hand"
    assert posted.body["experiment_id"] == "an-experiment"
    assert {request.authorization for request in stand_in.requests} == {f"Bearer {TOKEN}"}


def test_an_experiment_that_is_there_is_used(stand_in: StandIn, start: Callable[[], str]) -> None:
    there = '{"experiments": [{"experiment_id": "an-earlier-one", "display_name": "jukebox"}]}'
    stand_in.answers[f"GET {EXPERIMENTS}"] = Answer(200, there)
    start()
    assert stand_in.asked("POST", RUNS)[0].body["experiment_id"] == "an-earlier-one"
    assert stand_in.asked("POST", EXPERIMENTS) == []


NO_PARAMETER = '{"message": "Failed to create a new run: Invalid input error: parameter label is not optional"}'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(Answer(400, NO_PARAMETER), "answers 400: parameter label is not optional", id="a wrong spec"),
        pytest.param(Answer(500, "oops", kind="text/plain"), "The server failed: it answers 500", id="a broken server"),
        pytest.param(Answer(403, "{}"), "denies access: it answers 403", id="no right to start runs"),
        pytest.param(
            Answer(200, "<html>", kind="text/html"),
            "not a pipeline server: its answer has no run_id",
            id="a login page",
        ),
        pytest.param(None, "does not answer: Remote end closed connection", id="a server that goes away"),
    ],
)
def test_a_run_that_is_not_started_is_told_in_two_lines(
    stand_in: StandIn, start: Callable[[], str], answer: Answer | None, words: str
) -> None:
    if answer:
        stand_in.answers[f"POST {RUNS}"] = answer
    else:
        del stand_in.answers[f"POST {RUNS}"]
    with pytest.raises(ServerUnavailable) as raised:
        start()
    what, _ = str(raised.value).splitlines()
    assert words in what
    assert len(stand_in.asked("POST", RUNS)) == 1  # a second one would be a second run


# Submitting by hand


def test_submitting_starts_the_pipeline_with_the_data_of_the_settings(
    stand_in: StandIn,
    settings: Settings,
    laptop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    laptop.write_text(kubeconfig({"token": TOKEN}, ca=stand_in.ca.read_bytes()))
    monkeypatch.setenv("KFP_ENDPOINT", stand_in.url)
    tables = write_tables(tmp_path)
    ours = replace(settings, data=tables, image="registry/jukebox@sha256:0123")
    monkeypatch.setattr(prod_train_save_pipeline, "read_settings", lambda: ours)

    prod_train_save_pipeline.submit()

    (posted,) = stand_in.asked("POST", RUNS)
    data_version = resolve_data_version(tables)
    assert posted.authorization == f"Bearer {TOKEN}"
    assert posted.body["runtime_config"]["parameters"]["data_version"] == data_version
    spec, platform = posted.body["pipeline_spec"]["pipeline_spec"], posted.body["pipeline_spec"]["platform_spec"]
    assert spec["pipelineInfo"]["name"] == "prod-train-save"
    images = {one["container"]["image"] for one in spec["deploymentSpec"]["executors"].values()}
    assert images == {"registry/jukebox@sha256:0123"}
    mounts = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-publish-model"]["pvcMount"]
    assert mounts[0]["mountPath"] == settings.model_store
    out = capsys.readouterr().out
    assert out.startswith(f"Connecting to Data Science Pipelines: {stand_in.url}\n")
    assert "a-run" in out
    assert TOKEN not in out


def submitted(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The script's end, in a shell that knows no server and no cluster."""
    kept = {name: value for name, value in os.environ.items() if not re.match("KFP_|KUBECONFIG|JUKEBOX_", name)}
    environment = {**kept, "HOME": str(folder), "RES_OPTIONS": "timeout:1 attempts:1", **variables}
    return subprocess.run([sys.executable, SCRIPT], env=environment, cwd=folder, capture_output=True, text=True)


def test_submitting_from_a_fresh_clone_says_where_it_connects_to(tmp_path: Path) -> None:
    ended = submitted(tmp_path)
    line = "Connecting to Data Science Pipelines: https://ds-pipeline-dspa.<USER_NAME>-jukebox.svc:8443\n"
    assert ended.stdout == line
    assert "<USER_NAME>-jukebox is a placeholder" in ended.stderr
    assert ended.returncode == 1


def test_submitting_without_a_server_says_so_in_two_lines(tmp_path: Path) -> None:
    ended = submitted(tmp_path, JUKEBOX_NAMESPACE="ada-jukebox")
    assert ended.stdout == "Connecting to Data Science Pipelines: https://ds-pipeline-dspa.ada-jukebox.svc:8443\n"
    assert len(ended.stderr.splitlines()) == 2
    assert "The server does not answer" in ended.stderr
    assert "KFP_ENDPOINT" in ended.stderr
    assert ended.returncode == 1


def test_a_connection_that_takes_too_long_is_said_without_python_objects() -> None:
    connection = HTTPSConnection("10.0.0.1", 8443)
    error = MaxRetryError(None, "/", ConnectTimeoutError(connection, "Connection to 10.0.0.1 timed out."))  # type: ignore[arg-type]
    assert said(requests.ConnectTimeout(error)) == "Connection to 10.0.0.1 timed out"
