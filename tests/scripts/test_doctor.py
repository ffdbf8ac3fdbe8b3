"""``jukebox doctor``: a project in order, and each thing that can be wrong with it, provoked once."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tenacity import wait_none
from typer.testing import CliRunner, Result

from pipeline.core.errors import ClusterAway
from scripts.bootstrap import POLICIES
from scripts.cli import app
from scripts.clients.git_hosts import base
from scripts.doctor import INSTALLED, PROVOCATIONS
from scripts.preflight import ENFORCE
from scripts.secrets import KEYS, LISTENER
from tests.http_server import Answer, HttpServer, serve_http
from tests.kfp.cluster import Cluster
from tests.kfp.world import CI_NAMESPACE, NAMESPACE, World
from tests.settings_file import SETTINGS_FILE

pytest_plugins = ("tests.kfp.fixtures",)
TOKEN = "hidden-token-of-the-git-host"
MAY_PUSH = b'{"permissions": {"push": true}}'
POLICY = f"jukebox-listener.{NAMESPACE}"
SERVED = f"/api/v1/namespaces/{NAMESPACE}/pods/model-server:8888/proxy/v2/models/jukebox"


@dataclass
class Project:
    """A world in which a project is in order, with what is outside the cluster and an overlay."""

    world: World
    host: HttpServer  # the Git host
    door: HttpServer  # what leads to the listener
    overlay: Path
    settings: Path

    def _having(self, plural: str, name: str) -> Cluster:
        """The namespace that has it; that of the CI first."""
        cluster, ci = self.world.cluster, self.world.cluster.ci
        return ci if (plural, name) in ci.objects else cluster

    def get(self, plural: str, name: str) -> Any:
        return self._having(plural, name).objects[plural, name]

    def remove(self, plural: str, name: str) -> None:
        del self._having(plural, name).objects[plural, name]

    def set(self, **values: str) -> None:
        """Change the settings."""
        document = yaml.safe_load(self.settings.read_text())
        document["data"] |= {key.replace("_", "-"): value for key, value in values.items()}
        self.settings.write_text(yaml.safe_dump(document))
        data = {"settings.yaml": self.settings.read_text()}
        self.world.cluster.ci.add("configmaps", {"metadata": {"name": "jukebox-settings"}, "data": data})


CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "data": {}}


def service(version: str, *conditions: dict[str, str]) -> dict[str, Any]:
    model = {"args": [f'--model_version_policy={{"specific":{{"versions":[ {version} ]}}}}'] if version else []}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "jukebox"},
        "spec": {"predictor": {"model": model}},
        "status": {"conditions": [*conditions] or [{"type": "Ready", "status": "True"}]},
    }


def add_secret(cluster: Cluster, name: str, **values: str) -> None:
    data = {key: b64encode(value.encode()).decode() for key, value in values.items()}
    cluster.add("secrets", {"metadata": {"name": name}, "data": data})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries do not wait."""
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())


