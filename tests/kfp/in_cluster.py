"""The stand-in's ties to a real cluster: resources, tokens, and a pod of the training image for each workflow."""

import json
from collections.abc import Iterable, Iterator
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
AUDIENCE = "pipelines.kubeflow.org"  # of the tokens that Kubeflow's takes
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


class KubernetesAccess:
    """Asks the cluster whose a token for Kubeflow's pipeline server is, and what its user may do."""

    def __init__(self, api: client.ApiClient | None = None) -> None:
        api = api or connect()
        self._authentication, self._authorization = client.AuthenticationV1Api(api), client.AuthorizationV1Api(api)

    def user(self, token: str) -> str:
        if not token:
            return ""
        body = {"spec": {"token": token, "audiences": [AUDIENCE]}}
        status = self._authentication.create_token_review(body, _request_timeout=TIMEOUT).status
        return status.user.username if status.authenticated and AUDIENCE in (status.audiences or ()) else ""

    def allowed(self, user: str, verb: str, resource: str, namespace: str, name: str) -> bool:
        attributes = {"group": KFP[0], "resource": resource, "namespace": namespace, "verb": verb, "name": name}
        # Without the user's groups, as the real one asks: what is bound to a group does not count.
        spec = {"user": user, "resourceAttributes": attributes}
        review = self._authorization.create_subject_access_review({"spec": spec}, _request_timeout=TIMEOUT)
        return bool(review.status.allowed)


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

    def retry(self, workflow: str) -> None:
        raise NotImplementedError("what the steps of a pod have handed on goes with it")


def pod_name(workflow: str) -> str:
    """Of the one pod that stands for all of the workflow's."""
    return f"{workflow}-system-container-impl-1"


def pod_of(job: Job) -> Json:
    """The pod that runs the workflow: in the steps' image, with all that the platform's part gives to any of them."""
    executors = job.spec["deploymentSpec"]["executors"].values()
    [image] = {executor["container"]["image"] for executor in executors}
    variables = {pair["name"]: pair["value"] for each in executors for pair in each["container"].get("env", ())}
    kubernetes = job.platform.get("platforms", {}).get("kubernetes", {})
    steps = list(kubernetes.get("deploymentSpec", {}).get("executors", {}).values())

    def each(key: str) -> Iterator[Json]:
        return (item for step in steps for item in step.get(key, ()))

    keys: dict[str, Json] = {}  # by variable
    volumes: dict[str, Json] = {}  # by path
    for item in each("pvcMount"):
        volumes[item["mountPath"]] = {"persistentVolumeClaim": {"claimName": _claim(job, item)}}
    for kind, named in (("secret", "secretName"), ("configMap", "name")):
        for item in each(f"{kind}AsVolume"):
            volumes[item["mountPath"]] = {kind: {named: _name(job, item, kind), **_optional(item)}}
        for item in each(f"{kind}AsEnv"):
            for pair in item["keyToEnv"]:
                reference = {"name": _name(job, item, kind), "key": pair[f"{kind}Key"], **_optional(item)}
                keys[pair["envVar"]] = {"valueFrom": {f"{kind}KeyRef": reference}}
    pulls = {_name(job, item, "secret") for item in each("imagePullSecret")}
    # It goes where each of the steps could go.
    selector = {key: value for step in steps for key, value in step.get("nodeSelector", {}).get("labels", {}).items()}
    required = [term for term in each("nodeAffinity") if "weight" not in term]
    nodes = _once(expression for term in required for expression in term.get("matchExpressions", ()))
    context = {key: value for step in steps for key, value in step.get("securityContext", {}).items()}
    arguments = ["/run/job/spec.json", "/run/job/parameters.json", "/tmp/root", job.run_id, job.workflow]
    # What is mounted at several paths is one volume.
    names = {text: f"volume-{number}" for number, text in enumerate(sorted({*map(json.dumps, volumes.values())}))}
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "serviceAccountName": job.account,
        "imagePullSecrets": [{"name": name} for name in sorted(pulls)],
        "nodeSelector": selector,
        "tolerations": _once(_numbers(item, "tolerationSeconds") for item in each("tolerations")),
        "affinity": nodes
        and {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": nodes}]}
            }
        },
        "containers": [
            {
                "name": "main",
                "image": image,
                "command": ["python3", "/run/job/local_run.py"],
                "args": arguments,
                "env": [
                    {"name": "HOME", "value": "/tmp"},
                    *({"name": name, "value": value} for name, value in variables.items()),
                    *({"name": name, **key} for name, key in keys.items()),
                ],
                # All steps run in it, so it may have what the largest of them has.
                "resources": {
                    "requests": {"cpu": "100m", "memory": "512Mi"},
                    "limits": {"cpu": "2", "memory": "4Gi"},
                },
                # What the server gives to each step itself, and the rest if the platform's part says it.
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "seccompProfile": {"type": "RuntimeDefault"},
                    **_numbers(context, "runAsUser", "runAsGroup"),
                },
                "volumeMounts": [
                    {"name": "job", "mountPath": "/run/job"},
                    *({"name": names[json.dumps(volume)], "mountPath": path} for path, volume in volumes.items()),
                ],
            }
        ],
        "volumes": [
            {"name": "job", "configMap": {"name": job.workflow}},
            *({"name": name, **json.loads(text)} for text, name in names.items()),
        ],
    }
    return {
        "metadata": {
            "name": pod_name(job.workflow),
            "labels": {"pipeline/runid": job.run_id, "workflows.argoproj.io/workflow": job.workflow},
            "annotations": {"workflows.argoproj.io/node-name": f"{job.workflow}.root.{job.first_step}.executor"},
        },
        "spec": {key: value for key, value in spec.items() if value not in ("", [], {})},
    }


def _optional(item: Json) -> Json:
    return {"optional": bool(item.get("optional"))}


def _once(items: Iterable[Json]) -> list[Json]:
    return list({json.dumps(item, sort_keys=True): item for item in items}.values())


def _numbers(item: Json, *keys: str) -> Json:
    """An item with these numbers, which JSON of protobuf has as text, as numbers."""
    return {key: int(value) if key in keys else value for key, value in item.items()}


def _name(job: Job, item: Json, kind: str) -> str:
    """Of a Secret or a ConfigMap: SDKs before 2.14 write it as it is, later ones as a value, too."""
    return _value(job, item[f"{kind}NameParameter"]) if f"{kind}NameParameter" in item else str(item[f"{kind}Name"])


def _claim(job: Job, mount: Json) -> str:
    return _value(job, mount.get("pvcNameParameter", mount))


def _value(job: Job, given: Json) -> str:
    """A constant, or the pipeline's parameter that it comes from."""
    if "constant" in given:
        return str(given["constant"])
    if "constant" in given.get("runtimeValue", {}):
        return str(given["runtimeValue"]["constant"])
    name = given["componentInputParameter"]
    inputs = job.spec["root"]["inputDefinitions"]["parameters"]
    return str(job.parameters.get(name, inputs[name].get("defaultValue")))


def webhook(namespace: str, home: str, service: str, ca_bundle: str) -> list[Json]:
    """The two webhooks' configurations for a namespace; the server's Service is in the namespace ``home``.

    ``ca_bundle`` is base64 of the PEM of the CA of its certificate.
    """
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
                            "namespace": home,
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
