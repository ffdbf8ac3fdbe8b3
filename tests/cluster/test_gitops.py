"""Git says what runs: the product's manifests, brought up and kept by the real Argo CD, served under the real KServe.

The fork is that of OpenShift AI in production, and differs from what the repository has in images and sizes alone. The
kinds whose operators are in no package are played by the tests, and the model server by its stand-in. The tests follow
one another in the life of one project.
"""

import contextlib
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from pipeline.schema import FEATURE_NAMES, INPUT
from tests.cluster import cluster as tier
from tests.cluster import git_repository, node, stand_ins
from tests.cluster import kserve as kserve_tier
from tests.cluster.argocd import look_again, status, synced
from tests.cluster.conftest import failed
from tests.cluster.git_repository import Repository
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import SMALL, jukebox, patch
from tests.manifests import building
from tests.test_predict import WEIGHTS, publish

OVERLAY = "openshift-ai/prod"
DSPA = "datasciencepipelinesapplication/dspa"
ROUTE = "route/jukebox-listener"
WAVE = "argocd.argoproj.io/sync-wave"
TRACKING = "argocd.argoproj.io/tracking-id"
# The kinds that the overlay holds, in words of kubectl.
KINDS = ",".join(
    (
        "configmaps,cronjobs,datasciencepipelinesapplications,eventlisteners.triggers.tekton.dev,inferenceservices",
        "limitranges,networkpolicies,persistentvolumeclaims,pipelines.tekton.dev,poddisruptionbudgets,podmonitors",
        "prometheusrules,resourcequotas,rolebindings,roles,routes,serviceaccounts,servicemonitors,servingruntimes",
        "tasks.tekton.dev,triggerbindings.triggers.tekton.dev,triggers.triggers.tekton.dev",
        "triggertemplates.triggers.tekton.dev,alertmanagerconfigs,trustyaiservices",
    )
)