@pytest.fixture
def project(world: World, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    cluster, ci = world.cluster, world.cluster.ci
    cluster.paths = {"/version": {"gitVersion": "v1.34.4"}, SERVED: {"name": "jukebox", "versions": ["3"]}}
    for kind, _, _ in INSTALLED.values():
        listed = cluster.paths.setdefault(f"/apis/{kind.group}/{kind.version}", {"resources": []})
        listed["resources"].append({"name": kind.plural})
    for name, (kind, _, _) in PROVOCATIONS.items():
        for each in (cluster, ci):
            each.refusals[kind.plural] = (f"webhook.{name.split()[0].lower()}", "wrong")
    cluster.denied = {("get", "secrets", "jukebox-steps")}
    ci.denied = set(cluster.denied)
    cluster.add(
        "customresourcedefinitions",
        {"metadata": {"name": "tasks.tekton.dev", "labels": {"pipeline.tekton.dev/release": "v1.15.0"}}},
    )
    cluster.add(
        "persistentvolumeclaims",
        {
            "metadata": {"name": "jukebox-model-pvc"},
            "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "shared"},
            "status": {"phase": "Bound"},
        },
    )
    for name in (NAMESPACE, CI_NAMESPACE):
        cluster.add("namespaces", {"metadata": {"name": name, "labels": {ENFORCE: "baseline"}}})
    for policy in POLICIES:
        named = {"metadata": {"name": f"{policy}.{NAMESPACE}"}}
        cluster.add("validatingadmissionpolicies", named)
        cluster.add("validatingadmissionpolicybindings", {**named, "spec": {"validationActions": ["Deny"]}})
    keys = {"AWS_ACCESS_KEY_ID": "hidden", "AWS_SECRET_ACCESS_KEY": "hidden"}
    add_secret(ci, "jukebox-senders", **dict.fromkeys(KEYS, "hidden-secret-of-a-sender"))
    add_secret(ci, "jukebox-listener", **LISTENER)
    add_secret(ci, "jukebox-registry", **{".dockerconfigjson": "{}"})
    add_secret(ci, "jukebox-chat", url="https://chat/hidden")
    for each in (ci, cluster):
        add_secret(each, "jukebox-data", **keys)
    add_secret(cluster, "jukebox-s3", **keys)
    add_secret(cluster, "jukebox-store", **keys)
    add_secret(cluster, "jukebox-alert", token="hidden-secret-of-a-sender")
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    cluster.add("datasciencepipelinesapplications", {"metadata": {"name": "dspa"}, "status": ready})
    ci.add("eventlisteners", {"metadata": {"name": "jukebox"}})
    for name in ("el-jukebox", "jukebox-listener-proxy"):
        ci.add("deployments", {"metadata": {"name": name}, "status": {"availableReplicas": 1}})
    cluster.add("inferenceservices", service("3"))
    cluster.add(
        "pods",
        {
            "metadata": {"name": "model-server", "labels": {"serving.kserve.io/inferenceservice": "jukebox"}},
            "status": ready,
        },
    )
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "service.yaml").write_text(json.dumps(service("3")))
    (overlay / "kustomization.yaml").write_text("resources: [service.yaml]\n")
    settings = tmp_path / "settings.yaml"
    text = SETTINGS_FILE.read_text().replace("<REGISTRY>/jukebox-training", "registry.example.com/jukebox")
    settings.write_text(text)
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(settings))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serve_http() as host, serve_http(certificate) as door:
        host.serve("/api/v1/repos/acme/jukebox", Answer(MAY_PUSH))
        door.serve("/live", Answer(b"{}"))
        add_secret(ci, "jukebox-git-host", token=TOKEN, repository=f"{host.url}/acme/jukebox")
        ci.add("routes", {"metadata": {"name": "jukebox-listener"}, "spec": {"host": door.url[8:]}})
        made = Project(world, host, door, overlay, settings)
        made.set(git_host="gitea", repository=f"{host.url}/acme/jukebox")
        yield made


