"""Kubeflow's server of many users: whom it lets in, and the commands against it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from typer.testing import CliRunner, Result

from pipeline.core.errors import AccessDenied, ServerUnavailable
from pipeline.settings import PIPELINE, read_settings
from scripts import wait
from scripts.cli import app
from scripts.clients.pipeline_server import find_server
from scripts.wait import Pace
from tests.http_server import serve_http
from tests.kfp.service import EDITOR
from tests.kfp.world import AUDIENCE_TOKEN, DATA_VERSION, NAMESPACE, TOKEN, World, compiled, named
from tests.tekton.manifests import ROOT

pytest_plugins = ("tests.kfp.fixtures",)
EXPERIMENTS, RUNS = f"experiments?namespace={NAMESPACE}", f"runs?namespace={NAMESPACE}"


def ask(world: World, path: str, token: str = "") -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(f"{world.url}/apis/v2beta1/{path}", headers=headers, timeout=10)


def jukebox(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# As a real one was seen to answer


@pytest.mark.parametrize(
    ("path", "token", "status", "words"),
    [
        (EXPERIMENTS, "", 401, "there is no user identity header"),
        (EXPERIMENTS, TOKEN, 401, "Review.Status.Authenticated is false"),
        (EXPERIMENTS, AUDIENCE_TOKEN, 200, ""),
        (RUNS, AUDIENCE_TOKEN, 200, ""),
        ("experiments", AUDIENCE_TOKEN, 400, "An experiment cannot have an empty namespace in multi-user mode"),
        ("runs", AUDIENCE_TOKEN, 400, "A run cannot have an empty namespace in multi-user mode"),
        ("runs?namespace=another", AUDIENCE_TOKEN, 403, "is not authorized with reason"),
        ("runs/unknown", "", 404, "Run unknown not found"),
        ("pipelines/names/prod-train-save", AUDIENCE_TOKEN, 404, "not found"),
        ("healthz", "", 200, ""),
    ],
    ids=[
        *("nobody", "a token of the cluster's API", "a token of the audience", "its runs", "no namespace"),
        *("no namespace of runs", "another namespace", "an unknown run", "a name without a namespace", "its health"),
    ],
)
def test_the_stand_in_lets_in_as_the_server_did(
    kubeflow: World, path: str, token: str, status: int, words: str
) -> None:
    answer = ask(kubeflow, path, token)
    assert (answer.status_code, words in answer.json().get("message", "")) == (status, True), answer.text


def test_what_is_bound_to_a_group_does_not_count(kubeflow: World) -> None:
    ask(kubeflow, RUNS, AUDIENCE_TOKEN)
    [review] = [body for _, path, body in kubeflow.cluster.asked if path.endswith("/subjectaccessreviews")]
    assert review["spec"] == {
        "user": "system:serviceaccount:ada-jukebox:jukebox-release",
        "resourceAttributes": {
            "group": "pipelines.kubeflow.org",
            "resource": "runs",
            "verb": "list",
            "namespace": NAMESPACE,
            "name": "",
        },
    }


def test_http_at_a_port_of_https_is_told_as_go_tells_it(world: World) -> None:
    answer = requests.get(world.url.replace("https", "http"), timeout=10)
    assert (answer.status_code, answer.text) == (400, "Client sent an HTTP request to an HTTPS server.\n")


def test_the_program_speaks_http_and_takes_the_webhooks_by_https(kubeflow: World, tmp_path: Path) -> None:
    """Given the arguments of its Deployment, and the API of a cluster, then both ports answer."""
    ports = [free_port(), free_port()]
    options = [f"--{name}={kubeflow.ca}" for name in ("certificate", "key")]
    options += [
        f"--namespace={NAMESPACE}",
        f"--state={tmp_path}/state",
        f"--port={ports[0]}",
        f"--multi-user={ports[1]}",
    ]
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")}
    command = [sys.executable, "-m", "tests.kfp.server", *options]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as program:
        try:
            assert program.stdout
            assert program.stdout.readline() == f"Serving http://localhost:{ports[1]}\n"
            kubeflow.url = f"http://localhost:{ports[1]}"
            answers = [ask(kubeflow, EXPERIMENTS, token).status_code for token in ("", TOKEN, AUDIENCE_TOKEN)]
            assert answers == [401, 401, 200]
            review = {"uid": "1", "kind": {"kind": "Pipeline"}, "operation": "CREATE", "object": {"metadata": {}}}
            answer = requests.post(
                f"https://localhost:{ports[0]}/webhooks/validate-pipelineversion",
                json={"apiVersion": "admission.k8s.io/v1", "request": review},
                verify=str(kubeflow.ca),
                timeout=10,
            )
            assert answer.json()["response"] == {"uid": "1", "allowed": True}
        finally:
            program.kill()


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as taken:
        return int(taken.getsockname()[1])


# The commands


@pytest.fixture
def applied(kubeflow: World, tmp_path: Path) -> World:
    file, _ = named(compiled(tmp_path / "pipeline.yaml"))
    result = jukebox("apply", str(file))
    assert result.exit_code == 0, result.output
    return kubeflow


@pytest.fixture
def version(applied: World) -> str:
    """The name of the version that was applied."""
    [name] = (name for kind, name in applied.cluster.objects if kind == "pipelineversions")
    return name


def test_a_version_is_applied_started_waited_for_and_shown(
    applied: World, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given settings that say where the server is, and a token in a file, then no command needs more."""
    monkeypatch.setattr(wait, "Pace", lambda **_: Pace(poll=0.1, settle=0.2))
    parameters = json.dumps({"data_version": DATA_VERSION})
    started = jukebox("start", version, "--key=one", f"--parameters={parameters}", f"--result-dir={tmp_path}")
    assert started.exit_code == 0, started.output
    run_id = (tmp_path / "run-id").read_text()
    assert applied.service.runs[run_id]["service_account"] == EDITOR
    [job] = applied.executor.jobs.values()
    assert job.account == EDITOR
    [experiment] = applied.service.experiments.values()
    assert experiment["namespace"] == NAMESPACE

    applied.set(run_id, ("make", "SUCCEEDED", ""), code=0)
    while applied.service.runs[run_id]["state"] != "SUCCEEDED":
        time.sleep(0.01)
    waited = jukebox("wait", run_id)
    assert waited.exit_code == 0, waited.output
    shown = jukebox("status", "--output=json")
    assert [run["state"] for run in json.loads(shown.output)["runs"]] == ["succeeded"]
    assert AUDIENCE_TOKEN not in started.output + waited.output + shown.output


