"""From `git push` to a model in the store, with real pods all the way; and what stops on that way, with the reason."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from scripts.replay import Kind
from tests.active_model import MODEL, TABLES
from tests.cluster import project as projects
from tests.cluster.project import FORK, Project
from tests.cluster.runs import GitHost, Json, Run, models, predicted, promoted, pushed, replace, sent

FLOOR = MODEL.checks[-1].name
OPTIONS = FORK / "pipeline" / "core" / "contract.py"
TEST = FORK / projects.TESTS


@pytest.fixture(scope="module")
def host(project: Project) -> GitHost:
    return GitHost(project)


@pytest.fixture(scope="module")
def trained(project: Project) -> Run:
    """The run of a push that changes what the network learns."""
    replace(OPTIONS, "learning_rate: float = Field(0.003", "learning_rate: float = Field(0.004")
    return pushed(project, "Learn a little faster")


@pytest.fixture(scope="module")
def served(project: Project, trained: Run) -> Run:
    """The run of the merge that pins the model of ``trained``."""
    assert trained.reason == "Completed", trained.told
    return promoted(project)


def by_hand(project: Project, run: Run, **parameters: str) -> Run:
    """A run as the dashboard's rerun makes it: the old one's spec and labels under a new name."""
    old = run.resource
    spec = json.loads(json.dumps(old["spec"]))
    for param in spec["params"]:
        param["value"] = parameters.pop(param["name"], param["value"])
    spec["params"] += [{"name": name, "value": value} for name, value in parameters.items()]
    metadata = {"generateName": f"{run.name}-r-", "labels": old["metadata"]["labels"]}
    resource = {"apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": metadata, "spec": spec}
    name = project.ci("create", "--filename=-", "--output=name", stdin=json.dumps(resource)).strip()
    return Run(project, name.partition("/")[2])


def runs(project: Project) -> set[str]:
    return set(project.ci("get", "pipelineruns", "--output=jsonpath={.items[*].metadata.name}").split())


@dataclass(frozen=True)
class Others:
    """Runs side by side, none of which publishes anything.

    Attributes:
        before: the models before them.
        rerun: the dashboard's rerun of the first.
        ungated: a rerun whose gate no model passes.
        breaking: of a push that breaks a test.
    """

    before: dict[int, Json]
    rerun: Run
    ungated: Run
    breaking: Run


@pytest.fixture(scope="module")
def others(project: Project, trained: Run) -> Others:
    assert trained.reason == "Completed", trained.told
    before = models(project)
    rerun = by_hand(project, trained)
    asked = json.dumps({"thresholds": {FLOOR: 1.0}})
    ungated = by_hand(project, trained, reason="manual", parameters=asked)
    TEST.write_text("def test_what_nobody_keeps() -> None:\n    assert 1 + 1 == 3\n")
    breaking = pushed(project, "Break a promise")
    project.git("revert", "--no-edit", "HEAD")
    project.push(projects.PRODUCTION)  # nobody is told
    return Others(before, rerun, ungated, breaking)


def test_a_push_becomes_a_published_model(project: Project, host: GitHost, trained: Run) -> None:
    commit = project.git("rev-parse", "HEAD").strip()

    assert trained.reason == "Completed", trained.told  # some tasks are skipped where there is nothing to settle
    assert trained.failed == set()
    results = trained.results
    assert (results["commit"], results["version-created"], results["run-started"]) == (commit, "true", "true")
    assert results["run-state"] == "succeeded"
    version = project.kubectl.get(f"pipelineversion/{results['version']}")
    annotations = version["metadata"]["annotations"]
    assert annotations["jukebox.github.io/commit"] == commit
    assert annotations["jukebox.github.io/image"] == results["image"]
    assert annotations["jukebox.github.io/built-by"] == trained.name
    assert version["spec"]["codeSourceURL"].endswith(f"/acme/jukebox/commit/{commit}")
    [(number, lineage)] = models(project).items()
    assert number == 1
    assert lineage["run"]["id"] == results["run-id"]
    assert lineage["run"]["commit"] == commit
    assert lineage["run"]["image"] == results["image"]
    assert lineage["data"]["version"] == results["data-version"]
    assert host.status(commit)[0] == "success"
    assert "Learn a little faster" in trained.told
    labels = trained.resource["metadata"]["labels"]
    assert labels["jukebox.github.io/commit"] == commit
    assert labels["jukebox.github.io/reason"] == "push"


def test_every_pod_on_the_way_is_restricted(project: Project, served: Run) -> None:
    pods = [pod for kubectl in (project.kubectl, project.ci) for pod in kubectl.get("pods")["items"]]
    admitted = {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}).get("openshift.io/scc") for pod in pods}
    assert set(admitted.values()) == {"restricted-v2"}, admitted
    labels = {key for pod in pods for key in pod["metadata"]["labels"]}
    # Tekton's tasks, the pipeline's steps, the listener and the model server are among them.
    sorts = {"tekton.dev/taskRun", "pipeline/runid", "eventlistener", "serving.kserve.io/inferenceservice"}
    assert labels >= sorts


def test_the_model_whose_pull_request_is_merged_is_served_and_nothing_is_trained(
    project: Project, host: GitHost, trained: Run, served: Run
) -> None:
    assert list(models(project)) == [1]
    state, description = host.status(project.git("rev-parse", "HEAD").strip())
    assert state == "success"
    assert "production serves 1 since" in description
    assert "production serves 1 since" in served.told
    [check] = project.kubectl.get("pods", "--selector=app.kubernetes.io/name=check-served")["items"]
    assert check["status"]["phase"] == "Succeeded"
    pod = project.kubectl.get("deployment/jukebox-predictor")["spec"]["template"]["spec"]
    [server] = [container for container in pod["containers"] if container["name"] == "kserve-container"]
    assert {"--model_name=jukebox", "--file_system_poll_wait_seconds=1"} < set(server["args"])
    assert server["args"][-1] == '--model_version_policy={"specific":{"versions":[ 1 ]}}'
    answer, labels = predicted(project, 1)
    assert "jukebox version 1" in answer
    [_, *shown] = [line.split() for line in answer.splitlines()[1:]]
    assert len(shown) == 5
    assert {label for label, *_ in shown} < set(labels)


def test_a_redelivery_creates_nothing(project: Project, host: GitHost, trained: Run) -> None:
    before = runs(project)
    host.redeliver(trained.results["commit"])
    assert settled(project) == before


def test_a_push_of_texts_alone_trains_nothing(project: Project, trained: Run) -> None:
    before = runs(project)
    replace(FORK / "README.md", "# jukebox", "# Our jukebox")
    project.commit("Say whose it is")
    project.push()
    assert settled(project) == before


def settled(project: Project) -> set[str]:
    """The runs, once all that was sent before is dealt with: the schedule's event has come after it."""
    moment = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=len(runs(project)))
    control = sent(project, Kind.SCHEDULE, moment, f"schedule-{moment:%Y%m%d%H}").name
    project.ci("delete", f"pipelinerun/{control}")
    return runs(project) - {control}