@dataclass(frozen=True)
class Project:
    """A fork in Git, and the namespace in which Argo CD keeps it."""

    argocd: Kubectl
    kubectl: Kubectl
    repository: Repository

    @property
    def name(self) -> str:
        """Of the Application."""
        return f"{self.kubectl.namespace}.prod"

    @property
    def overlay(self) -> Path:
        return self.repository.clone / "manifests" / "overlays" / OVERLAY

    def jukebox(self, *arguments: str) -> str:
        return jukebox(self.repository.clone, self.kubectl.kubeconfig, *arguments)

    def message(self) -> str:
        return str(status(self.argocd, self.name)["operationState"].get("message", ""))

    def sync(self, commit: str) -> None:
        """Wait until a commit is applied, and all of it is well."""

        def ready() -> bool:
            if synced(self.argocd, self.name, commit):
                return True
            raise RuntimeError(json.dumps(status(self.argocd, self.name))[:2000])

        node.wait(f"sync of {commit}", ready)

    def applied(self) -> dict[str, Any]:
        """What Argo CD keeps in the namespace, by kind and name."""
        items = self.kubectl.get(KINDS)["items"]
        return {
            f"{item['kind']}/{item['metadata']['name']}": item
            for item in items
            if item["metadata"].get("annotations", {}).get(TRACKING, "").endswith(f"/{item['metadata']['name']}")
            and not item["metadata"].get("ownerReferences")
        }

    def get(self, name: str) -> Any:
        """A resource, or None."""
        text = self.kubectl("get", name, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None


@pytest.fixture(scope="module")
def project(
    request: pytest.FixtureRequest, argocd: Kubectl, kserve: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A fork whose settings are filled in, in Git and nowhere else; ``test_bootstrap…`` brings it up."""
    cluster = argocd.within("")
    stand_ins.install(cluster)
    suffix = uuid.uuid4().hex[:6]
    host = cluster.within(f"test-git-{suffix}")
    host.create_namespace()
    repository = git_repository.serve(host, tmp_path_factory.mktemp("fork"))
    made = Project(argocd, cluster.within(f"ada-{suffix}"), repository)
    settings = {
        "repository": repository.url,
        "namespace": made.kubectl.namespace,
        "platform": "openshift-ai",
        "argo-cd": "argo-cd",
        "dev-cluster": "",
        "prod-cluster": "https://kubernetes.default.svc",
        "model-server-image": kserve_tier.model_server(),
        "storage-class": "standard",
        "storage-size": "1Gi",
    }
    building.copy(repository.clone, settings)
    patch(made.overlay, ServingRuntime=SMALL)
    repository.push("Fork, and fill in the settings")
    yield made
    if failed(request):
        print(f"Logs are in {tier.gather(made.kubectl, 'gitops')}, {tier.gather(argocd, 'argocd')}")
    argocd("delete", "applicationset", made.kubectl.namespace, "--ignore-not-found")
    if argocd("get", "application", made.name, "--ignore-not-found"):  # a sync may wait in it for ever
        argocd("patch", "application", made.name, "--type=merge", '--patch={"metadata": {"finalizers": null}}')
    argocd("delete", "appproject", made.kubectl.namespace, "--ignore-not-found")
    roles = "clusterrole,clusterrolebinding"
    cluster("delete", roles, f"jukebox-listener.{made.kubectl.namespace}", "--ignore-not-found")
    cluster("delete", "namespace", host.namespace, made.kubectl.namespace, "--ignore-not-found", "--wait=false")


def test_bootstrap_brings_everything_up_in_order_and_waits_for_the_pipeline_server(project: Project) -> None:
    commit = project.repository.git("rev-parse", "HEAD")
    assert f"application.argoproj.io/{project.name} is there" in project.jukebox("bootstrap", "--yes")
    waiting = "waiting for healthy state of .*/DataSciencePipelinesApplication/dspa$"
    node.wait("pipeline server's wave", lambda: re.match(waiting, project.message()) and project.get(DSPA))
    look_again(project.argocd, project.name)
    assert re.match(waiting, project.message())
    before = {key.split("/")[0] for key in project.applied()}
    assert {"NetworkPolicy", "ResourceQuota", "DataSciencePipelinesApplication"} <= before
    assert not before & {"Task", "Pipeline", "EventListener", "InferenceService", "PersistentVolumeClaim"}

    pace = {"qps": "50", "burst": "50"}  # what `jukebox secrets` makes, and the listener does not start without
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "jukebox-listener"}, "stringData": pace}
    project.kubectl.apply(secret)
    play(project, DSPA, {"conditions": [{"type": "Ready", "status": "True"}]})
    node.wait("route", lambda: project.get(ROUTE))
    play(project, ROUTE, {"ingress": [{"conditions": [{"type": "Admitted", "status": "True"}]}]})
    node.wait("model store", project.kubectl.model_store)
    assert publish(project.kubectl.model_store(), "first", WEIGHTS) == 1
    assert publish(project.kubectl.model_store(), "second", WEIGHTS[::-1]) == 2
    project.sync(commit)

    waves: dict[int, list[str]] = {}
    for resource in project.applied().values():
        wave = int(resource["metadata"].get("annotations", {}).get(WAVE, 0))
        waves.setdefault(wave, []).append(resource["metadata"]["creationTimestamp"])
    assert len(waves) >= 4
    ordered = [waves[wave] for wave in sorted(waves)]
    for earlier, later in itertools.pairwise(ordered):
        assert max(earlier) <= min(later)


def play(project: Project, name: str, status: dict[str, Any]) -> None:
    """Set the status that an operator would set."""
    patch = json.dumps({"status": status})
    project.kubectl("patch", name, "--subresource=status", "--type=merge", f"--patch={patch}")


def test_a_hand_edit_is_healed_and_what_was_deleted_comes_back(project: Project) -> None:
    def served() -> Any:
        return project.get("inferenceservice/jukebox")["spec"]["predictor"]["model"]["args"]

    right = served()
    patch = {"spec": {"predictor": {"model": {"args": ['--model_version_policy={"all":{}}']}}}}
    project.kubectl("patch", "inferenceservice", "jukebox", "--type=merge", f"--patch={json.dumps(patch)}")
    node.wait("healing of the edit", lambda: served() == right)
    uid = project.get("networkpolicy/jukebox-default-deny")["metadata"]["uid"]
    project.kubectl("delete", "networkpolicy", "jukebox-default-deny")
    node.wait("healing of the deletion", lambda: project.get("networkpolicy/jukebox-default-deny"))
    assert project.get("networkpolicy/jukebox-default-deny")["metadata"]["uid"] != uid
    project.sync(project.repository.git("rev-parse", "HEAD"))


def test_what_is_outside_the_project_is_refused(project: Project) -> None:
    refusals = {
        "v1/Secret": ":Secret is not permitted in project",
        "tekton.dev/v1/PipelineRun": "tekton.dev:PipelineRun is not permitted in project",
        "v1/ConfigMap": "namespace kube-system is not permitted",
    }
    resources: list[dict[str, Any]] = []
    for version, kind in (name.rsplit("/", 1) for name in refusals):
        metadata = {"name": "outside", **({"namespace": "kube-system"} if kind == "ConfigMap" else {})}
        resources.append({"apiVersion": version, "kind": kind, "metadata": metadata})
    (project.overlay / "outside.yaml").write_text(yaml.safe_dump_all(resources))
    with edited(project) as kustomization:
        kustomization["resources"].append("outside.yaml")
    project.repository.push("Ask for what the project may not have")

    def refused() -> bool:
        results = status(project.argocd, project.name)["operationState"].get("syncResult", {}).get("resources", [])
        said = [result.get("message", "") for result in results]
        return all(any(refusal in message for message in said) for refusal in refusals.values())

    node.wait("refusal", refused)
    for resource in resources:
        where = project.kubectl.within(resource["metadata"].get("namespace", project.kubectl.namespace))
        assert not where("get", resource["kind"], "outside", "--ignore-not-found")
    project.repository.git("revert", "--no-edit", "HEAD")
    project.repository.git("push", "--quiet", "origin", "main")
    project.sync(project.repository.git("rev-parse", "HEAD"))


@contextlib.contextmanager
def edited(project: Project) -> Iterator[dict[str, Any]]:
    """The kustomization of the overlay, to be changed in the block."""
    file = project.overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    yield kustomization
    file.write_text(yaml.safe_dump(kustomization))


def test_a_component_that_leaves_is_pruned_and_runs_versions_and_models_are_not(project: Project) -> None:
    with edited(project) as kustomization:
        kustomization["components"].insert(0, "../../../components/trustyai")
    project.sync(project.repository.push("Watch for drift"))
    assert project.get("prometheusrule/jukebox-drift")

    project.kubectl.apply(*made_by_others(project))
    with edited(project) as kustomization:
        kustomization["components"].remove("../../../components/trustyai")
        kustomization["resources"] = ["../base"]
    base = project.overlay.parent / "base" / "kustomization.yaml"
    text = base.read_text()
    base.write_text(text.replace("  - ../../../base/storage\n", ""))
    assert base.read_text() != text
    commit = project.repository.push("Watch no more, and forget the storage")
    node.wait("pruning", lambda: not project.get("prometheusrule/jukebox-drift"))
    node.wait("end of the sync", lambda: finished(project, commit))
    for kept in ("persistentvolumeclaim/jukebox-model-pvc", "pipelinerun/by-event", VERSION):
        assert project.get(kept), kept
    base.write_text(text)
    project.sync(project.repository.push("Remember the storage"))


VERSION = "pipelineversion.pipelines.kubeflow.org/prod-train-save-0123456789ab"


def finished(project: Project, commit: str) -> bool:
    state = status(project.argocd, project.name)["operationState"]
    return (state.get("phase"), state.get("syncResult", {}).get("revision")) == ("Succeeded", commit)


def made_by_others(project: Project) -> list[dict[str, Any]]:
    """A run and a version, marked as though they were Argo CD's own."""

    def marked(group: str, kind: str, name: str) -> dict[str, Any]:
        tracking = f"{project.name}:{group}/{kind}:{project.kubectl.namespace}/{name}"
        return {"name": name, "annotations": {TRACKING: tracking}}

    return [
        {
            "apiVersion": "tekton.dev/v1",
            "kind": "PipelineRun",
            "metadata": marked("tekton.dev", "PipelineRun", "by-event"),
            "spec": {"status": "PipelineRunPending", "pipelineRef": {"name": "continuous-training"}},
        },
        {
            "apiVersion": "pipelines.kubeflow.org/v2beta1",
            "kind": "PipelineVersion",
            "metadata": marked("pipelines.kubeflow.org", "PipelineVersion", VERSION.rpartition("/")[2]),
            "spec": {"pipelineName": "prod-train-save", "pipelineSpec": {}},
        },
    ]


class Client:
    """Asks all the time, each time by a new connection, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/v2/models/jukebox/infer"
        self.asked = 0
        self.version = ""
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        song = {"name": INPUT, "shape": [1, len(FEATURE_NAMES)], "datatype": "FP32", "data": [1.0] * len(FEATURE_NAMES)}
        while not self.stopped.wait(0.02):
            self.asked += 1
            try:
                answer = requests.post(self.url, json={"inputs": [song]}, timeout=30)
                answer.raise_for_status()
                self.version = answer.json()["model_version"]
            except requests.RequestException as error:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {error}")

    def __enter__(self) -> "Client":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def rendered(project: Project) -> list[Any]:
    return building.build(project.kubectl.program, project.overlay)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths of the fields that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return [p for key in sorted(keys) for p in differences(before.get(key), after.get(key), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [p for i, pair in enumerate(zip(before, after, strict=True)) for p in differences(*pair, f"{path}/{i}")]
    return [] if before == after else [path]


def specs(project: Project) -> dict[str, Any]:
    """What the live resources say, but for what the cluster adds."""
    return {key: {**item, "metadata": {}, "status": {}} for key, item in project.applied().items()}


def test_a_promotion_changes_one_field_and_what_is_served_and_its_revert_puts_both_back(project: Project) -> None:
    file = project.repository.clone / "manifests" / "components" / "production" / "served-version.yaml"
    manifests, live = rendered(project), specs(project)
    with project.kubectl.forward("service/jukebox-predictor", 80) as url, Client(url) as client:
        node.wait("version 1", lambda: client.version == "1")
        text = file.read_text()
        file.write_text(text.replace('"versions":[1]', '"versions":[2]'))
        promotion = project.repository.push("Serve version 2")
        [field] = differences(manifests, rendered(project))
        assert field.endswith("/spec/predictor/model/args/0")
        project.sync(promotion)
        node.wait("version 2", lambda: client.version == "2")
        assert differences(live, specs(project)) == ["/InferenceService/jukebox/spec/predictor/model/args/0"]

        project.repository.git("revert", "--no-edit", promotion)
        project.repository.git("push", "--quiet", "origin", "main")
        assert rendered(project) == manifests
        project.sync(project.repository.git("rev-parse", "HEAD"))
        node.wait("version 1 again", lambda: client.version == "1")
        assert specs(project) == live
    assert client.failures == []
    assert client.asked > 100


def test_teardown_takes_everything_but_the_models_and_the_history(project: Project) -> None:
    assert "Gone, but for the data" in project.jukebox("teardown", "--yes")
    assert project.applied().keys() == {
        "PersistentVolumeClaim/jukebox-model-pvc",
        "DataSciencePipelinesApplication/dspa",
    }
    assert project.get("secret/jukebox-listener")
    name = project.kubectl.namespace
    gone = (f"applicationset/{name}", f"application/{project.name}", f"appproject/{name}")
    assert not project.argocd("get", *gone, "--ignore-not-found")
    assert (project.kubectl.model_store() / "jukebox" / "2").is_dir()

    project.jukebox("teardown", "--data", "--yes")
    assert not project.argocd("get", "namespace", name, "--ignore-not-found")
