"""``jukebox replay``: events in the shape, and with the signature, of their genuine senders."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.core.errors import JukeboxError, SettingsInvalid
from scripts.cli import app
from scripts.replay import NOBODY, RETRAIN, SENDERS, Event, Facts, Kind, build_event
from tests.git_server import IDENTITY
from tests.http_server import running
from tests.kfp.world import World
from tests.settings_file import SETTINGS_FILE

pytest_plugins = ("tests.kfp.fixtures",)
GENUINE = Path(__file__).parents[3] / "shared" / "payloads"
SECRET = "between us"
HOSTILE = "$(touch /tmp/x) `id` \"'\n<b>ü🎵"


@contextmanager
def listener(status: int = 202) -> Iterator[tuple[str, list[Event]]]:
    """An HTTP server that keeps what it gets."""
    events: list[Event] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.append(Event(dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{"eventID":"1"}')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", events


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return file


def body(kind: Kind, **facts: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(build_event(kind, Facts(**facts), SECRET).body)
    return found


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_arrives_signed_over_the_very_bytes(kind: Kind, secret_file: Path) -> None:
    with listener() as (url, events):
        result = CliRunner().invoke(app, ["replay", kind, "--url", url, "--secret-file", str(secret_file)])
    assert result.exit_code == 0, result.output
    assert "202" in result.output
    assert SECRET not in result.output
    [event] = events
    digest = hmac.new(SECRET.encode(), event.body, hashlib.sha256).hexdigest()
    expected = {
        Kind.PUSH: ("X-Hub-Signature-256", f"sha256={digest}"),
        Kind.PUSH_GITLAB: ("X-Gitlab-Token", SECRET),
        Kind.PUSH_GITEA: ("X-Gitea-Signature", digest),
    }
    name, value = expected.get(kind, ("Authorization", f"Bearer {SECRET}"))
    assert event.headers[name] == value
    assert event.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("kind", Kind)
def test_the_secret_is_the_clusters_where_none_is_given(
    world: World, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {sender: base64.b64encode(f"secret-of-{sender}".encode()).decode() for sender in set(SENDERS.values())}
    world.cluster.ci.add("secrets", {"metadata": {"name": "jukebox-senders"}, "data": data})
    with listener() as (url, events):
        monkeypatch.setenv("JUKEBOX_LISTENER", url)
        result = CliRunner().invoke(app, ["replay", kind])
    assert result.exit_code == 0, result.output
    [event] = events
    ours = build_event(kind, Facts(), f"secret-of-{SENDERS[kind]}").headers
    key = next(key for key in ours if key in ("Authorization", "X-Gitlab-Token", "X-Hub-Signature-256"))
    digest = hmac.new(f"secret-of-{SENDERS[kind]}".encode(), event.body, hashlib.sha256).hexdigest()
    assert event.headers[key] == (f"sha256={digest}" if key.startswith("X-Hub") else ours[key])


def test_a_cluster_without_the_secret_is_named(world: World) -> None:
    for data in ({}, {"alert": ""}):
        world.cluster.ci.add("secrets", {"metadata": {"name": "jukebox-senders"}, "data": data})
        result = CliRunner().invoke(app, ["replay", "alert"])
        assert isinstance(result.exception, SettingsInvalid)
        assert "key alert of Secret jukebox-senders in ada-jukebox-ci contains no secret" in str(result.exception)


def test_the_commit_is_that_of_the_settings_checkout(
    secret_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = tmp_path / "fork"
    fork.mkdir()
    (fork / "settings.yaml").write_text(SETTINGS_FILE.read_text().replace("<ORGANISATION>", "acme"))
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message", "Fork")):
        subprocess.run(["git", *words], cwd=fork, env={**os.environ, **IDENTITY}, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=fork, check=True, capture_output=True, text=True).stdout
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(fork / "settings.yaml"))
    with listener() as (url, events):
        CliRunner().invoke(app, ["replay", "push", "--url", url, "--secret-file", str(secret_file)])
    sent = json.loads(events[0].body)
    assert sent["after"] == head.strip()
    assert sent["repository"]["full_name"] == "acme/jukebox"


def test_a_header_of_a_cloudevent_is_plain_ascii(secret_file: Path) -> None:
    words = [
        "replay",
        "data-cloudevent",
        "--data",
        "s3://data/cars/Müller 🎵.parquet",
        "--secret-file",
        str(secret_file),
    ]
    with listener() as (url, events):
        result = CliRunner().invoke(app, [*words, "--url", url])
    assert result.exit_code == 0, result.output
    [event] = events
    assert event.headers["Ce-Subject"] == "data/cars/M%C3%BCller%20%F0%9F%8E%B5.parquet"
    assert json.loads(event.body)["key"] == "cars/Müller 🎵.parquet"


def test_without_a_secret_nothing_is_sent(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with listener() as (url, events):
        for file in ("empty", "missing"):
            result = CliRunner().invoke(app, ["replay", "push", "--url", url, "--secret-file", str(tmp_path / file)])
            assert isinstance(result.exception, SettingsInvalid)
    assert not events


def test_a_listener_that_refuses_is_an_error(secret_file: Path) -> None:
    with listener(400) as (url, _):
        refused = CliRunner().invoke(app, ["replay", "push", "--url", url, "--secret-file", str(secret_file)])
    assert isinstance(refused.exception, JukeboxError)
    assert "answers 400" in str(refused.exception)
    away = CliRunner().invoke(app, ["replay", "push", "--url", url, "--secret-file", str(secret_file)])
    assert "does not answer" in str(away.exception)


def test_a_redelivery_has_the_identity_of_the_first(secret_file: Path) -> None:
    arguments = ["replay", "push", "--secret-file", str(secret_file), "--delivery", "7c0a", "--commit", "a" * 40]
    with listener() as (url, events):
        for _ in range(2):
            CliRunner().invoke(app, [*arguments, "--url", url])
    assert [event.headers["X-GitHub-Delivery"] for event in events] == ["7c0a", "7c0a"]
    assert {json.loads(event.body)["after"] for event in events} == {"a" * 40}


@pytest.mark.parametrize("kind", [Kind.PUSH, Kind.PUSH_GITLAB, Kind.PUSH_GITEA])
def test_a_push_tells_the_commit_and_what_it_changes(kind: Kind) -> None:
    found = body(kind, branch="main", commit="a" * 40, path="README.md", repository="https://git.example.com/o/n")
    assert (found["ref"], found["after"]) == ("refs/heads/main", "a" * 40)
    assert found["commits"][0]["modified"] == ["README.md"]
    url = found["project"]["git_http_url"] if kind is Kind.PUSH_GITLAB else found["repository"]["clone_url"]
    assert url == "https://git.example.com/o/n.git"


def test_a_deleted_branch_has_no_commit() -> None:
    github = body(Kind.PUSH, commit=NOBODY)
    assert github["deleted"] is True
    assert github["head_commit"] is None
    assert body(Kind.PUSH_GITLAB, commit=NOBODY)["checkout_sha"] is None


def test_an_alert_asks_for_training_by_its_label() -> None:
    firing, resolved = body(Kind.ALERT), body(Kind.ALERT, firing=False)
    assert firing["version"] == "4"
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert firing["alerts"][0]["labels"][RETRAIN] == firing["commonLabels"][RETRAIN] == "jukebox"


def test_a_key_of_an_object_is_encoded_as_its_sender_does() -> None:
    found = body(Kind.DATA, bucket="data", key="cars/May 2026+ü.parquet")
    encoded = found["Records"][0]["s3"]["object"]["key"]
    assert "/" not in encoded
    assert unquote(encoded) == "cars/May 2026+ü.parquet"


@settings(deadline=None, derandomize=True, max_examples=40)
@given(kind=st.sampled_from(list(Kind)), text=st.text(min_size=1) | st.just(HOSTILE))
def test_any_text_arrives_as_it_is(kind: Kind, text: str) -> None:
    facts = Facts(message=text, author=text, path=text, branch=text, bucket=text, key=text)
    event = build_event(kind, facts, SECRET)
    found = json.loads(event.body)
    if "commits" in found:
        assert found["commits"][0]["message"] == text
    if kind is Kind.DATA:
        assert unquote(found["Records"][0]["s3"]["object"]["key"]) == text


def kinds(value: Any) -> Any:
    """The keys and the kinds of values below them."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value else []
    return type(value).__name__


