import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from kfp.pipeline_spec import pipeline_spec_pb2

from pipeline.core.errors import SettingsInvalid
from pipeline.core.options import GATE_MODES
from pipeline.core.trusted_ca import FILE
from pipeline.models.jukebox import MODEL
from pipeline.settings import PIPELINE, Settings, read_settings
from scripts.compile_pipeline import pipeline_resources
from tests.active_model import TABLES

Spec = dict[str, Any]
IMAGE = "registry.example.com/jukebox-training:1.0@sha256:0123"
STEPS = {
    "fetch-data",
    "validate-data",
    "preprocess-data",
    "train-model",
    "evaluate-model",
    "convert-model",
    "verify-model",
    "publish-model",
}
READ_THE_STORE = {"validate-data", "evaluate-model", "publish-model"}


class Compiled:
    """The compiled pipeline, as a user of the cluster meets it."""

    def __init__(self, settings: Settings, image: str = "") -> None:
        _, version = pipeline_resources(settings, image=image)
        self.spec: Spec = version["spec"]["pipelineSpec"]
        self.platform: Spec = version["spec"]["platformSpec"]
        self.tasks: Spec = self.spec["root"]["dag"]["tasks"]

    def containers(self) -> dict[str, Spec]:
        executors = self.spec["deploymentSpec"]["executors"]
        return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}

    def pods(self) -> dict[str, Spec]:
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return {name.removeprefix("exec-"): executor for name, executor in executors.items()}

    def waits(self, task: str) -> set[str]:
        return set(self.tasks[task].get("dependentTasks", ()))

    def waits_in_the_end(self, task: str) -> set[str]:
        return self.waits(task).union(*(self.waits_in_the_end(other) for other in self.waits(task)))

    def arrows(self, task: str) -> set[str]:
        """The steps that a task waits for, without those that another of them waits for anyway."""
        return self.waits(task) - set().union(*(self.waits_in_the_end(other) for other in self.waits(task)))

    def parameters(self) -> Spec:
        parameters: Spec = self.spec["root"]["inputDefinitions"]["parameters"]
        return parameters


@pytest.fixture(scope="module")
def settings() -> Settings:
    return replace(read_settings(), image=IMAGE, cluster_domain="apps.example.com")


@pytest.fixture(scope="module")
def compiled(settings: Settings) -> Compiled:
    return Compiled(settings)


def on_s3(settings: Settings) -> Settings:
    return replace(settings, model_store="s3://bucket/models")


# The graph


def test_each_step_waits_for_what_it_needs_and_for_nothing_else(compiled: Compiled) -> None:
    assert {task: compiled.arrows(task) for task in compiled.tasks} == {
        "fetch-data": set(),
        "validate-data": {"fetch-data"},
        "preprocess-data": {"fetch-data"},
        "train-model": {"validate-data", "preprocess-data"},
        "evaluate-model": {"train-model"},
        "convert-model": {"train-model"},
        "verify-model": {"evaluate-model", "convert-model"},
        "publish-model": {"verify-model"},
    }


@pytest.mark.parametrize(("one", "other"), [("validate-data", "preprocess-data"), ("evaluate-model", "convert-model")])
def test_steps_that_need_not_wait_for_each_other_run_at_once(compiled: Compiled, one: str, other: str) -> None:
    assert one not in compiled.waits_in_the_end(other)
    assert other not in compiled.waits_in_the_end(one)


def test_a_run_costs_no_pod_but_those_of_its_steps(compiled: Compiled) -> None:
    # Each group of steps (a condition, a loop, an exit handler) would have a driver of its own.
    assert [name for name, one in compiled.spec["components"].items() if "dag" in one] == []
    assert compiled.containers().keys() == STEPS


def test_what_is_published_was_judged_and_verified(compiled: Compiled) -> None:
    artifacts = compiled.tasks["publish-model"]["inputs"]["artifacts"]
    producers = {name: value["taskOutputArtifact"]["producerTask"] for name, value in artifacts.items()}
    assert producers["verdict"] == producers["evaluation"] == "evaluate-model"
    assert producers["parity"] == "verify-model"
    assert producers["onnx_model"] == "convert-model"
    verified = compiled.tasks["verify-model"]["inputs"]["artifacts"]
    assert verified["onnx_model"] == artifacts["onnx_model"]
    assert verified["verdict"] == artifacts["verdict"]


# Parameters


