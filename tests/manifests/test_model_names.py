"""What there is once for each model is named after it, and what refers to it goes along."""

import json
import re
from pathlib import Path

import pytest

from tests.manifests import references
from tests.manifests.building import (
    BOOTSTRAP,
    COMPONENTS,
    OVERLAYS,
    build,
    copy,
    read_settings,
    with_components,
    with_rights,
)
from tests.models.second import MODEL
from tests.tekton.manifests import Resource

# The first model has the name of the product: which of the two a name means, only another model's rendering tells.
SETTINGS = {"model-name": MODEL.name, "data": "flats: s3://flats/*.csv\n"}
LADEN = "openshift-ai/prod with all components"
OF_A_MODEL = (
    *("AlertmanagerConfig/{}", "CronJob/{}-retention", "InferenceService/{}", "Job/{}-model-store"),
    *("NetworkPolicy/{}-check-served", "NetworkPolicy/{}-model-server", "NetworkPolicy/{}-model-server-auth-proxy"),
    *("NetworkPolicy/{}-model-server-check", "Pod/{}-check-served", "Pod/{}-verify", "Service/{}-served"),
    "NetworkPolicy/{}-metrics",
    *("NetworkPolicy/{}-model-server-gateway", "NetworkPolicy/{}-model-server-router"),
    *("NetworkPolicy/{}-store-s3", "PersistentVolumeClaim/{}-model-pvc", "PodDisruptionBudget/{}-model-server"),
    *("PodMonitor/{}-model-server", "PrometheusRule/{}", "PrometheusRule/{}-drift", "ServingRuntime/{}-ovms"),
)
# What a resource of a model says of the product: labels and annotations, metrics, commands, its listener and Secrets.
OF_THE_PRODUCT = re.compile(
    r'part-of": "jukebox"|jukebox\.github\.io/|jukebox:|`jukebox |ada-jukebox|/jukebox-ci|'
    r'jukebox-(alert|in-use|listener-proxy|promotions|store|trusted-ca)\b|"command": \["jukebox"'
)
Built = dict[str, list[Resource]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with another model in its settings, and its data."""
    return copy(tmp_path_factory.mktemp("another"), SETTINGS)


@pytest.fixture(scope="module")
def another(folder: Path, kubectl: str) -> Built:
    found = {name: build(kubectl, folder / name) for name in BOOTSTRAP}
    found |= {overlay: build(kubectl, folder / "manifests/overlays" / overlay) for overlay in OVERLAYS}
    return found | {LADEN: build(kubectl, with_components(folder, "openshift-ai/prod", COMPONENTS))}


def name_of(resource: Resource) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def test_what_there_is_once_for_each_model_has_its_name(another: Built) -> None:
    found = {name_of(resource) for resources in another.values() for resource in resources}
    assert {name for name in found if "second" in name} == {name.format("second") for name in OF_A_MODEL}
    assert not found & {name.format("jukebox") for name in OF_A_MODEL}


def test_what_is_of_the_model_names_no_other(another: Built) -> None:
    names = {name.format("second") for name in OF_A_MODEL}
    for where, resources in another.items():
        for resource in (each for each in resources if name_of(each) in names):
            left = re.findall(r"[^\s\"]*jukebox[^\s\"]*", OF_THE_PRODUCT.sub("", json.dumps(resource)))
            assert left == [], f"{where}: {name_of(resource)}"


@pytest.mark.parametrize("name", [*OVERLAYS, LADEN])
def test_what_refers_to_the_model_finds_it(name: str, folder: Path, another: Built) -> None:
    overlay = name.partition(" ")[0]
    built = with_rights({**another, overlay: another[name]}, overlay)
    assert references.problems(built, read_settings(folder)) == []


def test_a_claim_that_the_settings_name_keeps_its_name(kubectl: str, tmp_path: Path) -> None:
    folder = copy(tmp_path, {**SETTINGS, "model-storage-pvc": "shared-models"})
    overlay = build(kubectl, folder / "manifests/overlays/kubeflow/prod")
    platform = build(kubectl, folder / "argocd/platform/argo-cd")
    names = {name_of(resource) for resource in overlay}
    assert "PersistentVolumeClaim/shared-models" in names
    assert "second-model-pvc" not in json.dumps([*overlay, *platform])
    assert "'shared-models'" in json.dumps(platform)
