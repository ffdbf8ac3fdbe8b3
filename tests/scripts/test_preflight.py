"""``jukebox doctor --preflight``: a cluster that will take the project, and each thing that can hinder it."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from pipeline.core.trusted_ca import FILE
from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from pipeline.settings import read_settings
from scripts.cli import app
from scripts.clients.pipeline_server import AUDIENCE
from scripts.doctor import INSTALLED
from scripts.pods import containers, plan
from scripts.preflight import MODE, MONITORING, SUPPORTED
from tests.http_server import Answer, HttpServer, serve_http
from tests.kfp.cluster import Cluster
from tests.kfp.world import CI_NAMESPACE, NAMESPACE, World
from tests.manifests import building

pytest_plugins = ("tests.kfp.fixtures",)
ROOT = Path(__file__).parents[2]
ACCOUNT_TOKEN = "hidden-token-of-an-account"
PODS, CI_PODS = (f"/api/v1/namespaces/{namespace}/pods" for namespace in (NAMESPACE, CI_NAMESPACE))
SERVICES = f"/apis/serving.kserve.io/v1beta1/namespaces/{NAMESPACE}/inferenceservices"
OPENSHIFT = "/apis/security.openshift.io/v1"
FLAGS = "/api/v1/namespaces/tekton-pipelines/configmaps/feature-flags"
HEALTH = "/apis/v2beta1/healthz"
SCC = "unable to validate against any security context constraint: provider "
RESTRICTED = 'violates PodSecurity "restricted:latest": '
PULLS = "kubernetes.io/dockerconfigjson"
WARNING = RESTRICTED.replace("violates", "would violate") + "seccompProfile (pod must not set it)"

Judge = Callable[[dict[str, Any]], str]  # a refusal's message; empty: it is admitted


@dataclass
class Site:
    """A cluster before anything is applied to it, and a fork with its settings.

    Attributes:
        judges: what a pod has to pass, and an InferenceService, by their paths.
        mode: what KServe makes of an InferenceService, in the words that it writes down.
        host: where the pipeline server is.
    """

    world: World
    folder: Path
    host: HttpServer
    judges: dict[str, Judge] = field(default_factory=dict)
    mode: str = "Standard"

    def set(self, **values: str) -> None:
        """Change settings."""
        file = self.folder / "manifests/settings/settings.yaml"
        document = yaml.safe_load(file.read_text())
        document["data"] |= {key.replace("_", "-"): value for key, value in values.items()}
        file.write_text(yaml.safe_dump(document))

    def get(self, plural: str, name: str) -> Any:
        return self.world.cluster.objects[plural, name]

    @property
    def both(self) -> tuple[Cluster, Cluster]:
        """The cluster in each of the project's namespaces."""
        return self.world.cluster, self.world.cluster.ci

    def add(self, plural: str, name: str, *, ci: bool = False, **fields: Any) -> None:
        metadata = {"name": name, **fields.pop("metadata", {})}
        self.both[ci].add(plural, {"metadata": metadata, **fields})

    def add_secret(self, name: str, kind: str, *, ci: bool = False, **data: str) -> None:
        encoded = {key: b64encode(text.encode()).decode() for key, text in data.items()}
        self.add("secrets", name, ci=ci, type=kind, data=encoded)

    def judge_pods(self, judge: Judge) -> None:
        """Let every pod of both namespaces pass by it."""
        self.judges |= {PODS: judge, CI_PODS: judge}

    def look(self, *options: str) -> list[dict[str, str]]:
        """What the preflight finds; by default of the fork's overlay for its platform, in its environment prod."""
        file = self.folder / "manifests/settings/settings.yaml"
        platform = yaml.safe_load(file.read_text())["data"]["platform"]
        options = options or ("--overlay", str(self.folder / "manifests/overlays" / platform / "prod"))
        result = CliRunner().invoke(app, ["doctor", "--preflight", "--output=json", *options])
        assert result.exit_code == 0 or isinstance(result.exception, SystemExit), result.exception
        found: list[dict[str, str]] = json.loads(result.stdout)
        assert result.exit_code == any(each["state"] == "fail" for each in found)
        assert "hidden" not in result.output
        return found


