"""The stand-in's ties to a real cluster: resources, tokens, and a pod of the training image for each workflow."""

import json
from typing import Any

from kubernetes import client, config

from tests.kfp.execution import LOCAL_RUN, Job, Look
from tests.kfp.service import Answer

Json = dict[str, Any]

KFP, ARGO = ("pipelines.kubeflow.org", "v2beta1"), ("argoproj.io", "v1alpha1")
TIMEOUT = 30  # seconds
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}
# What the dashboard's operator asks of who wants to use its pipeline server.
RIGHT = {
    "group": "datasciencepipelinesapplications.opendatahub.io",
    "resource": "datasciencepipelinesapplications",
    "subresource": "api",
    "name": "dspa",
}
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}


def connect() -> client.ApiClient:
    config.load_config()
    return client.ApiClient()


class KubernetesGuard:
    """Lets those in whose token the cluster knows, and who may use the pipeline server of the namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        api = connect()
        self._authentication, self._authorization = client.AuthenticationV1Api(api), client.AuthorizationV1Api(api)

    def refusal(self, token: str, method: str) -> Answer | None:
        review = self._authentication.create_token_review({"spec": {"token": token}}, _request_timeout=TIMEOUT)
        if not token or not review.status.authenticated:
            return Answer(401, "Unauthorized\n", PLAIN)
        user = review.status.user
        attributes = {**RIGHT, "namespace": self._namespace, "verb": VERBS.get(method, "get")}
        spec = {"user": user.username, "groups": user.groups, "resourceAttributes": attributes}
        access = self._authorization.create_subject_access_review({"spec": spec}, _request_timeout=TIMEOUT)
        if access.status.allowed:
            return None
        return Answer(403, f"Forbidden (user={user.username}, verb={attributes['verb']}, name=dspa)\n", PLAIN)


class KubernetesResources:
    """Pipelines and versions as they are in the cluster; the workflows are put there."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._objects = client.CustomObjectsApi(connect())

    def list(self, plural: str) -> list[Json]:
        found: Json = self._objects.list_namespaced_custom_object(
            *KFP, self._namespace, plural, _request_timeout=TIMEOUT
        )
        return list(found["items"])

    def create_workflow(self, workflow: Json) -> None:
        self._objects.create_namespaced_custom_object(
            *ARGO, self._namespace, "workflows", workflow, _request_timeout=TIMEOUT
        )

    def set_status(self, workflow: str, status: Json) -> None:
        self._objects.patch_namespaced_custom_object(
            *ARGO, self._namespace, "workflows", workflow, {"status": status}, _request_timeout=TIMEOUT
        )


class PodExecutor:
    """Executes each workflow in one pod of its own steps' image: claims and secrets of all steps are there."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._core = client.CoreV1Api(connect())

    def start(self, job: Job) -> None:
        config_map = {
            "metadata": {"name": job.workflow},
            "data": {
                "local_run.py": LOCAL_RUN.read_text(),
                "spec.json": json.dumps(job.spec),
                "parameters.json": json.dumps(job.parameters),
            },
        }
        self._core.create_namespaced_config_map(self._namespace, config_map, _request_timeout=TIMEOUT)
        self._core.create_namespaced_pod(self._namespace, pod_of(job), _request_timeout=TIMEOUT)

    def look(self, workflow: str) -> Look:
        try:
            pod = self._core.read_namespaced_pod(pod_name(workflow), self._namespace, _request_timeout=TIMEOUT)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return Look(True, "the pod is gone\n", 137)
        [status] = pod.status.container_statuses or [None]
        if status is None or (status.state.waiting and not status.state.terminated):
            # Of a pod that was refused or evicted no container says so.
            return Look(False, "", 1) if pod.status.phase == "Failed" else Look(False)
        output = self._core.read_namespaced_pod_log(
            pod_name(workflow), self._namespace, _request_timeout=TIMEOUT, _preload_content=False
        ).data.decode(errors="replace")
        return Look(True, output, status.state.terminated.exit_code if status.state.terminated else None)

    def terminate(self, workflow: str) -> None:
        try:
            self._core.delete_namespaced_pod(
                pod_name(workflow), self._namespace, grace_period_seconds=0, _request_timeout=TIMEOUT
            )
        except client.ApiException as error:
            if error.status != 404:
                raise


def pod_name(workflow: str) -> str:
    """Of the one pod that stands for all of the workflow's."""
    return f"{workflow}-system-container-impl-1"


