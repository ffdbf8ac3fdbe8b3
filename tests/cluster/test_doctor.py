"""``jukebox doctor`` on a real cluster: a project in order, and what can go wrong with it, provoked once each.

The project is that of all tests. Argo CD and the operators, who would mend what is broken here, rest meanwhile. Played
are the Git host and the router before the listener: those of the project have no name outside the cluster. Others share
this cluster, so the other ``test_doctor.py`` provokes what all of it would feel: an old Kubernetes, each kind that is
not there, KServe's webhooks that are gone and any of Tekton's or KServe's that are down (here Tekton's leave out the
namespace), and no storage class at all.
"""

import base64
import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from kubernetes.config import kube_config
from typer.testing import CliRunner

from scripts.cli import app
from scripts.pins import PIN, parse, render
from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.argocd import look_again
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import PIPELINE_SERVER, Project
from tests.http_server import Answer, HttpServer, running, serve_http
from tests.kfp import deploy
from tests.manifests import building

GIT_HOST = "/api/v1/repos/acme/jukebox"  # asked with the token
MAY_PUSH = Answer(b'{"permissions": {"push": true}}')
DSPA = "datasciencepipelinesapplication/dspa"
WEBHOOK = f"webhookconfiguration/pipelineversions.pipelines.kubeflow.org-{projects.NAMESPACE}"


@dataclass(frozen=True)
class Fork:
    """A copy of the fork, with settings of its own, and somebody who looks at the project.

    Attributes:
        folder: the copy.
        host: the Git host.
        kubeconfig: of who looks.
    """

    kubectl: Kubectl
    folder: Path
    host: HttpServer
    kubeconfig: Path

    def of(self, name: str) -> Kubectl:
        """The namespace that a resource is in, ``<kind>/<name>``."""
        return Project(self.kubectl).of(name)

    @property
    def settings(self) -> Path:
        return self.folder / "manifests" / "settings" / "settings.yaml"

    @property
    def overlay(self) -> Path:
        return self.folder / projects.OVERLAY

    def set(self, **values: str) -> None:
        """Change settings, as the tasks and the token of the Git host know them, too."""
        document = yaml.safe_load(self.settings.read_text())
        document["data"] |= {key.replace("_", "-"): value for key, value in values.items()}
        self.settings.write_text(yaml.safe_dump(document))
        self.tell()

    def tell(self) -> None:
        """Let the tasks and the token know the settings, as `jukebox bootstrap` and `jukebox secrets` do."""
        text = self.settings.read_text()
        self.patch("configmap/jukebox-settings", {"data": {"settings.yaml": text}})
        repository = yaml.safe_load(text)["data"]["repository"].encode()
        self.patch("secret/jukebox-git-host", {"data": {"repository": base64.b64encode(repository).decode()}})

    def log_in(self, account: str, *options: str) -> None:
        """Make an account the one who looks."""
        self.kubectl.log_in(account, self.kubeconfig, *options)

    def patch(self, name: str, patch: Any, *options: str) -> None:
        """Merge a patch into a resource."""
        self.of(name)("patch", name, "--type=merge", f"--patch={json.dumps(patch)}", *options)

    def jukebox(self, *arguments: str) -> str:
        """Run a command of ours as who looks; returns what it prints. One may end with 1, none by an error."""
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0 or isinstance(result.exception, SystemExit), result.exception
        return result.output


Finding = tuple[str, str, str, str]  # name, state, and a part of what was found and of the remedy
Break = Callable[[Fork], Iterator[None]]  # breaks something before it yields, and mends it when it goes on


