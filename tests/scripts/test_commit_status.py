"""``jukebox commit-status`` and ``jukebox notify``: what is sent, and what is not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none
from typer.testing import CliRunner, Result

from pipeline.core.errors import JukeboxError, SettingsInvalid
from scripts import notify
from scripts.cli import app
from scripts.clients.git_hosts import Host, base
from tests.http_server import running
from tests.kfp.world import World
from tests.settings_file import use_settings, write_git_secret

pytest_plugins = ("tests.kfp.fixtures",)
COMMIT = "a" * 40
TOKEN = "a-token-that-nobody-may-read"


@contextmanager
def host(
    *statuses: int, text: str = "{}", location: str = ""
) -> Iterator[tuple[str, list[tuple[str, dict[str, str], Any]]]]:
    """A Git host or chat that answers with these statuses in turn, the last again and again."""
    asked: list[tuple[str, dict[str, str], Any]] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", asked


Status = Callable[..., Result]


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Status:
    """``jukebox commit-status`` with the settings and the Secret of a host at this address."""

    def call(
        url: str,
        state: str = "Succeeded",
        *options: str,
        kind: Host = Host.GITEA,
        page: str = "",
        token: str = TOKEN,
        commit: str = COMMIT,
    ) -> Result:
        repository = f"{url}/o/n"
        use_settings(monkeypatch, tmp_path / "settings.yaml", repository=repository, git_host=kind, run_page=page)
        secret = write_git_secret(tmp_path / "secret", repository, token)
        return CliRunner().invoke(app, ["commit-status", commit, state, "--git-secret", str(secret), *options])

    return call


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries do not wait."""
    for module in (base, notify):
        monkeypatch.setattr(module, "wait_exponential_jitter", lambda **_: wait_none())


@pytest.mark.parametrize(
    ("state", "last", "newer", "github", "gitlab", "phrase"),
    [
        ("pending", "success", "", "pending", "pending", "is running"),
        ("Succeeded", "Succeeded", "", "success", "success", "succeeded"),
        ("Completed", "Succeeded", "", "success", "success", "succeeded"),
        ("Failed", "None", "", "failure", "failed", "failed"),
        ("Failed", "Failed", "", "failure", "failed", "failed"),
        ("None", "None", "", "error", "failed", "ended with an error"),
        # Cancelled by hand between two tasks, and for a newer push.
        ("Completed", "None", "", "error", "canceled", "was cancelled"),
        ("Completed", "None", "push-2", "error", "canceled", "superseded by push-2, a newer push"),
        ("Failed", "None", "push-2", "error", "canceled", "superseded by push-2, a newer push"),
    ],
)
def test_tektons_words_become_the_hosts(
    state: str, last: str, newer: str, github: str, gitlab: str, phrase: str, status: Status
) -> None:
    for kind, word in ((Host.GITEA, github), (Host.GITLAB, gitlab)):
        with host(201) as (url, asked):
            options = ("--last", last, "--superseded-by", newer, "--description", "PipelineRun push-1")
            result = status(url, state, *options, kind=kind)
        assert result.exit_code == 0, result.output
        [(_, _, body)] = asked
        assert body["state"] == word
        assert body["description"] == f"PipelineRun push-1 {phrase}"


def test_a_description_is_one_line_that_the_host_takes(status: Status) -> None:
    with host(201) as (url, asked):
        status(url, "Failed", "--description", "a\nb " * 100)
        status(url, "Failed", "--description", f"image r.corp/x@sha256:{'a' * 64} is not there:")
    long, digest = (body["description"] for _, _, body in asked)
    assert len(long) == 140
    assert "\n" not in long
    assert digest == f"image r.corp/x@sha256:{'a' * 12} is not there: failed"


def test_what_is_not_a_full_hash_is_refused(status: Status) -> None:
    with host(201) as (url, asked):
        result = status(url, commit="main")
    assert isinstance(result.exception, SettingsInvalid)
    assert "the commit is 'main', expected its full hash" in str(result.exception)
    assert not asked