def test_a_rerun_from_the_dashboard_finds_what_there_is(project: Project, trained: Run, others: Others) -> None:
    again = others.rerun
    assert again.reason == "Completed", again.told
    assert again.results | {"version-created": "", "run-started": ""} == trained.results | {
        "version-created": "",
        "run-started": "",
    }
    assert (again.results["version-created"], again.results["run-started"]) == ("false", "false")
    assert "nothing to build" in again.log("build-image")
    assert models(project) == others.before


def test_a_push_that_breaks_a_test_ends_there(project: Project, host: GitHost, others: Others) -> None:
    run = others.breaking
    assert run.reason == "Failed"
    assert run.failed == {"test"}
    # Its image is built meanwhile, but nobody finds it, and nothing is trained.
    assert not {"tag-images", "apply", "start"} & run.tasks.keys()
    assert "test_what_nobody_keeps" in run.log("test")
    assert "tests Failed" in run.told
    state, description = host.status(run.resource["metadata"]["labels"]["jukebox.github.io/commit"])
    assert state == "failure"
    assert description.startswith("task test: "), description
    assert f"(PipelineRun {run.name} failed)" in description
    assert models(project) == others.before


def test_a_model_that_fails_the_gate_is_not_published(project: Project, others: Others) -> None:
    run = others.ungated
    assert run.reason == "Failed"
    assert run.failed == {"wait"}
    assert "failed: verify-model" in run.log("wait")
    assert FLOOR in run.log("wait")
    # Where people look first: the chat's line has the cause as well.
    assert re.search(rf": failed: verify-model: GateRefused: .*{FLOOR}", run.told)
    assert models(project) == others.before