@pytest.mark.parametrize("allowed", [True, False], ids=["with the Role", "with a Role of before"])
def test_a_failed_run_goes_on_if_the_role_lets_it(applied: World, version: str, tmp_path: Path, allowed: bool) -> None:
    words = ("start", version, "--data-version", DATA_VERSION, "--result-dir", str(tmp_path / "results"))
    assert jukebox(*words, "--key", "uid-1").exit_code == 0
    run_id = (tmp_path / "results" / "run-id").read_text()
    applied.set(run_id, ("make", "FAILED", ""), code=1)
    while applied.service.runs[run_id]["state"] != "FAILED":
        time.sleep(0.01)
    if not allowed:
        applied.cluster.denied.add(("retry", "runs", "jukebox-release"))
    again = jukebox(*words, "--key", "uid-2")
    assert again.exit_code == 0, again.output
    assert ((tmp_path / "results" / "run-id").read_text() == run_id) == allowed
    assert allowed or "cannot be retried: " in again.output


def test_a_token_that_was_renewed_is_read_anew(applied: World, tmp_path: Path) -> None:
    kfp = applied.kfp()
    assert kfp.pipeline(PIPELINE)
    applied.cluster.tokens = {"renewed": applied.cluster.tokens[AUDIENCE_TOKEN]}
    with pytest.raises(AccessDenied):
        kfp.pipeline(PIPELINE)
    (tmp_path / "token").write_text("renewed")
    assert kfp.pipeline(PIPELINE)