def pod_of(job: Job) -> Json:
    """The pod that runs the workflow: in the steps' image, with all that the platform's part gives to any of them."""
    executors = job.spec["deploymentSpec"]["executors"]
    [image] = {executor["container"]["image"] for executor in executors.values()}
    on_platform = job.platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    mounts = {
        mount["mountPath"]: _value(job, mount) for each in on_platform.values() for mount in each.get("pvcMount", ())
    }
    secrets = {
        pair["envVar"]: {
            "name": secret["secretName"],
            "key": pair["secretKey"],
            "optional": bool(secret.get("optional")),
        }
        for each in on_platform.values()
        for secret in each.get("secretAsEnv", ())
        for pair in secret["keyToEnv"]
    }
    arguments = ["/run/job/spec.json", "/run/job/parameters.json", "/tmp/root", job.run_id, job.workflow]
    claims = {claim: f"claim-{number}" for number, claim in enumerate(sorted(set(mounts.values())))}
    return {
        "metadata": {
            "name": pod_name(job.workflow),
            "labels": {"pipeline/runid": job.run_id, "workflows.argoproj.io/workflow": job.workflow},
            "annotations": {"workflows.argoproj.io/node-name": f"{job.workflow}.root.{job.first_step}.executor"},
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": ["python3", "/run/job/local_run.py"],
                    "args": arguments,
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        *({"name": name, "valueFrom": {"secretKeyRef": key}} for name, key in secrets.items()),
                    ],
                    # All steps run in it, so it may have what the largest of them has.
                    "resources": {
                        "requests": {"cpu": "100m", "memory": "512Mi"},
                        "limits": {"cpu": "2", "memory": "4Gi"},
                    },
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [
                        {"name": "job", "mountPath": "/run/job"},
                        *({"name": claims[claim], "mountPath": path} for path, claim in mounts.items()),
                    ],
                }
            ],
            "volumes": [
                {"name": "job", "configMap": {"name": job.workflow}},
                *({"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in claims.items()),
            ],
        },
    }


def _value(job: Job, mount: Json) -> str:
    """The claim's name: a constant, or that of the pipeline's parameter that it comes from."""
    given = mount.get("pvcNameParameter", mount)
    if "constant" in given:
        return str(given["constant"])
    if "constant" in given.get("runtimeValue", {}):
        return str(given["runtimeValue"]["constant"])
    name = given["componentInputParameter"]
    inputs = job.spec["root"]["inputDefinitions"]["parameters"]
    return str(job.parameters.get(name, inputs[name].get("defaultValue")))


def webhook(namespace: str, service: str, ca_bundle: str) -> list[Json]:
    """The two webhooks' configurations; ``ca_bundle`` is base64 of the PEM of the CA of the server's certificate."""
    kinds = {"Mutating": "mutate", "Validating": "validate"}
    rule = {"apiGroups": [KFP[0]], "apiVersions": [KFP[1]], "operations": ["CREATE", "UPDATE"]}
    return [
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": f"{kind}WebhookConfiguration",
            "metadata": {"name": f"pipelineversions.pipelines.kubeflow.org-{namespace}"},
            "webhooks": [
                {
                    "name": "pipelineversions.pipelines.kubeflow.org",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                    "rules": [{**rule, "resources": ["pipelineversions"]}],
                    "clientConfig": {
                        "service": {
                            "namespace": namespace,
                            "name": service,
                            "port": 8443,
                            "path": f"/webhooks/{verb}-pipelineversion",
                        },
                        "caBundle": ca_bundle,
                    },
                }
            ],
        }
        for kind, verb in kinds.items()
    ]