def test_the_data_version_alone_must_be_given(compiled: Compiled) -> None:
    required = {name for name, one in compiled.parameters().items() if not one.get("isOptional")}
    assert required == {"data_version"}
    assert compiled.parameters()["data_version"]["parameterType"] == "STRING"


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("hyperparameters", "STRUCT", {"epochs": 2}),
        ("model_name", "STRING", "jukebox"),
        ("version", "STRING", "0.0.2"),
        ("cluster_domain", "STRING", "apps.example.com"),
        ("model_storage_pvc", "STRING", "jukebox-model-pvc"),
        ("prod_flag", "BOOLEAN", False),
        ("gate_mode", "STRING", "enforce"),
        ("champion_version", "STRING", ""),
        ("served_version", "STRING", ""),
        ("thresholds", "STRUCT", {check.name: check.threshold for check in MODEL.all_checks}),
        ("sha256", "STRUCT", {}),
        ("commit", "STRING", ""),
        ("cache", "STRING", ""),
        ("commit_time", "STRING", ""),
    ],
)
def test_a_run_without_arguments_takes_these(compiled: Compiled, name: str, kind: str, default: object) -> None:
    parameter = compiled.parameters()[name]
    assert (parameter["parameterType"], parameter["defaultValue"]) == (kind, default)


def test_data_and_store_are_those_of_the_settings(settings: Settings) -> None:
    data = dict(zip(TABLES, ("https://host/s.csv", "s3://b/r"), strict=True))
    parameters = Compiled(replace(settings, data=data, model_store="/store")).parameters()
    assert {name: parameters[name]["defaultValue"] for name in ("data", "model_store")} == {
        "data": data,
        "model_store": "/store",
    }


def test_each_step_that_needs_the_model_knows_its_name_for_good(compiled: Compiled) -> None:
    named = {name: task["inputs"].get("parameters", {}).get("model") for name, task in compiled.tasks.items()}
    known = {"runtimeValue": {"constant": "jukebox"}}
    assert named == {**dict.fromkeys(STEPS, known), "convert-model": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_name": "cars"},
            "the model is 'cars', but the folder pipeline/models/cars does not exist; found jukebox",
        ),
        ({"data": {TABLES[0]: "a"}}, f"data in the settings: {TABLES[1]} is missing; expected {', '.join(TABLES)}"),
        (
            {"data": {**dict.fromkeys(TABLES, "a"), "cars": "c"}},
            f"data in the settings: cars is not a table of the model jukebox; expected {', '.join(TABLES)}",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_told(settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsInvalid, match=re.escape(message)):
        Compiled(replace(settings, **changes))


def test_every_parameter_reaches_a_step(compiled: Compiled) -> None:
    used = {
        value["componentInputParameter"]
        for task in compiled.tasks.values()
        for value in task["inputs"].get("parameters", {}).values()
        if "componentInputParameter" in value
    }
    # The claim's name reaches no step's code, only its pod.
    assert used == set(compiled.parameters()) - {"model_storage_pvc"}


def test_the_dashboard_describes_the_pipeline_and_every_parameter(compiled: Compiled) -> None:
    assert compiled.spec["pipelineInfo"]["name"] == PIPELINE
    assert compiled.spec["pipelineInfo"]["displayName"]
    assert compiled.spec["pipelineInfo"]["description"]
    assert [name for name, one in compiled.parameters().items() if not one.get("description")] == []


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("hyperparameters", type(MODEL.hyperparameters).model_fields),
        ("thresholds", [check.name for check in MODEL.all_checks]),
        ("gate_mode", GATE_MODES),
    ],
)
def test_a_description_names_all_that_may_be_given(compiled: Compiled, parameter: str, words: list[str]) -> None:
    described = re.findall(r"[\w-]+", compiled.parameters()[parameter]["description"])
    assert set(words) <= set(described)


def test_the_dashboard_shows_the_steps_by_readable_names(compiled: Compiled) -> None:
    shown = {name: task["taskInfo"]["name"] for name, task in compiled.tasks.items()}
    assert shown == {name: name.replace("-", " ").capitalize() for name in STEPS}


# What a step puts out