def test_the_status_is_set_also_where_the_host_is_busy_first(status: Status) -> None:
    with host(503, 201) as (url, asked):
        result = status(url)
    assert result.exit_code == 0, result.output
    assert len(asked) == 2
    path, headers, body = asked[-1]
    assert path == f"/api/v1/repos/o/n/statuses/{COMMIT}"
    assert headers["Authorization"] == f"token {TOKEN}"
    assert body == {"state": "success", "context": "jukebox/continuous-training", "description": "succeeded"}
    assert TOKEN not in result.output


def test_a_host_that_refuses_is_asked_once_and_named(status: Status) -> None:
    with host(403, text="no scope") as (url, asked):
        result = status(url)
    assert isinstance(result.exception, JukeboxError)
    assert "answers 403: no scope" in str(result.exception)
    assert len(asked) == 1


def test_without_a_token_nothing_is_sent_and_nothing_fails(status: Status) -> None:
    with host(201) as (url, asked):
        result = status(url, token="")
    assert result.exit_code == 0
    assert "contains no token" in result.output
    assert not asked


@pytest.mark.parametrize("meant", ["https://example.com/o/n", "{url}/o/other", ""])
def test_a_token_of_another_repository_is_not_sent(status: Status, tmp_path: Path, meant: str) -> None:
    with host(201) as (url, asked):
        secret = write_git_secret(tmp_path / "other", meant.replace("{url}", url), TOKEN)
        result = status(url, "Succeeded", "--git-secret", str(secret))
    assert isinstance(result.exception, SettingsInvalid)
    assert f"expected {url}/o/n" in str(result.exception)
    assert not asked


def test_a_host_that_redirects_gets_the_token_alone(status: Status) -> None:
    with host(201) as (elsewhere, asked), host(307, location=elsewhere) as (url, _):
        result = status(url)
    assert "answers 307" in str(result.exception)
    assert not asked


RUN_PAGE = "https://kubeflow.corp/_/pipeline/#/runs/details/{run}"
OUT_OF_MEMORY = (
    "train-model: out of memory (exit code 137): its limit is 4Gi. Raise train-memory in manifests/settings/"
)


def task(world: World, name: str, ended: str, status: str = "True", reason: str = "", **results: str) -> None:
    """A TaskRun of push-1; ``ended`` is the last digit of when."""
    labels = {"tekton.dev/pipelineRun": "push-1", "tekton.dev/pipelineTask": name}
    message = f'"step-{name}" exited with code 1: see https://ada:pass@h/x?Signature=abc\n for more'
    said = {
        "completionTime": f"2026-11-27T10:00:0{ended}Z",
        "conditions": [{"type": "Succeeded", "status": status, "reason": reason, "message": message}],
        "results": [{"name": key.replace("_", "-"), "value": value} for key, value in results.items()],
    }
    world.cluster.ci.add("taskruns", {"metadata": {"name": f"push-1-{name}", "labels": labels}, "status": said})


Tell = Callable[..., tuple[Any, str]]


@pytest.fixture
def told(world: World, status: Status, tmp_path: Path) -> Tell:
    """What the Git host gets of push-1, and the line for the chat."""

    def call(state: str = "Failed", *, page: str = RUN_PAGE) -> tuple[Any, str]:
        of_run = ("--pipeline-run", "push-1", "--last", state)
        with host(201) as (url, asked):
            result = status(url, state, "--description", "PipelineRun push-1", *of_run, page=page)
            assert result.exit_code == 0, result.output
        words = ("notify", "push of abc", state, "--url-file", str(tmp_path / "missing"), *of_run)
        said = CliRunner().invoke(app, [*words])
        assert said.exit_code == 0, said.output
        return asked[0][2], said.output

    return call


def test_a_failed_run_says_why_and_links_to_its_page(world: World, told: Tell) -> None:
    task(world, "start", "1", run_id="6f1c3c2e", data_version="d")
    task(world, "wait", "2", "False", "Failed", state="failed", why=OUT_OF_MEMORY)
    body, line = told()
    assert body["description"].startswith(OUT_OF_MEMORY)
    assert len(body["description"]) <= 140
    assert body["target_url"] == "https://kubeflow.corp/_/pipeline/#/runs/details/6f1c3c2e"
    assert line.splitlines()[0] == f"push of abc: failed: {OUT_OF_MEMORY} {body['target_url']}"