@pytest.fixture(scope="module")
def fork(published: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fork]:
    """The project as its owner sees it, as the environment of this process says."""
    kubectl, folder = published.kubectl, tmp_path_factory.mktemp("doctor")
    with ExitStack() as stack:
        stack.callback(published.sync)
        stack.callback(look_again, published.argocd, projects.APPLICATION)
        stack.enter_context(resting(published.argocd, "statefulset/argocd-application-controller"))
        stack.enter_context(resting(published.surroundings, "deployment/operators"))
        kubectl.apply(account("viewer"))
        for space in (kubectl, published.ci):
            space.apply(binding("viewer", "view", projects.NAMESPACE))
        host = stack.enter_context(serve_http())
        host.serve(GIT_HOST, MAY_PUSH)
        made = Fork(kubectl, folder / "fork", host, folder / "kubeconfig")
        for part in building.PARTS:
            shutil.copytree(projects.FORK / part, made.folder / part)
        made.set(repository=f"{host.url}/acme/jukebox", git_host="gitea")
        front = stack.enter_context(router(folder))
        made.patch("route/jukebox-listener", {"spec": {"host": front}})
        # Nobody asks the model server here while it rolls: its pods need not wait before they go.
        at_once = json.dumps([{"op": "remove", "path": "/spec/containers/0/lifecycle"}])
        kubectl("patch", "servingruntime/jukebox-ovms", "--type=json", f"--patch={at_once}")
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        environment.setenv("JUKEBOX_SETTINGS", str(made.settings))
        environment.setenv("KFP_ENDPOINT", f"https://{PIPELINE_SERVER}:{deploy.PORT}")
        environment.setenv("REQUESTS_CA_BUNDLE", str(node.CA))
        # The client reads KUBECONFIG when it is imported.
        environment.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(made.kubeconfig))
        made.log_in("developer", projects.DEVELOPER)
        yield made


@contextmanager
def resting(kubectl: Kubectl, workload: str) -> Iterator[None]:
    """A workload has no pod in this block."""
    kubectl("scale", workload, "--replicas=0")
    selector = kubectl.get(workload)["spec"]["selector"]["matchLabels"]
    pods = ("get", "pods", f"--selector={','.join(f'{key}={value}' for key, value in selector.items())}")
    node.wait(f"end of {workload}", lambda: not kubectl(*pods, "--output=name"))
    yield
    kubectl("scale", workload, "--replicas=1")


def account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


def binding(account: str, role: str, namespace: str) -> dict[str, Any]:
    """What gives an account of a namespace a role of the cluster in another."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"test-{account}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }


@contextmanager
def router(folder: Path) -> Iterator[str]:
    """What plays OpenShift's router before the listener: TLS ends here; yields host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                with requests.Session() as session:
                    session.trust_env = False
                    status = session.get(f"http://{projects.LISTENER}{self.path}", timeout=2).status_code
            except OSError:
                status = 503  # as the real one says of a Service without pods
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    node.certificate("router", "/CN=router", "subjectAltName=IP:127.0.0.1")
    certificate = folder / "router.pem"
    certificate.write_bytes(b"".join((node.STATE / "pki" / f"router.{part}").read_bytes() for part in ("crt", "key")))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with running(server):
            yield f"127.0.0.1:{server.server_address[1]}"


def look(fork: Fork) -> list[dict[str, str]]:
    """What doctor finds."""
    found: list[dict[str, str]] = json.loads(fork.jukebox("doctor", f"--overlay={fork.overlay}", "--output=json"))
    return found


def expect(fork: Fork, *expected: Finding) -> None:
    """Wait until doctor finds this wrong and nothing else."""

    def found() -> bool:
        wrong = [tuple(each.values()) for each in look(fork) if each["state"] != "ok"]
        missing = [one for one in expected if not any(matches(one, other) for other in wrong)]
        if missing or len(wrong) != len(expected):
            raise RuntimeError(f"doctor finds {json.dumps(wrong, indent=1)}")
        return True

    node.wait("what doctor finds", found)


def matches(expected: Finding, found: tuple[str, ...]) -> bool:
    return found[:2] == expected[:2] and all(part in text for part, text in zip(expected[2:], found[2:], strict=True))


def test_a_project_in_order_has_nothing_to_remedy(fork: Fork) -> None:
    expect(fork)
    found = {each["name"]: each["found"] for each in look(fork)}
    assert found["Kubernetes"].startswith("v1.")
    assert found["Admission of Tekton Triggers"] == "validation.webhook.triggers.tekton.dev is up"
    assert found["Admission of Kubeflow Pipelines"] == "pipelineversions.pipelines.kubeflow.org is up"
    assert found["Model store"] == "claim jukebox-model-pvc is Bound, ReadWriteMany, of class standard"
    assert found["Connection to the listener"].endswith("/live answers 200")
    assert found["Model"] == "serves 1; Git pins 1"