def test_the_dashboard_shows_metrics_plots_pages_and_models(compiled: Compiled) -> None:
    found = {
        (task, name, artifact["artifactType"]["schemaTitle"].removeprefix("system."))
        for task in STEPS
        for name, artifact in compiled.spec["components"][f"comp-{task}"]
        .get("outputDefinitions", {})
        .get("artifacts", {})
        .items()
    }
    assert found == {
        ("fetch-data", "tables", "Dataset"),
        ("fetch-data", "report", "Artifact"),
        ("validate-data", "report", "Artifact"),
        ("validate-data", "summary", "Markdown"),
        ("validate-data", "metrics", "Metrics"),
        ("preprocess-data", "examples", "Dataset"),
        ("train-model", "keras_model", "Model"),
        ("train-model", "predictions", "Dataset"),
        ("train-model", "report", "Artifact"),
        ("train-model", "metrics", "Metrics"),
        ("evaluate-model", "evaluation", "Artifact"),
        ("evaluate-model", "verdict", "Artifact"),
        ("evaluate-model", "metrics", "Metrics"),
        ("evaluate-model", "confusion", "ClassificationMetrics"),
        ("evaluate-model", "page", "HTML"),
        ("convert-model", "onnx_model", "Model"),
        ("verify-model", "parity", "Artifact"),
        ("verify-model", "metrics", "Metrics"),
        ("publish-model", "published", "Model"),
        ("publish-model", "card", "HTML"),
        ("publish-model", "summary", "Markdown"),
    }


# What a step runs in


def test_every_step_runs_in_the_training_image(compiled: Compiled) -> None:
    assert {name: one["image"] for name, one in compiled.containers().items()} == dict.fromkeys(STEPS, IMAGE)


def test_the_image_of_a_compilation_reaches_every_step_and_the_lineage(settings: Settings) -> None:
    built = Compiled(settings, image="registry.example.com/built@sha256:4567")
    assert {one["image"] for one in built.containers().values()} == {"registry.example.com/built@sha256:4567"}
    lineage = built.tasks["publish-model"]["inputs"]["parameters"]["image"]
    assert lineage == {"runtimeValue": {"constant": "registry.example.com/built@sha256:4567"}}


def test_an_image_by_digest_is_pulled_by_a_node_that_has_it_not_and_by_no_other(settings: Settings) -> None:
    def policies(image: str) -> dict[str, object]:
        return {name: pod.get("imagePullPolicy") for name, pod in Compiled(settings, image=image).pods().items()}

    assert policies("registry.example.com/built:latest@sha256:4567") == dict.fromkeys(STEPS, "IfNotPresent")
    # What a tag names may have changed: that is left to the cluster.
    assert policies("registry.example.com/built") == dict.fromkeys(STEPS)


def test_no_step_installs_anything(compiled: Compiled) -> None:
    for name, container in compiled.containers().items():
        lines = "\n".join([*container["command"], *container["args"]])
        assert not re.search(r"\b(pip|ensurepip|uv|conda|apt-get|dnf|curl|wget)\b", lines), name


def test_every_step_has_the_sizes_of_the_settings_and_training_its_own(settings: Settings) -> None:
    ours = replace(settings, step_cpu="500m", step_memory="1Gi", train_cpu="4", train_memory="8Gi")
    for name, container in Compiled(ours).containers().items():
        cpu, memory = ("4", "8Gi") if name == "train-model" else ("500m", "1Gi")
        resources = container["resources"]
        assert (resources["resourceCpuRequest"], resources["resourceMemoryRequest"]) == (cpu, memory), name
        assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == (cpu, memory), name
        assert "accelerator" not in resources, name


def test_other_sizes_change_nothing_but_the_sizes(settings: Settings) -> None:
    ours = replace(settings, step_cpu="3", step_memory="3Gi", train_cpu="6", train_memory="9Gi")
    before, after = Compiled(settings), Compiled(ours)
    for compiled in (before, after):
        for container in compiled.containers().values():
            assert container.pop("resources")
    assert (after.spec, after.platform) == (before.spec, before.platform)


def test_only_training_gets_a_gpu_and_only_where_the_settings_ask(settings: Settings) -> None:
    ours = replace(settings, train_gpus="2", gpu_resource="amd.com/gpu")
    found = {name: one["resources"].get("accelerator") for name, one in Compiled(ours).containers().items()}
    gpu = found.pop("train-model")
    assert gpu
    assert (gpu["resourceType"], gpu["resourceCount"]) == ("amd.com/gpu", "2")
    assert set(found.values()) == {None}


def test_every_step_has_a_deadline_and_training_a_longer_one(compiled: Compiled) -> None:
    deadlines = {name: int(one["activeDeadlineSeconds"]) for name, one in compiled.pods().items()}
    assert deadlines.keys() == STEPS
    training = deadlines.pop("train-model")
    assert set(deadlines.values()) == {30 * 60}
    assert training == 6 * 3600


