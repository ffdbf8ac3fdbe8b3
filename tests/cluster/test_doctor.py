"""``jukebox doctor`` on a real cluster: a project in order, and what can go wrong with it, provoked once each.

What is real of the project and what is played, ``fork.py`` says; of Argo CD only the kinds are there: doctor asks for
no more. Others share this cluster, so ``tests/test_doctor.py`` alone provokes what all of it would feel: an old
Kubernetes, each kind that is not there, KServe's webhooks that are gone and any of Tekton's or KServe's that are down
(here Tekton's leave out the namespace), and no storage class at all.
"""

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from tests.cluster import build, fork, node, stand_ins
from tests.cluster import cluster as tier
from tests.cluster.argocd import MANIFEST
from tests.cluster.conftest import failed
from tests.cluster.fork import GIT_HOST, Fork, binding
from tests.cluster.kubectl import Kubectl
from tests.http_server import Answer

Finding = tuple[str, str, str, str]  # name, state, and a part of what was found and of the remedy
Break = Callable[[Fork], Iterator[None]]  # breaks something before it yields, and mends it when it goes on


@pytest.fixture(scope="module")
def project(
    request: pytest.FixtureRequest, cluster: Kubectl, kserve: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fork]:
    stand_ins.install(cluster)
    manifest = yaml.load_all((build.build("argocd") / MANIFEST).read_text(), yaml.CSafeLoader)
    cluster.apply(*(each for each in manifest if each and each["kind"] == "CustomResourceDefinition"))
    bound = cluster.within(f"test-doctor-{uuid.uuid4().hex[:8]}")
    with fork.installed(bound, tmp_path_factory.mktemp("doctor")) as made:
        yield made
        if failed(request):
            build.say(f"logs and events are in {tier.gather(bound, 'doctor')}")


def look(project: Fork) -> list[dict[str, str]]:
    """What doctor finds."""
    found: list[dict[str, str]] = json.loads(project.jukebox("doctor", f"--overlay={project.overlay}", "--output=json"))
    return found


def expect(project: Fork, *expected: Finding) -> None:
    """Wait until doctor finds this wrong and nothing else."""

    def found() -> bool:
        wrong = [tuple(each.values()) for each in look(project) if each["state"] != "ok"]
        missing = [one for one in expected if not any(matches(one, other) for other in wrong)]
        if missing or len(wrong) != len(expected):
            raise RuntimeError(f"doctor finds {json.dumps(wrong, indent=1)}")
        return True

    node.wait("what doctor finds", found)


def matches(expected: Finding, found: tuple[str, ...]) -> bool:
    return found[:2] == expected[:2] and all(part in text for part, text in zip(expected[2:], found[2:], strict=True))


def test_a_project_in_order_has_nothing_to_remedy(project: Fork) -> None:
    expect(project)
    found = {each["name"]: each["found"] for each in look(project)}
    assert found["Kubernetes"].startswith("v1.")
    assert found["Admission of Tekton Triggers"] == "validation.webhook.triggers.tekton.dev is up"
    assert found["Admission of Kubeflow Pipelines"] == "pipelineversions.pipelines.kubeflow.org is up"
    assert found["Model store"] == "claim jukebox-model-pvc is Bound, ReadWriteMany, of class standard"
    assert found["Way to the listener"].endswith("/live answers 200")
    assert found["Model"] == "served is 1; Git pins 1"


def test_who_may_only_look_is_told_what_cannot_be_seen_and_that_nothing_fails(project: Fork) -> None:
    project.log_in("viewer")
    found = {each["name"]: each for each in look(project) if each["state"] != "ok"}
    project.log_in("owner")
    assert {each["state"] for each in found.values()} == {"warn"}
    texts = {name: each["found"] for name, each in found.items()}
    for owner in ("Tekton Pipelines", "Tekton Triggers", "KServe", "Kubeflow Pipelines"):
        assert "cannot be tried" in texts[f"Admission of {owner}"]
    assert "create secrets (jukebox secrets)" in texts["Your permissions"]
    assert "answers 403" in texts["Way to the pipeline server"]
    for name in ("Permissions", "Secrets", "Token of the Git host"):
        assert "cannot be looked at" in texts[name]
    assert all(each["remedy"] for each in found.values())


