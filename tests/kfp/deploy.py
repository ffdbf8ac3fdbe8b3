"""The stand-in as resources of a cluster, under the names that the real pipeline server has there."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kfp.in_cluster import ARGO, KFP, RIGHT, webhook
from tests.kfp.service import EDITOR, RUNNER

Json = dict[str, Any]

NAME = "ds-pipeline-dspa"  # of the Service: its certificate must be for NAME.NAMESPACE.svc
PORT = 8443
USERS = "ds-pipeline-user-access-dspa"  # the Role that lets an account in
MODULES = ("__init__", "admission", "execution", "in_cluster", "listing", "local_run", "server", "service")


@dataclass(frozen=True)
class Place:
    """Where the server is, and as what; Kubeflow's serves projects in other namespaces than its own."""

    namespace: str
    name: str = NAME
    port: int = PORT  # of the API; the webhooks are always at 8443
    multi_user: bool = False


KUBEFLOW = Place("kubeflow", "ml-pipeline", 8888, multi_user=True)


def resources(
    namespace: str, image: str, certificate: bytes, key: bytes, ca: bytes, *, place: Place | None = None
) -> list[Json]:
    """Return what to apply, in this order; after ``crds()`` where the cluster has none.

    ``namespace`` is the project's, ``image`` the training image, which has kfp and the cluster's client; the others are
    PEM. The certificate must be for NAME.NAMESPACE.svc of the ``place``, which is the project's namespace unless it is
    given.
    """
    place = place or Place(namespace)
    hooks = webhook(namespace, place.namespace, place.name, base64.b64encode(ca).decode())
    return [*_rights(namespace, place), *_program(namespace, place, image, certificate, key), *hooks]


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


def _rights(namespace: str, place: Place) -> Iterator[Json]:
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
    account = {"kind": "ServiceAccount", "name": place.name, "namespace": place.namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    if place.multi_user:
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place.namespace}}
        # That of the runs, which a Profile makes.
        yield {"apiVersion": "v1", **_named("ServiceAccount", namespace, EDITOR)}
    else:
        yield {"apiVersion": rbac, **_named("Role", namespace, USERS), "rules": [use]}
        yield from _runner(namespace)
    yield {"apiVersion": "v1", **_named("ServiceAccount", place.namespace, place.name)}
    yield {"apiVersion": rbac, **_named("Role", namespace, place.name), "rules": rules}
    yield {
        "apiVersion": rbac,
        **_named("RoleBinding", namespace, place.name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": place.name},
        "subjects": [account],
    }
    yield {
        # It asks the cluster who a token is, and what that account may do.
        "apiVersion": rbac,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{place.name}-{namespace}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
        "subjects": [account],
    }


def _runner(namespace: str) -> Iterator[Json]:
    """The account that runs what was pushed, with the rights that OpenShift AI gives it."""
    rules = [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]},
        {"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims"], "verbs": ["create", "get", "list"]},
        {"apiGroups": ["apps", "batch"], "resources": ["deployments", "jobs"], "verbs": ["create", "get", "list"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    yield {"apiVersion": "v1", **_named("ServiceAccount", namespace, RUNNER)}
    yield {"apiVersion": f"{rbac}/v1", **_named("Role", namespace, RUNNER), "rules": rules}
    yield {
        "apiVersion": f"{rbac}/v1",
        **_named("RoleBinding", namespace, RUNNER),
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": RUNNER},
        "subjects": [{"kind": "ServiceAccount", "name": RUNNER, "namespace": namespace}],
    }


def _program(namespace: str, place: Place, image: str, certificate: bytes, key: bytes) -> list[Json]:
    sources = {f"{module}.py": Path(__file__).with_name(f"{module}.py").read_text() for module in MODULES}
    pem = {"tls.crt": certificate, "tls.key": key}
    labels = {"app.kubernetes.io/name": place.name}
    ports = sorted({place.port, PORT})
    arguments = ["--certificate=/run/tls/tls.crt", "--key=/run/tls/tls.key", "--state=/run/state/state.json"]
    arguments += [f"--multi-user={place.port}"] * place.multi_user
    container = {
        "name": "server",
        "image": image,
        "workingDir": "/run/app",
        "command": ["python3", "-m", "tests.kfp.server", f"--namespace={namespace}", f"--port={PORT}", *arguments],
        "env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}, {"name": "HOME", "value": "/tmp"}],
        "ports": [{"containerPort": port} for port in ports],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTPS"}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": name, "mountPath": f"/run/{name}"} for name in ("app", "tls", "state")],
    }
    items = [{"key": name, "path": f"tests/kfp/{name}"} for name in sources]
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}}
    pod = {
        "serviceAccountName": place.name,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"fsGroup": 0} if place.multi_user else {}),  # OpenShift gives each namespace its own
        },
        "containers": [container],
        "volumes": [
            {"name": "app", "configMap": {"name": place.name, "items": items}},
            {"name": "tls", "secret": {"secretName": place.name}},
            # A server that is killed knows its runs when it is back.
            {"name": "state", "persistentVolumeClaim": {"claimName": place.name}},
        ],
    }
    return [
        {"apiVersion": "v1", **_named("ConfigMap", place.namespace, place.name), "data": sources},
        {
            "apiVersion": "v1",
            **_named("Secret", place.namespace, place.name),
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(content).decode() for name, content in pem.items()},
        },
        {"apiVersion": "v1", **_named("PersistentVolumeClaim", place.namespace, place.name), "spec": claim},
        {
            "apiVersion": "apps/v1",
            **_named("Deployment", place.namespace, place.name),
            "spec": {
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            **_named("Service", place.namespace, place.name),
            "spec": {"selector": labels, "ports": [{"name": f"port-{port}", "port": port} for port in ports]},
        },
    ]


def _named(kind: str, namespace: str, name: str) -> Json:
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}}
