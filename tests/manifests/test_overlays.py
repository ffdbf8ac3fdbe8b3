"""Every overlay and every combination of components builds; a fork finds nothing of the original left in it."""

import difflib
import itertools
import json
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from pipeline.settings import Settings
from scripts.cli import Commands
from scripts.clients.pipeline_server import AUDIENCE, AUDIENCE_TOKEN
from scripts.pins import PIN, Pin, render
from tests.manifests import references, schemas
from tests.manifests.building import (
    BOOTSTRAP,
    COMPONENTS,
    OVERLAYS,
    PINNED,
    PLACEHOLDER,
    PLATFORMS,
    build,
    copy,
    of_kind,
    read_settings,
    with_components,
    with_rights,
)
from tests.tekton.manifests import ROOT, Resource

GOLDEN = Path(__file__).parent / "golden"
WAVE = "argocd.argoproj.io/sync-wave"
FORK = {
    "repository": "https://git.example.org/birds/songbird",
    "git-host": "gitlab",
    "git-api": "https://git.example.org/api/v4",
    "branch": "trunk",
    "prod-branch": "released",
    "merge-promotions": "after-checks",
    "rollback-on-failure": "yes",
    "keep-versions": "44",
    "keep-pinned": "22",
    "namespace": "eve-birds",
    "ci-namespace": "eve-nursery",
    "cluster-domain": "apps.other.example.org",
    "platform": "kubeflow",
    "argo-cd": "argo-cd",
    "dev-cluster": "https://dev.example.org:6443",
    "prod-cluster": "https://prod.example.org:6443",
    "monitoring-namespace": "observability",
    "gateway-namespace": "edge",
    "gateway": "portal",
    "api-cidr": "198.51.100.1/32",
    "git-cidr": "198.51.100.2/32",
    "registry-cidr": "198.51.100.3/32",
    "index-cidr": "198.51.100.4/32",
    "data-cidr": "198.51.100.5/32",
    "s3-cidr": "198.51.100.6/32",
    "chat-cidr": "198.51.100.7/32",
    "kfp-endpoint": "https://kfp.example.org",
    "kfp-namespace": "pipelines",
    "image": "images.example.org/birds/training",
    "ci-image": "images.example.org/birds/ci",
    "base-image": "images.example.org/python:3.12",
    "package-index": "https://pypi.example.org/simple",
    "model-server-image": f"images.example.org/ovms@sha256:{'f' * 64}",
    "pull-secret": "of-birds",
    "http-proxy": "http://proxy.example.org:3128",
    "https-proxy": "http://proxy.example.org:3129",
    "no-proxy": "$(KUBERNETES_SERVICE_HOST),.svc,.cluster.local,.birds.example.org",
    "nodes": "example.org/pool=birds",
    "taint": "example.org/birds",
    "train-nodes": "example.org/pool=training",
    "train-taint": "example.org/training",
    "store-nodes": "kubernetes.io/hostname=nest-7",
    "store-taint": "example.org/nest",
    "run-page": "https://kfp.example.org/runs/{run}",
    "event-max-size": "1234k",
    "event-rate": "77r/m",
    "event-burst": "88",
    "schedule": "30 4 * * 2",
    "data": "birds: s3://nest/features/*.parquet\nsightings: s3://nest/sightings/*.parquet\n",
    "model-name": "songbird",
    "model-store": "s3://nest/store",
    "model-storage-pvc": "nest",
    "storage-class": "cephfs",
    "storage-size": "77Gi",
    "s3-host": "objects.example.org",
    "s3-bucket": "nest",
    "data-secret": "nest-reads",
    "s3-secret": "nest-keys",
    "store-secret": "nest-adds",
    "step-cpu": "3",
    "step-memory": "3Gi",
    "train-cpu": "5",
    "train-memory": "5Gi",
    "train-gpus": "1",
    "gpu-resource": "example.org/gpu",
    "quota-cpu": "99",
    "quota-memory": "199Gi",
    "quota-storage": "999Gi",
    "database-host": "db.example.org",
    "database-user": "birds",
    "vault-server": "https://vault.example.org",
    "cluster-queue": "flock",
    "bucket-class": "ceph-buckets",
}
# These are also the name of the project, of a sender and of a folder, and words: that they are replaced, others test.
AMBIGUOUS = {"model-name", "git-host", "argo-cd", "kfp-namespace", "prod-branch", "merge-promotions"}


