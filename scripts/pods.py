"""The pods that an overlay becomes, as Tekton, Kubernetes, Kubeflow Pipelines and KServe make them of its resources.

They are for a dry run: what admission, a quota and the scheduler look at is as it will be. Commands are left out, and
so are the helpers' own images, which the platform brings: in their place stands one of ours.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import chain
from typing import Any, NamedTuple

from scripts.clients.kubernetes_api import Resource

TASKS = "Pods of the tasks"
STEPS = "Pods of the steps"

# What Tekton gives to its own containers if set-security-context is true (tektoncd/pipeline 1.15,
# pkg/pod/security_context_config.go), KFP to its driver and launcher, and Kubeflow's settings of Argo to init and wait.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# The fields of a Task's step and of KServe's model that its container has as well.
OF_A_CONTAINER = ("image", "env", "envFrom", "volumeMounts", "securityContext", "resources", "ports")
# The fields of a predictor that are not those of its pod (kserve 0.17, pkg/apis/serving/v1beta1/component.go).
OF_A_PREDICTOR = (
    *("model", "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling"),
    *("containerConcurrency", "timeout", "canaryTrafficPercent", "logger", "batcher", "labels", "annotations"),
    "deploymentStrategy",
)
# What a component of KFP's own asks for (kubeflow/pipelines 2.16, argocompiler/container.go).
HELPER = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}}


class Planned(NamedTuple):
    """A pod that there will be.

    Attributes:
        group: what it is one of.
        name: of its task, its step or its Job.
        replicas: how many there are at all times; 0: it ends.
        ci: it is in the namespace of Tekton, not in that of the pipeline's runs.
    """

    group: str
    name: str
    pod: Resource
    replicas: int = 0
    ci: bool = False


def plan(overlay: list[Resource], spec: Resource, *, image: str, restricted: bool) -> list[Planned]:
    """Return the pods of an overlay.

    Args:
        overlay: its resources.
        spec: what the pipeline is compiled to, with pipeline_spec and platform_spec.
        image: what stands for the images that the platform brings.
        restricted: what Tekton's feature flag set-security-context says.
    """
    pods = chain(
        _tekton(overlay, image, restricted),
        _listener(overlay, image),
        _deployments(overlay),
        _jobs(overlay),
        _checks(overlay),
        _kfp(overlay, spec, image),
        _predictors(overlay, image),
    )
    return [each._replace(pod=_limited(deepcopy(each.pod), overlay)) for each in pods]


def of_kind(overlay: list[Resource], kind: str) -> list[Resource]:
    """Return the overlay's resources of a kind."""
    return [each for each in overlay if each["kind"] == kind]