def test_an_http_route_leads_to_the_listener_where_there_is_no_route(project: Fork) -> None:
    host = project.kubectl.get("route/jukebox-listener")["spec"]["host"]
    metadata = {"name": "jukebox-listener"}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata}
    steps = without("Route/jukebox-listener")(project)
    next(steps)
    project.kubectl.apply({**route, "spec": {"hostnames": [host]}})
    try:
        expect(project)
        assert f"https://{host}/live answers 200" in [each["found"] for each in look(project)]
    finally:
        project.kubectl("delete", "httproute", "jukebox-listener")
        next(steps, None)


def unlabelled(project: Fork) -> Iterator[None]:
    """Tekton's webhooks leave the namespace out, as namespaces of the system are left out."""
    words = ("label", "namespace", project.kubectl.namespace)
    project.kubectl(*words, "webhooks.knative.dev/exclude=true")
    yield
    project.kubectl(*words, "webhooks.knative.dev/exclude-")


def without(name: str) -> Break:
    """A resource of the overlay is deleted."""

    def broken(project: Fork) -> Iterator[None]:
        kind, _, named = name.partition("/")
        project.kubectl("delete", kind.lower(), named)
        yield
        project.apply(name)

    return broken


def without_secret(name: str) -> Break:
    def broken(project: Fork) -> Iterator[None]:
        secret = project.kubectl.get(f"secret/{name}")
        project.kubectl("delete", "secret", name)
        yield
        project.kubectl.apply({**secret, "metadata": {"name": name}})

    return broken


def with_key(name: str, key: str, value: str) -> Break:
    """A key of a Secret has another value."""

    def broken(project: Fork) -> Iterator[None]:
        before = project.kubectl.get(f"secret/{name}")["data"][key]
        project.patch(f"secret/{name}", {"data": {key: base64.b64encode(value.encode()).decode()}})
        yield
        project.patch(f"secret/{name}", {"data": {key: before}})

    return broken


def patched(name: str, patch: Any, undo: Any) -> Break:
    def broken(project: Fork) -> Iterator[None]:
        project.patch(name, patch)
        yield
        project.patch(name, undo)

    return broken


def with_settings(**values: str) -> Break:
    def broken(project: Fork) -> Iterator[None]:
        before = project.settings.read_text()
        project.set(**values)
        yield
        project.settings.write_text(before)

    return broken


def on_claim(name: str, mode: str, storage_class: str) -> Break:
    """The model store is another claim."""

    def broken(project: Fork) -> Iterator[None]:
        requests = {"requests": {"storage": "1Mi"}}
        spec = {"accessModes": [mode], "storageClassName": storage_class, "resources": requests}
        metadata = {"name": name}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        project.kubectl.apply(claim)
        yield from with_settings(model_storage_pvc=name)(project)
        project.kubectl("delete", "persistentvolumeclaim", name)

    return broken


def readable(project: Fork) -> Iterator[None]:
    """The account that runs what was pushed may do what a developer may."""
    given = binding(project.kubectl.namespace, "jukebox-steps", "edit")
    project.kubectl.apply(given)
    yield
    project.kubectl("delete", "rolebinding", given["metadata"]["name"])


def unbound(project: Fork) -> Iterator[None]:
    """What pods may not have, nothing says any more."""
    project.kubectl("delete", "validatingadmissionpolicybinding", f"jukebox-pods.{project.kubectl.namespace}")
    yield
    project.guard()


def unhooked(project: Fork) -> Iterator[None]:
    hooks = json.dumps(fork.listed(project.hooks()))
    project.kubectl("delete", "--filename=-", stdin=hooks)
    yield
    project.kubectl.apply(*project.hooks())


def away(project: Fork) -> Iterator[None]:
    """No pipeline server answers."""
    project.pipeline_server.stop()
    yield
    project.pipeline_server.start()


def at_another_address(address: Callable[[Fork], str]) -> Break:
    """Who looks asks for the pipeline server elsewhere."""

    def broken(project: Fork) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KFP_ENDPOINT", address(project))
            yield

    return broken


