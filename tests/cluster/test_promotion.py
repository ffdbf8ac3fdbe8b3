"""From a published model to production and back, with real pods: the pull requests are Gitea's, the syncs Argo CD's.

The tests tell one story in their order: a model is proposed and merged, a better one replaces it, a rollback brings the
first back and holds it, retention keeps both, and altered bytes are not served.
"""

import json
from datetime import UTC, datetime, timedelta

import pytest

from scripts import pins
from scripts.pins import Pin
from scripts.replay import Kind
from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.argocd import status
from tests.cluster.client import asking
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import FORK, Project
from tests.cluster.runs import GitHost, Json, merged, models, predicted, promoted, pushed, replace, sent
from tests.scripts.test_predict import WEIGHTS, publish

OPTIONS = FORK / "pipeline" / "core" / "contract.py"
FAST = 0.02  # a learning rate that makes a better model of the sample data: 0.17 nats


@pytest.fixture(scope="module")
def host(project: Project) -> GitHost:
    return GitHost(project)


@pytest.fixture(scope="module")
def first(project: Project, host: GitHost) -> int:
    """The number of the version that is served; if no earlier file has promoted one, a push trains it."""
    if pins.read_pin(FORK).version is None:
        replace(OPTIONS, "learning_rate: float = Field(0.003", "learning_rate: float = Field(0.004")
        run = pushed(project, "Learn a little faster")
        assert run.reason == "Completed", run.told
        promoted(project)
    return pins.read_pin(FORK).version or 0


def pinned(project: Project, host: GitHost, pull: Json) -> Pin:
    """The pin of a pull request, which changes no other file."""
    project.git("fetch", "--quiet", "origin", projects.BRANCH, pull["head"]["ref"])
    assert project.git("diff", "--name-only", f"origin/{projects.BRANCH}...{pull['head']['sha']}").split() == [pins.PIN]
    return pins.parse(project.git("show", f"{pull['head']['sha']}:{pins.PIN}"))


def served(project: Project) -> str:
    """What the model server is told to serve."""
    arguments = project.get("inferenceservice/jukebox")["spec"]["predictor"]["model"]["args"]
    [policy] = [each for each in arguments if "model_version_policy" in each]
    return str(policy)


def policy(version: int) -> str:
    return f'--model_version_policy={{"specific":{{"versions":[ {version} ]}}}}'


def test_a_better_model_takes_over_and_no_request_is_lost(project: Project, host: GitHost, first: int) -> None:
    replace(OPTIONS, "learning_rate: float = Field(0.004", f"learning_rate: float = Field({FAST}")
    run = pushed(project, "Learn much faster")
    assert run.reason == "Completed", run.told
    second = max(models(project))
    [pull] = host.pulls("open")
    pin = pinned(project, host, pull)
    assert (pin.version, pin.sha256) == (second, models(project)[second]["sha256"]["model.onnx"])
    # What a reviewer decides from.
    for part in (f"version {first}", "no-worse-than-", run.results["run-id"], run.results["image"], "/compare/"):
        assert part in pull["body"], part
    assert run.results["data-version"][:12] in pull["body"]

    with asking(project) as client:
        node.wait(f"version {first}", lambda: client.version == str(first))
        merged(project, host, pull)
        node.wait(f"version {second}", lambda: client.version == str(second))
    assert served(project) == policy(second)


def test_a_rollback_brings_the_first_back_and_holds_it(project: Project, host: GitHost, first: int) -> None:
    second = max(models(project))
    said = project.inside("rollback", "--reason=It sings out of tune", "--git-secret=/git-host")
    [pull] = host.pulls("open")
    assert pull["html_url"] in said
    pin = pinned(project, host, pull)
    assert pin.version == first
    assert "It sings out of tune" in pin.hold

    with asking(project) as client:
        node.wait(f"version {second}", lambda: client.version == str(second))
        merged(project, host, pull)
        node.wait(f"version {first} again", lambda: client.version == str(first))
    assert served(project) == policy(first)


def test_nothing_is_proposed_while_the_hold_stands(project: Project, host: GitHost, first: int) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    nightly = sent(project, Kind.SCHEDULE, moment, f"schedule-{moment:%Y%m%d%H}")
    assert nightly.reason == "Completed", nightly.told
    assert "It sings out of tune" in nightly.log("promote")
    assert host.pulls("open") == []


def test_after_ten_more_models_retention_keeps_what_was_pinned(project: Project, first: int) -> None:
    store = project.kubectl.model_store()
    found = models(project)
    second = min(number for number in found if found[number]["hyperparameters"]["learning_rate"] == FAST)
    before = set(found)
    for index in range(10):
        publish(store, f"one more {index}", WEIGHTS, golden=None)
    for path in (store / "jukebox").rglob("*"):  # as the steps make them, whose group is that of the job
        path.chmod(path.stat().st_mode | 0o060)

    job(project.ci, "jukebox-in-use")
    said = job(project.kubectl, "jukebox-retention")

    left = set(models(project))
    assert {first, second} <= left, said
    job(project.ci, "jukebox-retain")  # which reads what that job has said
    assert before - left, said
    assert served(project) == policy(first)
    answer, _ = predicted(project, first)
    assert f"jukebox version {first}" in answer


def job(kubectl: Kubectl, cronjob: str) -> str:
    """Run a job now that is scheduled; return its log."""
    name = f"{cronjob}-now"
    kubectl("create", "job", name, f"--from=cronjob/{cronjob}")

    def ended() -> set[str]:
        conditions = kubectl.get(f"job/{name}")["status"].get("conditions", [])
        return {each["type"] for each in conditions if each["status"] == "True"} & {"Complete", "Failed"}

    node.wait(f"end of {name}", ended)
    said = kubectl("logs", f"job/{name}")
    assert ended() == {"Complete"}, said
    return said


def test_altered_bytes_are_refused_and_what_was_served_stays(project: Project, first: int) -> None:
    number = max(models(project))
    model = project.kubectl.model_store() / "jukebox" / str(number) / "model.onnx"
    kept = model.read_bytes()
    file = FORK / pins.PIN
    old = file.read_text()
    file.write_text(pins.render(Pin("jukebox", number, models(project)[number]["sha256"]["model.onnx"])))
    model.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        with asking(project) as client:
            node.wait(f"version {first}", lambda: client.version == str(first))
            project.commit("Serve what somebody has altered")
            project.push(projects.PRODUCTION)

            def refused() -> bool:
                found = status(project.argocd, projects.APPLICATION)["operationState"]
                words = json.dumps(found.get("syncResult", {}).get("resources", []))
                if "has another content than the pinned one" not in words:
                    raise RuntimeError(words[:2000])
                return True

            node.wait("refusal", refused)
            assert served(project) == policy(first)
            assert client.version == str(first)
    finally:
        model.write_bytes(kept)
        file.write_text(old)
        project.commit("Serve what was served before")
        project.push(projects.PRODUCTION)
    project.sync()
    assert served(project) == policy(first)
