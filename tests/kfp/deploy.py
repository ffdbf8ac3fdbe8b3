"""The stand-in as resources of a cluster, under the names that the real pipeline server has there."""

import base64
from pathlib import Path
from typing import Any

from tests.kfp.in_cluster import ARGO, KFP, RIGHT, webhook

Json = dict[str, Any]

NAME = "ds-pipeline-dspa"  # of the Service: its certificate must be for NAME.NAMESPACE.svc
PORT = 8443
USERS = "ds-pipeline-user-access-dspa"  # the Role that lets an account in
MODULES = ("__init__", "admission", "execution", "in_cluster", "listing", "local_run", "server", "service")


def resources(namespace: str, image: str, certificate: bytes, key: bytes, ca: bytes) -> list[Json]:
    """Return what to apply, in this order; after ``crds()`` where the cluster has none.

    ``image`` is the training image, which has kfp and the cluster's client; the others are PEM.
    """
    return [*_rights(namespace), *_program(namespace, image, certificate, key), *_hooks(namespace, ca)]


def crds() -> list[Json]:
    """Return the definitions of the resources that the server and the commands meet."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    kinds: tuple[tuple[tuple[str, str], str, Json, list[str]], ...] = (
        (KFP, "Pipeline", {"spec": anything}, []),
        (KFP, "PipelineVersion", {"spec": {**anything, "required": ["pipelineSpec"]}}, ["spec"]),
        (ARGO, "Workflow", {"spec": anything, "status": anything}, ["spec"]),
    )
    return [
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{kind.lower()}s.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {
                    "kind": kind,
                    "listKind": f"{kind}List",
                    "plural": f"{kind.lower()}s",
                    "singular": kind.lower(),
                },
                "versions": [
                    {
                        "name": version,
                        "served": True,
                        "storage": True,
                        "schema": {
                            "openAPIV3Schema": {"type": "object", "properties": properties, "required": required}
                        },
                    }
                ],
            },
        }
        for (group, version), kind, properties, required in kinds
    ]


def _hooks(namespace: str, ca: bytes) -> list[Json]:
    return webhook(namespace, NAME, base64.b64encode(ca).decode())


def _rights(namespace: str) -> list[Json]:
    rules = [
        {"apiGroups": [KFP[0]], "resources": ["pipelines", "pipelineversions"], "verbs": ["get", "list"]},
        {"apiGroups": [ARGO[0]], "resources": ["workflows"], "verbs": ["create", "get", "patch"]},
        {"apiGroups": [""], "resources": ["pods", "configmaps"], "verbs": ["create", "delete", "get"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]
    use = {
        "apiGroups": [RIGHT["group"]],
        "resources": [f"{RIGHT['resource']}/{RIGHT['subresource']}"],
        "resourceNames": [RIGHT["name"]],
        "verbs": ["create", "delete", "get", "update"],
    }
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        {"apiVersion": "v1", **_named("ServiceAccount", namespace)},
        {"apiVersion": rbac, **_named("Role", namespace), "rules": rules},
        {"apiVersion": rbac, **_named("Role", namespace, USERS), "rules": [use]},
        {
            "apiVersion": rbac,
            **_named("RoleBinding", namespace),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
            "subjects": [account],
        },
        {
            # It asks the cluster who a token is, and what that account may do.
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{NAME}-{namespace}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:auth-delegator",
            },
            "subjects": [account],
        },
    ]


def _program(namespace: str, image: str, certificate: bytes, key: bytes) -> list[Json]:
    sources = {f"{module}.py": Path(__file__).with_name(f"{module}.py").read_text() for module in MODULES}
    pem = {"tls.crt": certificate, "tls.key": key}
    labels = {"app.kubernetes.io/name": NAME}
    arguments = ["--certificate=/run/tls/tls.crt", "--key=/run/tls/tls.key", "--state=/run/state/state.json"]
    container = {
        "name": "server",
        "image": image,
        "workingDir": "/run/app",
        "command": ["python3", "-m", "tests.kfp.server", f"--namespace={namespace}", f"--port={PORT}", *arguments],
        "env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTPS"}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": f"/run/{name}"} for name in ("app", "tls", "state")],
    }
    items = [{"key": name, "path": f"tests/kfp/{name}"} for name in sources]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    pod = {
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "app", "configMap": {"name": NAME, "items": items}},
            {"name": "tls", "secret": {"secretName": NAME}},
            # A server that is killed knows its runs when it is back.
            {"name": "state", "persistentVolumeClaim": {"claimName": NAME}},
        ],
    }
    return [
        {"apiVersion": "v1", **_named("ConfigMap", namespace), "data": sources},
        {
            "apiVersion": "v1",
            **_named("Secret", namespace),
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(content).decode() for name, content in pem.items()},
        },
        {"apiVersion": "v1", **_named("PersistentVolumeClaim", namespace), "spec": claim},
        {
            "apiVersion": "apps/v1",
            **_named("Deployment", namespace),
            "spec": {
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            **_named("Service", namespace),
            "spec": {"selector": labels, "ports": [{"port": PORT, "targetPort": PORT}]},
        },
    ]


def _named(kind: str, namespace: str, name: str = NAME) -> Json:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}}
