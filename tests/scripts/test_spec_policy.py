"""What ``jukebox apply`` and ``jukebox start`` refuse of a compiled pipeline: each attack, and any change at random."""

import copy
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from kfp import dsl
from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes_proto
from kfp.pipeline_spec import pipeline_spec_pb2 as proto

from pipeline.core.errors import NotFinite, SpecRefused
from pipeline.settings import PIPELINE
from scripts.clients.kubernetes_api import Resource
from scripts.compile_pipeline import pipeline_resources
from scripts.spec_policy import LONGEST_SHOWN, judge, judge_spec, version_name
from tests.active_model import TABLES
from tests.kfp.world import IMAGE, SETTINGS, make_step, train_step

Edit = Callable[[Resource], object]

EXECUTORS = "pipelineSpec.deploymentSpec.executors"
PARTS = "platformSpec.platforms.kubernetes.deploymentSpec.executors"
# The settings as a fork may have them: the store on a claim, and with all that a step may get beside that.
COMPANY = replace(
    SETTINGS,
    platform="kubeflow",
    nodes="pool=steps",
    taint="steps",
    pull_secret="company",
    train_gpus="1",
    http_proxy="http://proxy:3128",
    https_proxy="http://proxy:3128",
)
KINDS = {"plain": SETTINGS, "company": COMPANY, "s3": replace(COMPANY, model_store="s3://bucket/models")}
COMPILED = {
    kind: pipeline_resources(settings, image=IMAGE, commit="0" * 40, built_by="push-1")
    for kind, settings in KINDS.items()
}


def resources(kind: str) -> tuple[Resource, Resource]:
    """What is compiled with settings of this kind, to be changed."""
    return copy.deepcopy(COMPILED[kind])


def refused(kind: str, edit: Edit, image: str = IMAGE) -> str:
    """What is said of the version after an edit of it, by someone who names it as it should be."""
    pipeline, version = resources(kind)
    edit(version)
    spec = version["spec"]
    version["metadata"]["name"] = spec["displayName"] = version_name(
        PIPELINE, spec["pipelineSpec"], spec["platformSpec"]
    )
    with pytest.raises(SpecRefused) as error:
        judge(pipeline, version, KINDS[kind], image)
    return str(error.value)


def step(name: str, **fields: Any) -> Edit:
    """Give a step's part of the platform these fields."""

    def edit(version: Resource) -> None:
        kubernetes = version["spec"]["platformSpec"]["platforms"]["kubernetes"]
        kubernetes["deploymentSpec"]["executors"][f"exec-{name}"].update(fields)

    return edit


def container(**fields: Any) -> Edit:
    """Give the container of the training step these fields."""
    return lambda version: version["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]["exec-train-model"][
        "container"
    ].update(fields)


def at(path: str, value: Any) -> Edit:
    """Set a value at a path below the version's spec."""

    def edit(version: Resource) -> None:
        *names, last = path.split(".")
        found = version["spec"]
        for name in names:
            found = found.setdefault(name, {})
        found[last] = value

    return edit


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_compiler_makes_of_the_settings_is_taken(kind: str) -> None:
    judge(*resources(kind), KINDS[kind], IMAGE)
    judge(*resources(kind), KINDS[kind])


def test_a_pipeline_of_ones_own_is_taken_with_loops_and_conditions() -> None:
    def sized(task: Any) -> Any:
        return task.set_cpu_limit("1").set_memory_limit("1Gi")

    def own(commit: str = "") -> None:
        made = sized(make_step(rows=3))
        with dsl.If(made.output > 2), dsl.ParallelFor([1, 2], parallelism=1) as rows:
            sized(make_step(rows=rows))
        with dsl.ExitHandler(sized(make_step(rows=4))):
            sized(train_step(twice=5)).set_retry(2)

    spec = json_format.MessageToDict(dsl.pipeline(name=PIPELINE)(own).pipeline_spec)
    parts = {name: {"activeDeadlineSeconds": "60"} for name in spec["deploymentSpec"]["executors"]}
    judge_spec(spec, {"platforms": {"kubernetes": {"deploymentSpec": {"executors": parts}}}}, SETTINGS)


