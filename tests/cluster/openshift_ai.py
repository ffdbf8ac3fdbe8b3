"""A namespace as OpenShift and OpenShift AI have it, for the webhook of ``openshift.py``."""

import base64
import json
from typing import Any

from tests.cluster import build, images, node
from tests.cluster.kubectl import Kubectl
from tests.cluster.openshift import RANGES

Resource = dict[str, Any]

NAME = "openshift"  # of the webhook's Service
MARK = "jukebox.test/openshift"  # of the namespaces that it is for; on OpenShift it is for all
FIRST = 1000770000  # the first user and the one group of a namespace
RBAC = "rbac.authorization.k8s.io"
ANNOTATIONS = {
    f"{RANGES}uid-range": f"{FIRST}/10000",
    f"{RANGES}supplemental-groups": f"{FIRST}/10000",
    f"{RANGES}mcs": "s0:c28,c17",
}
# Who may use which constraints on a stock cluster, beside administrators: everybody; Tekton's controller, to which its
# operator gives one of them (tektoncd/operator, kodata/openshift/pipelines-rbac).
GRANTS: dict[str, tuple[str, Resource]] = {
    "system:openshift:scc:restricted": ("restricted-v2", {"kind": "Group", "name": "system:authenticated"}),
    "openshift-pipelines-permission": (
        "nonroot",
        {"kind": "ServiceAccount", "name": "tekton-pipelines-controller", "namespace": "tekton-pipelines"},
    ),
}


def mark_namespace(kubectl: Kubectl) -> None:
    """Give the namespace its ranges, and to the webhook."""
    kubectl("annotate", "namespace", kubectl.namespace, *(f"{key}={value}" for key, value in ANNOTATIONS.items()))
    kubectl("label", "namespace", kubectl.namespace, f"{MARK}=true")


def proxy() -> str:
    """The image of the proxy before the model server, the real one."""
    program = build.build("kserve") / "github.com/brancz/kube-rbac-proxy/cmd/kube-rbac-proxy"
    return images.of_binary("kube-rbac-proxy", program)


def grants(webhook: Resource) -> list[Resource]:
    """Who may use which constraints, and what the webhook's account, a subject, may ask."""
    rules = [
        {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]},
    ]
    made = [*granted(NAME, rules, webhook)]
    for name, (constraint, subject) in GRANTS.items():
        rule = {
            "apiGroups": ["security.openshift.io"],
            "resources": ["securitycontextconstraints"],
            "resourceNames": [constraint],
            "verbs": ["use"],
        }
        made += granted(name, [rule], subject)
    return made


def granted(name: str, rules: list[Resource], subject: Resource) -> tuple[Resource, Resource]:
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
    group = {"apiGroup": RBAC} if subject["kind"] == "Group" else {}
    common = {"apiVersion": f"{RBAC}/v1", "metadata": {"name": name}}
    return (
        {**common, "kind": "ClusterRole", "rules": rules},
        {**common, "kind": "ClusterRoleBinding", "roleRef": role, "subjects": [{**subject, **group}]},
    )


def hook(namespace: str) -> Resource:
    """What has the API server ask the webhook, a Service of ``namespace``, about each new pod."""
    bundle = base64.b64encode(node.CA.read_bytes()).decode()
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [
            {
                "name": f"scc.{NAME}.test",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 20,
                "clientConfig": {"caBundle": bundle, "service": {"name": NAME, "namespace": namespace}},
                "namespaceSelector": {"matchLabels": {MARK: "true"}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            }
        ],
    }


def before_model_server(model: str, namespace: str, certificate: bytes, key: bytes) -> list[Resource]:
    """What OpenShift AI and OpenShift's service CA make for the proxy before the model server."""
    attributes = {
        "namespace": namespace,
        "apiGroup": "serving.kserve.io",
        "apiVersion": "v1beta1",
        "resource": "inferenceservices",
        "name": model,
    }
    config = json.dumps({"authorization": {"resourceAttributes": attributes}})
    pem = {"tls.crt": certificate, "tls.key": key}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{model}-kube-rbac-proxy-sar-config"},
            "data": {"config-file.yaml": config},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"{model}-serving-cert"},
            "type": "kubernetes.io/tls",
            "data": {name: base64.b64encode(text).decode() for name, text in pem.items()},
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{namespace}-{model}-auth-delegator"},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "system:auth-delegator"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        },
    ]
