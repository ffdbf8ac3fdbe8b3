"""Argo CD without its API server and its pages, from the manifest that its own module keeps for that.

``core-install.yaml`` is applied as it is, with an image of ours and with what lets a test see in a second what a person
sees in minutes: Argo CD looks at Git every few seconds, heals at once and does not rest between waves. The image is the
Debian of all tests, for it has the git that Argo CD calls and a real Redis to cache in, with Argo CD and Kustomize.
"""

from functools import cache
from typing import Any

import yaml

from tests.cluster import build, images, node
from tests.cluster.kubectl import Kubectl

NAMESPACE = "argocd"
MANIFEST = "config/github.com/argoproj/argo-cd/v3/core-install.yaml"
ROLES = ("application-controller", "applicationset-controller", "cmp-server", "git-ask-pass", "repo-server")

SETTINGS = {
    "argocd-cm": {
        "application.resourceTrackingMethod": "annotation",
        # How often Applications are compared with Git, and how long what Git said is believed.
        "timeout.reconciliation": "3s",
        "timeout.reconciliation.jitter": "0s",
    },
    "argocd-cmd-params-cm": {
        "controller.self.heal.timeout.seconds": "1",
        "controller.self.heal.backoff.timeout.seconds": "0",
        "controller.sync.wave.delay.seconds": "0",
    },
}


@cache
def install(kubectl: Kubectl) -> None:
    """Apply Argo CD, and wait until its controllers are at work."""
    built = build.build("argocd")
    files: dict[str, Any] = {
        "usr/local/bin/argocd": built / "github.com" / "argoproj" / "argo-cd" / "v3" / "cmd",
        "usr/local/bin/kustomize": built / "sigs.k8s.io" / "kustomize" / "kustomize" / "kustomize",
        **{f"usr/local/bin/argocd-{role}": "argocd" for role in ROLES},
    }
    image = images.of_debian("argocd", *images.PACKAGES, files=files, User="999")
    documents = [document for document in yaml.load_all((built / MANIFEST).read_text(), yaml.CSafeLoader) if document]
    for document in documents:
        name = document["metadata"]["name"]
        if document["kind"] == "ConfigMap" and name in SETTINGS:
            document["data"] = document.get("data", {}) | SETTINGS[name]
        if pod := document.get("spec", {}).get("template", {}).get("spec"):
            for container in pod.get("initContainers", []) + pod["containers"]:
                container["image"] = image
                # Without GnuPG, which has signatures of commits to check.
                container.setdefault("env", []).append({"name": "ARGOCD_GPG_ENABLED", "value": "false"})
                if container["name"] == "redis":
                    container["args"].insert(0, "redis-server")
                if probe := container.get("readinessProbe"):
                    probe.update(initialDelaySeconds=0, periodSeconds=1)

    bound = kubectl.within(NAMESPACE)
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    crds = [document for document in documents if document["kind"] == "CustomResourceDefinition"]
    kubectl.apply(*crds)
    bound.apply(*(document for document in documents if document not in crds))
    for workload in ("deployment", "statefulset"):
        bound("rollout", "status", workload, f"--timeout={node.PATIENCE}s")


def status(argocd: Kubectl, application: str) -> dict[str, Any]:
    """The parts of an Application's status, each of which may be empty yet."""
    found = argocd.get(f"application/{application}").get("status", {})
    return {part: found.get(part, {}) for part in ("sync", "health", "operationState")}


def look_again(argocd: Kubectl, application: str) -> None:
    """Have an Application compared with the cluster, and its sync go on from that, some times over."""
    refresh = "argocd.argoproj.io/refresh"
    for _ in range(3):
        argocd("annotate", f"application/{application}", f"{refresh}=normal", "--overwrite")
        node.wait(
            "another look",
            lambda: refresh not in argocd.get(f"application/{application}")["metadata"].get("annotations", {}),
        )


def synced(argocd: Kubectl, application: str, commit: str) -> bool:
    """Whether an Application has applied a commit, and all of it is well."""
    found = status(argocd, application)
    sync = found["sync"]
    state = (sync.get("status"), sync.get("revision"), found["health"].get("status"))
    return state == ("Synced", commit, "Healthy") and found["operationState"].get("phase") == "Succeeded"
