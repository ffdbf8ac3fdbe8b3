"""``jukebox wait`` against the pipeline server's stand-in, whose workflows do what a test says."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.config import incluster_config
from typer.testing import CliRunner

from pipeline.core.errors import AccessDenied, RequestRefused, RunFailed, ServerUnavailable
from pipeline.settings import PIPELINE, read_settings
from scripts import wait as module
from scripts.apply import apply, read_resources
from scripts.cli import app
from scripts.clients import kubernetes_api
from scripts.clients.kubernetes_api import Cluster
from scripts.start import run_id_of, start
from scripts.wait import Pace, Watch, was_terminated
from tests.kfp.execution import Look
from tests.kfp.service import Answer
from tests.kfp.world import AUDIENCE_TOKEN, DATA_VERSION, NAMESPACE, World, compiled

pytest_plugins = ("tests.kfp.fixtures",)
RUN = run_id_of("uid-1")
QUICK = Pace(poll=0.02, settle=0.1, stuck=0.1, sure=0.1, lost=0.1, denied=0.1)
LONG = 30.0  # seconds: only a wait that hangs is stopped by it
PATIENT = Pace(stuck=LONG)
MADE = ("make", "SUCCEEDED", "made 3")
TRACEBACK = "Traceback (most recent call last):\n  File x\nValueError: too many: 102"


@pytest.fixture
def running(world: World, tmp_path: Path) -> World:
    """A world with a run of two steps, make and train."""
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    version, parameters = f"{PIPELINE}-000000000001", {"data_version": DATA_VERSION}
    start(world.kfp(), version, settings=read_settings(), key="uid-1", parameters=parameters)
    return world


def watch(world: World, pace: Pace = QUICK, said: list[str] | None = None, *, cluster: bool = True) -> Watch:
    said = said if said is not None else []
    return Watch(world.kfp(0), Cluster(NAMESPACE) if cluster else None, pace, said.append)


def failure(world: World, timeout: float = LONG, **options: Any) -> RunFailed:
    """How the wait fails."""
    with pytest.raises(RunFailed) as failed:
        watch(world, **options).wait(RUN, timeout)
    return failed.value


@contextmanager
def meanwhile(action: Any) -> Iterator[None]:
    """Do something beside what the body waits for."""
    thread = threading.Thread(target=action)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def until(condition: Any) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_succeeds_ends_the_wait_and_its_steps_were_told(running: World) -> None:
    said: list[str] = []
    running.set(RUN, MADE, ("train", "RUNNING", ""))

    def finish() -> None:
        until(lambda: "  train: running" in said)
        running.set(RUN, MADE, ("train", "SUCCEEDED", "trained"), code=0)

    with meanwhile(finish):
        watch(running, said=said).wait(RUN, LONG)
    assert [line for line in said if "make" in line or "train:" in line] == [
        "  make: succeeded",
        "  train: running",
        "  train: succeeded",
    ]
    assert f"Run {RUN} is succeeded" in said
    assert not any("driver" in line or "executor" in line or "root" in line for line in said)


def test_a_failed_run_names_the_step_and_ends_with_its_log(running: World) -> None:
    """Fact 2: the API says nothing; the text is only in the step's log."""
    running.set(RUN, MADE, ("train", "FAILED", f"training\n{TRACEBACK}"), code=1)
    failed = failure(running)
    assert failed.state == "failed"
    assert f"Run {RUN} ended as FAILED; failed: train." in str(failed)
    assert "ValueError: too many: 102" in str(failed)
    assert "launcher_v2" not in str(failed)
    assert "made 3" not in str(failed)


def test_only_the_end_of_a_long_log_is_shown(running: World) -> None:
    running.set(RUN, ("make", "FAILED", "\n".join(f"line {n}" for n in range(500))), code=1)
    text = str(failure(running))
    assert "line 499" in text
    assert "line 400" not in text