def unready(project: Fork) -> Iterator[None]:
    project.ready(False)
    yield
    project.ready(True)


def answering(status: int, **headers: str) -> Break:
    """The Git host answers so."""

    def broken(project: Fork) -> Iterator[None]:
        answer = Answer(b"{}", status, headers={key.replace("_", "-"): value for key, value in headers.items()})
        project.host.serve(GIT_HOST, answer)
        yield
        project.host.serve(GIT_HOST, Answer(b"{}"))

    return broken


def restarted(project: Fork) -> Iterator[None]:
    """The listener starts anew, without the Secret that it needs for that."""
    secret = without_secret("jukebox-listener")(project)
    delete = ("delete", "pod", "--selector=eventlistener=jukebox", "--grace-period=1")
    next(secret)
    project.kubectl(*delete)
    yield
    next(secret, None)
    project.kubectl(*delete)


def elsewhere(project: Fork) -> Iterator[None]:
    """The route's name is not in the certificate of what answers there."""
    host = project.kubectl.get("route/jukebox-listener")["spec"]["host"]
    project.patch("route/jukebox-listener", {"spec": {"host": host.replace("127.0.0.1", "localhost")}})
    yield
    project.patch("route/jukebox-listener", {"spec": {"host": host}})


def stopped(project: Fork) -> Iterator[None]:
    def annotated(value: str | None) -> Any:
        return {"metadata": {"annotations": {"serving.kserve.io/stop": value}}}

    return patched("inferenceservice/jukebox", annotated("true"), annotated(None))(project)


def pinning(version: int, applied: bool) -> Break:
    """Git pins another version, which is applied or not."""

    def broken(project: Fork) -> Iterator[None]:
        file = project.folder / "manifests" / "components" / "production" / "served-version.yaml"
        before = file.read_text()
        for text in (before.replace("[1]", f"[{version}]"), before):
            file.write_text(text)
            if applied:
                project.apply("InferenceService/jukebox")
            if text != before:
                yield

    return broken


def in_days(days: int) -> str:
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d %H:%M:%S} UTC"


