"""What is compiled is held against the messages of the oldest supported server: it refuses other fields.

``messages-2.16.json`` holds them, out of the packages kfp-pipeline-spec and kfp-kubernetes (Apache-2.0). This prints it
under ``uv run --no-project --with kfp==2.16.0 --with kfp-kubernetes==2.16.0 python``:

    import json
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.json_format import MessageToDict
    from kfp.kubernetes import kubernetes_executor_config_pb2 as platform
    from kfp.pipeline_spec import pipeline_spec_pb2 as pipeline
    files = [FileDescriptorProto.FromString(each.DESCRIPTOR.serialized_pb) for each in (pipeline, platform)]
    print(json.dumps([*map(MessageToDict, files)]).replace(', {"name": ', ',\\n{"name": '))

2.15 differs in one thing that we use, on Kubeflow alone: it knows no ``securityContext``. 2.14 differs in one more: its
``SecretAsEnv`` knows no ``optional``.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2, json_format, struct_pb2  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import FileDescriptorProto  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]
from google.rpc import status_pb2  # type: ignore[import-untyped]

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from pipeline.settings import Settings, read_settings

Json = dict[str, Any]
FILES = json.loads(Path(__file__).with_name("messages-2.16.json").read_text())


@pytest.fixture(scope="module")
def pool() -> DescriptorPool:
    made = DescriptorPool()
    for imported in (duration_pb2, struct_pb2, status_pb2):
        # The last one imports another.
        for file in (*imported.DESCRIPTOR.dependencies, imported.DESCRIPTOR):
            made.AddSerializedFile(file.serialized_pb)
    for described in FILES:
        made.AddSerializedFile(json_format.ParseDict(described, FileDescriptorProto()).SerializeToString())
    return made


def problems(pool: DescriptorPool, spec: Json) -> list[str]:
    """What the server does not understand of a compiled pipeline."""
    on_platform = spec["platform_spec"].get("platforms", {}).get("kubernetes", {})
    parts = [
        ("ml_pipelines.PipelineSpec", spec["pipeline_spec"]),
        ("ml_pipelines.PipelineDeploymentConfig", spec["pipeline_spec"]["deploymentSpec"]),
        ("ml_pipelines.PlatformSpec", spec["platform_spec"]),
        *(
            ("kfp_kubernetes.KubernetesExecutorConfig", executor)
            for executor in on_platform.get("deploymentSpec", {}).get("executors", {}).values()
        ),
    ]
    found = []
    for name, part in parts:
        try:
            json_format.ParseDict(part, GetMessageClass(pool.FindMessageTypeByName(name))())
        except json_format.ParseError as error:
            found.append(f"{name}: {error}")
    return found


DIGEST = "0" * 64
BIG = {
    "model_store": "s3://bucket/models",
    "train_gpus": "2",
    "pull_secret": "registry",
    "https_proxy": "http://proxy.example.com:3128",
    "nodes": "pool=ml",
    "taint": "ml",
    "image": f"registry.example.com/training@sha256:{DIGEST}",
}


@pytest.mark.parametrize(
    "changes",
    [{}, BIG, {"platform": "kubeflow"}],
    ids=["the settings' defaults", "what a company sets", "Kubeflow"],
)
def test_the_oldest_supported_server_understands_all_that_is_compiled(
    pool: DescriptorPool, changes: dict[str, Any]
) -> None:
    settings: Settings = replace(read_settings(), **changes)
    assert problems(pool, spec_of(build_pipeline(settings))) == []


@pytest.fixture(scope="module")
def compiled() -> Json:
    return spec_of(build_pipeline(read_settings()))


def test_a_field_that_it_does_not_know_is_found(pool: DescriptorPool, compiled: Json) -> None:
    """Given what it does not know, in each of the messages, then it is told."""
    later = copy.deepcopy(compiled)
    executors = later["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-train-model"]["invented"] = True
    later["pipeline_spec"]["root"]["dag"]["tasks"]["train-model"]["invented"] = True
    later["pipeline_spec"]["deploymentSpec"]["executors"]["exec-train-model"]["container"]["invented"] = True
    found = problems(pool, later)
    assert len(found) == 3
    assert all("invented" in each for each in found)