def doctor(project: Project, *options: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--overlay", str(project.overlay), *options])


def findings(project: Project) -> list[dict[str, str]]:
    result = doctor(project, "--output", "json")
    found: list[dict[str, str]] = json.loads(result.output)
    assert result.exit_code == any(each["state"] == "fail" for each in found)
    assert "hidden" not in result.output
    return found


def test_a_project_in_order_has_nothing_to_remedy(project: Project) -> None:
    found = findings(project)
    assert [each for each in found if each["state"] != "ok" or each["remedy"]] == []
    texts = {each["name"]: each["found"] for each in found}
    assert texts["Kubernetes"] == "v1.34.4"
    assert texts["Tekton Pipelines"] == "tekton.dev/v1 v1.15.0"
    assert texts["Model"] == "serves 3; Git pins 3"
    asked = [*project.world.cluster.asked, *project.world.cluster.ci.asked]
    assert {method for method, path, _ in asked if "reviews" not in path} == {"GET", "POST"}


def test_a_table_is_for_people(project: Project) -> None:
    project.remove("eventlisteners", "jukebox")
    result = doctor(project)
    assert result.exit_code == 1
    assert re.search(r"^ ?fail +Listener +EventListener jukebox has no Deployment +Apply", result.output, re.MULTILINE)
    assert re.search(r"^\d+ ok, 0 warn, 1 fail$", result.output, re.MULTILINE)
    assert "\x1b" not in result.output


def test_nothing_is_created(project: Project) -> None:
    both = (project.world.cluster, project.world.cluster.ci)
    before = [set(each.objects) for each in both]
    for each in both:
        each.refusals = {}
    findings(project)
    assert [set(each.objects) for each in both] == before


def check_out(project: Project, run: str, day: int, **results: str) -> None:
    """A run whose checkout has told these results."""
    labels = {"tekton.dev/pipelineRun": run, "tekton.dev/pipelineTask": "checkout"}
    said = [{"name": name.replace("_", "-"), "value": value} for name, value in results.items()]
    status = {"completionTime": f"2026-11-0{day}T10:00:00Z", "results": said}
    resource = {"metadata": {"name": f"{run}-checkout", "labels": labels}, "status": status}
    project.world.cluster.ci.add("taskruns", resource)


def test_the_newest_checkout_says_whether_the_ci_image_is_stale(project: Project) -> None:
    def found() -> tuple[str, str, str]:
        [told] = [each for each in findings(project) if each["name"] == "CI image"]
        return told["state"], told["found"], told["remedy"]

    check_out(project, "push-of-an-older-release", 9, commit="a")
    assert found() == ("ok", "no run has reported yet whether it is stale", "")
    check_out(project, "push-2", 2, ci_image_stale="scripts/wait.py, requirements.lock")
    check_out(project, "push-1", 1, ci_image_stale="")
    state, text, remedy = found()
    assert (state, text) == (
        "warn",
        "the commit of push-2 has different versions of scripts/wait.py, requirements.lock",
    )
    assert re.search("stage ci .*ci-image.*jukebox bootstrap", remedy)
    check_out(project, "push-3", 3, ci_image_stale="")
    assert found() == ("ok", "has the commands and the lock of push-3's commit", "")


Spoil = Callable[[Project], object]


def without(group: str) -> Spoil:
    def spoil(project: Project) -> None:
        for path in [path for path in project.world.cluster.paths if path.startswith(f"/apis/{group}/")]:
            del project.world.cluster.paths[path]

    return spoil


def answering(answer: Answer) -> Spoil:
    return lambda project: project.host.serve("/api/v1/repos/acme/jukebox", answer)


def expiring(days: float) -> Spoil:
    time = datetime.now(UTC) + timedelta(days=days)
    header = {"GitHub-Authentication-Token-Expiration": f"{time:%Y-%m-%d %H:%M:%S} UTC"}
    return answering(Answer(MAY_PUSH, headers=header))


def claim(**values: Any) -> Spoil:
    return lambda project: project.get("persistentvolumeclaims", "jukebox-model-pvc").update(values)


def classes(**provisioners: str) -> Spoil:
    def spoil(project: Project) -> None:
        project.remove("persistentvolumeclaims", "jukebox-model-pvc")
        for name, provisioner in provisioners.items():
            project.world.cluster.add("storageclasses", {"metadata": {"name": name}, "provisioner": provisioner})

    return spoil


def denied(verb: str, resource: str, account: str = "") -> Spoil:
    """In the namespace of the CI."""
    return lambda project: project.world.cluster.ci.denied.add((verb, resource, account))


def secret(name: str, **data: str) -> Spoil:
    return lambda project: project.get("secrets", name)["data"].update(data)


def gone(plural: str, name: str) -> Spoil:
    return lambda project: project.remove(plural, name)


def served(*versions: str) -> Spoil:
    return lambda project: project.world.cluster.paths.update({SERVED: {"versions": list(versions)}})


def pinned(version: str) -> Spoil:
    return lambda project: project.overlay.joinpath("service.yaml").write_text(json.dumps(service(version)))


def unpinned(project: Project) -> None:
    (project.overlay / "service.yaml").write_text(json.dumps({**CONFIG, "metadata": {"name": "jukebox-pin"}}))


def live(version: str, *conditions: dict[str, str]) -> Spoil:
    return lambda project: project.get("inferenceservices", "jukebox").update(service(version, *conditions))


def version(text: str) -> Spoil:
    return lambda project: project.world.cluster.paths.update({"/version": {"gitVersion": text}})


def let_pass(plural: str) -> Spoil:
    return lambda project: project.world.cluster.ci.refusals.pop(plural)


def unadmitted(project: Project) -> None:
    project.world.cluster.refusals.clear()
    project.world.cluster.admission = "down"


def forbidden(plural: str) -> Spoil:
    def spoil(project: Project) -> None:
        for each in (project.world.cluster, project.world.cluster.ci):
            each.forbidden.add(plural)

    return spoil


def copied_to_the_runs(name: str) -> Spoil:
    """A Secret of the CI is where what is pushed runs, as well."""
    return lambda project: project.world.cluster.add("secrets", project.world.cluster.ci.objects["secrets", name])


def may_read_secrets(namespace: str) -> Spoil:
    return lambda project: {NAMESPACE: project.world.cluster, CI_NAMESPACE: project.world.cluster.ci}[
        namespace
    ].denied.clear()


def settings_without_bootstrap(project: Project) -> None:
    """They are changed in the file alone."""
    held = project.get("configmaps", "jukebox-settings")
    project.set(ci_image="registry.example.com/another:1", train_cpu="7")
    project.world.cluster.ci.add("configmaps", held)


def token_for_another_repository(project: Project) -> None:
    add_secret(
        project.world.cluster.ci, "jukebox-git-host", token=TOKEN, repository="https://elsewhere.example.com/a/b"
    )


def on_a_host_that_is_away(project: Project) -> None:
    project.set(repository="http://127.0.0.1:1/acme/jukebox")
    add_secret(project.world.cluster.ci, "jukebox-git-host", token=TOKEN, repository="http://127.0.0.1:1/acme/jukebox")


def leave_an_image_out(project: Project) -> None:
    project.set(image="<REGISTRY>/jukebox-training")


def leave_a_placeholder(project: Project) -> None:
    text = (project.overlay / "service.yaml").read_text()
    (project.overlay / "service.yaml").write_text(text.replace('"jukebox"', '"<MODEL>"'))


PROVOKED: list[tuple[str, Spoil, str, str, str]] = [
    ("an old Kubernetes", version("v1.29.14"), "Kubernetes", "fail", "v1.29.14"),
    ("no Tekton", without("tekton.dev"), "Tekton Pipelines", "fail", "does not serve tasks of tekton.dev/v1"),
    ("no Triggers", without("triggers.tekton.dev"), "Tekton Triggers", "fail", "triggertemplates"),
    ("no KServe", without("serving.kserve.io"), "KServe", "fail", "inferenceservices"),
    ("no KFP", without("pipelines.kubeflow.org"), "Kubeflow Pipelines", "fail", "pipelineversions"),
    ("no Argo CD", without("argoproj.io"), "Argo CD", "warn", "applications"),
    ("no Prometheus", without("monitoring.coreos.com"), "Prometheus Operator", "warn", "podmonitors"),
    (
        "a webhook that is missing",
        let_pass("tasks"),
        "Admission of Tekton Pipelines",
        "fail",
        "an invalid Task was accepted",
    ),
    ("webhooks that are down", unadmitted, "Admission of KServe", "fail", "failed calling webhook"),
    ("nobody who may try", forbidden("tasks"), "Admission of Tekton Pipelines", "warn", "cannot be tested"),
    ("a claim that waits", claim(status={"phase": "Pending"}), "Model store", "fail", "is Pending"),
    ("a claim of one node", claim(spec={"accessModes": ["ReadWriteOnce"]}), "Model store", "warn", "ReadWriteOnce"),
    (
        "no claim",
        classes(files="nfs.csi.k8s.io", disk="ebs.csi.aws.com"),
        "Model store",
        "warn",
        "classes: disk, files",
    ),
    ("no storage class", classes(), "Model store", "fail", "classes: none"),
    ("nobody who may see classes", forbidden("persistentvolumeclaims"), "Model store", "warn", "cannot be read"),
    ("a placeholder", leave_a_placeholder, "Settings", "fail", "<MODEL>"),
    ("no registry", leave_an_image_out, "Settings", "fail", "without a value: <REGISTRY>"),
    ("no right", denied("create", "secrets"), "Your permissions", "warn", "create secrets (jukebox secrets)"),
    (
        "an account without its right",
        denied("create", "pipelineruns", "jukebox-listener"),
        "Account",
        "fail",
        "jukebox-listener may not create pipelineruns",
    ),
    (
        "the release account without its right in the other namespace",
        lambda project: project.world.cluster.denied.add(("create", "pipelineversions", "jukebox-release")),
        "Account",
        "fail",
        f"jukebox-release may not create pipelineversions in {NAMESPACE}",
    ),
    *(
        (
            f"an account that may too much in {namespace}",
            may_read_secrets(namespace),
            "Account",
            "fail",
            f"jukebox-steps may read Secrets of {namespace}",
        )
        for namespace in (NAMESPACE, CI_NAMESPACE)
    ),
    *(
        (
            f"no level in {namespace}",
            gone("namespaces", namespace),
            "Pod Security",
            "warn",
            f"{namespace} enforces no level",
        )
        for namespace in (NAMESPACE, CI_NAMESPACE)
    ),
    (
        "a level that is too low",
        lambda project: project.get("namespaces", CI_NAMESPACE)["metadata"]["labels"].update({ENFORCE: "privileged"}),
        "Pod Security",
        "warn",
        f"{CI_NAMESPACE} enforces privileged",
    ),
    *(
        (
            f"no policy {policy}",
            gone("validatingadmissionpolicies", f"{policy}.{NAMESPACE}"),
            "Admission policy",
            "warn",
            f"{policy}.{NAMESPACE} does not exist",
        )
        for policy in POLICIES
    ),
    (
        "no settings that the tasks rely on",
        gone("configmaps", "jukebox-settings"),
        "ConfigMap jukebox-settings",
        "fail",
        f"does not exist in {CI_NAMESPACE}",
    ),
    (
        "settings that were changed since",
        settings_without_bootstrap,
        "ConfigMap jukebox-settings",
        "warn",
        "differs from settings.yaml in ci-image, train-cpu",
    ),
    *(
        (
            f"{name} where what is pushed runs",
            copied_to_the_runs(name),
            f"Secret {name}",
            "fail",
            f"is also in {NAMESPACE}",
        )
        for name in ("jukebox-git-host", "jukebox-registry", "jukebox-senders", "jukebox-chat")
    ),
    (
        "no token for Alertmanager",
        gone("secrets", "jukebox-alert"),
        "Secret jukebox-alert",
        "fail",
        "alerts do not start trainings",
    ),
    (
        "another token than the listener knows",
        secret("jukebox-alert", token="b3RoZXI="),
        "Secret jukebox-alert",
        "fail",
        "contains another token",
    ),
    (
        "a token that says not what it is for",
        secret("jukebox-git-host", repository=""),
        "Secret jukebox-git-host",
        "fail",
        "repository is missing or empty",
    ),
    (
        "a token for another repository",
        token_for_another_repository,
        "Token of the Git host",
        "fail",
        "it is for https://elsewhere.example.com/a/b, but the settings name",
    ),
    ("no binding", gone("validatingadmissionpolicybindings", POLICY), "Admission policy", "warn", "has no binding"),
    (
        "a policy that only warns",
        lambda project: project.get("validatingadmissionpolicybindings", POLICY)["spec"].update(
            validationActions=["Warn", "Audit"]
        ),
        "Admission policy",
        "warn",
        "does not deny, its actions are Warn, Audit",
    ),
    (
        "nobody who may see policies",
        forbidden("validatingadmissionpolicybindings"),
        "Admission policies",
        "warn",
        "cannot be read",
    ),
    ("no senders", gone("secrets", "jukebox-senders"), "Secret jukebox-senders", "fail", "does not exist"),
    (
        "an empty key",
        secret("jukebox-senders", alert=""),
        "Secret jukebox-senders",
        "fail",
        "alert is missing or empty",
    ),
    ("a short key", secret("jukebox-senders", data="YWJj"), "Secret jukebox-senders", "fail", "fewer than 16"),
    ("no pace", gone("secrets", "jukebox-listener"), "Secret jukebox-listener", "fail", "does not start without"),
    (
        "no S3 keys",
        gone("secrets", "jukebox-s3"),
        "Secret jukebox-s3",
        "fail",
        "does not exist in ada-jukebox; stores the artifacts of runs",
    ),
    ("an expired token", answering(Answer(b"{}", 401)), "Token of the Git host", "fail", "answers 401"),
    ("a token that expires soon", expiring(3), "Token of the Git host", "warn", "expires at"),
    ("a host that is away", on_a_host_that_is_away, "Token of the Git host", "warn", "the host does not answer"),
    (
        "a pipeline server that is not ready",
        lambda project: project.get("datasciencepipelinesapplications", "dspa").update(status={}),
        "Pipeline server",
        "fail",
        "Ready is not set",
    ),
    (
        "not a pipeline server",
        gone("datasciencepipelinesapplications", "dspa"),
        "Pipeline server",
        "fail",
        "DataSciencePipelinesApplication dspa does not exist",
    ),
    (
        "a pipeline server that keeps you out",
        lambda project: project.world.tokens.clear(),
        "Connection to the pipeline server",
        "warn",
        "denies access",
    ),
    ("no listener", gone("deployments", "el-jukebox"), "Listener", "fail", "has no Deployment"),
    (
        "a listener that is down",
        lambda project: project.get("deployments", "el-jukebox").update(status={}),
        "Listener",
        "fail",
        "0 pods available",
    ),
    (
        "no proxy of the listener",
        gone("deployments", "jukebox-listener-proxy"),
        "Proxy of the listener",
        "fail",
        "does not exist",
    ),
    (
        "a proxy of the listener that is down",
        lambda project: project.get("deployments", "jukebox-listener-proxy").update(status={}),
        "Proxy of the listener",
        "fail",
        "0 pods available",
    ),
    ("no route", gone("routes", "jukebox-listener"), "Connection to the listener", "warn", "no Route and no HTTPRoute"),
    (
        "a route to nowhere",
        lambda project: project.door.serve("/live", Answer(b"", 503)),
        "Connection to the listener",
        "fail",
        "/live answers 503",
    ),
    (
        "a route that is not trusted",
        lambda project: project.get("routes", "jukebox-listener")["spec"].update(host="127.0.0.1:1"),
        "Connection to the listener",
        "fail",
        "does not answer",
    ),
    ("no model server", gone("inferenceservices", "jukebox"), "Model server", "fail", "does not exist"),
    (
        "a model server that is not ready",
        live("3", {"type": "Ready", "status": "False", "reason": "Stopped"}),
        "Model server",
        "fail",
        "Ready is False Stopped",
    ),
    ("a pin that was removed and not synced", unpinned, "Model server", "fail", "Git pins no version, but the"),
    ("another model", served("2"), "Model", "fail", "serves 2; Git pins 3"),
    ("a promotion that has not arrived", pinned("4"), "Model", "fail", "Git pins 4, the cluster 3"),
    ("no pod", gone("pods", "model-server"), "Model", "warn", "unknown version: no pod is ready; Git pins 3"),
    (
        "a pod that is not to be asked",
        lambda project: project.world.cluster.paths.pop(SERVED),
        "Model",
        "warn",
        "unknown version: the server could not find",
    ),
]


def test_a_fork_that_pins_nothing_needs_no_model_server(project: Project) -> None:
    unpinned(project)
    gone("inferenceservices", "jukebox")(project)
    assert ("ok", "Git pins no version: none is served") in [
        (each["state"], each["found"]) for each in findings(project) if each["name"] == "Model server"
    ]


@pytest.mark.parametrize(
    ("spoil", "name", "state", "text"), [each[1:] for each in PROVOKED], ids=[e[0] for e in PROVOKED]
)
def test_each_thing_that_is_wrong_is_found_with_a_remedy(
    project: Project, spoil: Spoil, name: str, state: str, text: str
) -> None:
    spoil(project)
    found = findings(project)
    wrong = [each for each in found if each["state"] != "ok"]
    ours = [each for each in wrong if each["name"] == name and text in each["found"]]
    assert [each["state"] for each in ours] == [state], wrong
    assert ours[0]["remedy"]


@pytest.mark.parametrize(
    ("spoil", "name", "text"),
    [
        (expiring(90), "Token of the Git host", "valid until 20"),
        (gone("secrets", "jukebox-registry"), "Secret jukebox-registry", "is optional"),
        (lambda project: [each(project) for each in (pinned(""), live(""), served("7"))], "Model", "Git pins none"),
        (lambda project: project.set(model_store="s3://data/models"), "Model store", "s3://data/models"),
    ],
    ids=["a token for long", "a Secret that may be missing", "dev serves the newest", "a store on S3"],
)
def test_what_is_in_order_otherwise_is_said(project: Project, spoil: Spoil, name: str, text: str) -> None:
    spoil(project)
    found = findings(project)
    assert [each for each in found if each["state"] != "ok"] == []
    assert any(each["name"] == name and text in each["found"] for each in found)


def test_the_way_to_a_pipeline_server_is_tried_by_who_may_not_see_the_server(project: Project) -> None:
    project.world.cluster.forbidden.add("datasciencepipelinesapplications")
    found = {each["name"]: each for each in findings(project)}
    assert "cannot be read" in found["Pipeline server"]["found"]
    assert found["Connection to the pipeline server"]["state"] == "ok"


@pytest.mark.parametrize(
    "spoil", [token_for_another_repository, secret("jukebox-git-host", repository="")], ids=["another", "none"]
)
def test_a_token_goes_to_no_repository_but_its_own(project: Project, spoil: Spoil) -> None:
    spoil(project)
    findings(project)
    assert not project.host.requests


def test_gitlab_is_asked_for_the_token_itself(project: Project) -> None:
    answer = {"expires_at": f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}", "scopes": ["api"]}
    path = "/api/v4/personal_access_tokens/self"
    project.host.serve("/api/v4/projects/acme%2Fjukebox", Answer(b'{"permissions": {"group_access": null}}'))
    project.host.serve(path, Answer(json.dumps(answer).encode()))
    project.set(git_host="gitlab")

    def found() -> tuple[str, str]:
        [told] = [each for each in findings(project) if each["state"] != "ok"]
        assert told["name"] == "Token of the Git host"
        return told["state"], told["found"]

    assert found() == ("fail", "lacks the role Developer in the project")
    role = b'{"permissions": {"project_access": {"access_level": 30}, "group_access": null}}'
    project.host.serve("/api/v4/projects/acme%2Fjukebox", Answer(role))
    state, text = found()
    assert (state, text.split()[:2]) == ("warn", ["expires", "at"])
    assert {sent["PRIVATE-TOKEN"] for _, sent in project.host.requests} == {TOKEN}


def test_a_cluster_that_is_away_is_an_error(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load((project.settings.parent / "kubeconfig").read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (project.settings.parent / "kubeconfig").write_text(yaml.safe_dump(config))
    assert isinstance(doctor(project).exception, ClusterAway)
