"""The life of a project begins: Argo CD brings up all that is in Git, in order."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.bootstrap import APPLICATION_SETS
from tests.cluster import git_host, node, stand_ins
from tests.cluster import project as projects
from tests.cluster.argocd import look_again, status
from tests.cluster.project import Project
from tests.kfp import deploy

DSPA = "datasciencepipelinesapplication/dspa"
WAVE = "argocd.argoproj.io/sync-wave"
LAST = ("deployment/el-jukebox", "configmap/jukebox-pin", "persistentvolumeclaim/jukebox-model-pvc")


def test_bootstrap_brings_everything_up_in_order_and_waits_for_the_pipeline_server(surroundings: Project) -> None:
    project, server = surroundings, f"deployment/{deploy.NAME}"
    project.kubectl("scale", server, "--replicas=0")
    pods = ("get", "pods", f"--selector=app.kubernetes.io/name={deploy.NAME}", "--output=name")
    node.wait("end of the pipeline server", lambda: not project.kubectl(*pods))

    def message() -> str:
        return str(status(project.argocd, projects.APPLICATION)["operationState"].get("message", ""))

    assert f"application.argoproj.io/{projects.APPLICATION} exists" in project.jukebox(
        "bootstrap", "--health-checks", "--yes"
    )
    waiting = "waiting for healthy state of .*/DataSciencePipelinesApplication/dspa$"
    node.wait("pipeline server's wave", lambda: re.match(waiting, message()) and project.get(DSPA))
    look_again(project.argocd, projects.APPLICATION)
    assert re.match(waiting, message())
    before = {key.split("/")[0] for key in project.applied()}
    assert {"NetworkPolicy", "ResourceQuota", "DataSciencePipelinesApplication"} <= before
    assert not before & {"Task", "Pipeline", "EventListener", "InferenceService", "PersistentVolumeClaim"}

    project.kubectl("scale", server, "--replicas=1")
    node.wait("last wave", lambda: all(map(project.get, LAST)))
    waves: dict[int, list[str]] = {}
    for resource in project.applied().values():
        wave = int(resource["metadata"].get("annotations", {}).get(WAVE, 0))
        waves.setdefault(wave, []).append(resource["metadata"]["creationTimestamp"])
    assert len(waves) >= 4
    ordered = [waves[wave] for wave in sorted(waves)]
    for earlier, later in itertools.pairwise(ordered):
        assert max(earlier) <= min(later)
    projects.ready(project)


# Where Argo CD's definition of an ApplicationSet says that a sync is tried again with what Git says then.
REFRESH = "".join(f"/properties/{key}" for key in ("spec", "template", "spec", "syncPolicy", "retry", "refresh"))
LOOK_HARD = ("argocd.argoproj.io/refresh=hard", "--overwrite")
LABEL = "app.kubernetes.io/part-of"


def test_it_may_be_run_again_and_leaves_what_others_have_set(project: Project) -> None:
    shared = project.argocd.get("configmap/argocd-cm")["data"]
    before = {key: item["metadata"]["uid"] for key, item in project.applied().items()}
    project.jukebox("bootstrap", "--yes")
    # Whoever applies what is printed meets no conflict either.
    apply = ("apply", "--server-side", "--field-manager=jukebox", "--filename=-")
    project.kubectl.within("")(*apply, stdin=project.jukebox("bootstrap", "--print"))
    project.kubectl("label", "namespace", projects.NAMESPACE, f"{LABEL}=kubeflow-profile", "--overwrite")
    project.jukebox("bootstrap", "--yes", "--health-checks")
    assert project.get(f"namespace/{projects.NAMESPACE}")["metadata"]["labels"][LABEL] == "kubeflow-profile"
    assert project.argocd.get("configmap/argocd-cm")["data"] == shared
    projects.ready(project)
    assert {key: item["metadata"]["uid"] for key, item in project.applied().items()} == before


def test_a_tenant_with_the_role_admin_applies_its_part_and_no_other(project: Project) -> None:
    kubeconfig = projects.tenant(project)
    project.ci("delete", "serviceaccount/jukebox-runs", "rolebinding/jukebox-runs", "role/jukebox-runs")
    project.jukebox("bootstrap", "--part=tenant", "--yes", kubeconfig=kubeconfig)
    assert project.get("serviceaccount/jukebox-runs")
    assert project.get("rolebinding/jukebox-runs")
    with pytest.raises(RuntimeError, match="This part needs a platform administrator"):
        project.jukebox("bootstrap", "--part=platform", "--yes", kubeconfig=kubeconfig)


def test_a_tenant_gives_no_right_that_it_does_not_have(project: Project) -> None:
    kubeconfig = projects.tenant(project)
    project.kubectl("delete", "role/jukebox-release")
    project.kubectl("label", "clusterrole/aggregate-dspa-admin-edit", "rbac.authorization.k8s.io/aggregate-to-admin-")
    try:
        rules = ("get", "clusterrole/admin", "--output=jsonpath={.rules}")
        node.wait("loss of the right", lambda: "pipelineversions" not in project.kubectl(*rules))
        with pytest.raises(RuntimeError, match="ask a platform administrator to run `--part tenant`, too"):
            project.jukebox("bootstrap", "--part=tenant", "--yes", kubeconfig=kubeconfig)
    finally:
        project.kubectl.apply(stand_ins.ADMIN)
        project.jukebox("bootstrap", "--part=tenant", "--yes")
    assert project.get("role/jukebox-release")


def test_argo_cd_reads_a_private_repository_by_its_credential(project: Project, tmp_path: Path) -> None:
    def told() -> str:
        project.argocd("annotate", f"application/{projects.APPLICATION}", *LOOK_HARD)
        status = project.argocd.get(f"application/{projects.APPLICATION}")["status"]
        return " ".join(each["message"] for each in status.get("conditions", []))

    repository = f"repos/{git_host.REPOSITORY}"
    project.git_host.api("PATCH", repository, {"private": True})
    try:
        node.wait("refusal", lambda: "authentication required" in told())
        (tmp_path / "token").write_text(project.secret("jukebox-git-host", "token"))
        said = project.jukebox("bootstrap", "--yes", "--part=platform", f"--git-token-file={tmp_path / 'token'}")
        assert "secret/ada-jukebox-git-host serverside-applied" in said
        node.wait("reading", lambda: not told())
        # What a test before this one changed in the cluster can be put right only with what Argo CD has read.
        node.wait("sync", lambda: status(project.argocd, projects.APPLICATION)["sync"]["status"] == "Synced")
    finally:
        project.git_host.api("PATCH", repository, {"private": False})


def test_an_argo_cd_that_does_not_know_a_field_is_not_told_of_it(project: Project) -> None:
    definition = ("patch", "customresourcedefinition", APPLICATION_SETS, "--type=json")
    place = f"/spec/versions/0/schema/openAPIV3Schema{REFRESH}"

    def retry() -> Any:
        found = project.argocd.get(f"applicationset/{projects.NAMESPACE}")
        return found["spec"]["template"]["spec"]["syncPolicy"]["retry"]

    assert retry()["refresh"] is True
    project.kubectl(*definition, f"--patch={json.dumps([{'op': 'remove', 'path': place}])}")
    try:
        project.jukebox("bootstrap", "--yes", "--part=platform")
        assert "refresh" not in retry()
    finally:
        added = {"op": "add", "path": place, "value": {"type": "boolean"}}
        project.kubectl(*definition, f"--patch={json.dumps([added])}")
    # The API server takes a moment to know it again.
    node.wait("field", lambda: project.jukebox("bootstrap", "--yes", "--part=platform") and retry().get("refresh"))