def assert_within(ours: Any, genuine: Any, path: str = "") -> None:
    """Whatever we send, a genuine payload has, too."""
    if isinstance(ours, dict) and isinstance(genuine, dict):
        for key, value in ours.items():
            assert key in genuine, f"{path}.{key} is none of the genuine payload's"
            assert_within(value, genuine[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(genuine, list):
        if ours and genuine:
            assert_within(ours[0], genuine[0], f"{path}[0]")
    elif "NoneType" not in (ours, genuine):
        assert ours == genuine, f"{path} is {ours}, the genuine payload's is {genuine}"


@pytest.mark.skipif(not GENUINE.is_dir(), reason="there are no genuine payloads")
def test_the_push_has_the_shape_of_githubs() -> None:
    for file in GENUINE.glob("github-push-*.json"):
        assert_within(kinds(body(Kind.PUSH)), kinds(json.loads(file.read_text())))


@pytest.mark.parametrize(("kind", "driver"), [(Kind.PUSH_GITLAB, "gitlab"), (Kind.PUSH_GITEA, "gitea")])
def test_the_push_has_the_shape_of_the_other_hosts(kind: Kind, driver: str) -> None:
    cache = os.environ.get("GOMODCACHE") or Path.home() / "go" / "pkg" / "mod"
    found = sorted(Path(cache).glob(f"github.com/jenkins-x/go-scm@*/scm/driver/{driver}/testdata/webhooks/push.json"))
    if not found:
        pytest.skip("the Go module that brings genuine payloads is not there")
    genuine = kinds(json.loads(found[-1].read_text()))
    if kind is Kind.PUSH_GITEA:
        genuine["head_commit"] = genuine["commits"][0]  # newer than that payload
    assert_within(kinds(body(kind)), genuine)