def test_a_token_in_clear_is_not_shown_to_a_proxy(kubeflow: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_http() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        find_server(read_settings()).probe()
        assert proxy.requests == []


Spoil = Callable[[World, pytest.MonkeyPatch], object]


def say_https(world: World, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("KFP_ENDPOINT", world.url.replace("http:", "https:"))


WRONG: dict[str, tuple[Spoil, str, str]] = {
    "no token": (
        lambda world, patch: patch.delenv("KF_PIPELINES_SA_TOKEN_PATH"),
        "answers 401; no token was sent.",
        "kubectl create token jukebox-release --audience pipelines.kubeflow.org",
    ),
    "a token of another audience": (
        lambda world, patch: world.cluster.tokens.pop(AUDIENCE_TOKEN),
        "answers 401.",
        "It accepts tokens for the audience pipelines.kubeflow.org. The overlay kubeflow gives the tasks one.",
    ),
    "no Role": (
        lambda world, patch: world.cluster.denied.add(("list", "experiments", "jukebox-release")),
        "answers 403 to system:serviceaccount:ada-jukebox:jukebox-release.",
        "Bind the account itself to the Role jukebox-pipeline-server",
    ),
    "https instead of http": (say_https, "uses http, and the address says https.", "Write http:// in KFP_ENDPOINT"),
    "no server": (
        lambda world, patch: patch.setenv("KFP_ENDPOINT", "http://localhost:1"),
        "Connection refused",
        "label app.kubernetes.io/part-of: kubeflow-profile.",
    ),
}


@pytest.mark.parametrize(("spoil", "what", "to_do"), WRONG.values(), ids=WRONG)
def test_each_thing_that_is_wrong_is_told_in_two_lines_without_a_word_of_openshift(
    kubeflow: World, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, what: str, to_do: str
) -> None:
    spoil(kubeflow, monkeypatch)
    with pytest.raises(ServerUnavailable) as raised:
        find_server(read_settings()).probe()
    lines = str(raised.value).splitlines()
    assert (what in lines[0], to_do in lines[1], len(lines)) == (True, True, 2), lines
    assert "oc " not in lines[1]
    assert "dspa" not in lines[1].lower()
    assert AUDIENCE_TOKEN not in str(raised.value)


def test_the_rest_api_says_the_same(kubeflow: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the client of the commands instead of the probe, then it has the same words."""
    kubeflow.cluster.denied.add(("list", "experiments", "jukebox-release"))
    with pytest.raises(AccessDenied, match=r"403 to system:\S+:jukebox-release\.\nBind the account itself"):
        kubeflow.kfp().experiment("jukebox")
    say_https(kubeflow, monkeypatch)
    with pytest.raises(ServerUnavailable, match="uses http, and the address says https"):
        kubeflow.kfp().experiment("jukebox")


def test_no_admission_is_not_laid_to_openshift(kubeflow: World, tmp_path: Path) -> None:
    kubeflow.cluster.admission = "absent"
    file, _ = named(compiled(tmp_path / "pipeline.yaml"))
    result = jukebox("apply", str(file), "--timeout=0")
    assert isinstance(result.exception, ServerUnavailable)
    assert "Check that Kubeflow Pipelines runs" in str(result.exception)
    assert "dspa" not in str(result.exception).lower()


# doctor


def way(*, state: str) -> dict[str, Any]:
    """What `doctor` says of the way to the server."""
    result = jukebox("doctor", "--output=json")
    found = {each["name"]: each for each in json.loads(result.output)}
    # There is no DSPA to be ready.
    assert "Pipeline server" not in found
    assert found["Connection to the pipeline server"]["state"] == state
    return dict(found["Connection to the pipeline server"])


def test_doctor_needs_more_than_the_servers_health(kubeflow: World) -> None:
    assert way(state="ok")["found"] == kubeflow.url
    kubeflow.cluster.tokens.clear()
    assert ask(kubeflow, "healthz").status_code == 200
    found = way(state="warn")
    assert "answers 401" in found["found"]
    assert "audience pipelines.kubeflow.org" in found["remedy"]


def test_doctor_refuses_a_server_for_a_single_user(kubeflow: World) -> None:
    """5b: it would look for pipelines and start runs in its own namespace."""
    kubeflow.service.access = None
    found = way(state="fail")
    assert f"starts runs in its own namespace, not in {NAMESPACE}" in found["found"]
    assert "in multi-user mode" in found["remedy"]


def test_a_server_for_a_single_user_in_the_projects_namespace_will_do(
    kubeflow: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kubeflow.service.access = None
    settings = tmp_path / "settings.yaml"
    own = f"http://ml-pipeline.{NAMESPACE}.svc:8888"
    settings.write_text(settings.read_text().replace(kubeflow.url, own))
    monkeypatch.setenv("KFP_ENDPOINT", kubeflow.url)  # as through a port that is forwarded
    assert way(state="ok")["found"] == kubeflow.url