def test_who_may_only_look_is_told_what_cannot_be_seen_and_that_nothing_fails(fork: Fork) -> None:
    fork.log_in("viewer")
    found = {each["name"]: each for each in look(fork) if each["state"] != "ok"}
    fork.log_in("developer", projects.DEVELOPER)
    assert {each["state"] for each in found.values()} == {"warn"}
    texts = {name: each["found"] for name, each in found.items()}
    for owner in ("Tekton Pipelines", "Tekton Triggers", "KServe", "Kubeflow Pipelines"):
        assert "cannot be tested" in texts[f"Admission of {owner}"]
    assert "create secrets (jukebox secrets)" in texts["Your permissions"]
    assert "answers 403" in texts["Connection to the pipeline server"]
    for name in ("Permissions", "Secrets", "Token of the Git host"):
        assert "cannot be read" in texts[name]
    assert all(each["remedy"] for each in found.values())


def test_an_http_route_leads_to_the_listener_where_there_is_no_route(fork: Fork) -> None:
    host = fork.of("route/jukebox-listener").get("route/jukebox-listener")["spec"]["host"]
    metadata = {"name": "jukebox-listener"}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata}
    with broken(fork, without("route/jukebox-listener")):
        fork.of("httproute/jukebox-listener").apply({**route, "spec": {"hostnames": [host]}})
        try:
            expect(fork)
            assert f"https://{host}/live answers 200" in [each["found"] for each in look(fork)]
        finally:
            fork.of("httproute/jukebox-listener")("delete", "httproute/jukebox-listener")


@contextmanager
def broken(fork: Fork, *breaks: Break) -> Iterator[None]:
    """All of this is broken in the block, one after the other, and mended behind it, the last first."""
    with ExitStack() as stack:
        for each in breaks:
            steps = each(fork)
            next(steps)
            stack.callback(next, steps, None)
        yield


def unlabelled(fork: Fork) -> Iterator[None]:
    """Tekton's webhooks leave the namespace out, as namespaces of the system are left out."""
    words = ("label", "namespace", projects.CI_NAMESPACE)
    fork.kubectl(*words, "webhooks.knative.dev/exclude=true")
    yield
    fork.kubectl(*words, "webhooks.knative.dev/exclude-")


def without(*names: str) -> Break:
    """Resources are deleted, each ``<kind>/<name>``."""

    def broken(fork: Fork) -> Iterator[None]:
        before = [fork.of(name).get(name) for name in names]
        for name in names:
            fork.of(name)("delete", name)
        yield
        kept = ("name", "labels", "annotations")
        for name, each in zip(names, before, strict=True):
            each["metadata"] = {key: value for key, value in each["metadata"].items() if key in kept}
            each.pop("status", None)
            fork.of(name).apply(each)

    return broken


def with_key(name: str, key: str, value: str) -> Break:
    """A key of a Secret has another value."""

    def broken(fork: Fork) -> Iterator[None]:
        before = fork.of(f"secret/{name}").get(f"secret/{name}")["data"][key]
        fork.patch(f"secret/{name}", {"data": {key: base64.b64encode(value.encode()).decode()}})
        yield
        fork.patch(f"secret/{name}", {"data": {key: before}})

    return broken


def patched(name: str, patch: Any, undo: Any) -> Break:
    def broken(fork: Fork) -> Iterator[None]:
        fork.patch(name, patch)
        yield
        fork.patch(name, undo)

    return broken


def with_settings(**values: str) -> Break:
    def broken(fork: Fork) -> Iterator[None]:
        before = fork.settings.read_text()
        fork.set(**values)
        yield
        fork.settings.write_text(before)
        fork.tell()

    return broken


def untold(fork: Fork) -> Iterator[None]:
    """Settings have changed since the last bootstrap."""
    before = fork.settings.read_text()
    fork.settings.write_text(before.replace("schedule: ", "schedule: 1"))
    yield
    fork.settings.write_text(before)