def lines(resources: list[Resource]) -> list[str]:
    """What an overlay holds: a line a resource, by wave; and whether it is in the namespace of the CI."""
    found = []
    for resource in resources:
        wave = int(resource["metadata"].get("annotations", {}).get(WAVE, 0))
        where = " in the CI's namespace" if "namespace" in resource["metadata"] else ""
        found.append((wave, f"{wave:>2} {resource['kind']}/{resource['metadata']['name']}{where}"))
    return [line for _, line in sorted(found)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_holds_what_it_should(overlay: str, built: dict[str, list[Resource]]) -> None:
    path = GOLDEN / f"{overlay.replace('/', '-')}.txt"
    found = "\n".join(lines(built[overlay])) + "\n"
    if os.environ.get("GOLDEN"):
        path.write_text(found)
    differences = list(difflib.unified_diff(path.read_text().splitlines(), found.splitlines(), lineterm="", n=0))
    assert not differences, "\n".join(
        [*differences, f"Meant? GOLDEN=1 make test ARGS=tests/manifests, and look at {path}"]
    )


# What prod has and dev has not, by kind and name.
OF_PROD = {
    "ConfigMap/jukebox-pin",
    "NetworkPolicy/jukebox-check-served",
    "NetworkPolicy/jukebox-model-server-check",
    "Pod/jukebox-check-served",
    "Pod/jukebox-verify",
    "Service/jukebox-served",
}
POLICY = '--model_version_policy={"specific":{"versions":[ %d ]}}'


def named(resources: list[Resource]) -> dict[str, Resource]:
    return {
        f"{each['metadata'].get('namespace', '')}/{each['kind']}/{each['metadata']['name']}".lstrip("/"): each
        for each in resources
    }


def different(one: list[Resource], other: list[Resource]) -> set[str]:
    """What is not the same in two overlays, by kind and name."""
    ours, theirs = named(one), named(other)
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


def test_the_environments_of_a_platform_differ_in_what_is_served_and_checked(built: dict[str, list[Resource]]) -> None:
    for platform in PLATFORMS:
        dev, prod = built[f"{platform}/dev"], built[f"{platform}/prod"]
        jobs = {"Job/jukebox-model-store"} if platform == "kubeflow" else set()
        both = {"InferenceService/jukebox", "PersistentVolumeClaim/jukebox-model-pvc"} | jobs
        assert different(dev, prod) == OF_PROD | both
        assert "args" not in named(dev)["InferenceService/jukebox"]["spec"]["predictor"]["model"]
        for name in both - {"InferenceService/jukebox"}:
            # It is there before the pod that reads it, in whose wave it may wait for it.
            assert named(prod)[name]["metadata"]["annotations"].pop(WAVE) == "-1"
            assert named(prod)[name] == named(dev)[name]


def pinned(kubectl: str, folder: Path, pin: Pin, overlay: str) -> list[Resource]:
    (folder / PIN).write_text(render(pin))
    path = folder / "manifests/overlays" / overlay if "+" not in overlay else None
    return build(kubectl, path or with_components(folder, overlay.partition("+")[0], overlay.split("+")[1:]))


@pytest.mark.parametrize("overlay", [*OVERLAYS, "kubeflow/prod+s3-serving", "openshift-ai/prod+s3-serving"])
def test_a_promotion_reaches_the_model_server_and_its_checks_and_nothing_else(
    kubectl: str, tmp_path: Path, overlay: str
) -> None:
    folder = copy(tmp_path, {"model-store": "s3://nest/store"} if "s3" in overlay else {})
    other = Pin("jukebox", 12, "ab" * 32)
    old, new = (pinned(kubectl, folder, pin, overlay) for pin in (PINNED, other))
    if overlay.endswith("dev"):
        assert old == new
        return
    changed = {"ConfigMap/jukebox-pin", "InferenceService/jukebox", "Pod/jukebox-check-served", "Pod/jukebox-verify"}
    assert different(old, new) == changed
    found = named(new)
    assert found["InferenceService/jukebox"]["spec"]["predictor"]["model"]["args"] == [POLICY % 12]
    assert found["ConfigMap/jukebox-pin"]["data"].items() >= {"version": "12", "sha256": "ab" * 32, "hold": ""}.items()
    for name in changed - {"ConfigMap/jukebox-pin"}:
        annotations = found[name]["metadata"]["annotations"]
        assert (annotations["jukebox.github.io/version"], annotations["jukebox.github.io/sha256"]) == ("12", "ab" * 32)
    store = "s3://nest/store" if "s3" in overlay else "/store"
    for name in ("verify", "check-served"):
        [container] = found[f"Pod/jukebox-{name}"]["spec"]["containers"]
        values = {each["name"]: each["value"] for each in container["env"]}
        given = [re.sub(r"\$\((\w+)\)", lambda word: values[word[1]], each) for each in container["args"]]  # noqa: B023
        expected = {
            "verify": ["--version=12", f"--sha256={'ab' * 32}", "--model=jukebox", f"--model-store={store}"],
            "check-served": [
                "--version=12",
                "--model=jukebox",
                f"--model-store={store}",
                "--url=http://jukebox-served:8888",
            ],
        }
        assert given == expected[name]
        # The program takes them, whatever else it says.
        context = Commands()[name].make_context(name, given)
        assert context.params["version"] == "12"


@pytest.mark.parametrize("overlay", ["kubeflow/prod", "openshift-ai/prod", "openshift-ai/prod+s3-serving"])
def test_without_a_pinned_version_nothing_is_served_and_a_message_says_so(
    kubectl: str, tmp_path: Path, overlay: str
) -> None:
    folder = copy(tmp_path)
    some = pinned(kubectl, folder, PINNED, overlay)
    none = pinned(kubectl, folder, Pin("jukebox", hold="no model of this data"), overlay)
    assert named(some).keys() - named(none).keys() == {"InferenceService/jukebox", "Pod/jukebox-check-served"}
    data = named(none)["ConfigMap/jukebox-pin"]["data"]
    assert data["message"].startswith("Production serves nothing, because no version is pinned.")
    assert (data["version"], data["sha256"], data["hold"]) == ("", "", "no model of this data")
    # Without a consumer in its wave, a claim may wait for ever, and the sync for it.
    volumes = named(none)["Pod/jukebox-verify"]["spec"]["volumes"]
    claims = {each["metadata"]["name"] for each in of_kind(none, "PersistentVolumeClaim")}
    assert {each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each} == claims


def test_each_pair_of_components_builds(kubectl: str, repository: Path) -> None:
    pairs = [*itertools.combinations(COMPONENTS, 2)]
    paths = [with_components(repository, "openshift-ai/prod", pair) for pair in pairs]
    with ThreadPoolExecutor(2) as pool:
        for pair, resources in zip(pairs, pool.map(lambda path: build(kubectl, path), paths), strict=True):
            assert _wrong(resources) == [], pair


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_components_at_once_build(overlay: str, laden: dict[str, list[Resource]]) -> None:
    assert _wrong(laden[overlay]) == []


def _wrong(resources: list[Resource]) -> list[str]:
    ids = Counter("/".join(lines([resource])) for resource in resources)
    return [*(identity for identity, times in ids.items() if times > 1), *_left(resources)]


def test_no_placeholder_is_left(built: dict[str, list[Resource]]) -> None:
    for name, resources in built.items():
        assert _left(resources) == [], name


def _left(resources: list[Resource]) -> list[str]:
    """Words in capitals that a replacement should have taken away; a step's shell and its variables have them, too."""
    settings = {key.upper().replace("-", "_") for key in read_settings()} | {"MODEL", "DOMAIN"}
    found = []
    for resource in resources:
        text = json.dumps(resource)
        if resource["kind"] == "Task":
            text = json.dumps([resource["spec"]["stepTemplate"]["image"], resource["spec"]["stepTemplate"].get("env")])
        found += [
            f"{resource['kind']}: {word}" for word in re.findall(r"\b[A-Z][A-Z0-9_]+\b", text) if word in settings
        ]
    return found


def test_every_file_is_listed_and_holds_one_resource() -> None:
    kustomizations = [path for part in ("manifests", "argocd") for path in (ROOT / part).rglob("kustomization.yaml")]
    assert len(kustomizations) > 30
    for path in kustomizations:
        document = yaml.safe_load(path.read_text())
        listed = [entry for entry in document.get("resources", []) if entry.endswith(".yaml")]
        listed += [patch["path"] for patch in document.get("patches", []) if "path" in patch]
        for generator in document.get("configMapGenerator", []):
            listed += [entry.rpartition("=")[2] for entry in generator.get("files", [])]
        there = {entry.name for entry in path.parent.iterdir() if entry.is_file()} - {"kustomization.yaml"}
        assert set(listed) == there, path.parent
        for name in there:
            text = (path.parent / name).read_text()
            if name.endswith(".yaml") and path.parent.name != "settings":
                assert text.startswith("---\n"), path.parent / name
                assert len(list(yaml.safe_load_all(text))) == 1, path.parent / name


def test_kubeflows_pipeline_server_gets_a_token_of_its_own(built: dict[str, list[Resource]]) -> None:
    """On Kubeflow the tasks that talk to it have one where the commands look, and on OpenShift AI nobody has."""
    for overlay in OVERLAYS:
        having = set()
        for task in of_kind(built[overlay], "Task"):
            volumes = {
                volume["name"]: volume.get("projected", {}).get("sources") for volume in task["spec"].get("volumes", [])
            }
            for mount in task["spec"]["stepTemplate"].get("volumeMounts", []):
                if volumes[mount["name"]]:
                    having.add(task["metadata"]["name"])
                    assert volumes[mount["name"]] == [
                        {"serviceAccountToken": {"audience": AUDIENCE, "path": AUDIENCE_TOKEN.name}}
                    ]
                    assert mount["mountPath"] == str(AUDIENCE_TOKEN.parent)
        assert having == ({"apply", "start", "wait", "promote"} if overlay.startswith("kubeflow") else set())


def test_overlays_are_a_few_lines() -> None:
    for overlay in OVERLAYS:
        text = (ROOT / "manifests/overlays" / overlay / "kustomization.yaml").read_text()
        assert len(text.splitlines()) < 12, overlay


@pytest.fixture(scope="module")
def fork(kubectl: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Resource]]:
    """What somebody gets who has changed every setting."""
    folder = copy(tmp_path_factory.mktemp("changed"), FORK)
    found = {}
    for overlay in OVERLAYS:
        found[overlay] = build(kubectl, folder / "manifests/overlays" / overlay)
        found[f"{overlay} with all components"] = build(kubectl, with_components(folder, overlay, COMPONENTS))
    for name in BOOTSTRAP:
        found[name] = build(kubectl, folder / name)
    return found