LAUNCHED = """\
I1123 10:00:00.000000      15 cache.go:89] Connecting to cache endpoint ml-pipeline.example:8887
W1123 10:00:00.000000      15 launcher_v2.go:590] Could not determine retry index from pod annotation
[KFP Executor 2026-11-23 10:00:00,100 INFO]: Looking for component `train` in --component_module_path `/tmp/x.py`
[KFP Executor 2026-11-23 10:00:00,101 INFO]: Loading KFP component "train" from /tmp/x.py
[KFP Executor 2026-11-23 10:00:00,102 INFO]: Got executor_input:
{
    "inputs": {
        "parameterValues": {
            "twice": 102
        }
    },
    "outputs": {
        "outputFile": "/minio/output_metadata.json"
    }
}
"""


def test_of_a_failed_steps_log_only_its_own_lines_are_shown(running: World) -> None:
    said = '{\n    "twice": 102\n}\n{"loss": 1.5}'
    running.set(RUN, MADE, ("train", "FAILED", f"{LAUNCHED}{said}\n{TRACEBACK}"), code=1)
    shown = str(failure(running)).partition("train:\n")[2].splitlines()
    assert shown == [f"  {line}" for line in (*said.splitlines(), *TRACEBACK.splitlines())]


def test_a_step_that_ended_before_what_follows_it_failed_shows_its_own_lines(running: World) -> None:
    output = """\
trained
[KFP Executor 2026-11-23 10:00:01,000 INFO]: Wrote executor output file to /minio/output_metadata.json.
I1123 10:00:01.000000      15 launcher_v2.go:1230] ExecutorOutput: {
  "parameterValues": {
    "Output": "trained"
  }
}"""
    running.set(RUN, MADE, ("train", "FAILED", f"{LAUNCHED}{output}"), code=1)
    assert str(failure(running)).partition("train:\n")[2] == "  trained"


def test_a_terminated_run_is_told_from_a_failed_one(running: World) -> None:
    """Fact 1: its state is FAILED, too."""
    running.set(RUN, MADE, ("train", "RUNNING", ""))
    running.service.answer("POST", f"/apis/v2beta1/runs/{RUN}:terminate", {}, b"")
    failed = failure(running)
    assert failed.state == "terminated"
    assert str(failed) == f"Run {RUN} was terminated."
    assert running.service.runs[RUN]["state"] == "FAILED"