SENDERS = "Secret jukebox-senders"
TOKEN = "Token of the Git host"
PROVOKED: dict[str, tuple[Break, list[Finding]]] = {
    "webhooks of Tekton that leave the namespace out": (
        unlabelled,
        [
            ("Admission of Tekton Pipelines", "fail", "nothing refuses a wrong Task", "whether Tekton Pipelines is"),
            ("Admission of Tekton Triggers", "fail", "wrong TriggerTemplate", "whether Tekton Triggers is"),
        ],
    ),
    "no webhook of the pipeline server": (
        unhooked,
        [("Admission of Kubeflow Pipelines", "fail", "nothing refuses a wrong PipelineVersion", "oc get dspa")],
    ),
    "a policy without its binding": (
        unbound,
        [("Admission policy", "warn", "has no binding", "jukebox bootstrap")],
    ),
    "a pipeline server that is away": (
        away,
        [
            ("Admission of Kubeflow Pipelines", "fail", "failed calling webhook", "See the webhook's pods"),
            ("Way to the pipeline server", "warn", "No server answers there", "Is the DSPA ready"),
        ],
    ),
    "a pipeline server that is not trusted": (
        at_another_address(lambda project: f"https://{node.HOST}:{project.pipeline_server.port}"),
        [("Way to the pipeline server", "warn", "certificate is not trusted", "Log in")],
    ),
    "an address of something else": (
        at_another_address(lambda project: project.host.url),
        [("Way to the pipeline server", "warn", "is no pipeline server", "Check the address")],
    ),
    "a pipeline server that is not ready": (
        unready,
        [("Pipeline server", "fail", "Ready is False Played", "oc describe dspa dspa")],
    ),
    "no claim": (
        with_settings(model_storage_pvc="missing"),
        [("Model store", "warn", "claim missing is not there; classes: ", "likely standard, and apply")],
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
        [("Settings", "fail", "the overlay still has <REGISTRY>", "settings.yaml")],
    ),
    **{
        f"{account} without its right": (
            without(f"RoleBinding/{account}"),
            [("Account", "fail", f"{account} may not {right}", "Role or RoleBinding is not there")],
        )
        for account, right in {
            "jukebox-listener": "create pipelineruns",
            "jukebox-release": "create pipelineversions",
            "jukebox-runs": "patch pipelineruns",
        }.items()
    },
    "an account that may too much": (
        readable,
        [("Account", "fail", "jukebox-steps may read Secrets", "Take that right away")],
    ),
    "no senders": (without_secret("jukebox-senders"), [(SENDERS, "fail", "not there", "jukebox secrets")]),
    "an empty key": (
        with_key("jukebox-senders", "alert", ""),
        [(SENDERS, "fail", "alert is missing or empty", "jukebox secrets")],
    ),
    "a short key": (
        with_key("jukebox-senders", "data", "short"),
        [(SENDERS, "fail", "data has fewer than 16 characters", "jukebox secrets")],
    ),
    "no S3 keys": (
        without_secret("jukebox-s3"),
        [("Secret jukebox-s3", "fail", "not there; reads and writes s3://", "jukebox secrets --s3-file FILE")],
    ),
    "a token that is not taken": (answering(401), [(TOKEN, "fail", "answers 401", "--git-token-file FILE")]),
    "a token that expires soon": (
        answering(200, GitHub_Authentication_Token_Expiration=in_days(3)),
        [(TOKEN, "warn", "expires at", "--git-token-file FILE")],
    ),
    "a Git host that is away": (
        with_settings(repository="http://127.0.0.1:1/acme/jukebox"),
        [(TOKEN, "warn", "does not answer from here", "from elsewhere")],
    ),
    "no repository": (
        with_settings(repository="https://github.com/<ORGANISATION>/jukebox"),
        [
            ("Settings", "fail", "the overlay still has <ORGANISATION>", "settings.yaml"),
            (TOKEN, "warn", "cannot be tried: the repository is https://github.com/<ORG", "settings.yaml"),
        ],
    ),
    "no listener": (
        without("EventListener/jukebox"),
        [("Listener", "fail", "EventListener jukebox has no Deployment", "Apply the overlay")],
    ),
    "a listener that starts anew without its Secret": (
        restarted,
        [
            ("Secret jukebox-listener", "fail", "not there; the listener does not start without", "jukebox secrets"),
            ("Listener", "fail", "0 pods available", "describe deployment el-jukebox`: a Secret"),
            ("Way to the listener", "fail", "/live answers 503", "the route's status"),
        ],
    ),
    "no route": (
        without("Route/jukebox-listener"),
        [("Way to the listener", "warn", "no Route and no HTTPRoute", "Apply the overlay")],
    ),
    "a route to another name": (
        elsewhere,
        [("Way to the listener", "fail", "does not answer", "Check DNS, the certificate")],
    ),
    "a promotion that has not arrived": (
        pinning(2, applied=False),
        [("Model", "fail", "served is 1; Git pins 2, the cluster 1", "whether Argo CD has synced")],
    ),
    "a version that nobody has published": (
        pinning(7, applied=True),
        [
            ("Model server", "fail", "Ready is Unknown", "describe inferenceservice jukebox"),
            ("Model", "fail", "served is 1; Git pins 7", "Was the version published"),
        ],
    ),
    "a model server that is stopped": (
        stopped,
        [
            ("Model server", "fail", "Ready is False Stopped", "describe inferenceservice jukebox"),
            ("Model", "warn", "served is unknown: no pod is ready; Git pins 1", "/v2/models/"),
        ],
    ),
    "no model server": (
        without("InferenceService/jukebox"),
        [("Model server", "fail", "InferenceService jukebox is not there", "Apply the overlay")],
    ),
}


@pytest.mark.parametrize(("broken", "expected"), PROVOKED.values(), ids=PROVOKED)
def test_each_thing_that_is_wrong_is_found_with_a_remedy_and_nothing_else(
    project: Fork, broken: Break, expected: list[Finding]
) -> None:
    steps = broken(project)
    next(steps)
    try:
        expect(project, *expected)
    finally:
        next(steps, None)
    expect(project)