@pytest.fixture(scope="module")
def superseded(project: Project, others: Others) -> tuple[Run, Run]:
    """The runs of two pushes that follow each other at once."""
    for run in (others.rerun, others.ungated, others.breaking):
        assert run.reason
    text = TEST.read_text()
    TEST.write_text(f"{text}\n\n# one\n")
    older = pushed(project, "Think of one more test")
    TEST.write_text(f"{text}\n\n# one or two\n")
    return older, pushed(project, "Think of two more tests")


def test_data_that_fail_validation_train_nothing(project: Project, superseded: tuple[Run, Run], tmp_path: Path) -> None:
    before = models(project)
    tables = {name: projects.FOLDER / "data" / f"{name}.parquet" for name in TABLES}
    feature = MODEL.features[2].name
    broken = tmp_path / "broken.parquet"
    pl.read_parquet(tables[TABLES[0]]).rename({feature: "renamed"}).write_parquet(broken)
    try:
        project.upload({**tables, TABLES[0]: broken})
        moment = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=30)  # the upload is over
        run = sent(project, Kind.DATA, moment, f"data-{moment:%Y%m%d%H}{moment.minute // 10}0")
        assert run.reason == "Failed"
    finally:
        project.upload(tables)
    assert run.failed == {"wait"}
    # Preprocessing, which runs beside it, fails as well: either may be named first.
    assert re.search(r"failed: (.*, )?validate-data", run.log("wait"))
    assert feature in run.log("wait")
    assert "run Failed" in run.told
    assert models(project) == before


def test_a_newer_push_supersedes_an_older_run_and_trains_nothing_new(
    host: GitHost, superseded: tuple[Run, Run]
) -> None:
    older, newer = superseded
    assert older.reason == "Cancelled", older.tasks
    assert older.resource["metadata"]["annotations"]["jukebox.github.io/superseded-by"] == newer.name
    assert "superseded" in older.told
    commit = older.resource["metadata"]["labels"]["jukebox.github.io/commit"]
    assert "superseded" in host.status(commit)[1]
    assert newer.reason == "Completed", newer.told
    assert (newer.results["version-created"], newer.results["run-started"]) == ("false", "false")


def test_two_runs_at_once_publish_a_model_each(project: Project, trained: Run) -> None:
    before = models(project)
    moment = datetime.now(UTC).replace(microsecond=0)
    scheduled = sent(project, Kind.SCHEDULE, moment, f"schedule-{moment:%Y%m%d%H}")
    alerted = sent(project, Kind.ALERT, moment, f"alert-name-jukeboxdatadrift-model-jukebox-{moment:%Y%m%d}")
    assert (scheduled.reason, alerted.reason) == ("Completed", "Completed"), (scheduled.told, alerted.told)
    new = {number: lineage for number, lineage in models(project).items() if number not in before}
    assert set(new) == {max(before) + 1, max(before) + 2}
    assert {lineage["run"]["id"] for lineage in new.values()} == {run.results["run-id"] for run in (scheduled, alerted)}
