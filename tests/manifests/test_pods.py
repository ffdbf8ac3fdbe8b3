"""Every pod of every overlay is pulled, placed and let out as the settings say; and unless they do, nobody notices."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.trusted_ca import FILE
from pipeline.settings import read_settings
from tests.manifests.building import COMPONENTS, OVERLAYS, build, copy, of_kind, walk, with_components
from tests.tekton.manifests import Resource

ASKED = {
    "pull-secret": "of-the-mirror",
    "https-proxy": "http://proxy.example.com:3128",
    "nodes": "example.com/pool=ml",
    "taint": "example.com/ml",
    # As OpenShift labels nodes.
    "store-nodes": "node-role.kubernetes.io/storage=",
    "store-taint": "example.com/storage",
}
POD_MAKERS = {"CronJob", "Deployment", "EventListener", "ServingRuntime", "TriggerTemplate"}
STORES = {"Job", "Pod", "ServingRuntime"}  # whose pods mount the store
FIELDS = {"imagePullSecrets", "env", "affinity", "tolerations"}


def pods(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each pod that comes of a resource: its kind, and what is said of it."""
    for resource in resources:
        for found in walk(resource.get("spec")):
            if "containers" in found:
                yield resource["kind"], found
            if template := found.get("taskRunTemplate"):
                # So Tekton merges them.
                for each in ({}, *found["taskRunSpecs"]):
                    yield resource["kind"], template["podTemplate"] | each.get("podTemplate", {})


def places(label: str, value: str) -> dict[str, Any]:
    term = {"matchExpressions": [{"key": label, "operator": "In", "values": [value]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


@pytest.fixture(scope="module")
def asked(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Resource]]:
    """Each overlay, with all components and without, and all that may be asked for its pods."""
    folder = copy(tmp_path_factory.mktemp("asked"), ASKED)
    return {
        overlay: [
            *build(kubectl, folder / "manifests/overlays" / overlay),
            *build(kubectl, with_components(folder, overlay, COMPONENTS)),
        ]
        for overlay in OVERLAYS
    }


def makers(overlay: str) -> set[str]:
    """The kinds that pods come of."""
    more = {"Job": overlay.startswith("kubeflow"), "Pod": overlay.endswith("prod")}
    return POD_MAKERS | {kind for kind, there in more.items() if there}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_pulled_and_placed_as_the_settings_say(overlay: str, asked: dict[str, list[Resource]]) -> None:
    found = [*pods(asked[overlay])]
    assert {kind for kind, _ in found} == makers(overlay)
    for kind, pod in found:
        stores = kind in STORES or "in-use" in [each["name"] for each in pod.get("volumes", ())]
        assert pod["imagePullSecrets"] == [{"name": "of-the-mirror"}], kind
        where = ("node-role.kubernetes.io/storage", "") if stores else ("example.com/pool", "ml")
        assert pod["affinity"] == places(*where), kind
        taint = "example.com/storage" if stores else "example.com/ml"
        assert pod["tolerations"] == [{"key": taint, "operator": "Exists"}], kind


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_tasks_and_nobody_else_are_let_out_by_the_proxy(
    overlay: str, asked: dict[str, list[Resource]], tmp_path: Path
) -> None:
    expected = read_settings(copy(tmp_path, ASKED) / "manifests/settings/settings.yaml").proxies
    assert expected["https_proxy"] == "http://proxy.example.com:3128"
    for kind, pod in pods(asked[overlay]):
        given = {one["name"]: one["value"] for one in pod.get("env", []) if one["value"]}
        assert given == (expected if kind == "TriggerTemplate" else {}), kind


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_jobs_that_ask_the_git_host_and_the_registry_are_let_out_by_the_proxy(
    overlay: str, asked: dict[str, list[Resource]], built: dict[str, list[Resource]], tmp_path: Path
) -> None:
    expected = read_settings(copy(tmp_path, ASKED) / "manifests/settings/settings.yaml").proxies
    for resources, proxies in ((asked[overlay], expected), (built[overlay], {})):
        jobs = {
            each["metadata"]["name"]: each for each in of_kind(resources, "CronJob") if "namespace" in each["metadata"]
        }
        for name in ("jukebox-in-use", "jukebox-retain"):
            [container] = jobs[name]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
            given = {one["name"]: one["value"] for one in container["env"] if one["value"]}
            assert {key: value for key, value in given.items() if key.lower().endswith("_proxy")} == proxies, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_empty_setting_is_none(
    overlay: str, built: dict[str, list[Resource]], laden: dict[str, list[Resource]]
) -> None:
    found = [*pods(built[overlay]), *pods(laden[overlay])]
    assert {kind for kind, _ in found} == makers(overlay)
    for kind, pod in found:
        assert not FIELDS & set(pod), kind


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_task_has_the_private_ca_if_there_is_one(overlay: str, laden: dict[str, list[Resource]]) -> None:
    tasks = of_kind(laden[overlay], "Task")
    assert len(tasks) > 10
    for task in tasks:
        spec, name = task["spec"], task["metadata"]["name"]
        [volume] = [each for each in spec["volumes"] if each["name"] == "trusted-ca"]
        assert volume["configMap"] == {"name": "jukebox-trusted-ca", "optional": True}, name
        mount = {"name": "trusted-ca", "mountPath": str(FILE.parent), "readOnly": True}
        assert mount in spec["stepTemplate"]["volumeMounts"], name
