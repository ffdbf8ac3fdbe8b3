"""The life of a project begins: Argo CD brings up all that is in Git, in order."""

import itertools
import re

from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.argocd import look_again, status
from tests.cluster.project import Project
from tests.kfp import deploy

DSPA = "datasciencepipelinesapplication/dspa"
WAVE = "argocd.argoproj.io/sync-wave"
LAST = ("deployment/el-jukebox", "inferenceservice/jukebox", "persistentvolumeclaim/jukebox-model-pvc")


def test_bootstrap_brings_everything_up_in_order_and_waits_for_the_pipeline_server(surroundings: Project) -> None:
    project, server = surroundings, f"deployment/{deploy.NAME}"
    project.kubectl("scale", server, "--replicas=0")
    pods = ("get", "pods", f"--selector=app.kubernetes.io/name={deploy.NAME}", "--output=name")
    node.wait("end of the pipeline server", lambda: not project.kubectl(*pods))

    def message() -> str:
        return str(status(project.argocd, projects.APPLICATION)["operationState"].get("message", ""))

    assert f"application.argoproj.io/{projects.APPLICATION} is there" in project.jukebox("bootstrap", "--yes")
    waiting = "waiting for healthy state of .*/DataSciencePipelinesApplication/dspa$"
    node.wait("pipeline server's wave", lambda: re.match(waiting, message()) and project.get(DSPA))
    look_again(project.argocd, projects.APPLICATION)
    assert re.match(waiting, message())
    before = {key.split("/")[0] for key in project.applied()}
    assert {"NetworkPolicy", "ResourceQuota", "DataSciencePipelinesApplication"} <= before
    assert not before & {"Task", "Pipeline", "EventListener", "InferenceService", "PersistentVolumeClaim"}

    project.kubectl("scale", server, "--replicas=1")
    node.wait("last wave", lambda: project.kubectl("get", *LAST))
    waves: dict[int, list[str]] = {}
    for resource in project.applied().values():
        wave = int(resource["metadata"].get("annotations", {}).get(WAVE, 0))
        waves.setdefault(wave, []).append(resource["metadata"]["creationTimestamp"])
    assert len(waves) >= 4
    ordered = [waves[wave] for wave in sorted(waves)]
    for earlier, later in itertools.pairwise(ordered):
        assert max(earlier) <= min(later)
    projects.ready(project)
