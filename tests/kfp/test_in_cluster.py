"""The pod that the stand-in makes of a workflow in a cluster, for the product's own pipeline."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl, kubernetes

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.prod_train_save_pipeline import spec_of
from pipeline.settings import read_settings
from scripts.compile_pipeline import pipeline_resources
from tests.kfp.deploy import KUBEFLOW, resources
from tests.kfp.execution import Job
from tests.kfp.in_cluster import pod_of, webhook
from tests.manifests.schemas import problems as schema_problems


def problems(pod: dict[str, Any]) -> list[str] | str:
    return schema_problems({"apiVersion": "v1", "kind": "Pod", **pod})


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
    assert secrets["AWS_SECRET_ACCESS_KEY"] == {
        "name": "jukebox-data",
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": True,
    }


def test_it_is_secured_as_the_server_secures_a_step_and_no_more(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert set(pod["spec"]) == {"restartPolicy", "automountServiceAccountToken", "containers", "volumes"}


def step(n: int) -> int:
    return n


def test_it_has_all_that_the_platforms_part_gives_to_any_step() -> None:
    """Given two steps with what kfp-kubernetes can set, then the one pod fits both."""

    def tiny(claim: str = "a-claim") -> None:
        one, two = (dsl.component(base_image="image")(step)(n=1) for _ in range(2))
        one.set_env_variable("HTTPS_PROXY", "http://proxy:3128")
        for task in (one, two):
            kubernetes.set_image_pull_secrets(task, ["pull"])
            kubernetes.set_security_context(task, run_as_user=1001, run_as_non_root=True)
        kubernetes.use_config_map_as_volume(one, "trusted-ca", "/etc/trusted-ca", optional=True)
        kubernetes.use_config_map_as_env(one, "words", {"key": "WORD"}, optional=True)
        kubernetes.use_secret_as_volume(two, "keys", "/etc/keys")
        kubernetes.use_secret_as_env(two, "s3", {"key": "KEY"})
        kubernetes.mount_pvc(two, claim, "/models")
        kubernetes.add_node_selector(two, "disk", "ssd")
        kubernetes.add_toleration(two, key="dedicated", operator="Exists", toleration_seconds=30)
        for task, value in ((one, "small"), (two, "large")):
            kubernetes.add_node_affinity(
                task, match_expressions=[{"key": "size", "operator": "NotIn", "values": [value]}]
            )

    spec = spec_of(dsl.pipeline(name="tiny")(tiny))
    found = pod_of(Job("tiny-abcde", "run-1", spec["pipeline_spec"], spec["platform_spec"], {}, "default-editor"))
    assert problems(found) == []
    pod = found["spec"]
    assert (pod["serviceAccountName"], pod["imagePullSecrets"]) == ("default-editor", [{"name": "pull"}])
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [{"key": "dedicated", "operator": "Exists", "tolerationSeconds": 30}]
    [term] = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert sorted(each["values"] for each in term["matchExpressions"]) == [["large"], ["small"]]
    [container] = pod["containers"]
    assert container["securityContext"]["runAsUser"] == 1001
    assert container["securityContext"]["runAsNonRoot"] is True
    variables = {each.pop("name"): each for each in container["env"]}
    assert variables["HTTPS_PROXY"] == {"value": "http://proxy:3128"}
    words = {"name": "words", "key": "key", "optional": True}
    assert variables["WORD"] == {"valueFrom": {"configMapKeyRef": words}}
    assert variables["KEY"] == {"valueFrom": {"secretKeyRef": {"name": "s3", "key": "key", "optional": False}}}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/etc/trusted-ca"] == {"configMap": {"name": "trusted-ca", "optional": True}}
    assert mounts["/etc/keys"] == {"secret": {"secretName": "keys", "optional": False}}
    assert mounts["/models"] == {"persistentVolumeClaim": {"claimName": "a-claim"}}


def test_it_is_found_by_the_runs_label_and_says_its_step(pod: dict[str, Any]) -> None:
    assert pod["metadata"]["labels"]["pipeline/runid"] == "run-1"
    annotations = pod["metadata"]["annotations"]
    assert annotations["workflows.argoproj.io/node-name"] == "prod-train-save-abcde.root.fetch-data.executor"


def test_the_webhooks_fail_closed_in_their_namespace_alone() -> None:
    for each in webhook("ada-jukebox", "ada-jukebox", "ds-pipeline-dspa", "Y2E="):
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


def test_kubeflows_lies_in_a_namespace_of_its_own_and_serves_the_projects() -> None:
    """Given the place of Kubeflow's, then it answers http there, and may do in the project's what the runs need."""
    found = resources("ada-jukebox", "i", b"", b"", b"", place=KUBEFLOW)
    places = {(each["kind"], each["metadata"].get("namespace", "")) for each in found}
    assert {namespace for kind, namespace in places if kind in ("Deployment", "Service", "Secret")} == {"kubeflow"}
    assert {namespace for kind, namespace in places if kind in ("Role", "RoleBinding")} == {"ada-jukebox"}
    of = {each["kind"]: each for each in found if each["metadata"]["name"] != "default-editor"}
    assert [port["port"] for port in of["Service"]["spec"]["ports"]] == [8443, 8888]
    assert of["Service"]["metadata"]["name"] == "ml-pipeline"
    account = {"kind": "ServiceAccount", "name": "ml-pipeline", "namespace": "kubeflow"}
    assert of["RoleBinding"]["subjects"] == of["ClusterRoleBinding"]["subjects"] == [account]
    [container] = of["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {"--namespace=ada-jukebox", "--multi-user=8888"} <= set(container["command"])
    [hook] = of["MutatingWebhookConfiguration"]["webhooks"]
    assert hook["clientConfig"]["service"]["namespace"] == "kubeflow"
    assert hook["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "ada-jukebox"}}


def test_an_account_is_let_in_by_the_role_of_the_operator() -> None:
    [role] = [
        each
        for each in resources("ada-jukebox", "i", b"", b"", b"")
        if each["kind"] == "Role" and each["metadata"]["name"] == "ds-pipeline-user-access-dspa"
    ]
    assert role["rules"][0]["resources"] == ["datasciencepipelinesapplications/api"]
