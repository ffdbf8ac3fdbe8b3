"""A fork makes another model its own: a push that adds its folder, and names it in the settings, ends with it served.

Nothing else of the fork changes. Afterwards it serves the first model again.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from pipeline.core.tables import to_parquet
from scripts.clients.kubernetes_api import RUN_LABEL
from scripts.pins import PIN, Pin, render
from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.project import FORK, Project
from tests.cluster.runs import MINUTES, Run, answered, models, promoted, pushed
from tests.models.second import FLATS, MODEL
from tests.models.second.fork import adopt
from tests.models.second.sample import generate

CLAIM = f"persistentvolumeclaim/{MODEL.name}-model-pvc"


@pytest.fixture(scope="module")
def flats(project: Project) -> Path:
    """The model's table, which is in the bucket as well."""
    file = generate(projects.FOLDER / "data", last_day=date.today())["flats"]
    project.s3.upload_file(str(file), projects.BUCKET, "flats/flats.csv")
    return file


@pytest.fixture(scope="module")
def adopted(project: Project, flats: Path) -> Iterator[Run]:
    """The run of the push."""
    before = project.git("rev-parse", "HEAD").strip()
    project.kubectl.apply(*projects.around_model_server(MODEL.name))
    adopt(FORK, f"s3://{projects.BUCKET}/flats/*.csv")
    (FORK / PIN).write_text(render(Pin(MODEL.name)))  # what is pinned is a version of another model
    # The tasks rely on the settings of the last bootstrap: pushed code names no other data and no other claim.
    project.jukebox("bootstrap", "--yes")
    run = pushed(project, "Predict rents")
    try:
        # Argo CD makes it once the commit has passed its tests, and the steps of the run mount it.
        node.wait("model store", lambda: project.kubectl("get", CLAIM), MINUTES * 60)
        yield run
    finally:
        project.git("read-tree", "-u", "--reset", before)
        project.commit("Predict as before")
        project.jukebox("bootstrap", "--yes")
        project.push(projects.PRODUCTION)  # nobody is told, so nothing is trained
        project.kubectl.apply(*projects.around_model_server("jukebox"))
        project.sync()
        # Argo CD leaves it, as it does any model store. Pods that have ended hold it, too: of the run, and of syncs.
        project.kubectl("delete", "pods", f"--selector={RUN_LABEL}={run.results.get('run-id', 'none')}")
        project.kubectl("delete", f"pod/{MODEL.name}-verify", f"pod/{MODEL.name}-check-served", "--ignore-not-found")
        project.kubectl("delete", CLAIM)


def test_the_push_becomes_a_published_model(project: Project, adopted: Run) -> None:
    assert adopted.reason == "Completed", adopted.told
    assert adopted.failed == set()
    assert adopted.results["version"].startswith(f"{MODEL.name}-prod-train-save-")
    version = project.kubectl.get(f"pipelineversion/{adopted.results['version']}")
    assert version["spec"]["pipelineName"] == f"{MODEL.name}-prod-train-save"
    [(number, lineage)] = models(project, MODEL.name).items()
    assert number == 1
    assert lineage["run"]["id"] == adopted.results["run-id"]
    assert lineage["run"]["commit"] == project.git("rev-parse", "HEAD").strip()


def test_the_model_is_served(project: Project, adopted: Run, flats: Path, tmp_path: Path) -> None:
    assert adopted.reason == "Completed", adopted.told
    promoted(project, MODEL.name)
    pod = project.kubectl.get(f"deployment/{MODEL.name}-predictor")["spec"]["template"]["spec"]
    [server] = [container for container in pod["containers"] if container["name"] == "kserve-container"]
    assert f"--model_name={MODEL.name}" in server["args"]
    to_parquet([(flats.name, flats)], tmp_path, FLATS.schema)
    answer, _ = answered(project, MODEL.name, 1, tmp_path, "flat-000001")
    assert f"{MODEL.name} version 1" in answer
    assert "€ a month" in answer


def test_of_the_model_there_was_the_store_is_left(project: Project, adopted: Run) -> None:
    assert adopted.reason == "Completed", adopted.told
    project.sync()
    assert project.get("inferenceservice/jukebox") is None
    assert project.get("servingruntime/jukebox-ovms") is None
    assert project.get("persistentvolumeclaim/jukebox-model-pvc")
