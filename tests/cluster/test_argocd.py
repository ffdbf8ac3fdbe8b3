"""The real Argo CD does what the manifests of ``argocd/`` rely on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import git_repository, node, stand_ins
from tests.cluster.argocd import look_again, status, synced
from tests.cluster.git_repository import Repository
from tests.cluster.kubectl import Kubectl

SERVER = "https://kubernetes.default.svc"


@pytest.fixture
def repository(argocd: Kubectl, kubectl: Kubectl, tmp_path: Path) -> Repository:
    return git_repository.serve(kubectl, tmp_path / "clone")


@pytest.fixture
def application(argocd: Kubectl, kubectl: Kubectl, repository: Repository) -> Iterator[str]:
    """An Application that syncs the repository to the test's namespace, where its project lets it have ConfigMaps."""
    name = kubectl.namespace
    destination = {"server": SERVER, "namespace": name}
    kinds = [
        {"group": "", "kind": "ConfigMap"},
        {"group": "datasciencepipelinesapplications.opendatahub.io", "kind": "*"},
    ]
    argocd.apply(
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "AppProject",
            "metadata": {"name": name},
            "spec": {
                "sourceRepos": [repository.url],
                "destinations": [destination],
                "namespaceResourceWhitelist": kinds,
            },
        },
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Application",
            "metadata": {"name": name},
            "spec": {
                "project": name,
                "source": {"repoURL": repository.url, "targetRevision": "main", "path": "folder"},
                "destination": destination,
                "syncPolicy": {"automated": {"prune": True, "selfHeal": True}, "retry": {"limit": 0}},
            },
        },
    )
    yield name
    argocd("delete", f"application/{name}", f"appproject/{name}")


def config(name: str, value: str, **metadata: Any) -> str:
    """A ConfigMap as YAML, which is JSON too."""
    return str(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": {"key": value}}
    )


def kustomization(*resources: str) -> str:
    return str({"resources": list(resources)})


def read(kubectl: Kubectl, name: str) -> str:
    return str(kubectl.get(f"configmap/{name}")["data"]["key"])


def test_what_git_says_is_applied_healed_and_pruned(
    argocd: Kubectl, kubectl: Kubectl, repository: Repository, application: str
) -> None:
    files = {"folder/kustomization.yaml": kustomization("a.yaml", "b.yaml")}
    files |= {"folder/a.yaml": config("a", "1"), "folder/b.yaml": config("b", "1")}
    first = repository.commit("Begin", files)
    node.wait("first sync", lambda: synced(argocd, application, first))

    kubectl("patch", "configmap", "a", "--type=merge", '--patch={"data": {"key": "by hand"}}')
    node.wait("healing", lambda: read(kubectl, "a") == "1")

    files = {"folder/kustomization.yaml": kustomization("a.yaml"), "folder/a.yaml": config("a", "2")}
    second = repository.commit("Change one, remove the other", {**files, "folder/b.yaml": None})
    node.wait("second sync", lambda: synced(argocd, application, second))
    assert read(kubectl, "a") == "2"
    assert not kubectl("get", "configmap", "b", "--ignore-not-found")


def test_a_wave_waits_until_the_one_before_is_healthy_by_our_own_check(
    argocd: Kubectl, kubectl: Kubectl, repository: Repository, application: str
) -> None:
    stand_ins.install(kubectl)
    kind = "DataSciencePipelinesApplication"
    server = {"apiVersion": stand_ins.KINDS[kind], "kind": kind, "metadata": {"name": "dspa"}}
    later = config("later", "1", annotations={"argocd.argoproj.io/sync-wave": "1"})
    files = {"folder/kustomization.yaml": kustomization("dspa.yaml", "later.yaml")}
    commit = repository.commit("Begin", {**files, "folder/dspa.yaml": str(server), "folder/later.yaml": later})

    def message() -> str:
        return str(status(argocd, application)["operationState"].get("message"))

    node.wait("first wave", lambda: "waiting for healthy state of" in message())
    look_again(argocd, application)
    assert "waiting for healthy state of" in message()
    assert not kubectl("get", "configmap", "later", "--ignore-not-found")
    ready = json.dumps({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    kubectl("patch", kind, "dspa", "--subresource=status", "--type=merge", f"--patch={ready}")
    node.wait("second wave", lambda: synced(argocd, application, commit))
    assert read(kubectl, "later") == "1"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}, ":Secret is not permitted in project"),
        (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}},
            ":Namespace is not permitted in project",
        ),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "kube-system"}},
            "namespace kube-system is not permitted in project",
        ),
    ],
)
def test_what_is_outside_the_project_is_refused_and_nothing_applied(
    argocd: Kubectl, kubectl: Kubectl, repository: Repository, application: str, document: Any, message: str
) -> None:
    files = {"folder/kustomization.yaml": kustomization("good.yaml", "bad.yaml")}
    repository.commit("Begin", {**files, "folder/good.yaml": config("good", "1"), "folder/bad.yaml": str(document)})

    def refused() -> bool:
        state = status(argocd, application)["operationState"]
        results = state.get("syncResult", {}).get("resources", [])
        return state.get("phase") == "Failed" and any(message in result["message"] for result in results)

    node.wait("refusal", refused)
    assert not kubectl("get", "configmap", "good", "--ignore-not-found")