def test_the_first_task_that_failed_is_the_reason(world: World, told: Tell) -> None:
    """Whichever it is; nothing that a URL keeps secret is shown, and without a run there is no page of one."""
    task(world, "notify", "5", "False", "Failed")
    task(world, "checkout", "1")
    task(world, "test", "3", "False", "Failed")
    task(world, "build-image", "2", "False", "TaskRunCancelled")
    body, line = told()
    why = 'task test: "step-test" exited with code 1: see https://h/x?… for more'
    assert body["description"] == f"{why} (PipelineRun push-1 failed)"
    assert "target_url" not in body
    assert line.splitlines()[0] == f"push of abc: failed: {why}"


def test_a_run_that_succeeded_has_a_link_and_no_reason(world: World, told: Tell) -> None:
    """A task that succeeded at its second attempt, and one that was cancelled, are no reasons."""
    task(world, "start", "1", run_id="6f1c3c2e")
    task(world, "wait", "2", why="")
    body, line = told("Succeeded", page="https://tekton.corp/#/pipelineruns/{pipeline-run}")
    assert body["description"] == "PipelineRun push-1 succeeded"
    assert body["target_url"] == "https://tekton.corp/#/pipelineruns/push-1"
    assert line.splitlines()[0] == "push of abc: succeeded https://tekton.corp/#/pipelineruns/push-1"


def test_whoever_is_told_of_a_run_is_told_of_a_ci_image_that_is_stale(world: World, told: Tell) -> None:
    task(world, "checkout", "1", ci_image_stale="scripts/wait.py, requirements.lock")
    body, line = told("Succeeded", page="")
    notice = "; the CI image is stale: the commit has different versions of scripts/wait.py, requirements.lock"
    assert body["description"] == f"PipelineRun push-1 succeeded{notice}"
    assert line.splitlines()[0] == f"push of abc: succeeded{notice}"
    task(world, "checkout", "1", ci_image_stale="")
    assert told("Succeeded", page="")[0]["description"] == "PipelineRun push-1 succeeded"


@pytest.mark.parametrize("page", ["", "kubeflow.corp/{run}", "https://h/{runs}"])
def test_there_is_no_link_rather_than_a_wrong_one(world: World, told: Tell, page: str) -> None:
    task(world, "start", "1", run_id="6f1c3c2e")
    body, line = told(page=page)
    assert "target_url" not in body
    assert "push of abc: failed" in line.splitlines()


def test_a_cluster_that_does_not_tell_why_keeps_nobody_from_being_told(world: World, told: Tell) -> None:
    world.cluster.ci.forbidden = {"taskruns"}
    body, line = told()
    assert body["description"] == "PipelineRun push-1 failed"
    assert "The cause of the outcome of push-1 is unknown: The cluster refuses: taskruns is forbidden" in line


def test_a_chat_gets_the_line_and_its_address_stays_secret(tmp_path: Path) -> None:
    file = tmp_path / "url"
    with host(502, 200) as (url, asked):
        file.write_text(f"{url}/services/secret-part\n")
        result = CliRunner().invoke(app, ["notify", "push of\n abc", "Succeeded", "--url-file", str(file)])
    assert result.exit_code == 0, result.output
    assert [body for _, _, body in asked] == [{"text": "push of abc: succeeded"}] * 2
    away = CliRunner().invoke(app, ["notify", "x", "Failed", "--url-file", str(file)])
    assert isinstance(away.exception, JukeboxError)
    assert "secret-part" not in str(away.exception) + away.output


def test_a_chat_is_told_that_a_run_was_superseded(tmp_path: Path) -> None:
    words = ["notify", "push-1", "Failed", "--last", "None", "--superseded-by", "push-2"]
    result = CliRunner().invoke(app, [*words, "--url-file", str(tmp_path / "missing")])
    assert result.output.startswith("push-1: superseded by push-2, a newer push\n")


def test_nobody_is_notified_where_there_is_no_address(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["notify", "x", "Failed", "--url-file", str(tmp_path / "missing")])
    assert result.exit_code == 0
    assert "No message was sent" in result.output