def test_each_environment_follows_its_branch(fork: dict[str, list[Resource]]) -> None:
    for flavour in PLATFORMS.values():
        [applications] = of_kind(fork[f"argocd/platform/{flavour}"], "ApplicationSet")
        elements = applications["spec"]["generators"][0]["list"]["elements"]
        assert {each["environment"]: each["branch"] for each in elements} == {"dev": "trunk", "prod": "released"}
        assert applications["spec"]["template"]["spec"]["source"]["targetRevision"] == "{{ .branch }}"


def test_the_fork_changes_every_setting() -> None:
    settings = read_settings()
    assert set(FORK) == set(settings)
    assert [key for key in settings if settings[key] == FORK[key]] == []


def test_nothing_of_the_original_is_left_in_a_fork(fork: dict[str, list[Resource]]) -> None:
    old = {key: value for key, value in read_settings().items() if len(value) > 3 and key not in AMBIGUOUS}
    for name, resources in fork.items():
        text = json.dumps(resources)
        assert not PLACEHOLDER.search(text.replace("<SEALED>", "")), name
        for key, value in old.items():
            assert not re.search(rf"(?<![\w.-]){re.escape(value)}(?![\w-])", text), f"{name}: {key} is still {value}"


def test_every_setting_of_a_fork_is_used(fork: dict[str, list[Resource]]) -> None:
    text = json.dumps(list(fork.values()))
    python = {field.name.replace("_", "-") for field in fields(Settings)} | {"argo-cd"}
    assert [key for key, value in FORK.items() if value not in text and key not in python] == []


def test_no_name_dangles_in_a_fork(fork: dict[str, list[Resource]]) -> None:
    for name, resources in fork.items():
        if name not in BOOTSTRAP:
            overlay = name.removesuffix(" with all components")
            assert references.problems(with_rights({**fork, overlay: resources}, overlay), FORK) == []


def test_a_fork_is_valid(fork: dict[str, list[Resource]]) -> None:
    for platform in PLATFORMS:
        assert schemas.check(fork[f"{platform}/prod with all components"]).invalid == []


def test_only_what_is_in_the_namespace_of_the_ci_says_so(laden: dict[str, list[Resource]]) -> None:
    """The rest is where the Application's destination says."""
    for resources in laden.values():
        found: dict[str, set[str]] = {"": set(), "ada-jukebox-ci": set()}
        for resource in resources:
            found[resource["metadata"].get("namespace", "")].add(resource["apiVersion"].partition("/")[0])
        assert {"tekton.dev", "triggers.tekton.dev", "batch"} <= found["ada-jukebox-ci"]
        assert {"serving.kserve.io"} <= found[""]
        assert not {"tekton.dev", "triggers.tekton.dev"} & found[""]
        assert "serving.kserve.io" not in found["ada-jukebox-ci"]