@pytest.fixture(params=["openshift-ai", "kubeflow"])
def site(
    request: pytest.FixtureRequest, world: World, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    cluster, platform = world.cluster, request.param
    answer = cluster.answer
    with serve_http() as host:
        settings = {"platform": platform, "argo-cd": building.PLATFORMS[platform], "kfp-endpoint": host.url}
        made = Site(world, building.copy(tmp_path / "fork", settings), host)

        def judged(method: str, path: str, query: Mapping[str, str], body: Any) -> tuple[int, Any]:
            if method == "POST" and path in made.judges and (message := made.judges[path](body)):
                return 403, {"kind": "Status", "message": message}
            if method == "POST" and path == SERVICES:
                annotations = body["metadata"].setdefault("annotations", {})
                annotations[MODE] = made.mode
            return answer(method, path, query, body)

        monkeypatch.setattr(cluster, "answer", judged)
        monkeypatch.setenv("JUKEBOX_SETTINGS", str(made.folder / "manifests/settings/settings.yaml"))
        monkeypatch.setenv("KFP_ENDPOINT", host.url)
        server = {"tag_name": "2.16.0", "multi_user": True}
        host.serve(HEALTH, Answer(json.dumps(server).encode(), headers={"Content-Type": "application/json"}))
        cluster.paths |= {
            "/version": {"gitVersion": "v1.34.4"},
            "/openapi/v3/apis/pipelines.kubeflow.org/v2beta1": openapi("PipelineVersion", "spec", "platformSpec"),
            "/openapi/v3/apis/argoproj.io/v1alpha1": openapi(
                "ApplicationSet", "spec", "template", "spec", "syncPolicy", "retry", "refresh"
            ),
            FLAGS.replace("feature-flags", "pipelines-info"): {"data": {"version": "v1.12.0"}},
            FLAGS: {"data": {"set-security-context": "true"}},
            "/api/v1/namespaces/kserve/configmaps/inferenceservice-config": {
                "data": {"deploy": json.dumps({"defaultDeploymentMode": "Standard"})}
            },
            "/apis/authentication.k8s.io/v1/tokenreviews": {"status": {"authenticated": True, "audiences": [AUDIENCE]}},
        }
        token = f"/api/v1/namespaces/{CI_NAMESPACE}/serviceaccounts/default/token"
        cluster.ci.paths[token] = {"status": {"token": ACCOUNT_TOKEN}}
        for kind, _, _ in INSTALLED.values():
            listed = cluster.paths.setdefault(f"/apis/{kind.group}/{kind.version}", {"resources": []})
            listed["resources"].append({"name": kind.plural})
        for ci in (False, True):
            made.add("serviceaccounts", "default", ci=ci)
        made.add("namespaces", CI_NAMESPACE, metadata={"labels": {"pod-security.kubernetes.io/enforce": "baseline"}})
        made.add("storageclasses", "shared", provisioner="files.csi.example.com")
        made.add("csidrivers", "files.csi.example.com", spec={"fsGroupPolicy": "File"})
        made.add("nodes", "one", metadata={"labels": {"kubernetes.io/os": "linux", "kubernetes.io/hostname": "one"}})
        if platform == "openshift-ai":
            cluster.paths[OPENSHIFT] = {"resources": [{"name": "securitycontextconstraints"}]}
            version = "/apis/datasciencecluster.opendatahub.io/v1"
            cluster.paths[version] = {"resources": [{"name": "datascienceclusters"}]}
            made.add("datascienceclusters", "default", status={"release": {"version": "3.4.1"}})
            made.add("namespaces", NAMESPACE)
            for (namespace, name), switches in MONITORING.items():
                said: dict[str, Any] = {}
                for *above, last in switches:
                    (said.setdefault(above[0], {}) if above else said)[last] = True
                found = {"data": {"config.yaml": yaml.safe_dump(said)}}
                cluster.paths[f"/api/v1/namespaces/{namespace}/configmaps/{name}"] = found
        else:
            label = {"app.kubernetes.io/part-of": "kubeflow-profile", "pod-security.kubernetes.io/enforce": "baseline"}
            owner = {"kind": "Profile", "name": NAMESPACE}
            made.add("namespaces", NAMESPACE, metadata={"labels": label, "ownerReferences": [owner]})
            made.add("serviceaccounts", "default-editor")
            made.add_secret("mlpipeline-minio-artifact", "Opaque", accesskey="hidden")
            made.add("configmaps", "kfp-launcher", data={})
        yield made


def openapi(kind: str, *path: str) -> dict[str, Any]:
    """What the API says of a kind that has a field."""
    schema: dict[str, Any] = {}
    for name in reversed(path):
        schema = {"type": "object", "properties": {name: schema}}
    return {"components": {"schemas": {kind: {**schema, "x-kubernetes-group-version-kind": [{"kind": kind}]}}}}


on_openshift_ai = pytest.mark.parametrize("site", ["openshift-ai"], indirect=True)
on_kubeflow = pytest.mark.parametrize("site", ["kubeflow"], indirect=True)


def test_a_cluster_that_will_take_it_has_nothing_to_remedy_and_is_not_changed(site: Site) -> None:
    before = [dict(each.objects) for each in site.both]
    found = site.look()
    assert [each for each in found if each["state"] != "ok" or each["remedy"]] == []
    assert [each.objects for each in site.both] == before
    texts = {each["name"]: each["found"] for each in found}
    assert texts["Pod of the model server"].startswith("jukebox: admitted")
    assert "checkout, " in texts["Pods of the tasks"]
    assert texts["Address of the pipeline server"] == f"{site.host.url} speaks http"
    assert texts["Writing to the store"].endswith("with ReadWriteMany steps may write")


@on_openshift_ai
def test_each_pod_is_tried_under_the_scc_that_all_fit_and_the_one_that_admits_it_is_named(site: Site) -> None:
    def admits(pod: dict[str, Any]) -> str:
        assert pod["metadata"]["annotations"] == {"openshift.io/required-scc": "restricted-v2"}
        pod["metadata"]["annotations"]["openshift.io/scc"] = "restricted-v2"
        return ""

    site.judge_pods(admits)
    found = site.look()
    assert [each for each in found if each["state"] != "ok"] == []
    texts = {each["name"]: each["found"] for each in found}
    assert texts["Pods of the steps"].endswith("driver: admitted by restricted-v2")
    assert "pipeline-runner-dspa do not exist yet" in texts["Accounts"]
    assert texts["OpenShift"] == "4.21 of Kubernetes v1.34.4"
    assert texts["OpenShift AI"] == "3.4.1"


def test_the_account_that_is_there_is_the_one_that_is_tried(site: Site) -> None:
    site.add("serviceaccounts", "jukebox-steps", ci=True)
    tried = set()

    def admits(pod: dict[str, Any]) -> str:
        tried.add(pod["spec"]["serviceAccountName"])
        return ""

    site.judge_pods(admits)
    found = [each["found"] for each in site.look() if each["name"] == "Pod that keeps the tasks together"]
    assert found == ["affinity-assistant: admitted"]
    assert tried >= {"jukebox-steps", "default"}
    assert "jukebox-release" not in tried


@on_kubeflow
def test_without_an_overlay_it_is_that_of_the_settings(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie, it is built of the manifests that the code comes with."""
    elsewhere = site.folder.parent / "mine.yaml"
    elsewhere.write_text((site.folder / "manifests/settings/settings.yaml").read_text())
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(elsewhere))
    result = CliRunner().invoke(app, ["doctor", "--preflight", "--output=json"])
    texts = {each["name"]: each["found"] for each in json.loads(result.stdout)}
    assert "default-editor" not in texts["Accounts"]  # which is there
    assert texts["Storage class"].startswith("shared of ")
    assert texts["Settings"] == "all have values"


@on_openshift_ai
def test_an_overlay_may_be_named(site: Site) -> None:
    found = site.look("--overlay", str(site.folder / "manifests/overlays/kubeflow/dev"))
    assert any("default-editor" in each["found"] for each in found if each["name"] == "Accounts")


@on_openshift_ai
@pytest.mark.parametrize("namespace", [NAMESPACE, CI_NAMESPACE])
def test_a_namespace_that_is_not_there_is_said_and_all_that_can_be_looked_at_is(site: Site, namespace: str) -> None:
    del site.world.cluster.objects["namespaces", namespace]
    found = {each["name"]: each for each in site.look()}
    assert (found["Namespace"]["state"], found["Namespace"]["found"]) == ("fail", f"{namespace} does not exist")
    assert "run this again" in found["Namespace"]["remedy"]
    assert found["Storage class"]["state"] == "ok"
    assert "Pods of the tasks" not in found


@on_kubeflow
def test_who_may_look_at_little_is_told_who_may_see_more_and_nothing_fails(site: Site) -> None:
    cluster = site.world.cluster
    cluster.forbidden |= {"nodes", "storageclasses", "csidrivers", "pods", "inferenceservices", "resourcequotas"}
    cluster.ci.forbidden |= cluster.forbidden
    for path in (FLAGS, FLAGS.replace("feature-flags", "pipelines-info")):
        del cluster.paths[path]
    site.set(nodes="kubernetes.io/os=linux")
    wrong = {each["name"]: each for each in site.look() if each["state"] != "ok"}
    assert {each["state"] for each in wrong.values()} == {"warn"}
    assert {"Nodes", "Storage class", "Pods of the tasks", "KServe", "Quota", "Tekton Pipelines"} <= set(wrong)
    assert all("cannot be" in each["found"] and each["remedy"] for each in wrong.values()), wrong


Spoil = Callable[[Site], object]


def version(text: str) -> Spoil:
    return lambda site: site.world.cluster.paths.update({"/version": {"gitVersion": text}})


def path(name: str, answer: dict[str, Any]) -> Spoil:
    return lambda site: site.world.cluster.paths.update({name: answer})


def flag(value: str) -> Spoil:
    return path(FLAGS, {"data": {"set-security-context": value}})


def settings(**values: str) -> Spoil:
    return lambda site: site.set(**values)


def refused(message: str) -> Spoil:
    """Each pod is refused in these words."""
    text = f'pods "jukebox-preflight" is forbidden: {message}'
    return lambda site: site.judge_pods(lambda pod: text)


def both(*spoils: Spoil) -> Spoil:
    return lambda site: [spoil(site) for spoil in spoils]


def of_one_node(*nodes: str) -> Spoil:
    """The claim is of one node, and there are these."""

    def spoil(site: Site) -> None:
        file = site.folder / "manifests/base/storage/persistentvolumeclaim.yaml"
        file.write_text(file.read_text().replace("ReadWriteMany", "ReadWriteOnce"))
        for name in nodes:
            site.add("nodes", name, metadata={"labels": {"kubernetes.io/hostname": name, "disk": "fast"}})

    return spoil


def trusted(text: str, key: str = FILE.name, *, ci: bool = False) -> Spoil:
    return lambda site: site.add("configmaps", "jukebox-trusted-ca", ci=ci, data={key: text})


def expired() -> str:
    """A CA's certificate that was good until yesterday."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Old CA")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(9)).not_valid_after(now - timedelta(1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def component(name: str) -> Spoil:
    """OpenShift AI is 2.25, and the overlay has the component for that."""

    def spoil(site: Site) -> None:
        site.get("datascienceclusters", "default")["status"]["release"].update(version="2.25.3")
        site.mode = "RawDeployment"
        file = site.folder / "manifests/overlays/openshift-ai/prod/kustomization.yaml"
        document = yaml.safe_load(file.read_text())
        document["components"].insert(0, f"../../../components/{name}")
        file.write_text(yaml.safe_dump(document))

    return spoil


def quota(*, ci: bool = False, **hard: str) -> Spoil:
    bounds = {key.replace("_", "."): value for key, value in hard.items()}
    return lambda site: site.add("resourcequotas", "ours", ci=ci, spec={"hard": bounds}, status={"used": {"pods": "2"}})


def pull_secret(kind: str, *places: bool) -> Spoil:
    """The settings name one, which is there in the namespaces of the runs and of the CI, as told."""

    def spoil(site: Site) -> None:
        site.set(pull_secret="pulls")
        for ci in places:
            site.add_secret("pulls", kind, ci=ci, **{".dockerconfigjson": '{"hidden": 1}'})

    return spoil


PROVOKED: dict[str, tuple[Spoil, str, str, str, str, str]] = {
    # what is wrong: platform, name, state, and a part of what was found and of the remedy
    "an old Kubernetes": (version("v1.29.3"), "kubeflow", "Kubernetes", "fail", "v1.29.3", "1.30 or newer"),
    "a new Kubernetes": (version("v1.41.0"), "kubeflow", "Kubernetes", "warn", "v1.41.0", "support-matrix"),
    "an old OpenShift": (version("v1.31.6"), "openshift-ai", "OpenShift", "fail", "4.18 of Kubernetes", "4.19"),
    "an old OpenShift AI": (
        lambda site: site.get("datascienceclusters", "default")["status"]["release"].update(version="3.3.1"),
        *("openshift-ai", "OpenShift AI", "fail", "3.3.1", "Update it to 3.4"),
    ),
    "OpenShift AI 2.25 without its component": (
        lambda site: site.get("datascienceclusters", "default")["status"]["release"].update(version="2.25.3"),
        *("openshift-ai", "OpenShift AI", "fail", "2.25.3", "component openshift-ai-2"),
    ),
    "no monitoring of what users run": (
        path(
            "/api/v1/namespaces/openshift-monitoring/configmaps/cluster-monitoring-config",
            {"data": {"config.yaml": "enableUserWorkload: false\n"}},
        ),
        *("openshift-ai", "Monitoring", "warn", "does not enable enableUserWorkload", "set it to true"),
    ),
    "an Alertmanager that takes nothing": (
        path(
            "/api/v1/namespaces/openshift-user-workload-monitoring/configmaps/user-workload-monitoring-config",
            {"data": {"config.yaml": "alertmanager: {enabled: true}\n"}},
        ),
        *(
            "openshift-ai",
            "Monitoring",
            "warn",
            "does not enable alertmanager.enableAlertmanagerConfig",
            "alerts do not train",
        ),
    ),
    "an old Tekton": (
        path(FLAGS.replace("feature-flags", "pipelines-info"), {"data": {"version": "v0.68.0"}}),
        *("kubeflow", "Tekton Pipelines", "fail", "v0.68.0", "Update it to 1.3"),
    ),
    "an old Argo CD": (
        path("/openapi/v3/apis/argoproj.io/v1alpha1", openapi("ApplicationSet", "spec", "template")),
        *("kubeflow", "Argo CD", "warn", "do not have retry.refresh", "GitOps 1.20"),
    ),
    "an old PipelineVersion": (
        path("/openapi/v3/apis/pipelines.kubeflow.org/v2beta1", openapi("PipelineVersion", "spec", "pipelineSpec")),
        *("kubeflow", "Kubeflow Pipelines", "fail", "do not have platformSpec", "Update the pipeline server"),
    ),
    "a DSPA that keeps them in its database": (
        lambda site: site.add("datasciencepipelinesapplications", "dspa", spec={"apiServer": {}}),
        *(
            "openshift-ai",
            "Pipeline store",
            "fail",
            "pipelineStore of dspa is database",
            "has pipelineStore kubernetes",
        ),
    ),
    "no node for training": (
        settings(train_nodes="gpu=yes"),
        *("kubeflow", "Nodes", "fail", "train-nodes: nodes with gpu=yes: none", "Label a node"),
    ),
    "no storage class": (
        settings(storage_class="missing"),
        *(
            "kubeflow",
            "Storage class",
            "fail",
            "missing does not exist; classes: shared",
            "Set storage-class to one of them",
        ),
    ),
    "a driver that gives fsGroup nothing": (
        lambda site: site.get("csidrivers", "files.csi.example.com")["spec"].update(
            fsGroupPolicy="ReadWriteOnceWithFSType"
        ),
        *("openshift-ai", "Writing to the store", "warn", "with ReadWriteMany steps may not write", "mode 2775"),
    ),
    "a volume of one node, where there are two": (
        of_one_node("two"),
        *(
            "openshift-ai",
            "Access mode",
            "fail",
            "works on one node only; no store-nodes matches one, two",
            "store-nodes",
        ),
    ),
    "a pipeline server of one user": (
        lambda site: site.host.serve(
            HEALTH, Answer(b'{"multi_user": false}', headers={"Content-Type": "application/json"})
        ),
        *("kubeflow", "Kubeflow Pipelines", "fail", "it is single-user", "multi-user"),
    ),
    "an old pipeline server": (
        lambda site: site.host.serve(
            HEALTH, Answer(b'{"tag_name": "2.5.0"}', headers={"Content-Type": "application/json"})
        ),
        *("kubeflow", "Kubeflow Pipelines", "fail", "2.5.0", "Update it"),
    ),
    "restricted, and Tekton does not set its own": (
        both(
            flag("false"),
            lambda site: site.get("namespaces", CI_NAMESPACE)["metadata"]["labels"].update(
                {"pod-security.kubernetes.io/enforce": "restricted"}
            ),
        ),
        *("kubeflow", "Pod Security", "fail", "enforces restricted, which refuses", "set-security-context"),
    ),
    "an SCC that you may not use": (
        lambda site: site.world.cluster.denied.add(("use", "securitycontextconstraints", "")),
        *(
            "openshift-ai",
            "SCC",
            "fail",
            f"you may not use restricted-v2 in {NAMESPACE}",
            "system:openshift:scc:restricted-v2",
        ),
    ),
    "an SCC that you may not use for the CI": (
        lambda site: site.world.cluster.ci.denied.add(("use", "securitycontextconstraints", "")),
        *("openshift-ai", "SCC", "fail", f"you may not use restricted-v2 in {CI_NAMESPACE}", "system:openshift:scc"),
    ),
    "an SCC that an account may not use": (
        lambda site: site.world.cluster.ci.denied.add(("use", "securitycontextconstraints", "jukebox-runs")),
        *("openshift-ai", "SCC", "fail", "jukebox-runs may not use restricted-v2", "to you and the accounts"),
    ),
    "a namespace without the profile's label": (
        lambda site: site.get("namespaces", NAMESPACE)["metadata"].update(labels={}),
        *("kubeflow", "Profile", "fail", "part-of is missing", "by a Profile"),
    ),
    "a namespace that no Profile owns": (
        lambda site: site.get("namespaces", NAMESPACE)["metadata"].update(ownerReferences=[]),
        *("kubeflow", "Profile", "warn", "no Profile owns", "by a Profile"),
    ),
    "no account for runs": (
        lambda site: site.world.cluster.objects.pop(("serviceaccounts", "default-editor")),
        *(
            "kubeflow",
            "Profile",
            "fail",
            "missing, so runs wait or fail: ServiceAccount default-editor",
            "by a Profile",
        ),
    ),
    "a token that is not taken": (
        path("/apis/authentication.k8s.io/v1/tokenreviews", {"status": {"authenticated": False, "error": "unknown"}}),
        *("kubeflow", "Token for the pipeline server", "fail", "rejects a token of default", "See unknown"),
    ),
    "nobody who may review tokens": (
        both(
            lambda site: site.world.cluster.forbidden.add("tokenreviews"),
            lambda site: site.world.cluster.paths.pop("/apis/authentication.k8s.io/v1/tokenreviews"),
        ),
        *(
            "kubeflow",
            "Token for the pipeline server",
            "warn",
            "default has one, but its TokenReview",
            "auth-delegator",
        ),
    ),
    "no pull secret": (
        pull_secret(PULLS, True),
        *(
            "kubeflow",
            "Pull secret",
            "fail",
            f"Secret pulls in {NAMESPACE} does not exist",
            "kubectl create secret docker-registry pulls",
        ),
    ),
    "no pull secret for the CI": (
        pull_secret(PULLS, False),
        *("kubeflow", "Pull secret", "fail", f"Secret pulls in {CI_NAMESPACE} does not exist", "kubectl create secret"),
    ),
    "a pull secret of another type": (
        both(pull_secret(PULLS, True), pull_secret("Opaque", False)),
        *(
            "kubeflow",
            "Pull secret",
            "fail",
            f"Secret pulls in {NAMESPACE} is of type Opaque",
            "Nodes accept only kubernetes.io/dockerconfigjson",
        ),
    ),
    "a CA that is not PEM": (
        trusted("# Főtanúsítvány\nMIIB\n"),
        *("kubeflow", "Trusted CA", "fail", "is not PEM", f"its key {FILE.name}, as PEM"),
    ),
    "a CA that the CI cannot read": (
        trusted("MIIB", ci=True),
        *("kubeflow", "Trusted CA", "fail", f"jukebox-trusted-ca in {CI_NAMESPACE} is not PEM", "as PEM"),
    ),
    "a CA that is cut off": (
        trusted("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"),
        *("kubeflow", "Trusted CA", "fail", "is not PEM", f"its key {FILE.name}, as PEM"),
    ),
    "a CA under another key": (
        trusted("anything", "ca.crt"),
        *("kubeflow", "Trusted CA", "fail", f"has no {FILE.name}", "as PEM"),
    ),
    "a CA that has expired": (
        trusted("# Főtanúsítvány\n" + expired()),
        "kubeflow",
        "Trusted CA",
        "warn",
        "expired: Old CA",
        "as PEM",
    ),
    "a default that is not a Deployment": (
        lambda site: setattr(site, "mode", ""),
        *("kubeflow", "KServe", "fail", "is admitted, with mode Knative", f"annotation {MODE}"),
    ),
    "a word that KServe does not know": (
        lambda site: site.judges.update(
            {SERVICES: lambda each: "customizing deploymentStrategy is only supported for raw deployment mode"}
        ),
        *(
            "kubeflow",
            "KServe",
            "fail",
            "InferenceService jukebox: refused: customizing",
            "RawDeployment before 0.16",
        ),
    ),
    "a quota that a run does not fit": (
        quota(requests_cpu="2", pods="3"),
        *("kubeflow", "Quota", "fail", f"ours of {NAMESPACE}: one run needs requests.cpu ", "quota-cpu"),
    ),
    "a quota that the tasks of a run do not fit": (
        quota(ci=True, requests_cpu="1", requests_storage="1Gi"),
        *("kubeflow", "Quota", "fail", f"ours of {CI_NAMESPACE}: one run needs requests.cpu ", "quota-cpu"),
    ),
    **{
        f"refused: {message[:60]}": (
            refused(message),
            *(platform, "Pods of the tasks", "fail", f"refused: {message[:20]}", remedy),
        )
        for platform, message, remedy in (
            (
                "openshift-ai",
                f"{SCC}restricted-v2: .spec.securityContext.fsGroup: Invalid value: 1001",
                "Remove fsGroup",
            ),
            (
                "openshift-ai",
                f"{SCC}restricted-v2: .containers[0].runAsUser: Invalid value: 5000",
                "Remove runAsUser",
            ),
            (
                "openshift-ai",
                "required scc/restricted-v2 not found",
                "Bind ClusterRole system:openshift:scc:restricted",
            ),
            ("openshift-ai", f"{SCC}anyuid: .seccompProfile: seccomp may not be set", "seccompProfile RuntimeDefault"),
            (
                "kubeflow",
                RESTRICTED + 'allowPrivilegeEscalation != false (containers "prepare" must set …)',
                "set set-security-context",
            ),
            (
                "kubeflow",
                RESTRICTED + 'runAsNonRoot != true (pod or containers "main" must set …)',
                "Kubeflow Pipelines creates",
            ),
            (
                "openshift-ai",
                RESTRICTED + 'seccompProfile (container "kube-rbac-proxy" must …)',
                "OpenShift AI's proxy",
            ),
            ("kubeflow", 'violates PodSecurity "baseline:latest": non-default capabilities (…)', "drop ALL"),
            ("kubeflow", "exceeded quota: ours, requested: cpu=2, used: cpu=0, limited: cpu=1", "larger quota"),
            ("kubeflow", "failed quota: ours: must specify limits.cpu for: prepare", "LimitRange"),
            ("kubeflow", "maximum cpu usage per Container is 1, but limit is 2", "Change the sizes"),
            ("kubeflow", "ValidatingAdmissionPolicy 'labels' with binding 'all' denied request: no team", "policy of"),
            ("kubeflow", "nobody knows why", "the cluster's administrator"),
        )
    },
}


@pytest.mark.parametrize(
    ("spoil", "site", "name", "state", "text", "remedy"), PROVOKED.values(), ids=PROVOKED, indirect=["site"]
)
def test_each_thing_that_is_wrong_is_found_with_a_remedy(
    site: Site, spoil: Spoil, name: str, state: str, text: str, remedy: str
) -> None:
    spoil(site)
    wrong = [each for each in site.look() if each["state"] != "ok"]
    ours = [each for each in wrong if each["name"] == name and text in each["found"] and remedy in each["remedy"]]
    assert [each["state"] for each in ours] == [state], wrong


@pytest.mark.parametrize(
    ("spoil", "site", "name", "text"),
    [
        (both(of_one_node("two"), settings(store_nodes="disk=fast")), "openshift-ai", "Access mode", "matches two"),
        (
            both(
                of_one_node("two"),
                lambda site: site.get("storageclasses", "shared").update(provisioner="rancher.io/local-path"),
            ),
            *("openshift-ai", "Access mode", "on the volume's node, where they are scheduled"),
        ),
        (component("openshift-ai-2"), "openshift-ai", "OpenShift AI", "2.25.3"),
        (settings(model_store="s3://data/models"), "openshift-ai", "Storage class", "not needed"),
        (
            settings(storage_class="shared", nodes="kubernetes.io/os=linux"),
            "kubeflow",
            "Nodes",
            "nodes with kubernetes.io/os=linux: one",
        ),
        (
            pull_secret(PULLS, False, True),
            *("kubeflow", "Pull secret", "of type kubernetes.io/dockerconfigjson"),
        ),
        (
            quota(requests_cpu="64", limits_memory="1Ti", pods="100"),
            "kubeflow",
            "Quota",
            f"ours of {NAMESPACE} leaves room for one run",
        ),
    ],
    ids=[
        "one node of two",
        "volumes of a node",
        "OpenShift AI 2.25",
        "a store on S3",
        "a node",
        "a pull secret",
        "a quota",
    ],
    indirect=["site"],
)
def test_what_is_in_order_otherwise_is_said(site: Site, spoil: Spoil, name: str, text: str) -> None:
    spoil(site)
    found = site.look()
    assert [each for each in found if each["state"] != "ok"] == []
    assert any(each["name"] == name and text in each["found"] for each in found), found


@on_kubeflow
def test_an_address_says_http_or_https_as_the_server_does(
    site: Site, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str, str]:
        [each] = [each for each in site.look() if each["name"] == "Address of the pipeline server"]
        return each

    monkeypatch.setenv("KFP_ENDPOINT", site.host.url.replace("http://", "https://"))
    wrong = found()
    assert (wrong["state"], "speaks http, not https" in wrong["found"]) == ("fail", True)
    assert wrong["remedy"] == f"Set KFP_ENDPOINT or kfp-endpoint to {site.host.url}."

    with serve_http(certificate) as other:
        monkeypatch.setenv("KFP_ENDPOINT", other.url)
        other.serve(HEALTH, Answer(b"{}"))
        assert found()["found"] == f"{other.url} speaks https"
    site.host.serve(HEALTH, Answer(b"Client sent an HTTP request to an HTTPS server.\n", 400))
    monkeypatch.setenv("KFP_ENDPOINT", site.host.url)
    assert (found()["state"], "speaks https, not http" in found()["found"]) == ("fail", True)

    monkeypatch.setenv("KFP_ENDPOINT", "http://ml-pipeline.kubeflow.invalid:8888")
    wrong = found()
    assert (wrong["state"], "cannot be reached from here" in wrong["found"]) == ("warn", True)
    assert "Run this in a pod of the cluster" in wrong["remedy"]


def test_what_the_api_server_warns_of_is_a_warning(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "scripts.clients.kubernetes_api.Cluster.try_create", lambda self, kind, resource: (resource, [WARNING])
    )
    warned = {each["name"]: each for each in site.look() if "admitted with a warning" in each["found"]}
    assert warned["Pods of the Jobs"]["state"] == "warn"
    assert "seccompProfile RuntimeDefault" in warned["Pods of the Jobs"]["remedy"]


def test_the_table_is_that_of_the_support_matrix() -> None:
    text = (ROOT / "docs" / "support-matrix.md").read_text()
    rows = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert {name: (oldest, newest) for name, oldest, newest in rows} == SUPPORTED


@pytest.mark.parametrize("overlay", building.OVERLAYS)
def test_every_container_that_the_overlay_names_is_tried_with_what_it_says(tmp_path: Path, overlay: str) -> None:
    folder = building.copy(tmp_path / "fork")
    resources = building.build(str(ROOT / ".venv/bin/kubectl"), folder / "manifests/overlays" / overlay)
    spec = spec_of(build_pipeline(read_settings(folder / "manifests/settings/settings.yaml")))
    pods = {each.name: each.pod["spec"] for each in plan(resources, spec, image="helper", restricted=False)}
    tasks = {each["metadata"]["name"]: each["spec"] for each in building.of_kind(resources, "Task")}
    for name, task in tasks.items():
        steps = [each for each in pods[name]["containers"] if each["name"].startswith("step-")]
        assert [each["name"] for each in steps] == [f"step-{step['name']}" for step in task["steps"]]
        for step, given in zip(steps, task["steps"], strict=True):
            assert step["securityContext"] == task["stepTemplate"]["securityContext"]
            assert step["image"].startswith("registry.example.com/jukebox-ci")
            assert step["resources"]["limits"] == given["computeResources"]["limits"]
        assert {each["name"] for each in task.get("volumes", ())} <= {each["name"] for each in pods[name]["volumes"]}
    [template] = building.of_kind(resources, "TriggerTemplate")
    run = template["spec"]["resourcetemplates"][0]["spec"]
    assert pods["test"]["serviceAccountName"] == run["taskRunTemplate"]["serviceAccountName"]
    for given in run["taskRunSpecs"]:
        assert pods[given["pipelineTaskName"]]["serviceAccountName"] == given["serviceAccountName"]
    assert "working-dir-initializer" in [each["name"] for each in pods["test"]["initContainers"]]
    assert "securityContext" not in pods["test"]["initContainers"][0]
    executed = {name.removeprefix("exec-") for name in spec["pipeline_spec"]["deploymentSpec"]["executors"]}
    assert executed < set(pods)
    account = "pipeline-runner-dspa" if overlay.startswith("openshift-ai") else "default-editor"
    assert {pods[name]["serviceAccountName"] for name in [*executed, "driver"]} == {account}
    jobs = {each["metadata"]["name"] for each in building.of_kind(resources, "Job", "CronJob")}
    assert jobs < set(pods)
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pods["publish-model"]["volumes"]]
    assert claims == ["jukebox-model-pvc"]
    proxied = "kube-rbac-proxy" in [each["name"] for each in pods["jukebox"]["containers"]]
    assert proxied == overlay.startswith("openshift-ai")
    assert all(each["resources"]["limits"] for pod in pods.values() for each in containers({"spec": pod}))
