"""Kinds whose operators are in no package: the API server knows them, and a test plays the operator.

So it does the rights that those operators give.
"""

from typing import Any

from tests.cluster import node
from tests.cluster.kubectl import Kubectl
from tests.kfp import deploy
from tests.kfp.admission import SCHEMA

KINDS = {
    "AlertmanagerConfig": "monitoring.coreos.com/v1alpha1",
    "DataSciencePipelinesApplication": "datasciencepipelinesapplications.opendatahub.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "Route": "route.openshift.io/v1",
    "ServiceMonitor": "monitoring.coreos.com/v1",
    "TrustyAIService": "trustyai.opendatahub.io/v1",
}


def install(kubectl: Kubectl) -> None:
    """Make the API server know the kinds that it does not know, which take any content, and who may have them."""
    kubectl.apply(ADMIN)
    crds = [*(crd(kind, *api.split("/")) for kind, api in KINDS.items()), *deploy.crds()]
    known = kubectl("get", "customresourcedefinitions", "--output=name")
    if new := [crd for crd in crds if f"/{crd['metadata']['name']}\n" not in known]:
        kubectl.apply(*new)
        names = [crd["metadata"]["name"] for crd in new]
        # One that is Established still answers for a second that its storage is being initialised.
        node.wait("kinds", lambda: kubectl.get(",".join(names), "--all-namespaces"))


# What OpenShift and the operator of the pipeline server add to the role admin of a namespace (of the latter's
# config/rbac/aggregate_dspa_role_edit.yaml and config/argo/clusterrole.argo-aggregate-to-admin.yaml).
ADMIN = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "metadata": {
        "name": "aggregate-dspa-admin-edit",
        "labels": {"rbac.authorization.k8s.io/aggregate-to-admin": "true"},
    },
    "rules": [
        {"apiGroups": [group], "resources": resources, "verbs": ["create", "delete", "get", "list", "patch", "update"]}
        for group, resources in {
            "datasciencepipelinesapplications.opendatahub.io": [
                "datasciencepipelinesapplications",
                "datasciencepipelinesapplications/api",
            ],
            "pipelines.kubeflow.org": ["pipelines", "pipelineversions"],
            "argoproj.io": ["workflows"],
            "route.openshift.io": ["routes"],
        }.items()
    ],
}


def crd(kind: str, group: str, version: str) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            # For a group that ends in k8s.io, the API server asks where it was agreed on.
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in of the tests"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [served],
        },
    }


def version(pipeline: str) -> dict[str, Any]:
    """The least spec of a PipelineVersion that the pipeline server's webhook admits."""
    spec = {"pipelineInfo": {"name": pipeline}, "schemaVersion": SCHEMA, "root": {}}
    return {"pipelineName": pipeline, "pipelineSpec": spec}