def containers(pod: Resource) -> list[Resource]:
    """Return all containers of a pod, those that come first and end before it as well."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def workspaces(overlay: list[Resource]) -> list[Resource]:
    """Return the specs of the claims that a run makes for itself."""
    bound = chain(*(each["spec"].get("workspaces", ()) for each in _runs(overlay)))
    return [each["volumeClaimTemplate"]["spec"] for each in bound if "volumeClaimTemplate" in each]


def _runs(overlay: list[Resource]) -> list[Resource]:
    """The PipelineRuns that events start."""
    templates = [each["spec"]["resourcetemplates"] for each in of_kind(overlay, "TriggerTemplate")]
    return [each for each in chain(*templates) if each["kind"] == "PipelineRun"]


def _tekton(overlay: list[Resource], image: str, restricted: bool) -> Iterator[Planned]:
    """The pod of each task, and the one that keeps them on one node (tektoncd/pipeline 1.15)."""
    pipelines = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay, "Pipeline")}
    tasks = {each["metadata"]["name"]: each for each in of_kind(overlay, "Task")}
    for run in _runs(overlay):
        spec = run["spec"]
        pipeline = pipelines[spec["pipelineRef"]["name"]]
        labels = run["metadata"].get("labels", {})
        shared = spec.get("taskRunTemplate", {})
        own = {each["pipelineTaskName"]: each for each in spec.get("taskRunSpecs", ())}
        for each in [*pipeline["tasks"], *pipeline.get("finally", ())]:
            task = tasks[each["taskRef"]["name"]]
            # GetTaskRunSpec in pkg/apis/pipeline/v1/pipelinerun_types.go: field by field, the task's own come first.
            given = {**shared, **own.get(each["name"], {})}
            given["podTemplate"] = {**shared.get("podTemplate", {}), **given.get("podTemplate", {})}
            # By these, network policies know them.
            known = {"tekton.dev/task": task["metadata"]["name"], "tekton.dev/pipelineTask": each["name"]}
            pod = _task(task, given, {**labels, **known}, image, restricted)
            yield Planned(TASKS, each["name"], pod, ci=True)
        assistant = _assistant(shared, image, restricted)
        yield Planned("Pod that keeps the tasks together", "affinity-assistant", assistant, 1, ci=True)


def _task(task: Resource, given: Resource, labels: Mapping[str, str], image: str, restricted: bool) -> Resource:
    """A task's pod: Build in pkg/pod/pod.go. Of its many empty folders, one stands for all."""
    spec, template = task["spec"], given["podTemplate"]
    steps = [_merged(spec.get("stepTemplate", {}), step) for step in spec["steps"]]
    workspaces = {each["name"]: each.get("readOnly", False) for each in spec.get("workspaces", ())}
    made = []
    for step in steps:
        container = _container({**step, "resources": step.get("computeResources", {})}, f"step-{step['name']}")
        # What a run finds is at last one of the same repository, with the packages of the commit.
        container["image"] = spec["stepTemplate"]["image"] if "$(" in step["image"] else step["image"]
        mounts: list[Resource] = [
            {"name": f"ws-{name}", "mountPath": f"/workspace/{name}", "readOnly": read_only}
            for name, read_only in workspaces.items()
        ]
        mounts.append({"name": "tekton-internal", "mountPath": "/tekton"})
        container["volumeMounts"] = [*container.get("volumeMounts", ()), *mounts]
        container["env"] = [*container.get("env", ()), *template.get("env", ())]
        made.append(container)
    first = ["prepare"]
    if any("script" in step for step in steps):
        first.append("place-scripts")
    if any("workingDir" in step for step in steps):
        first.append("working-dir-initializer")
    own = {"securityContext": RESTRICTED} if restricted else {}
    volumes = [
        {"name": "tekton-internal", "emptyDir": {}},
        *({"name": f"ws-{name}", "persistentVolumeClaim": {"claimName": f"pvc-{name}"}} for name in workspaces),
        *spec.get("volumes", ()),
        *template.get("volumes", ()),
    ]
    pod = {
        **{field: value for field, value in template.items() if field not in ("env", "volumes")},
        "restartPolicy": "Never",
        "serviceAccountName": given.get("serviceAccountName", "default"),
        "initContainers": [{"name": name, "image": image, **own} for name in first],
        "containers": made,
        "volumes": volumes,
    }
    taken = {**labels, **task["metadata"].get("labels", {}), "app.kubernetes.io/managed-by": "tekton-pipelines"}
    return _pod(pod, {key: value for key, value in taken.items() if "$(" not in value})


def _assistant(shared: Resource, image: str, restricted: bool) -> Resource:
    """The affinity assistant's pod: affinityAssistantStatefulSet in pkg/reconciler/pipelinerun."""
    template = shared.get("podTemplate", {})
    taken = ("tolerations", "nodeSelector", "affinity", "imagePullSecrets", "securityContext", "priorityClassName")
    size = {"cpu": "50m", "memory": "100Mi"}
    container = {
        "name": "affinity-assistant",
        "image": image,
        "resources": {"requests": size, "limits": size},
        "securityContext": RESTRICTED if restricted else {},
    }
    pod = {
        **{field: template[field] for field in taken if field in template},
        "serviceAccountName": shared.get("serviceAccountName", "default"),
        "containers": [container],
        "volumes": [{"name": "workspace-0", "persistentVolumeClaim": {"claimName": "pvc-source"}}],
    }
    return _pod(pod, {"app.kubernetes.io/component": "affinity-assistant"})


def _listener(overlay: list[Resource], image: str) -> Iterator[Planned]:
    """The listener's pod: MakeDeployment in tektoncd/triggers 0.37, pkg/reconciler/eventlistener/resources."""
    for listener in of_kind(overlay, "EventListener"):
        name = listener["metadata"]["name"]
        given = listener["spec"].get("resources", {}).get("kubernetesResource", {})
        template = given.get("spec", {}).get("template", {})
        pod = {
            "serviceAccountName": listener["spec"].get("serviceAccountName", "default"),
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            **template.get("spec", {}),
        }
        [container] = pod.get("containers", [{}])
        pod["containers"] = [{"securityContext": RESTRICTED, **container, "name": "event-listener", "image": image}]
        labels = {**listener["metadata"].get("labels", {}), "eventlistener": name}
        labels |= {"app.kubernetes.io/managed-by": "EventListener", **template.get("metadata", {}).get("labels", {})}
        yield Planned("Pod of the listener", f"el-{name}", _pod(pod, labels), given.get("replicas", 1), ci=True)


