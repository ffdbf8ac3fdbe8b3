"""The pod that the stand-in makes of a workflow in a cluster, for the product's own pipeline."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.settings import read_settings
from scripts.compile_pipeline import pipeline_resources
from tests.kfp.deploy import resources
from tests.kfp.execution import Job
from tests.kfp.in_cluster import pod_of, webhook


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    _, version = pipeline_resources(read_settings(), image="registry/training@sha256:1")
    spec = version["spec"]
    parameters = {"model_storage_pvc": "another-claim"}
    return pod_of(Job("prod-train-save-abcde", "run-1", spec["pipelineSpec"], spec["platformSpec"], parameters))


def test_it_runs_in_the_steps_image_with_what_any_step_mounts(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    assert container["image"] == "registry/training@sha256:1"
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/models"]["persistentVolumeClaim"] == {"claimName": "another-claim"}
    secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    assert secrets["AWS_SECRET_ACCESS_KEY"] == {"name": "jukebox-s3", "key": "AWS_SECRET_ACCESS_KEY", "optional": True}


def test_it_is_found_by_the_runs_label_and_says_its_step(pod: dict[str, Any]) -> None:
    assert pod["metadata"]["labels"]["pipeline/runid"] == "run-1"
    annotations = pod["metadata"]["annotations"]
    assert annotations["workflows.argoproj.io/node-name"] == "prod-train-save-abcde.root.fetch-data.executor"


def test_the_webhooks_fail_closed_in_their_namespace_alone() -> None:
    for each in webhook("ada-jukebox", "ds-pipeline-dspa", "Y2E="):
        [hook] = each["webhooks"]
        assert hook["failurePolicy"] == "Fail"
        assert hook["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ada-jukebox"}}


def test_the_program_needs_nothing_but_what_is_sent_along_and_the_image(tmp_path: Path) -> None:
    """Given the modules of the ConfigMap alone, then the server can be imported."""
    found = resources("ada-jukebox", "registry/training", b"certificate", b"key", b"ca")
    [sources] = [each["data"] for each in found if each["kind"] == "ConfigMap"]
    folder = tmp_path / "tests" / "kfp"
    folder.mkdir(parents=True)
    for name, text in sources.items():
        (folder / name).write_text(text)
    code = "import tests.kfp.server as s, tests.kfp.in_cluster; print(s.__file__)"
    printed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == str(folder / "server.py")


def test_an_account_is_let_in_by_the_role_of_the_operator() -> None:
    [role] = [
        each
        for each in resources("ada-jukebox", "i", b"", b"", b"")
        if each["kind"] == "Role" and each["metadata"]["name"] == "ds-pipeline-user-access-dspa"
    ]
    assert role["rules"][0]["resources"] == ["datasciencepipelinesapplications/api"]
