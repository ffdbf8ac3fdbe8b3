"""A namespace as Kubeflow's Profile makes it, and what else a cluster with Kubeflow has that enforces Pod Security."""

import json
from typing import Any

from tests.cluster import node
from tests.cluster.kubectl import Kubectl

Resource = dict[str, Any]

RBAC = "rbac.authorization.k8s.io"
# Of the namespace: its Profile's, and the level of Pod Security that the platform's team has set.
LABELS = {
    "app.kubernetes.io/part-of": "kubeflow-profile",
    "katib.kubeflow.org/metrics-collector-injection": "enabled",
    "pipelines.kubeflow.org/enabled": "true",
    "serving.kubeflow.org/inferenceservice": "enabled",
    "pod-security.kubernetes.io/enforce": "restricted",
}
# Under this name the package index is known to the forward proxy alone, which is the only way out.
PACKAGES = "packages.example.com"
ACCOUNTS = {"default-editor": "edit", "default-viewer": "view"}


def make_namespace(kubectl: Kubectl) -> None:
    """Make a Profile's namespace of the one that is there, with its accounts and what runs keep their artifacts by."""
    kubectl("annotate", "namespace", kubectl.namespace, "owner=ada@example.com")
    kubectl(
        "label", "--overwrite", "namespace", kubectl.namespace, *(f"{key}={value}" for key, value in LABELS.items())
    )
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mlpipeline-minio-artifact"}},
    )
    for name, role in ACCOUNTS.items():
        kubectl.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": name}],
            },
        )


def restrict(kubectl: Kubectl) -> None:
    """Have a namespace enforce the level of Pod Security that the platform's team has set."""
    level = {key: value for key, value in LABELS.items() if key.startswith("pod-security")}
    kubectl("label", "--overwrite", "namespace", kubectl.namespace, *(f"{key}={value}" for key, value in level.items()))


def restrict_tekton(kubectl: Kubectl) -> None:
    """Have Tekton restrict the containers that it adds to a task's pod, without which ``restricted`` refuses them."""
    patch = json.dumps({"data": {"set-security-context": "true"}})
    kubectl.within("tekton-pipelines")("patch", "configmap/feature-flags", "--type=merge", f"--patch={patch}")


def settings(proxy: str) -> dict[str, str]:
    """What a fork says that is here, behind a forward proxy and with a registry that wants a password."""
    return {
        "platform": "kubeflow",
        "gateway": "front",
        "gateway-namespace": "surroundings",  # the Git host comes from there
        "monitoring-namespace": "monitoring",
        "https-proxy": f"http://{proxy}:3128",
        "no-proxy": f"$(KUBERNETES_SERVICE_HOST),localhost,127.0.0.1,.svc,.cluster.local,.kubeflow,{node.ADDRESS}",
        "pull-secret": "jukebox-pull",
    }