def _deployments(overlay: list[Resource]) -> Iterator[Planned]:
    for deployment in of_kind(overlay, "Deployment"):
        spec, template = deployment["spec"], deployment["spec"]["template"]
        pod = _pod(template["spec"], template["metadata"]["labels"])
        ci = "namespace" in deployment["metadata"]
        yield Planned("Pod of the listener's proxy", deployment["metadata"]["name"], pod, spec["replicas"], ci)


def _jobs(overlay: list[Resource]) -> Iterator[Planned]:
    jobs = [each["spec"]["jobTemplate"] | {"metadata": each["metadata"]} for each in of_kind(overlay, "CronJob")]
    for job in [*jobs, *of_kind(overlay, "Job")]:
        template = job["spec"]["template"]
        pod = _pod(template["spec"], template.get("metadata", {}).get("labels", {}))
        yield Planned("Pods of the Jobs", job["metadata"]["name"], pod, ci="namespace" in job["metadata"])


def _checks(overlay: list[Resource]) -> Iterator[Planned]:
    """The pods that Argo CD runs before and after a sync of a pinned version."""
    for pod in of_kind(overlay, "Pod"):
        yield Planned("Pods of the syncs", pod["metadata"]["name"], _pod(pod["spec"], pod["metadata"]["labels"]))