SECRET = {"keyToEnv": [{"secretKey": "AWS_ACCESS_KEY_ID", "envVar": "AWS_ACCESS_KEY_ID"}]}
FOREIGN_CLAIM = {"runtimeValue": {"constant": "mysql"}}
MOUNT = {"mountPath": SETTINGS.model_store}
MODEL_CLAIM = "model_storage_pvc"
ATTACKS: dict[str, tuple[Edit, str]] = {
    "a foreign Secret in the environment": (
        step("train-model", secretAsEnv=[{"secretName": "jukebox-git-host", **SECRET}]),
        f"{PARTS}.exec-train-model.secretAsEnv[0].secretName is 'jukebox-git-host', "
        "expected 'jukebox-data' or 'jukebox-store'",
    ),
    "a foreign Secret by its other name": (
        step("train-model", secretAsEnv=[{"secretNameParameter": FOREIGN_CLAIM, **SECRET}]),
        f"{PARTS}.exec-train-model.secretAsEnv[0].secretNameParameter.runtimeValue.constant is 'mysql'",
    ),
    "a Secret that a parameter names": (
        step("train-model", secretAsEnv=[{"secretNameParameter": {"componentInputParameter": "commit"}, **SECRET}]),
        f"{PARTS}.exec-train-model.secretAsEnv[0].secretNameParameter.componentInputParameter is 'commit'",
    ),
    "another key of a Secret": (
        step("train-model", secretAsEnv=[{"secretName": "jukebox-data", "keyToEnv": [{"secretKey": "admin"}]}]),
        f"{PARTS}.exec-train-model.secretAsEnv[0].keyToEnv[0].secretKey is 'admin'",
    ),
    "a Secret as a volume": (
        step("train-model", secretAsVolume=[{"secretName": "jukebox-data", "mountPath": "/keys"}]),
        f"{PARTS}.exec-train-model.secretAsVolume is [",
    ),
    "a Secret as Python spells the field": (
        step("train-model", secret_as_env=[{"secret_name": "jukebox-data"}]),
        f"{PARTS}.exec-train-model.secret_as_env is [",
    ),
    "another account": (
        step("train-model", serviceAccountName="jukebox-release"),
        f"{PARTS}.exec-train-model.serviceAccountName is 'jukebox-release', expected only the fields activeDeadline",
    ),
    "another account in the spec": (
        at("serviceAccount", "jukebox-release"),
        "PipelineVersion.spec.serviceAccount is 'jukebox-release', expected only the fields pipelineName,",
    ),
    "a path of the node": (
        step("train-model", hostPath=[{"path": "/", "mountPath": "/host"}]),
        f"{PARTS}.exec-train-model.hostPath is [",
    ),
    "privileges": (
        step("train-model", securityContext={"runAsNonRoot": True, "privileged": True}),
        f"{PARTS}.exec-train-model.securityContext.privileged is True, expected only the fields runAsNonRoot",
    ),
    "root": (
        step("train-model", securityContext={"runAsNonRoot": True, "runAsUser": "0"}),
        f"{PARTS}.exec-train-model.securityContext.runAsUser is '0'",
    ),
    "root by default": (
        step("train-model", securityContext={"runAsNonRoot": False}),
        f"{PARTS}.exec-train-model.securityContext.runAsNonRoot is False, expected True",
    ),
    "a foreign namespace": (
        lambda version: version["metadata"].update(namespace="kube-system"),
        "PipelineVersion.metadata.namespace is 'kube-system', expected only the fields name, labels",
    ),
    "a label of others": (
        lambda version: version["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "vip"}),
        "PipelineVersion.metadata.labels.kueue.x-k8s.io/queue-name is 'vip'",
    ),
    "an owner": (
        lambda version: version["metadata"].update(ownerReferences=[{}]),
        "PipelineVersion.metadata.ownerReferences is [{}]",
    ),
    "an image of another repository": (
        container(image="elsewhere.example.com/a@sha256:" + "0" * 64),
        f"{EXECUTORS}.exec-train-model.container.image is 'elsewhere.example.com/a@sha256:",
    ),
    "an image by its tag": (
        container(image=f"{SETTINGS.image}:latest"),
        f"{EXECUTORS}.exec-train-model.container.image is '<REGISTRY>/jukebox-training:latest', expected",
    ),
    "an image that a parameter names": (
        container(image="{{$.inputs.parameters['commit']}}"),
        f"{EXECUTORS}.exec-train-model.container.image is",
    ),
    "another image of the repository": (
        container(image=f"{SETTINGS.image}@sha256:{'1' * 64}"),
        f"{EXECUTORS}.exec-train-model.container.image is '<REGISTRY>/jukebox-training@sha256:1111",
    ),
    "more cores than the quota": (
        container(resources={"resourceCpuLimit": "16001m", "resourceMemoryLimit": "1Gi"}),
        f"{EXECUTORS}.exec-train-model.container.resources.resourceCpuLimit is '16001m', expected a number within "
        "the quota of the settings, 16",
    ),
    "more memory than the quota": (
        container(resources={"resourceCpuLimit": "1", "resourceMemoryLimit": "65Gi"}),
        f"{EXECUTORS}.exec-train-model.container.resources.resourceMemoryLimit is '65Gi', expected a number within",
    ),
    "more memory by the old field": (
        container(resources={"resourceCpuLimit": "1", "resourceMemoryLimit": "1Gi", "memoryLimit": 70.0}),
        f"{EXECUTORS}.exec-train-model.container.resources.memoryLimit is 70.0",
    ),
    "no limit": (
        container(resources={"resourceCpuLimit": "1"}),
        f"{EXECUTORS}.exec-train-model.container.resources.resourceMemoryLimit is missing",
    ),
    "a limit that a parameter names": (
        container(resources={"resourceCpuLimit": "{{$.inputs.parameters['cpu']}}", "resourceMemoryLimit": "1Gi"}),
        f"{EXECUTORS}.exec-train-model.container.resources.resourceCpuLimit is",
    ),
    "more accelerators": (
        container(
            resources={
                "resourceCpuLimit": "1",
                "resourceMemoryLimit": "1Gi",
                "accelerator": {"type": "nvidia.com/gpu", "count": "8"},
            }
        ),
        f"{EXECUTORS}.exec-train-model.container.resources.accelerator.count is '8', expected a positive "
        "number, at most 1",
    ),
    "another accelerator": (
        container(
            resources={
                "resourceCpuLimit": "1",
                "resourceMemoryLimit": "1Gi",
                "accelerator": {"resourceType": "devices.kubevirt.io/kvm", "resourceCount": "1"},
            }
        ),
        f"{EXECUTORS}.exec-train-model.container.resources.accelerator.resourceType is 'devices.kubevirt.io/kvm'",
    ),
    "a ConfigMap": (
        step("train-model", configMapAsVolume=[{"configMapName": "kube-root-ca.crt", "mountPath": "/etc/trusted-ca"}]),
        f"{PARTS}.exec-train-model.configMapAsVolume[0].configMapName is 'kube-root-ca.crt', expected",
    ),
    "a ConfigMap in the environment": (
        step("train-model", configMapAsEnv=[{"configMapName": "jukebox-trusted-ca"}]),
        f"{PARTS}.exec-train-model.configMapAsEnv is [",
    ),
    "another pull secret": (
        step("train-model", imagePullSecret=[{"secretName": "jukebox-registry"}]),
        f"{PARTS}.exec-train-model.imagePullSecret[0].secretName is 'jukebox-registry', expected 'company'",
    ),
    "another claim": (
        step("train-model", pvcMount=[{"constant": "mysql", **MOUNT}]),
        f"{PARTS}.exec-train-model.pvcMount[0].constant is 'mysql', expected 'jukebox-model-pvc'",
    ),
    "another claim by its other name": (
        step("train-model", pvcMount=[{"pvcNameParameter": FOREIGN_CLAIM, **MOUNT}]),
        f"{PARTS}.exec-train-model.pvcMount[0].pvcNameParameter.runtimeValue.constant is 'mysql'",
    ),
    "a claim that another parameter names": (
        step("train-model", pvcMount=[{"componentInputParameter": "commit", **MOUNT}]),
        f"{PARTS}.exec-train-model.pvcMount[0].componentInputParameter is 'commit', expected 'model_storage_pvc'",
    ),
    "a claim that a step names": (
        step("train-model", pvcMount=[{"taskOutputParameter": {"producerTask": "fetch-data"}, **MOUNT}]),
        f"{PARTS}.exec-train-model.pvcMount[0].taskOutputParameter is",
    ),
    "another default of the claim": (
        at(f"pipelineSpec.root.inputDefinitions.parameters.{MODEL_CLAIM}.defaultValue", "mysql"),
        f"pipelineSpec.root.inputDefinitions.parameters.{MODEL_CLAIM}.defaultValue is 'mysql', expected",
    ),
    "no default of the claim": (
        at(f"pipelineSpec.root.inputDefinitions.parameters.{MODEL_CLAIM}", {"parameterType": "STRING"}),
        f"pipelineSpec.root.inputDefinitions.parameters.{MODEL_CLAIM}.defaultValue is missing",
    ),
    "a claim that a graph of one's own is given": (
        at("pipelineSpec.components.mine.dag.tasks.publish.componentRef.name", "comp-publish-model"),
        "components.mine.dag.tasks.publish.componentRef.name is 'comp-publish-model', which mounts a claim",
    ),
    "a claim in a loop": (
        at("pipelineSpec.root.dag.tasks.publish-model.parameterIterator", {"itemInput": MODEL_CLAIM}),
        "pipelineSpec.root.dag.tasks.publish-model.componentRef.name is 'comp-publish-model', which mounts a claim",
    ),
    "other data": (
        at(
            f"pipelineSpec.root.inputDefinitions.parameters.data.defaultValue.{TABLES[0]}",
            "https://elsewhere.example.com/",
        ),
        f"pipelineSpec.root.inputDefinitions.parameters.data.defaultValue.{TABLES[0]} is 'https://elsewhere.example.com/'",
    ),
    "data of another table": (
        at("pipelineSpec.root.inputDefinitions.parameters.data.defaultValue.cars", "s3://bucket/cars"),
        "pipelineSpec.root.inputDefinitions.parameters.data.defaultValue.cars is 's3://bucket/cars', expected only",
    ),
    "labels of the pod": (
        step("train-model", podMetadata={"labels": {"app.kubernetes.io/name": "listener"}}),
        f"{PARTS}.exec-train-model.podMetadata is",
    ),
    "other nodes": (
        step("train-model", nodeSelector={"labels": {"node-role.kubernetes.io/control-plane": ""}}),
        f"{PARTS}.exec-train-model.nodeSelector.labels is {{'node-role.kubernetes.io/control-plane': ''}}, expected "
        "pool=steps",
    ),
    "nodes of any taint": (
        step("train-model", tolerations=[{"operator": "Exists"}]),
        f"{PARTS}.exec-train-model.tolerations[0].key is missing",
    ),
    "a volume of any class": (
        step("train-model", genericEphemeralVolume=[{"volumeName": "a"}]),
        f"{PARTS}.exec-train-model.genericEphemeralVolume is",
    ),
    "no timeout": (
        lambda version: version["spec"]["platformSpec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"].pop(
            "exec-train-model"
        ),
        f"{PARTS}.exec-train-model is missing",
    ),
    "too long a timeout": (
        step("train-model", activeDeadlineSeconds="86401"),
        f"{PARTS}.exec-train-model.activeDeadlineSeconds is '86401', expected a positive number, at most 86400",
    ),
    "retries without end": (
        at("pipelineSpec.root.dag.tasks.train-model.retryPolicy.maxRetryCount", -1),
        "pipelineSpec.root.dag.tasks.train-model.retryPolicy.maxRetryCount is -1, expected a positive "
        "number, at most 5",
    ),
    "pauses of years": (
        at("pipelineSpec.root.dag.tasks.train-model.retryPolicy.backoffDuration", "99999999s"),
        "pipelineSpec.root.dag.tasks.train-model.retryPolicy.backoffDuration is '99999999s', expected seconds",
    ),
    "a place in the cache": (
        at("pipelineSpec.root.dag.tasks.train-model.cachingOptions.cacheKey", "0" * 64),
        "pipelineSpec.root.dag.tasks.train-model.cachingOptions.cacheKey is '000",
    ),
    "another root for artifacts": (
        at("pipelineSpec.defaultPipelineRoot", "s3://elsewhere"),
        "pipelineSpec.defaultPipelineRoot is 's3://elsewhere'",
    ),
    "an importer": (
        at(f"{EXECUTORS}.exec-train-model", {"importer": {"artifactUri": {"constant": "s3://elsewhere"}}}),
        f"{EXECUTORS}.exec-train-model.importer is",
    ),
    "a workspace": (
        at("platformSpec.platforms.kubernetes.pipelineConfig", {"workspace": {"size": "1Ti"}}),
        "platformSpec.platforms.kubernetes.pipelineConfig is",
    ),
    "a platform's part inside": (
        at("pipelineSpec.components.comp-train-model.singlePlatformSpecs", [{"platform": "kubernetes"}]),
        "pipelineSpec.components.comp-train-model.singlePlatformSpecs is",
    ),
    "another platform": (
        at("platformSpec.platforms.other", {}),
        "platformSpec.platforms.other is {}, expected only the fields kubernetes",
    ),
    "a hook": (
        container(lifecycle={"preCacheCheck": {"command": ["sh"]}}),
        f"{EXECUTORS}.exec-train-model.container.lifecycle is",
    ),
    "what Argo evaluates": (
        container(command=["sh", "-c", """echo {{='"'}}"""]),
        f"""{EXECUTORS}.exec-train-model.container.command[2] contains '{{{{=\\'"\\'}}}}', which Argo Workflows""",
    ),
    "what Argo fills in": (
        at("pipelineSpec.root.dag.tasks.train-model.taskInfo.name", "a {{workflow.parameters.x}}"),
        "pipelineSpec.root.dag.tasks.train-model.taskInfo.name contains '{{workflow.parameters.x}}'",
    ),
    "what Argo fills in, as a name": (
        at("pipelineSpec.components.{{workflow", {}),
        "the name '{{workflow' in PipelineVersion.spec.pipelineSpec.components contains",
    ),
    "another source": (at("codeSourceURL", "https://elsewhere.example.com"), "PipelineVersion.spec.codeSourceURL is"),
    "another pipeline": (at("pipelineName", "others"), "PipelineVersion.spec.pipelineName is 'others', expected"),
    "no spec": (at("pipelineSpec", None), "pipelineSpec is None"),
    "lists for maps": (at(EXECUTORS, [{}]), f"{EXECUTORS} is [{{}}], expected an object"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_by_the_name_of_its_field(attack: str) -> None:
    edit, said = ATTACKS[attack]
    assert said in refused("company", edit)


@pytest.mark.parametrize("name", ["train-model", "publish-model"])
def test_without_the_setting_nothing_of_the_kind_is_allowed(name: str) -> None:
    """Given a store in S3, no pull secret, no nodes and no accelerators in the settings."""
    plain = replace(SETTINGS, model_store="s3://bucket/models")
    for field, value in {
        "pvcMount": [{"constant": SETTINGS.model_storage_pvc, "mountPath": "/models"}],
        "imagePullSecret": [{"secretName": ""}],
        "nodeSelector": {"labels": {}},
        "tolerations": [],
    }.items():
        pipeline, version = pipeline_resources(plain, image=IMAGE)
        step(name, **{field: value})(version)
        with pytest.raises(SpecRefused, match=re.escape(f"{PARTS}.exec-{name}.{field} is")):
            judge(pipeline, version, plain)


def test_the_name_is_the_record_of_the_content() -> None:
    pipeline, version = resources("plain")
    version["metadata"]["name"] = version["spec"]["displayName"] = f"{PIPELINE}-000000000000"
    with pytest.raises(SpecRefused, match=rf"metadata\.name is '{PIPELINE}-0+', expected '{PIPELINE}-\w+'"):
        judge(pipeline, version, SETTINGS)


def test_the_pipeline_is_judged_as_well() -> None:
    pipeline, version = resources("plain")
    pipeline["metadata"]["namespace"] = "kube-system"
    with pytest.raises(SpecRefused, match=r"Pipeline\.metadata\.namespace is 'kube-system'"):
        judge(pipeline, version, SETTINGS)


def test_all_is_said_at_once_and_not_without_end() -> None:
    """Given a thousand wrong fields with long values, then twenty short lines tell it, and what to do."""
    many = {f"field{number}": "\x1b[31m" + "x" * 10_000 for number in range(1000)}
    said = refused("plain", step("train-model", **many))
    _, *lines, last = said.split("\n")
    assert len(lines) == 21
    assert lines[-1].strip() == "…"
    assert max(map(len, lines)) < 400 + LONGEST_SHOWN
    assert "\x1b" not in said
    assert "If the settings have changed, run `jukebox bootstrap`" in last


@pytest.mark.parametrize("value", [float("nan"), 2**64, 1 << 100_000, b"x", {1}], ids=["NaN", *"IBbs"])
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    pipeline, version = resources("plain")
    container(env=value)(version)
    with pytest.raises(SpecRefused, match=r"exec-train-model\.container\.env is a"):
        judge(pipeline, version, SETTINGS)


def test_what_lies_too_deep_is_refused() -> None:
    pipeline, version = resources("plain")
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    at("pipelineSpec.root.inputDefinitions.parameters.thresholds.defaultValue", deep)(version)
    with pytest.raises(SpecRefused, match="is nested too deeply, expected at most 50 levels"):
        judge(pipeline, version, SETTINGS)


# Any change


ALLOWED_OF_A_STEP = {
    "activeDeadlineSeconds",
    "configMapAsVolume",
    "imagePullPolicy",
    "imagePullSecret",
    "nodeSelector",
    "pvcMount",
    "secretAsEnv",
    "securityContext",
    "tolerations",
}


@pytest.mark.parametrize("field", sorted(kubernetes_proto.KubernetesExecutorConfig.DESCRIPTOR.fields_by_name))
def test_of_all_that_kubeflow_can_ask_of_a_pod_few_are_allowed(field: str) -> None:
    """Each field of the installed kfp-kubernetes is here, so that one of a later release is thought about."""
    name = kubernetes_proto.KubernetesExecutorConfig.DESCRIPTOR.fields_by_name[field].json_name
    said = refused("company", step("train-model", **{name: "x"}))
    assert f"{PARTS}.exec-train-model.{name} is 'x', expected " in said
    assert ("expected only the fields" in said) == (name not in ALLOWED_OF_A_STEP)


@pytest.mark.parametrize(
    ("message", "path", "allowed"),
    [
        (proto.PipelineDeploymentConfig.ExecutorSpec, f"{EXECUTORS}.exec-train-model", {"container"}),
        (
            proto.PipelineDeploymentConfig.PipelineContainerSpec,
            f"{EXECUTORS}.exec-train-model.container",
            {"image", "command", "args", "env", "resources"},
        ),
        (
            proto.PipelineSpec,
            "pipelineSpec",
            {"pipelineInfo", "sdkVersion", "schemaVersion", "deploymentSpec", "components", "root"},
        ),
        (
            proto.ComponentSpec,
            "pipelineSpec.components.comp-train-model",
            {"inputDefinitions", "outputDefinitions", "dag", "executorLabel"},
        ),
        (proto.SinglePlatformSpec, "platformSpec.platforms.kubernetes", {"deploymentSpec"}),
        (
            proto.PipelineTaskSpec.CachingOptions,
            "pipelineSpec.root.dag.tasks.train-model.cachingOptions",
            {"enableCache"},
        ),
    ],
    ids=lambda value: getattr(getattr(value, "DESCRIPTOR", None), "name", None),
)
def test_of_all_that_kubeflow_knows_of_a_pipeline_this_is_allowed(message: Any, path: str, allowed: set[str]) -> None:
    found = set()
    for field in message.DESCRIPTOR.fields:
        said = refused("company", at(f"{path}.{field.json_name}", 7))
        assert f"{path}.{field.json_name} is 7, expected " in said
        found |= {field.json_name} if "expected only the fields" not in said else set()
    assert found == allowed


# Where a change does no harm: what runs in the container, what is shown, how steps hand on to each other, and numbers
# and flags, whose bounds have tests of their own.
HARMLESS = re.compile(
    r"Pipeline(Version)?\.spec\.(description|displayName)|.*description|PipelineVersion.metadata.annotations.*/(commit|built-by)"
    r"|pipelineSpec\.(sdkVersion|schemaVersion|pipelineInfo\.displayName|pipelineInfo\.description)"
    rf"|{re.escape(EXECUTORS)}\.[\w-]+\.container\.(command|args|env)\b.*"
    rf"|{re.escape(EXECUTORS)}\.[\w-]+\.container\.resources\.(\w+|accelerator\.\w*[cC]ount)"
    rf"|{re.escape(PARTS)}\.[\w-]+\.(activeDeadlineSeconds|.*\.optional)"
    r"|pipelineSpec\.components\.[\w-]+\.(executorLabel|inputDefinitions\..*|outputDefinitions\..*)"
    r"|pipelineSpec\.root\.inputDefinitions\.parameters(\.(?!data\b|model_|cluster_)\w+.*|\.\w+\.\w+)?"
    r"|pipelineSpec\.root\.dag\.tasks(\.[\w-]+)?(\.(inputs|taskInfo|dependentTasks|componentRef|cachingOptions|retryPolicy).*)?"
    r"|.*\.(components|executors|tasks|parameters|artifacts)"
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.lists(st.text(max_size=5), max_size=2),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    st.sampled_from(["jukebox-git-host", "mysql", "0", "-1", "999999", "{{$}}", True, 0]),
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all values in a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for name, inner in pairs for found in places(inner, (*path, name)))]


PLACES = {kind: places(found[1])[1:] for kind, found in COMPILED.items()}


def written(path: tuple[str | int, ...]) -> str:
    """A path as a refusal names it."""
    text = "PipelineVersion" + "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in path)
    text = text.replace(".{{=a}}", "")  # is told as a name in what holds it
    # Labels of nodes are judged together.
    text = re.sub(r"(nodeSelector\.labels)\..*", r"\1", text)
    return re.sub(r"^PipelineVersion\.spec\.(?=(pipeline|platform)Spec)", "", text)


RISKY = {kind: [path for path in found if not HARMLESS.fullmatch(written(path))] for kind, found in PLACES.items()}


def verdict(kind: str, pipeline: Resource, version: Resource) -> str:
    """What is said of the two resources; nothing if they are taken."""
    try:
        judge(pipeline, version, KINDS[kind], IMAGE)
    except SpecRefused as refusal:
        return str(refusal)
    return ""


@examples(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_is_refused_by_its_field_or_is_known_to_do_no_harm(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*KINDS]))
    pipeline, version = resources(kind)
    # Of the many places, those of the security are few: they get half of the draws.
    path = data.draw(st.sampled_from(RISKY[kind]) | st.sampled_from(PLACES[kind]))
    *above, last = path
    holder: Any = version
    for name in above:
        holder = holder[name]
    if isinstance(holder[last], dict) and data.draw(st.booleans()):
        holder, last = holder[last], data.draw(st.sampled_from(["hostNetwork", "nodeName", "namespace", "{{=a}}"]))
        path = (*path, last)
    before, value = holder.get(last) if isinstance(holder, dict) else holder[last], data.draw(VALUES)
    assume(type(before) is not type(value) or before != value)
    holder[last] = value
    if path[1:2] in (("pipelineSpec",), ("platformSpec",)):
        with suppress(NotFinite):
            spec = version["spec"]
            name = version_name(PIPELINE, spec["pipelineSpec"], spec["platformSpec"])
            version["metadata"]["name"] = spec["displayName"] = name
    said, where = verdict(kind, pipeline, version), written(path)
    harmless = HARMLESS.fullmatch(where) or value in ({}, [])  # what is emptied asks for less
    assert where in said if said else harmless, where
