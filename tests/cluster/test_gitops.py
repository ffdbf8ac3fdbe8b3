"""Git says what runs: the real Argo CD keeps a project as Git has it, and what is served under the real KServe.

The fork is that of OpenShift AI in production, and differs from what the repository has in images and sizes alone. It
is pushed here to the branch alone that Argo CD follows, which looks for itself: it trains nothing.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import yaml

from scripts import pins
from tests.cluster import node, stand_ins
from tests.cluster import project as projects
from tests.cluster.argocd import status
from tests.cluster.client import asking
from tests.cluster.project import FORK, TRACKING, Project
from tests.cluster.runs import models
from tests.manifests import building

OVERLAY = FORK / projects.OVERLAY
RBAC = "rbac.authorization.k8s.io"


def push(project: Project, message: str) -> str:
    """Commit what is changed in the fork, and push it; return the commit."""
    commit = project.commit(message)
    project.push(projects.PRODUCTION)
    return commit


def revert(project: Project) -> None:
    """Take the last commit back, and wait until Argo CD has done so."""
    project.git("revert", "--no-edit", "HEAD")
    project.push(projects.PRODUCTION)
    project.sync()


def operation(project: Project) -> Any:
    """The last sync, of which each part may be missing yet."""
    return status(project.argocd, projects.APPLICATION)["operationState"]


def test_a_hand_edit_is_healed_and_what_was_deleted_comes_back(published: Project) -> None:
    def served() -> Any:
        return published.get("inferenceservice/jukebox")["spec"]["predictor"]["model"]["args"]

    right = served()
    patch = {"spec": {"predictor": {"model": {"args": ['--model_version_policy={"all":{}}']}}}}
    published.kubectl("patch", "inferenceservice", "jukebox", "--type=merge", f"--patch={json.dumps(patch)}")
    uid = published.get("networkpolicy/jukebox-default-deny")["metadata"]["uid"]
    published.kubectl("delete", "networkpolicy", "jukebox-default-deny")
    node.wait("healing of the edit", lambda: served() == right)
    node.wait("healing of the deletion", lambda: published.get("networkpolicy/jukebox-default-deny"))
    assert published.get("networkpolicy/jukebox-default-deny")["metadata"]["uid"] != uid
    published.sync()


def bound(kind: str, name: str, role: str, role_kind: str = "ClusterRole") -> dict[str, Any]:
    """What binds the account that runs what was pushed to a role."""
    reference = {"apiGroup": RBAC, "kind": role_kind, "name": role}
    subject = {"kind": "ServiceAccount", "name": "jukebox-steps", "namespace": projects.CI_NAMESPACE}
    named = {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": {"name": name}}
    return {**named, "roleRef": reference, "subjects": [subject]}


def role(kind: str, name: str) -> dict[str, Any]:
    """A role that may do everything."""
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    return {"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": {"name": name}, "rules": rules}


def plain(version: str, kind: str, **metadata: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "outside", **metadata}}


def test_what_is_outside_the_project_is_refused_and_nothing_applied(published: Project) -> None:
    outside = [
        *(plain("v1", kind) for kind in ("Secret", "Namespace", "ServiceAccount")),
        plain("tekton.dev/v1", "PipelineRun"),
        plain("v1", "ConfigMap", namespace="kube-system"),
        role("ClusterRole", "outside"),
        bound("ClusterRoleBinding", "outside", "cluster-admin"),
        role("Role", "outside"),
        bound("RoleBinding", "outside", "outside", "Role"),
        bound("RoleBinding", "outside-admin", "admin"),
        bound("RoleBinding", "outside-cluster-admin", "cluster-admin"),
    ]
    good = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inside"}}
    (OVERLAY / "outside.yaml").write_text(yaml.safe_dump_all([good, *outside]))
    with edited() as kustomization:
        kustomization["resources"].append("outside.yaml")
    push(published, "Ask for what the project may not have")

    def refused() -> bool:
        results = operation(published).get("syncResult", {}).get("resources", [])
        said = {(each["kind"], each["name"]): each.get("message", "") for each in results}
        for each in outside:
            kind, metadata = each["kind"], each["metadata"]
            what = f"namespace {metadata['namespace']}" if "namespace" in metadata else f":{kind}"
            if f"{what} is not permitted in project" not in said.get((kind, metadata["name"]), ""):
                raise RuntimeError(f"{kind} {metadata['name']} is not refused: {said}")
        return True

    node.wait("refusal", refused)
    # What runs goes on.
    for running in ("el-jukebox", "jukebox-predictor"):
        assert published.get(f"deployment/{running}")["status"]["availableReplicas"]
    for resource in [good, *outside]:
        where = published.kubectl.within(resource["metadata"].get("namespace", projects.NAMESPACE))
        assert not where("get", resource["kind"], resource["metadata"]["name"], "--ignore-not-found")
    revert(published)


@contextlib.contextmanager
def edited() -> Iterator[dict[str, Any]]:
    """The kustomization of the overlay, to be changed in the block."""
    file = OVERLAY / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    yield kustomization
    file.write_text(yaml.safe_dump(kustomization))


def test_a_component_that_leaves_is_pruned_and_runs_versions_and_models_are_not(published: Project) -> None:
    with edited() as kustomization:
        kustomization["components"].insert(0, "../../../components/trustyai")
    push(published, "Watch for drift")
    published.sync()
    assert published.get("prometheusrule/jukebox-drift")

    published.kubectl.apply(*made_by_others())
    with edited() as kustomization:
        kustomization["components"].remove("../../../components/trustyai")
        kustomization["resources"] = ["../base"]
    base = OVERLAY.parent / "base" / "kustomization.yaml"
    text = base.read_text()
    base.write_text(text.replace("  - ../../../base/storage\n", ""))
    assert base.read_text() != text
    commit = push(published, "Watch no more, and forget the storage")
    node.wait("pruning", lambda: not published.get("prometheusrule/jukebox-drift"))
    node.wait("end of the sync", lambda: finished(published, commit))
    others = [named(each) for each in made_by_others()]
    for kept in ("persistentvolumeclaim/jukebox-model-pvc", *others):
        assert published.get(kept), kept
    published.kubectl("delete", *others, "--ignore-not-found")
    base.write_text(text)
    push(published, "Remember the storage")
    published.sync()


def finished(project: Project, commit: str) -> bool:
    state = operation(project)
    return (state.get("phase"), state.get("syncResult", {}).get("revision")) == ("Succeeded", commit)


def named(resource: dict[str, Any]) -> str:
    """A resource as kubectl names it."""
    version = resource["apiVersion"]
    group = f".{version.split('/')[0]}" if "/" in version else ""
    return f"{resource['kind']}{group}/{resource['metadata']['name']}"


def made_by_others() -> list[dict[str, Any]]:
    """A run, a pipeline and a version of it, marked as though they were Argo CD's own.

    So are an account and its right, which were Argo CD's own once, before bootstrap made them.
    """
    pending = {"status": "PipelineRunPending", "pipelineRef": {"name": "continuous-training"}}
    specs: dict[tuple[str, str], dict[str, Any]] = {
        ("tekton.dev/v1", "PipelineRun"): pending,
        ("pipelines.kubeflow.org/v2beta1", "Pipeline"): {},
        ("pipelines.kubeflow.org/v2beta1", "PipelineVersion"): stand_ins.version("by-others"),
    }

    def marked(group: str, kind: str) -> dict[str, Any]:
        tracking = f"{projects.APPLICATION}:{group}/{kind}:{projects.NAMESPACE}/by-others"
        return {"name": "by-others", "annotations": {TRACKING: tracking}}

    right = {**bound("RoleBinding", "by-others", "view"), "metadata": marked(RBAC, "RoleBinding")}
    return [
        *(
            {"apiVersion": api, "kind": kind, "metadata": marked(api.split("/")[0], kind), "spec": spec}
            for (api, kind), spec in specs.items()
        ),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": marked("", "ServiceAccount")},
        right,
    ]


def rendered(project: Project) -> list[Any]:
    return building.build(project.kubectl.program, OVERLAY)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The paths of the fields that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return [p for key in sorted(keys) for p in differences(before.get(key), after.get(key), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [p for i, pair in enumerate(zip(before, after, strict=True)) for p in differences(*pair, f"{path}/{i}")]
    return [] if before == after else [path]


def specs(project: Project) -> dict[str, Any]:
    """What the live resources say, but for what the cluster adds."""
    return {key: {**item, "metadata": {}, "status": {}} for key, item in project.applied().items()}


def test_another_pin_changes_what_is_served_and_nothing_else_and_its_revert_puts_it_back(published: Project) -> None:
    first = pins.read_pin(FORK).version
    second = max(number for number in models(published) if number != first)
    manifests, live = rendered(published), specs(published)
    with asking(published) as client:
        node.wait(f"version {first}", lambda: client.version == str(first))
        published.pin(second)
        published.push(projects.PRODUCTION)
        pairs = zip(manifests, rendered(published), strict=True)
        assert {f"{old['kind']}/{old['metadata']['name']}" for old, new in pairs if old != new} == {
            *("ConfigMap/jukebox-pin", "InferenceService/jukebox", "Pod/jukebox-verify", "Pod/jukebox-check-served"),
        }
        published.sync()
        node.wait(f"version {second}", lambda: client.version == str(second))
        assert differences(live, specs(published)) == [
            *("/ConfigMap/jukebox-pin/data/sha256", "/ConfigMap/jukebox-pin/data/version"),
            "/InferenceService/jukebox/spec/predictor/model/args/0",
        ]

        revert(published)
        assert rendered(published) == manifests
        node.wait(f"version {first} again", lambda: client.version == str(first))
        assert specs(published) == live