def _kfp(overlay: list[Resource], spec: Resource, helper: str) -> Iterator[Planned]:
    """The pods of a run: kubeflow/pipelines 2.16, argocompiler/container.go and driver/k8s.go.

    Argo's init and wait have what Kubeflow's workflow-controller-configmap says; in a DSPA it says nothing.
    """
    servers = of_kind(overlay, "DataSciencePipelinesApplication")
    account = f"pipeline-runner-{servers[0]['metadata']['name']}" if servers else "default-editor"
    argo = {"securityContext": {} if servers else {**RESTRICTED, "runAsUser": 65532}}
    default = {"type": "RuntimeDefault"}
    executors = spec["pipeline_spec"]["deploymentSpec"]["executors"]
    platform = spec["platform_spec"].get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
    inputs = spec["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
    labels = {
        "pipelines.kubeflow.org/v2_component": "true",
        "workflows.argoproj.io/workflow": spec["pipeline_spec"]["pipelineInfo"]["name"],
    }

    def pod(image: str, first: list[Resource], main: Resource, **more: Any) -> Resource:
        argos = [{"name": name, "image": helper, **argo} for name in ("init", "wait")]
        return _pod(
            {
                "restartPolicy": "Never",
                "serviceAccountName": account,
                "initContainers": [argos[0], *first],
                "containers": [argos[1], {"name": "main", "image": image, **main}],
                **more,
            },
            labels,
        )

    for name, executor in executors.items():
        given, container = platform.get("executors", {}).get(name, {}), executor["container"]
        image = container["image"]
        claims = {_value(mount, "pvcNameParameter", inputs): mount["mountPath"] for mount in given.get("pvcMount", ())}
        size = container.get("resources", {})
        resources: dict[str, dict[str, str]] = {"requests": {}, "limits": {}}
        for kind, word in (("requests", "Request"), ("limits", "Limit")):
            for resource in ("Cpu", "Memory"):
                if value := size.get(f"resource{resource}{word}"):
                    resources[kind][resource.lower()] = value
        if device := size.get("accelerator"):
            resources["limits"][device["resourceType"]] = device["resourceCount"]
        main = {
            "resources": resources,
            "securityContext": {
                **{field: value for field, value in RESTRICTED.items() if field != "runAsNonRoot"},
                **given.get("securityContext", {}),
            },
            "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in claims.items()],
            "env": [
                {
                    "name": key["envVar"],
                    "valueFrom": {
                        "secretKeyRef": {
                            "name": _value(each, "secretNameParameter", inputs),
                            "key": key["secretKey"],
                            "optional": each.get("optional", False),
                        }
                    },
                }
                for each in given.get("secretAsEnv", ())
                for key in each["keyToEnv"]
            ],
        }
        terms = [{"matchExpressions": each["matchExpressions"]} for each in given.get("nodeAffinity", ())]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        launcher = {"name": "kfp-launcher", "image": helper, "securityContext": RESTRICTED, "resources": HELPER}
        made = pod(
            image,
            [launcher],
            main,
            securityContext={"seccompProfile": default},
            imagePullSecrets=[
                {"name": _value(each, "secretNameParameter", inputs)} for each in given.get("imagePullSecret", ())
            ],
            tolerations=given.get("tolerations", []),
            nodeSelector=given.get("nodeSelector", {}).get("labels", {}),
            volumes=[{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
            **({"affinity": {"nodeAffinity": required}} if terms else {}),
        )
        yield Planned(STEPS, name.removeprefix("exec-"), made)
    driver = {"resources": HELPER, "securityContext": RESTRICTED}
    context = {"runAsNonRoot": True, "seccompProfile": default}
    yield Planned(STEPS, "driver", pod(helper, [], driver, securityContext=context))


def _value(given: Resource, field: str, inputs: Resource) -> str:
    """A name in the platform's part of a pipeline: a constant, or the default of a parameter."""
    given = given.get(field, given)
    parameter = given.get("componentInputParameter")
    constant = given.get("runtimeValue", given).get("constant", "")
    return str(inputs.get(parameter, {}).get("defaultValue", parameter) if parameter else constant)


def _predictors(overlay: list[Resource], image: str) -> Iterator[Planned]:
    """The model server's pod: MergeRuntimeContainers and MergePodSpec in kserve 0.17."""
    runtimes = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay, "ServingRuntime")}
    for service in of_kind(overlay, "InferenceService"):
        metadata, predictor = service["metadata"], service["spec"]["predictor"]
        model = predictor["model"]
        runtime = runtimes[model["runtime"]]
        shared = ("nodeSelector", "affinity", "tolerations", "volumes", "imagePullSecrets")
        pod = _merged(
            {field: runtime[field] for field in shared if field in runtime},
            {field: value for field, value in predictor.items() if field not in OF_A_PREDICTOR},
        )
        made = []
        for each in runtime["containers"]:
            main = each["name"] == "kserve-container"
            made.append(_container(_merged(each, model) if main else each, each["name"]))
        scheme, _, path = model.get("storageUri", "").partition("://")
        if scheme == "pvc":
            # By the webhook of pods, pkg/webhook/admission/pod/storage_initializer_injector.go.
            claim = {"claimName": path.partition("/")[0], "readOnly": True}
            pod["volumes"] = [
                *pod.get("volumes", ()),
                {"name": "kserve-pvc-source", "persistentVolumeClaim": claim},
            ]
        annotations = metadata.get("annotations", {})
        if annotations.get("security.opendatahub.io/enable-auth") == "true":
            # opendatahub-io/kserve of OpenShift AI 3.x: it sets no security context.
            made.append({"name": "kube-rbac-proxy", "image": image})
        labels = {**metadata.get("labels", {}), **predictor.get("labels", {}), **runtime.get("labels", {})}
        labels["serving.kserve.io/inferenceservice"] = metadata["name"]
        replicas = max(1, predictor.get("minReplicas", 1))
        yield Planned("Pod of the model server", metadata["name"], _pod({**pod, "containers": made}, labels), replicas)


def _pod(spec: Resource, labels: Mapping[str, str]) -> Resource:
    metadata = {"name": "jukebox-preflight", "labels": dict(labels), "annotations": {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _container(given: Resource, name: str) -> Resource:
    return {"name": name, **{field: given[field] for field in OF_A_CONTAINER if field in given}}


def _limited(pod: Resource, overlay: list[Resource]) -> Resource:
    """The pod with the sizes that the overlay's LimitRange gives to containers that name none."""
    limits = [each for ranges in of_kind(overlay, "LimitRange") for each in ranges["spec"]["limits"]]
    for limit in (each for each in limits if each["type"] == "Container"):
        for container in containers(pod):
            given = container.get("resources", {})
            bounds = {**limit.get("default", {}), **given.get("limits", {})}
            # As the API server has it: who names a limit alone requests as much.
            requests = {**limit.get("defaultRequest", {}), **given.get("limits", {}), **given.get("requests", {})}
            container["resources"] = {"limits": bounds, "requests": requests}
    return pod


def _merged(below: Any, above: Any) -> Any:
    """Kubernetes' strategic merge as far as it matters here: lists of what has names by name, other lists replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys()}
        return {**below, **above, **both}
    if isinstance(below, list) and isinstance(above, list) and all("name" in each for each in [*below, *above]):
        named = {each["name"]: each for each in below}
        return [*{**named, **{each["name"]: _merged(named.get(each["name"], {}), each) for each in above}}.values()]
    return above