def on_claim(name: str, mode: str, storage_class: str) -> Break:
    """The model store is another claim."""

    def broken(fork: Fork) -> Iterator[None]:
        requests = {"requests": {"storage": "1Mi"}}
        spec = {"accessModes": [mode], "storageClassName": storage_class, "resources": requests}
        metadata = {"name": name}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        fork.kubectl.apply(claim)
        yield from with_settings(model_storage_pvc=name)(fork)
        fork.kubectl("delete", "persistentvolumeclaim", name)

    return broken


def readable(fork: Fork) -> Iterator[None]:
    """The account that runs what was pushed may do what a developer may."""
    given = binding("jukebox-steps", "edit", projects.CI_NAMESPACE)
    fork.kubectl.apply(given)
    yield
    fork.kubectl("delete", "rolebinding", given["metadata"]["name"])


def away(fork: Fork) -> Iterator[None]:
    """No pipeline server answers: its pod is gone, and with it what the API server has kept open."""
    with resting(fork.kubectl, f"deployment/{deploy.NAME}"):
        yield


def at_another_address(address: Callable[[Fork], str]) -> Break:
    """Who looks asks for the pipeline server elsewhere."""

    def broken(fork: Fork) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KFP_ENDPOINT", address(fork))
            yield

    return broken


def unready(fork: Fork) -> Iterator[None]:
    """Its operator says that the pipeline server is not ready."""
    before = fork.kubectl.get(DSPA)["status"]
    condition = {"type": "Ready", "status": "False", "reason": "Played", "message": ""}
    fork.patch(DSPA, {"status": {"conditions": [condition]}}, "--subresource=status")
    yield
    fork.patch(DSPA, {"status": before}, "--subresource=status")


def pod(fork: Fork, name: str) -> str:
    """The address of an app's pod, for which no certificate is."""
    [found] = fork.kubectl.get("pods", f"--selector=app.kubernetes.io/name={name}")["items"]
    return str(found["status"]["podIP"])


def answering(status: int) -> Break:
    """The Git host answers so."""

    def broken(fork: Fork) -> Iterator[None]:
        fork.host.serve(GIT_HOST, Answer(b"{}", status))
        yield
        fork.host.serve(GIT_HOST, MAY_PUSH)

    return broken


def restarted(fork: Fork) -> Iterator[None]:
    """The listener starts anew, without the Secret that it needs for that."""
    delete = ("delete", "pod", "--selector=eventlistener=jukebox", "--grace-period=1")
    with broken(fork, without("secret/jukebox-listener")):
        fork.of("deployment/el-jukebox")(*delete)
        yield
    fork.of("deployment/el-jukebox")(*delete)


def elsewhere(fork: Fork) -> Iterator[None]:
    """The route's name is not in the certificate of what answers there."""
    host = fork.of("route/jukebox-listener").get("route/jukebox-listener")["spec"]["host"]
    fork.patch("route/jukebox-listener", {"spec": {"host": host.replace("127.0.0.1", "localhost")}})
    yield
    fork.patch("route/jukebox-listener", {"spec": {"host": host}})


def stopped(fork: Fork) -> Iterator[None]:
    def annotated(value: str | None) -> Any:
        return {"metadata": {"annotations": {"serving.kserve.io/stop": value}}}

    return patched("inferenceservice/jukebox", annotated("true"), annotated(None))(fork)


def pinning(version: int) -> Break:
    """Git pins another version, which is not applied."""

    def broken(fork: Fork) -> Iterator[None]:
        file = fork.folder / PIN
        before = file.read_text()
        file.write_text(render(replace(parse(before), version=version)))
        yield
        file.write_text(before)

    return broken


NOBODYS = 999  # a version


def unpublished(fork: Fork) -> Iterator[None]:
    """Git pins a version that there is not, and so does the cluster."""
    arguments = fork.kubectl.get("inferenceservice/jukebox")["spec"]["predictor"]["model"]["args"]

    def given(args: list[str]) -> Any:
        return {"spec": {"predictor": {"model": {"args": args}}}}

    other = [argument.replace("[ 1 ]", f"[ {NOBODYS} ]") for argument in arguments]
    with broken(fork, pinning(NOBODYS), patched("inferenceservice/jukebox", given(other), given(arguments))):
        yield