def test_a_run_that_failed_after_it_was_terminated_and_retried_has_failed() -> None:
    states = ["PENDING", "RUNNING", "CANCELING", "FAILED", "RUNNING", "FAILED"]
    assert not was_terminated({"state_history": [{"state": state} for state in states]})
    assert was_terminated({"state_history": [{"state": state} for state in states[:4]]})


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from(["PENDING", "RUNNING", "CANCELING", "FAILED"]), max_size=8))
def test_what_came_before_the_last_begin_does_not_count(states: list[str]) -> None:
    history = [{"state": state} for state in states]
    begun = {"state_history": [*history, {"state": "RUNNING"}, {"state": "FAILED"}]}
    assert not was_terminated(begun)
    assert was_terminated({"state_history": [*history, {"state": "CANCELING"}, {"state": "FAILED"}]})


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off r/x"}}}]},
            "ImagePullBackOff: Back-off r/x",
        ),
        (
            {
                "containerStatuses": [
                    {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": "runAsNonRoot and root"}}}
                ]
            },
            "CreateContainerConfigError: runAsNonRoot and root",
        ),
        (
            {"initContainerStatuses": [{"image": "r/y", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "ErrImagePull: r/y",
        ),
        (
            {"conditions": [{"status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no memory"}]},
            "Unschedulable: 0/3 nodes: no memory",
        ),
    ],
    ids=["image", "not root", "init container", "no node"],
)
def test_a_run_whose_pod_cannot_start_is_given_up(running: World, status: dict[str, Any], said: str) -> None:
    """Fact 3: the API says RUNNING for ever, without a message."""
    running.set(RUN, started=False)
    running.cluster.add_pod(RUN, "make", **status)
    failed = failure(running)
    assert failed.state == "stuck"
    assert f"make cannot start: {said}" in str(failed)
    assert running.service.runs[RUN]["state"] == "RUNNING"


def test_a_pod_that_the_cluster_refuses_is_given_up(running: World) -> None:
    """There is no pod at all: only the workflow tells."""
    message = 'pods "x" is forbidden: exceeded quota: small'
    name = f"{running.workflow_of(RUN)}.root.training.make.executor"
    status = {"phase": "Running", "nodes": {"1": {"name": name, "phase": "Pending", "message": message}}}
    running.cluster.set_status(running.workflow_of(RUN), status)
    running.set(RUN, started=False)
    assert f"make cannot start: {message}" in str(failure(running))


def test_a_pod_that_starts_after_all_is_waited_for(running: World) -> None:
    said: list[str] = []
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off r/x"}
    running.set(RUN, started=False)
    running.cluster.add_pod(RUN, "make", containerStatuses=[{"state": {"waiting": waiting}}])

    def mend() -> None:
        until(lambda: any("cannot start" in line for line in said))
        running.cluster.remove_pods()
        running.set(RUN, MADE, ("train", "SUCCEEDED", ""), code=0)

    with meanwhile(mend):
        watch(running, Pace(poll=0.02, settle=0.1, stuck=LONG), said).wait(RUN, LONG)
    assert sum(line.startswith("  make cannot start: ImagePullBackOff: Back-off r/x") for line in said) == 1


PULL = {"reason": "ErrImagePull", "message": "failed to pull r/x"}
BACK_OFF = {"reason": "ImagePullBackOff", "message": "Back-off pulling r/x"}
CREATING = {"reason": "ContainerCreating"}
REMEDY = "Check that the node reaches the registry and trusts its certificate."
TOLD = [f"  make cannot start: ErrImagePull: failed to pull r/x. {REMEDY}"]


def looks(world: World, *states: tuple[str, dict[str, Any]], pace: Pace = PATIENT) -> list[str]:
    """What is said when the step's pod has these phases and reasons to wait, one after the other at each look."""
    said: list[str] = []
    watching = watch(world, pace, said)
    for phase, waiting in states:
        world.cluster.remove_pods()
        world.cluster.add_pod(RUN, "make", phase=phase, containerStatuses=[{"state": {"waiting": waiting}}])
        watching._check_cluster(RUN)
    return said


SECRET = 'MountVolume.SetUp failed for volume "s3" : secret "jukebox-s3" not found'
LIMIT = {"containers": [{"name": "main", "resources": {"limits": {"memory": "4Gi"}}}]}
KILLED = [{"name": "main", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]


def test_a_secret_that_is_missing_is_told_at_once_and_given_up(running: World) -> None:
    """The pod's status says ContainerCreating for ever: only an event tells."""
    said: list[str] = []
    running.set(RUN, started=False)
    pod = running.cluster.add_pod(RUN, "make", phase="Pending", containerStatuses=[{"state": {"waiting": CREATING}}])
    running.cluster.add_event(pod, "FailedMount", SECRET)
    failed = failure(running, pace=Pace(poll=0.02, stuck=LONG, sure=0.1), said=said)
    assert failed.state == "stuck"
    assert failed.why == f"make cannot start: FailedMount: {SECRET}. Make the Secret jukebox-s3."
    assert said.count(f"  {failed.why}") == 1


def test_a_claim_that_nobody_provides_is_told(running: World) -> None:
    running.set(RUN, started=False)
    spec = {"volumes": [{"persistentVolumeClaim": {"claimName": "jukebox-model-pvc"}}]}
    running.cluster.add_pod(RUN, "make", spec, phase="Pending")
    claim = running.cluster.add("persistentvolumeclaims", {"metadata": {"name": "jukebox-model-pvc"}})
    running.cluster.add_event(claim, "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found')
    assert 'make cannot start: ProvisioningFailed: storageclass.storage.k8s.io "fast"' in str(failure(running))


def test_a_full_quota_is_told_and_waited_for(running: World) -> None:
    """Other pods will be done: the wait ends at its own deadline alone, and says again why."""
    said: list[str] = []
    used = "used: requests.memory=62Gi, limited: requests.memory=64Gi"
    message = f'pods "x" is forbidden: exceeded quota: jukebox, requested: requests.memory=4Gi, {used}'
    name = f"{running.workflow_of(RUN)}.root.make.executor"
    status = {"phase": "Running", "nodes": {"1": {"name": name, "phase": "Pending", "message": message}}}
    running.cluster.set_status(running.workflow_of(RUN), status)
    running.set(RUN, started=False)
    failed = failure(running, 0.5, said=said)
    assert failed.state == "timeout"
    line = "make waits: the quota jukebox is used up: requests.memory: 4Gi more than 62Gi of 64Gi."
    assert f"\n{line}" in str(failed)
    assert sum(each.startswith(f"  {line}") for each in said) == 1


def test_out_of_memory_comes_first_and_the_log_of_the_gone_pod_with_it(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is read as soon as it has failed: the server has none, and the pod goes before the run ends."""
    said: list[str] = []
    running.set(RUN, MADE, ("train", "RUNNING", ""))
    pod = running.cluster.add_pod(RUN, "train", LIMIT, phase="Failed", containerStatuses=KILLED)
    running.cluster.logs[pod["metadata"]["name"]] = f"{LAUNCHED}epoch 1 of https://ada:pass@h/x?Signature=abc\n\udcff"

    def end() -> None:
        until(lambda: any("train: out of memory" in line for line in said))
        running.cluster.remove_pods()
        # Without a log of this step.
        running.set(RUN, MADE, ("train", "FAILED", ""), code=1)

    def refuse(run: str, node: str) -> str:
        raise RequestRefused(200, "The specified key does not exist")

    watching = watch(running, said=said)
    monkeypatch.setattr(watching.kfp, "log", refuse)
    with meanwhile(end), pytest.raises(RunFailed) as failed:
        watching.wait(RUN, LONG)
    why = (
        "train: out of memory (exit code 137): its limit is 4Gi. Raise step-memory in manifests/settings/settings.yaml."
    )
    assert failed.value.why == why
    first, second, *rest = str(failed.value).splitlines()
    assert (first, second) == (f"Run {RUN} ended as FAILED; failed: train.", why)
    assert rest == ["", "train:", "  epoch 1 of https://h/x?…", "  \N{REPLACEMENT CHARACTER}"]


def test_an_attempt_that_a_better_one_followed_is_no_reason(running: World) -> None:
    running.set(RUN, ("make", "SUCCEEDED", ""), ("train", "FAILED", TRACEBACK), code=1)
    running.cluster.add_pod(
        RUN, "make", phase="Failed", reason="Evicted", message="The node was low on resource: memory"
    )
    failed = failure(running)
    assert "Evicted" not in str(failed)
    assert failed.why == "train: ValueError: too many: 102"


def test_of_a_steps_attempts_the_last_is_the_reason(running: World) -> None:
    running.set(RUN, MADE, ("train", "FAILED", TRACEBACK), code=1)
    evicted = {"reason": "Evicted", "message": "The node was low on resource: memory"}
    own_error = {"containerStatuses": [{"name": "main", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}
    statuses: list[dict[str, Any]] = [evicted, own_error]
    for minute, status in enumerate(statuses):
        pod = running.cluster.add_pod(RUN, "train", phase="Failed", **status)
        pod["metadata"]["creationTimestamp"] = f"2026-11-27T10:0{minute}:00Z"
    assert failure(running).why == "train: ValueError: too many: 102"


def test_why_is_what_a_step_logs_as_an_error(running: World) -> None:
    ended = "2026-11-27 10:00:01,000 INFO step train failed after 1.00 s, peak memory 50 MiB"
    log = f"2026-11-27 10:00:00,000 ERROR GateRefused: loss 1.7, expected 1.4\nUse more data.\n{ended}"
    running.set(RUN, MADE, ("train", "FAILED", log), code=1)
    assert failure(running).why == "train: GateRefused: loss 1.7, expected 1.4"


def test_what_several_steps_lack_is_said_once(running: World) -> None:
    running.set(RUN, started=False)
    for step in ("make", "train"):
        running.cluster.add_pod(RUN, step, phase="Pending", containerStatuses=[{"state": {"waiting": PULL}}])
    failed = failure(running, 0.5, pace=Pace(poll=0.02))
    assert f"\nmake, train cannot start: ErrImagePull: failed to pull r/x. {REMEDY}" in str(failed)


def test_an_image_whose_reasons_alternate_is_told_once(running: World) -> None:
    assert looks(running, *[("Pending", PULL), ("Pending", BACK_OFF), ("Pending", CREATING)] * 5) == TOLD


def test_a_message_that_changes_is_told_once(running: World) -> None:
    states = [("Pending", {**PULL, "message": f"dial from port {port}: refused"}) for port in range(5)]
    assert len(looks(running, *states)) == 1


def test_a_pod_that_had_started_is_told_of_again(running: World) -> None:
    assert looks(running, ("Pending", PULL), ("Running", {}), ("Pending", PULL)) == [TOLD[0]] * 2


def test_reasons_that_alternate_are_given_up_in_the_end(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    states = [("Pending", PULL), ("Pending", BACK_OFF), ("Pending", CREATING)]
    assert looks(running, *states, pace=Pace(stuck=20)) == TOLD
    with pytest.raises(RunFailed, match=r"is stuck: make cannot start: (ErrImagePull|ImagePullBackOff): ") as failed:
        looks(running, *states * 20, pace=Pace(stuck=20))
    assert failed.value.state == "stuck"


def test_an_image_that_is_not_there_is_given_up_though_the_kubelet_says_so_only_once(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    states = [("Pending", {**PULL, "message": "r/x: not found"}), *[("Pending", BACK_OFF)] * 50]
    with pytest.raises(RunFailed, match=r"is stuck: make cannot start: ErrImagePull: r/x: not found\. Push the image"):
        looks(running, *states, pace=Pace(stuck=1000, sure=20))


def test_a_failure_that_only_the_workflow_tells_is_shown(running: World) -> None:
    """Fact 2, for a service account that is missing: no pod, no log."""
    message = 'pods "x" is forbidden: error looking up service account ada-jukebox/nope'
    workflow = running.workflow_of(RUN)
    running.set(RUN, code=1)
    until(lambda: running.service.runs[RUN]["state"] == "FAILED")
    nodes = {"1": {"name": f"{workflow}.root-driver", "phase": "Error", "message": message}}
    running.cluster.set_status(workflow, {"phase": "Failed", "nodes": nodes})
    assert f"root-driver: {message}" in str(failure(running))


def test_the_wait_has_a_deadline_of_its_own(running: World) -> None:
    running.set(RUN, ("make", "RUNNING", ""))
    failed = failure(running, 0.2)
    assert failed.state == "timeout"
    assert "its state is RUNNING. It continues" in str(failed)


def test_a_server_that_restarts_is_waited_for(running: World) -> None:
    said: list[str] = []
    running.set(RUN, MADE, ("train", "RUNNING", ""))

    def restart() -> None:
        until(lambda: "  train: running" in said)
        running.service.faults.front = Answer(503, "no healthy upstream", {"Content-Type": "text/plain"})
        until(lambda: any("answers 503. Waiting for it." in line for line in said))
        running.set(RUN, MADE, ("train", "SUCCEEDED", ""), code=0)
        running.service.faults.front = None

    with meanwhile(restart):
        watch(running, said=said).wait(RUN, LONG)
    assert "The server answers again." in said


def test_a_database_that_is_away_is_waited_for(running: World) -> None:
    said: list[str] = []
    running.service.faults.database_away = True

    def mend() -> None:
        until(lambda: any("answers 500: " in line and "connection refused" in line for line in said))
        running.set(RUN, MADE, code=0)
        running.service.faults.database_away = False

    with meanwhile(mend):
        watch(running, said=said).wait(RUN, LONG)


def test_a_token_check_that_fails_for_a_moment_is_waited_for(running: World) -> None:
    said: list[str] = []
    running.set(RUN, ("make", "RUNNING", ""))

    def deny() -> None:
        until(lambda: "  make: running" in said)
        running.service.faults.front = Answer(401, "Unauthorized", {"Content-Type": "text/plain"})
        until(lambda: any("answers 401" in line for line in said))
        running.set(RUN, MADE, code=0)
        running.service.faults.front = None

    with meanwhile(deny):
        watch(running, Pace(poll=0.02, settle=0.1, denied=LONG), said).wait(RUN, LONG)


def test_who_is_never_let_in_does_not_wait(running: World) -> None:
    running.service.faults.front = Answer(200, "<html>Log in</html>", {"Content-Type": "text/html"})
    with pytest.raises(AccessDenied, match="not a pipeline server"):
        watch(running).wait(RUN, LONG)


def test_who_is_kept_out_for_good_stops_waiting(running: World) -> None:
    said: list[str] = []
    running.set(RUN, ("make", "RUNNING", ""))

    def deny() -> None:
        until(lambda: "  make: running" in said)
        running.service.faults.front = Answer(403, "Forbidden", {"Content-Type": "text/plain"})

    with meanwhile(deny), pytest.raises(AccessDenied, match="403"):
        watch(running, said=said).wait(RUN, LONG)


def test_a_run_that_the_server_has_lost_is_noticed(running: World) -> None:
    """Fact 13: its workflow has ended while the server was away, and the API says RUNNING for ever."""
    until(lambda: running.service.runs[RUN]["state"] == "RUNNING")
    running.service.faults.agent_away = True
    running.set(RUN, MADE, code=0)
    failed = failure(running)
    assert failed.state == "lost"
    assert "its workflow: Succeeded" in str(failed)


def test_a_failure_before_the_first_step_shows_the_drivers_log(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root driver's node is the child of the entry that is named like the workflow."""
    workflow = running.workflow_of(RUN)
    running.set(RUN, code=1)
    until(lambda: running.service.runs[RUN]["state"] == "FAILED")
    monkeypatch.setattr(running.service, "tick", lambda: None)
    running.service.runs[RUN]["run_details"]["task_details"] = [
        {"task_id": "1", "execution_id": "10"},
        {"task_id": "2", "display_name": workflow, "state": "FAILED", "child_tasks": [{"pod_name": "driver-node"}]},
        {"task_id": "3", "display_name": "root-driver", "state": "FAILED", "child_tasks": [{"pod_name": "x"}]},
        {"task_id": "4", "display_name": "root"},
    ]
    log = "I1123 10:00:00.000000      15 main.go:67] up\nKFP driver: driver.RootDAG failed: connection refused"
    answer = running.service.answer

    def logged(method: str, path: str, *rest: Any) -> Any:
        plain = {"Content-Type": "text/plain"}
        return Answer(200, log, plain) if path.endswith("/nodes/driver-node/log") else answer(method, path, *rest)

    monkeypatch.setattr(running.service, "answer", logged)
    text = str(failure(running))
    assert "failed: root-driver." in text
    assert "KFP driver: driver.RootDAG failed: connection refused" in text


def test_a_run_that_is_tried_again_while_it_is_concluded_is_followed_on(running: World) -> None:
    said: list[str] = []
    running.set(RUN, ("make", "FAILED", ""), code=1)

    def retry() -> None:
        until(lambda: f"Run {RUN} is failed" in said)
        with running.service._lock:
            running.service.workflows[running.workflow_of(RUN)]["phase"] = "Running"
            running.service.runs[RUN]["state"] = "RUNNING"
            running.set(RUN, MADE)
        until(lambda: "  make: succeeded" in said)
        running.set(RUN, MADE, ("train", "SUCCEEDED", ""), code=0)

    with meanwhile(retry):
        watch(running, Pace(poll=0.02, settle=1), said).wait(RUN, LONG)


def test_a_driver_that_was_tried_thrice_is_named_once(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    workflow = running.workflow_of(RUN)
    running.set(RUN, code=1)
    until(lambda: running.service.runs[RUN]["state"] == "FAILED")
    monkeypatch.setattr(running.service, "tick", lambda: None)
    attempts = [{"task_id": str(n), "display_name": "root-driver", "state": "FAILED"} for n in range(3)]
    running.service.runs[RUN]["run_details"]["task_details"] = attempts
    forbidden = 'pods "x-{}" is forbidden: error looking up service account ada/nope: serviceaccount "nope" not found'
    nodes = {
        str(n): {"name": f"{workflow}.root-driver({n})", "phase": "Error", "message": forbidden.format(n)}
        for n in range(3)
    }
    nodes["4"] = {"name": workflow, "phase": "Failed", "message": "No more retries left"}
    running.cluster.set_status(workflow, {"phase": "Failed", "nodes": nodes})
    text = str(failure(running))
    assert "; failed: root-driver.\n" in text
    assert text.count("error looking up service account") == 1
    assert "No more retries left" not in text


@pytest.mark.parametrize("gone", ["run", "workflow"])
def test_a_run_that_was_deleted_ends_the_wait(running: World, gone: str) -> None:
    said: list[str] = []
    running.set(RUN, ("make", "RUNNING", ""))

    def delete() -> None:
        until(lambda: "  make: running" in said)
        if gone == "run":
            running.service.answer("DELETE", f"/apis/v2beta1/runs/{RUN}", {}, b"")
        else:
            del running.cluster.objects["workflows", running.workflow_of(RUN)]

    with meanwhile(delete), pytest.raises(RunFailed) as failed:
        watch(running, said=said).wait(RUN, LONG)
    assert failed.value.state == "deleted"
    assert f"{'deleted' if gone == 'run' else 'has lost its workflow'}" in str(failed.value)


def test_a_workflow_that_cannot_be_seen_is_not_gone(running: World) -> None:
    running.set(RUN, ("make", "RUNNING", ""))
    running.cluster.forbidden = {"workflows"}
    assert failure(running, 0.5).state == "timeout"


@pytest.mark.parametrize("kind", ["pods", "events", "workflows", "pods/log"])
def test_a_right_that_is_missing_is_one_sentence(running: World, kind: str) -> None:
    said: list[str] = []
    running.cluster.forbidden = {kind}
    running.set(RUN, ("make", "RUNNING", ""))
    running.cluster.add_pod(RUN, "make", phase="Pending")
    running.cluster.add_pod(RUN, "train", phase="Failed", containerStatuses=KILLED)
    assert failure(running, 0.3, said=said).state == "timeout"
    told = [line for line in said if "forbidden" in line]
    assert len(told) == 1
    assert told[0].startswith("Problems of the run's pods cannot be seen: The cluster refuses: ")


def test_the_last_states_of_the_steps_are_waited_for(running: World) -> None:
    """The server shows the run's end first, and then that of its steps."""
    running.service.late = 0.3
    said: list[str] = []
    running.set(RUN, MADE, ("train", "RUNNING", ""))

    def finish() -> None:
        until(lambda: "  train: running" in said)
        running.set(RUN, MADE, ("train", "FAILED", TRACEBACK), code=1)

    with meanwhile(finish), pytest.raises(RunFailed) as failed:
        watch(running, Pace(poll=0.02, settle=2), said).wait(RUN, LONG)
    assert "failed: train." in str(failed.value)


def test_a_step_that_succeeded_at_its_second_attempt_is_no_failure(running: World) -> None:
    running.set(RUN, ("make", "FAILED", ""), ("make", "SUCCEEDED", ""), ("train", "SUCCEEDED", ""), code=0)
    watch(running).wait(RUN, LONG)


def test_a_wait_without_the_clusters_permission_still_follows_the_run(running: World) -> None:
    running.cluster.forbidden = {"pods", "workflows"}
    running.set(RUN, MADE, code=0)
    said: list[str] = []
    watch(running, said=said).wait(RUN, LONG)
    running.set(RUN, MADE, code=0)
    watch(running, cluster=False).wait(RUN, LONG)


def test_a_canceled_run_ends_the_wait(running: World) -> None:
    """Fact 12: kfp's client would wait for ever, should a server report this state."""
    running.service.runs[RUN]["state"] = "CANCELED"
    assert failure(running).state == "terminated"


def test_an_unknown_run_is_said_at_once(running: World) -> None:
    with pytest.raises(ServerUnavailable, match="has no run nope"):
        watch(running).wait("nope", LONG)


def test_a_log_that_is_not_there_is_no_log(running: World) -> None:
    """Fact 15: the log's address answers 200 with an error."""

    with pytest.raises(RequestRefused, match="The specified key does not exist"):
        running.kfp().log(RUN, "nope")


@pytest.mark.parametrize(
    ("look", "code", "state"), [(Look(True, "", 0), 0, "succeeded"), (Look(True, "", 1), 1, "failed")]
)
def test_the_command_ends_with_0_only_for_success(
    running: World, look: Look, code: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Pace", lambda **_: QUICK)
    running.executor.looks[running.workflow_of(RUN)] = look
    result = CliRunner().invoke(app, ["wait", RUN, "--timeout", "1", "--result-dir", str(tmp_path)])
    assert result.exit_code == code
    assert isinstance(result.exception, RunFailed) is bool(code)
    assert (tmp_path / "state").read_text() == state
    assert bool((tmp_path / "why").read_text()) is bool(code)


def test_a_server_that_keeps_us_out_leaves_a_word_too(
    running: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "Pace", lambda **_: QUICK)
    running.tokens.clear()
    result = CliRunner().invoke(app, ["wait", RUN, "--result-dir", str(tmp_path)])
    assert isinstance(result.exception, AccessDenied)
    assert (tmp_path / "state").read_text() == "unknown"
    assert (tmp_path / "why").read_text().startswith("The server denies access: it answers 401. Log in (oc login)")


def test_the_pods_of_a_server_for_one_user_are_elsewhere(
    kubeflow: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are in the server's namespace, so a workflow that is not in ours says nothing."""
    kubeflow.service.access = None
    apply(Cluster(NAMESPACE), *read_resources(compiled(tmp_path / "pipeline.yaml")), timeout=5)
    parameters = {"data_version": DATA_VERSION}
    start(kubeflow.kfp(), f"{PIPELINE}-000000000001", settings=read_settings(), key="uid-1", parameters=parameters)
    kubeflow.cluster.objects.pop(("workflows", kubeflow.workflow_of(RUN)))
    monkeypatch.setattr(module, "Pace", lambda **_: QUICK)
    result = CliRunner().invoke(app, ["wait", RUN, "--timeout", "0.01"])
    assert "Problems of the run's pods cannot be seen. The server is in single-user mode" in result.output
    assert isinstance(result.exception, RunFailed)
    assert result.exception.state == "timeout"


def test_the_token_for_kubeflows_server_is_read_again(kubeflow: World, tmp_path: Path) -> None:
    kfp = kubeflow.kfp(0)
    assert kfp.run(RUN) is None
    kubeflow.cluster.tokens["a-newer-token"] = kubeflow.cluster.tokens.pop(AUDIENCE_TOKEN)
    with pytest.raises(AccessDenied, match="answers 401"):
        kfp.experiment("jukebox")
    (tmp_path / "token").write_text("a-newer-token\n")
    assert kfp.experiment("jukebox") is None


def test_the_clusters_token_is_read_again(running: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Given a pod whose token is replaced while it waits, then the cluster's API is shown the new one."""

    class Hasty(incluster_config.InClusterConfigLoader):  # type: ignore[misc]
        """The client reads the file again after a minute."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._token_refresh_period = timedelta(0)

    token, url = tmp_path / "token", urlsplit(running.cluster.url)
    token.write_text("first")
    monkeypatch.setattr(kubernetes_api, "POD", tmp_path)
    monkeypatch.setattr(incluster_config, "InClusterConfigLoader", Hasty)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(running.ca))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(url.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(url.port))
    cluster = Cluster(NAMESPACE)
    cluster.pods(RUN)
    token.write_text("second")
    cluster.pods(RUN)
    assert running.cluster.bearers[-2:] == ["first", "second"]
