"""``jukebox commit-status`` and ``jukebox notify``: what is sent, and what is not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_none
from typer.testing import CliRunner

from pipeline.errors import JukeboxError, SettingsInvalid
from scripts import commit_status, notify
from scripts.cli import app
from scripts.commit_status import Host, build_request
from scripts.outcome import State
from tests.http_server import running

COMMIT = "a" * 40
TOKEN = "a-token-that-nobody-may-read"


@contextmanager
def host(*statuses: int, text: str = "{}") -> Iterator[tuple[str, list[tuple[str, dict[str, str], Any]]]]:
    """A Git host or chat that answers with these statuses in turn, the last again and again."""
    asked: list[tuple[str, dict[str, str], Any]] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, dict(self.headers), body))
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", asked


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries do not wait."""
    for module in (commit_status, notify):
        monkeypatch.setattr(module, "wait_exponential_jitter", lambda **_: wait_none())


@pytest.mark.parametrize(
    ("kind", "repository", "url", "header"),
    [
        (Host.GITHUB, "https://github.com/o/n.git", "https://api.github.com/repos/o/n/statuses/", "Authorization"),
        (Host.GITHUB, "https://git.corp/o/n", "https://git.corp/api/v3/repos/o/n/statuses/", "Authorization"),
        (
            Host.GITLAB,
            "https://g.l:8443/a/b/n",
            "https://g.l:8443/api/v4/projects/a%2Fb%2Fn/statuses/",
            "PRIVATE-TOKEN",
        ),
        (Host.GITEA, "https://tea.corp/o/n/", "https://tea.corp/api/v1/repos/o/n/statuses/", "Authorization"),
    ],
)
def test_each_host_is_asked_at_its_own_address(kind: Host, repository: str, url: str, header: str) -> None:
    request = build_request(kind, repository, COMMIT, State.SUCCESS, token=TOKEN)
    assert request.url == url + COMMIT
    assert request.headers[header].endswith(TOKEN)
    assert request.body["state"] == "success"


@pytest.mark.parametrize(
    ("state", "last", "newer", "github", "gitlab", "phrase"),
    [
        ("pending", "success", "", "pending", "pending", "goes on"),
        ("Succeeded", "Succeeded", "", "success", "success", "succeeded"),
        ("Completed", "Succeeded", "", "success", "success", "succeeded"),
        ("Failed", "None", "", "failure", "failed", "failed"),
        ("Failed", "Failed", "", "failure", "failed", "failed"),
        ("None", "None", "", "error", "failed", "broke off"),
        # Cancelled by hand between two tasks, and for a newer push.
        ("Completed", "None", "", "error", "canceled", "was cancelled"),
        ("Completed", "None", "push-2", "error", "canceled", "superseded by push-2, a newer push"),
        ("Failed", "None", "push-2", "error", "canceled", "superseded by push-2, a newer push"),
    ],
)
def test_tektons_words_become_the_hosts(
    state: str, last: str, newer: str, github: str, gitlab: str, phrase: str, token_file: Path
) -> None:
    for kind, word in ((Host.GITEA, github), (Host.GITLAB, gitlab)):
        with host(201) as (url, asked):
            options = ("--last", last, "--superseded-by", newer, "--description", "PipelineRun push-1")
            result = status(url, token_file, state, *options, kind=kind)
        assert result.exit_code == 0, result.output
        [(_, _, body)] = asked
        assert body["state"] == word
        assert body["description"] == f"PipelineRun push-1 {phrase}"


def test_a_description_is_one_line_that_the_host_takes() -> None:
    request = build_request(Host.GITHUB, "https://x/o/n", COMMIT, State.ERROR, token=TOKEN, description="a\nb " * 100)
    assert len(request.body["description"]) == 140
    assert "\n" not in request.body["description"]


@pytest.mark.parametrize(
    ("repository", "commit"), [("git@x:o/n", COMMIT), ("https://x/n", COMMIT), ("https://x/o/n", "main")]
)
def test_what_is_no_repository_or_commit_is_refused(repository: str, commit: str) -> None:
    with pytest.raises(SettingsInvalid):
        build_request(Host.GITHUB, repository, commit, State.SUCCESS, token=TOKEN)


def status(url: str, token_file: Path, state: str = "Succeeded", *options: str, kind: Host = Host.GITEA) -> Any:
    arguments = ["commit-status", COMMIT, state, "--host", kind, "--token-file", str(token_file), *options]
    return CliRunner().invoke(app, [*arguments, "--repository", f"{url}/o/n"])


def test_the_status_is_set_also_where_the_host_is_busy_first(token_file: Path) -> None:
    with host(503, 201) as (url, asked):
        result = status(url, token_file)
    assert result.exit_code == 0, result.output
    assert len(asked) == 2
    path, headers, body = asked[-1]
    assert path == f"/api/v1/repos/o/n/statuses/{COMMIT}"
    assert headers["Authorization"] == f"token {TOKEN}"
    assert body == {"state": "success", "context": "jukebox/continuous-training", "description": "succeeded"}
    assert TOKEN not in result.output


def test_a_host_that_refuses_is_asked_once_and_named(token_file: Path) -> None:
    with host(403, text="no scope") as (url, asked):
        result = status(url, token_file)
    assert isinstance(result.exception, JukeboxError)
    assert "answers 403: no scope" in str(result.exception)
    assert len(asked) == 1


def test_without_a_token_nothing_is_sent_and_nothing_fails(tmp_path: Path) -> None:
    with host(201) as (url, asked):
        result = status(url, tmp_path / "missing")
    assert result.exit_code == 0
    assert "holds no token" in result.output
    assert not asked


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
    assert "Nobody is notified" in result.output