def test_steps_that_talk_to_the_outside_and_training_are_tried_again_with_time_for_each_try(
    compiled: Compiled,
) -> None:
    policies = {name: task["retryPolicy"] for name, task in compiled.tasks.items() if "retryPolicy" in task}
    times = {name: policy["maxRetryCount"] for name, policy in policies.items()}
    assert times == {"fetch-data": 2, "train-model": 1, "publish-model": 2}
    for name, policy in policies.items():
        assert policy["backoffFactor"] > 1
        assert policy["backoffDuration"] == "15s"
        # It counts from the start of the first try: the last one must have its whole time, too.
        timeout = int(compiled.pods()[name]["activeDeadlineSeconds"])
        assert int(policy["backoffMaxDuration"].removesuffix("s")) > (times[name] + 1) * timeout


def test_what_reads_or_writes_the_store_or_guards_it_is_never_taken_from_the_cache(compiled: Compiled) -> None:
    cached = {name for name, task in compiled.tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == STEPS - READ_THE_STORE - {"verify-model"}


def test_the_cache_of_fetched_data_knows_the_data_and_what_the_run_asks_of_it(compiled: Compiled) -> None:
    inputs = compiled.tasks["fetch-data"]["inputs"]["parameters"]
    for name in ("data_version", "cache"):
        assert inputs[name] == {"componentInputParameter": name}


def test_whatever_is_cached_reads_what_has_been_fetched_or_has_fetched_it(compiled: Compiled) -> None:
    """By the ids of its artifacts a cached step runs afresh with all before it, if what it reads is of that run."""
    for name, task in compiled.tasks.items():
        if task["cachingOptions"].get("enableCache") and name != "fetch-data":
            produced = {each["taskOutputArtifact"]["producerTask"] for each in task["inputs"]["artifacts"].values()}
            assert produced
            assert all(compiled.tasks[each]["cachingOptions"].get("enableCache") for each in produced)


def test_each_step_says_so_if_anything_that_it_reads_is_gone(compiled: Compiled) -> None:
    for name, container in compiled.containers().items():
        source = container["command"][-1]
        inputs = set(re.findall(r"(\w+): Input\[", source))
        required = " ".join(re.findall(rf'(?:with step\("{name}",|require\()([^)]*)\)', source))
        assert set(re.findall(r"(\w+)\.path", source)) & inputs == set(re.findall(r"\w+", required)) & inputs, name


# What a step reaches


def test_the_claim_that_the_run_names_is_mounted_where_the_store_is_used(settings: Settings) -> None:
    pods = Compiled(replace(settings, model_store="/mnt/store")).pods()
    mounts = {name: one["pvcMount"] for name, one in pods.items() if "pvcMount" in one}
    assert mounts.keys() == READ_THE_STORE
    for (mount,) in mounts.values():
        assert mount["mountPath"] == "/mnt/store"
        assert mount["pvcNameParameter"] == {"componentInputParameter": "model_storage_pvc"}


def test_a_store_on_s3_mounts_no_claim(settings: Settings) -> None:
    assert [name for name, one in Compiled(on_s3(settings)).pods().items() if "pvcMount" in one] == []


def secrets(compiled: Compiled) -> dict[str, Spec]:
    found = {name: one["secretAsEnv"] for name, one in compiled.pods().items() if "secretAsEnv" in one}
    return {name: one for name, (one,) in found.items()}


def secret_names(compiled: Compiled) -> dict[str, str]:
    return {name: one["secretNameParameter"]["runtimeValue"]["constant"] for name, one in secrets(compiled).items()}


def test_only_who_fetches_has_a_secret_if_the_store_is_on_a_claim_and_it_reads_data_alone(settings: Settings) -> None:
    ours = replace(settings, s3_secret="runs", data_secret="data", store_secret="store")
    assert secret_names(Compiled(ours)) == {"fetch-data": "data"}


def test_who_uses_the_store_has_its_secret_alone_if_the_store_is_on_s3(settings: Settings) -> None:
    ours = replace(on_s3(settings), s3_secret="runs", data_secret="data", store_secret="store")
    assert secret_names(Compiled(ours)) == {"fetch-data": "data", **dict.fromkeys(READ_THE_STORE, "store")}


def test_no_step_has_a_secret_in_a_file(settings: Settings) -> None:
    assert not [name for name, one in Compiled(on_s3(settings)).pods().items() if "secretAsVolume" in one]


def test_a_secret_may_be_absent_and_gives_the_keys_of_a_data_connection(settings: Settings) -> None:
    keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION"]
    for found in secrets(Compiled(on_s3(settings))).values():
        assert found["optional"] is True
        assert found["keyToEnv"] == [{"secretKey": key, "envVar": key} for key in keys]


def test_who_talks_to_the_outside_trusts_a_private_ca_if_there_is_one(settings: Settings) -> None:
    for compiled, outside in (
        (Compiled(settings), {"fetch-data"}),
        (Compiled(on_s3(settings)), {"fetch-data", *READ_THE_STORE}),
    ):
        mounts = {name: one["configMapAsVolume"] for name, one in compiled.pods().items() if "configMapAsVolume" in one}
        assert mounts.keys() == outside
        for (mount,) in mounts.values():
            assert mount["configMapNameParameter"] == {"runtimeValue": {"constant": "jukebox-trusted-ca"}}
            assert (mount["mountPath"], mount["optional"]) == (str(FILE.parent), True)


def test_who_talks_to_the_outside_does_so_by_the_proxy(settings: Settings) -> None:
    ours = replace(settings, https_proxy="http://proxy.example.com:3128")
    found = {name: one["env"] for name, one in Compiled(on_s3(ours)).containers().items() if "env" in one}
    assert found.keys() == {"fetch-data", *READ_THE_STORE}
    for variables in found.values():
        assert {one["name"]: one["value"] for one in variables} == ours.proxies


def test_all_images_are_pulled_by_the_secret_of_the_settings(settings: Settings) -> None:
    found = {
        name: one["imagePullSecret"] for name, one in Compiled(replace(settings, pull_secret="mine")).pods().items()
    }
    named = [{"secretName": "mine", "secretNameParameter": {"runtimeValue": {"constant": "mine"}}}]
    assert found == dict.fromkeys(STEPS, named)


def test_each_step_runs_on_the_nodes_of_its_kind(settings: Settings) -> None:
    ours = replace(
        settings,
        nodes="pool=small",
        taint="example.com/small",
        train_nodes="pool=large",
        train_taint="example.com/large",
        store_nodes="node-role.kubernetes.io/storage=",
        store_taint="example.com/storage",
    )

    def places(compiled: Compiled) -> dict[str, tuple[Spec, list[Spec]]]:
        return {name: (one["nodeSelector"]["labels"], one["tolerations"]) for name, one in compiled.pods().items()}

    def place(label: str, value: str, taint: str) -> tuple[Spec, list[Spec]]:
        return {label: value}, [{"key": f"example.com/{taint}", "operator": "Exists"}]

    elsewhere = dict.fromkeys(STEPS, place("pool", "small", "small")) | {"train-model": place("pool", "large", "large")}
    storage = place("node-role.kubernetes.io/storage", "", "storage")
    assert places(Compiled(ours)) == elsewhere | dict.fromkeys(READ_THE_STORE, storage)
    # On S3 no step mounts the claim.
    assert places(Compiled(on_s3(ours))) == elsewhere


def test_unless_the_settings_ask_for_it_a_pod_has_nothing_of_a_company(compiled: Compiled) -> None:
    asked = {"imagePullSecret", "nodeSelector", "tolerations", "nodeAffinity"}
    assert [name for name, one in compiled.pods().items() if asked & set(one)] == []
    assert [name for name, one in compiled.containers().items() if "env" in one] == []


def test_no_credential_of_who_compiles_gets_into_the_pipeline(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "KFP_TOKEN"):
        monkeypatch.setenv(name, "hidden-credential")
    compiled = Compiled(on_s3(settings))
    assert "hidden-credential" not in json.dumps([compiled.spec, compiled.platform])


# What the server takes


@pytest.mark.parametrize("store", ["/models", "s3://bucket/models"])
def test_the_server_knows_every_field_of_the_spec(settings: Settings, store: str) -> None:
    company: dict[str, Any] = {
        "pull_secret": "mine",
        "nodes": "a=b",
        "taint": "c",
        "https_proxy": "http://proxy.example.com",
    }
    compiled = Compiled(replace(settings, model_store=store, train_gpus="1", **company))
    json_format.ParseDict(compiled.spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(compiled.platform, pipeline_spec_pb2.PlatformSpec())


def names(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for one in value.values():
            yield from names(one)
    elif isinstance(value, list):
        for one in value:
            yield from names(one)


def test_no_name_is_a_boolean_to_kubectl(compiled: Compiled) -> None:
    # YAML 1.1, which kubectl reads, takes these for booleans; Kubeflow's compiler writes them without quotes.
    booleans = {"y", "n", "yes", "no", "on", "off", "true", "false"}
    assert [name for name in names([compiled.spec, compiled.platform]) if name.lower() in booleans] == []