SENDERS = "Secret jukebox-senders"
TOKEN = "Token of the Git host"
PROVOKED: dict[str, tuple[Break, list[Finding]]] = {
    "webhooks of Tekton that leave the namespace out": (
        unlabelled,
        [
            ("Admission of Tekton Pipelines", "fail", "an invalid Task was accepted", "that Tekton Pipelines is"),
            ("Admission of Tekton Triggers", "fail", "invalid TriggerTemplate", "that Tekton Triggers is"),
        ],
    ),
    "no webhook of the pipeline server": (
        without(f"mutating{WEBHOOK}", f"validating{WEBHOOK}"),
        [("Admission of Kubeflow Pipelines", "fail", "an invalid PipelineVersion was accepted", "oc get dspa")],
    ),
    "a policy without its binding": (
        without(f"validatingadmissionpolicybinding/jukebox-listener.{projects.NAMESPACE}"),
        [("Admission policy", "warn", "has no binding", "jukebox bootstrap")],
    ),
    "a pipeline server that is away": (
        away,
        [
            ("Admission of Kubeflow Pipelines", "fail", "failed calling webhook", "Check the webhook's pods"),
            ("Connection to the pipeline server", "warn", "The server does not answer", "Check that the DSPA is ready"),
        ],
    ),
    "a pipeline server that is not trusted": (
        at_another_address(lambda fork: f"https://{pod(fork, deploy.NAME)}:{deploy.PORT}"),
        [("Connection to the pipeline server", "warn", "certificate is not trusted", "Log in")],
    ),
    "an address of something else": (
        at_another_address(lambda fork: fork.host.url),
        [("Connection to the pipeline server", "warn", "is not a pipeline server", "Check the address")],
    ),
    "a pipeline server that is not ready": (
        unready,
        [("Pipeline server", "fail", "Ready is False Played", "oc describe dspa dspa")],
    ),
    "no claim": (
        with_settings(model_storage_pvc="missing"),
        [
            (
                "Model store",
                "warn",
                "claim missing does not exist; classes: standard",
                "or use the component storage-rwo",
            )
        ],
    ),
    "a claim that waits": (
        on_claim("waiting", "ReadWriteMany", "nobody"),
        [("Model store", "fail", "claim waiting is Pending, ReadWriteMany, of class nobody", "describe pvc waiting")],
    ),
    "a claim of one node": (
        on_claim("narrow", "ReadWriteOnce", "standard"),
        [("Model store", "warn", "claim narrow is Bound, ReadWriteOnce, of class standard", "ReadWriteMany")],
    ),
    "a placeholder": (
        with_settings(image="<REGISTRY>/jukebox-training"),
        [("Settings", "fail", "without a value: <REGISTRY>", "settings.yaml")],
    ),
    **{
        f"{account} without its right": (
            without(f"rolebinding/{account}"),
            [("Account", "fail", f"{account} may not {right}", "Role or RoleBinding is missing")],
        )
        for account, right in {
            "jukebox-listener": "create pipelineruns",
            "jukebox-release": "create pipelineversions",
            "jukebox-retain": "delete pipelineruns",
            "jukebox-runs": "patch pipelineruns",
        }.items()
    },
    "an account that may too much": (
        readable,
        [("Account", "fail", "jukebox-steps may read Secrets", "Revoke that right")],
    ),
    "settings that no bootstrap has seen": (
        untold,
        [("ConfigMap jukebox-settings", "warn", "differs from settings.yaml in schedule", "jukebox bootstrap")],
    ),
    "a token for another repository": (
        with_key("jukebox-git-host", "repository", "https://elsewhere.example/acme/jukebox"),
        [(TOKEN, "fail", "it is for https://elsewhere.example/acme/jukebox", "--git-token-file FILE")],
    ),
    "no senders": (without("secret/jukebox-senders"), [(SENDERS, "fail", "does not exist", "jukebox secrets")]),
    "an empty key": (
        with_key("jukebox-senders", "alert", ""),
        [(SENDERS, "fail", "alert is missing or empty", "jukebox secrets")],
    ),
    "a short key": (
        with_key("jukebox-senders", "data", "short"),
        [(SENDERS, "fail", "data has fewer than 16 characters", "jukebox secrets")],
    ),
    "no S3 keys": (
        without("secret/jukebox-s3"),
        [
            (
                "Secret jukebox-s3",
                "fail",
                "does not exist in ada-jukebox; stores the artifacts of runs",
                "jukebox secrets --s3-file FILE",
            )
        ],
    ),
    "a token that is not taken": (answering(401), [(TOKEN, "fail", "answers 401", "--git-token-file FILE")]),
    "a token that may only read": (
        answering(200),
        [(TOKEN, "fail", "lacks write access of its user to the repository", "--git-token-file FILE")],
    ),
    "a Git host that is away": (
        with_settings(repository="http://127.0.0.1:1/acme/jukebox"),
        [(TOKEN, "warn", "the host does not answer", "on another machine")],
    ),
    "no repository": (
        with_settings(repository="https://github.com/<ORGANISATION>/jukebox"),
        [
            ("Settings", "fail", "without a value: <ORGANISATION>", "settings.yaml"),
            (TOKEN, "warn", "cannot be tested: the repository is https://github.com/<ORG", "settings.yaml"),
        ],
    ),
    "no listener": (
        without("eventlistener/jukebox"),
        [("Listener", "fail", "EventListener jukebox has no Deployment", "Apply the overlay")],
    ),
    "a listener that starts anew without its Secret": (
        restarted,
        [
            ("Secret jukebox-listener", "fail", "the listener does not start without", "jukebox secrets"),
            ("Listener", "fail", "0 pods available", "describe deployment el-jukebox`: a Secret"),
            ("Connection to the listener", "fail", "/live answers 503", "the route's status"),
        ],
    ),
    "no route": (
        without("route/jukebox-listener"),
        [("Connection to the listener", "warn", "no Route and no HTTPRoute", "Apply the overlay")],
    ),
    "a route to another name": (
        elsewhere,
        [("Connection to the listener", "fail", "does not answer", "Check DNS, the certificate")],
    ),
    "a promotion that has not arrived": (
        pinning(2),
        [("Model", "fail", "serves 1; Git pins 2, the cluster 1", "whether the last sync succeeded")],
    ),
    "a version that nobody has published": (
        unpublished,
        [
            ("Model server", "fail", "Ready is Unknown", "describe inferenceservice jukebox"),
            ("Model", "fail", f"serves 1; Git pins {NOBODYS}", "Check that the version was published"),
        ],
    ),
    "a model server that is stopped": (
        stopped,
        [
            ("Model server", "fail", "Ready is False Stopped", "describe inferenceservice jukebox"),
            ("Model", "warn", "serves an unknown version: no pod is ready; Git pins 1", "/v2/models/"),
        ],
    ),
    "no model server": (
        without("inferenceservice/jukebox"),
        [("Model server", "fail", "InferenceService jukebox does not exist", "Apply the overlay")],
    ),
}


# Of the second, doctor says nothing where the first is not there.
HIDES = {"Listener": "Connection to the listener", "Model server": "Model"}


def rounds() -> list[list[str]]:
    """What is provoked at once: nothing that doctor tells of under the same name, or would hide."""

    def told(name: str) -> set[str]:
        names = {finding[0] for finding in PROVOKED[name][1]}
        return names | {HIDES[each] for each in names if each in HIDES}

    found: list[list[str]] = []
    for name in PROVOKED:
        for together in found:
            if not any(told(name) & told(other) for other in together):
                together.append(name)
                break
        else:
            found.append([name])
    return found


@pytest.mark.parametrize("together", rounds(), ids="; ".join)
def test_each_thing_that_is_wrong_is_found_with_a_remedy_and_nothing_else(fork: Fork, together: list[str]) -> None:
    with broken(fork, *(PROVOKED[name][0] for name in together)):
        expect(fork, *(finding for name in together for finding in PROVOKED[name][1]))
    expect(fork)
