"""``jukebox wait-served``: what production serves, from a real Git server and the cluster's stand-in."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from pipeline.core.errors import HostRefuses, NotServed, SettingsInvalid
from pipeline.settings import Settings, read_settings
from scripts import wait_served
from scripts.cli import app
from scripts.clients.git_hosts import GitHost, State
from scripts.git import Clone
from scripts.pins import PIN, Pin, render
from scripts.promotion_record import CONFIG_MAP
from scripts.proposals import Kind, Proposals, branch_of
from scripts.wait_served import CHECK, SYNCED, VERIFY, CheckFailed, Pace
from tests.git_server import GitServer, serve_git
from tests.kfp.world import World
from tests.scripts.proposing import Host, Repository
from tests.settings_file import use_settings

pytest_plugins = ("tests.kfp.fixtures",)
SHA, SINCE = "a" * 64, "2026-11-28T09:40:00Z"
Wait = Callable[..., Result]
Results = Callable[[], dict[str, str]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server") as served:
        yield served


@pytest.fixture
def wait(world: World, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wait:
    """``jukebox wait-served``, which looks again at once; production is on this cluster."""
    monkeypatch.setattr(wait_served, "Pace", lambda: Pace(0, 0))
    for name in (SYNCED, CONFIG_MAP):
        world.cluster.add("configmaps", {"metadata": {"name": name}, "data": {}})

    def call(commit: str, *options: str, **settings: str) -> Result:
        use_settings(monkeypatch, tmp_path / "settings.yaml", repository=server.url, **settings)
        return CliRunner().invoke(
            app, ["wait-served", commit, "--result-dir", str(tmp_path / "results"), "--timeout=0", *options]
        )

    return call


@pytest.fixture
def host(server: GitServer, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The Git host's pull requests; without it, there is no token for it."""
    host = Host(Repository(server.bare))

    @contextmanager
    def proposals(settings: Settings, _: Path | None) -> Iterator[Proposals]:
        with TemporaryDirectory() as folder:
            yield Proposals(settings, cast(GitHost, host), Clone(Path(folder), settings.repository, None))

    monkeypatch.setattr(wait_served, "proposals", proposals)
    return host


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return lambda: {name: (tmp_path / "results" / name).read_text() for name in ("served", "since", "why")}


def release(server: GitServer, version: int | None, sha256: str = SHA) -> str:
    """Push a commit that pins a version, also to production's branch."""
    file = server.work / PIN
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(Pin("jukebox", version, sha256 if version else "")))
    commit = server.push(f"Pin {version}")
    server.git("push", "--quiet", str(server.bare), f"{commit}:refs/heads/production")
    return commit


def add(world: World, name: str, phase: str, version: int, *, message: str = "", sha256: str = SHA) -> Any:
    """Add the pod that Argo CD has made from a hook, in the place of an earlier one."""
    marks = {"jukebox.github.io/version": str(version), "jukebox.github.io/sha256": sha256}
    metadata = {"name": f"jukebox-{name}", "labels": {"app.kubernetes.io/name": name}, "annotations": marks}
    ended = {"terminated": {"exitCode": int(phase == "Failed"), "finishedAt": SINCE, "message": message}}
    state = ended if phase in ("Succeeded", "Failed") else {"running": {}}
    status = {"phase": phase, "containerStatuses": [{"name": name, "state": state}]}
    return world.cluster.add("pods", {"metadata": metadata, "spec": {}, "status": status})


def test_what_is_served_and_has_answered_correctly_is_told(
    world: World, server: GitServer, wait: Wait, results: Results
) -> None:
    commit = release(server, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, CHECK, "Succeeded", 7)
    result = wait(commit)
    assert result.exit_code == 0, result.exception
    assert result.output.endswith(f"Production serves version 7 since {SINCE}\n")
    assert results() == {"served": "7", "since": SINCE, "why": ""}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (VERIFY, "Version 7 is not served, since its verification failed: VersionBroken: other bytes"),
        (CHECK, "Production serves version 7, and the check of its answers failed: VersionBroken: other bytes"),
    ],
)
def test_a_check_that_fails_is_quoted(
    world: World, server: GitServer, wait: Wait, results: Results, name: str, words: str
) -> None:
    commit = release(server, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, name, "Failed", 7, message="VersionBroken: other bytes\n")
    error = wait(commit).exception
    assert isinstance(error, NotServed)
    assert str(error) == words
    assert (isinstance(error, CheckFailed) and error.ended == SINCE) == (name == CHECK)
    assert results() == {"served": "", "since": "", "why": words}


def test_a_pod_that_was_evicted_says_so(world: World, server: GitServer, wait: Wait) -> None:
    commit = release(server, 7)
    pod = add(world, VERIFY, "Failed", 7)
    pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    assert "verification failed: The node was low on memory" in str(wait(commit).exception)


def test_argo_cds_next_attempt_is_waited_for(
    world: World, server: GitServer, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a verification that found the store away, and its next attempt succeeds, then that counts."""
    commit = release(server, 7)
    add(world, VERIFY, "Failed", 7, message="StoreBroken: away")

    def next_attempt(_: float) -> None:
        add(world, VERIFY, "Succeeded", 7)
        add(world, CHECK, "Succeeded", 7)

    monkeypatch.setattr(wait_served, "Pace", lambda: Pace(0, 3600))
    monkeypatch.setattr(time, "sleep", next_attempt)
    assert "serves version 7 since" in wait(commit, "--timeout=60").output


@pytest.mark.parametrize("theirs", [(6, SHA), (7, "b" * 64)], ids=["version", "content"])
def test_pods_of_another_pin_count_for_nothing(
    world: World, server: GitServer, wait: Wait, results: Results, theirs: tuple[int, str]
) -> None:
    version, sha256 = theirs
    commit = release(server, 7)
    add(world, VERIFY, "Failed", version, sha256=sha256)
    add(world, CHECK, "Succeeded", version, sha256=sha256)
    error = wait(commit).exception
    assert isinstance(error, NotServed)
    assert "has not served version 7 within 0 minutes: Argo CD has not verified it" in str(error)
    assert "the Application ada-jukebox.prod" in str(error)
    assert results()["why"].startswith("Production has not served version 7")


def test_a_pod_that_has_not_ended_is_named_when_the_time_is_over(world: World, server: GitServer, wait: Wait) -> None:
    commit = release(server, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, CHECK, "Running", 7)
    assert "the pod jukebox-check-served is Running" in str(wait(commit).exception)


def test_why_a_pod_cannot_start_is_told_when_the_time_is_over(world: World, server: GitServer, wait: Wait) -> None:
    commit = release(server, 7)
    pod = add(world, VERIFY, "Pending", 7)
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "jukebox-store" not found'}
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": waiting}
    assert "Make the Secret jukebox-store" in str(wait(commit).exception)


def test_a_newer_release_counts(world: World, server: GitServer, wait: Wait, results: Results) -> None:
    """Given two promotions merged at once, when the first is never synced, then its run tells the second's."""
    first = release(server, 7)
    release(server, 8)
    add(world, VERIFY, "Succeeded", 8)
    add(world, CHECK, "Succeeded", 8)
    assert wait(first).exit_code == 0
    assert results()["served"] == "8"


def test_a_host_that_is_away_meanwhile_does_not_end_the_wait(
    world: World, server: GitServer, wait: Wait, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = release(server, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, CHECK, "Succeeded", 7)
    monkeypatch.setattr(Clone, "tip", host_is_away)
    result = wait(commit)
    assert f"The host is away. Waiting for what {commit[:12]} pins." in result.output
    assert results()["served"] == "7"


def host_is_away(*_: object) -> str:
    raise HostRefuses("The host is away.")


def test_without_a_pinned_version_there_is_nothing_to_wait_for(server: GitServer, wait: Wait, results: Results) -> None:
    assert wait(release(server, None)).output == "Production serves nothing: no version is pinned\n"
    assert results() == {"served": "", "since": "", "why": ""}


@pytest.mark.parametrize("where", ["nowhere", "on another cluster"])
def test_production_that_is_not_here_is_not_waited_for(
    world: World, server: GitServer, wait: Wait, results: Results, where: str
) -> None:
    commit = release(server, 7)
    if where == "on another cluster":
        del world.cluster.objects["configmaps", SYNCED]
    result = wait(commit, **({"prod_cluster": ""} if where == "nowhere" else {}))
    assert "production is not on this cluster" in result.output
    assert results() == {"served": "", "since": "", "why": ""}


def test_a_commit_without_a_valid_pin_is_refused(server: GitServer, wait: Wait) -> None:
    error = wait(server.push("No pin")).exception
    assert isinstance(error, SettingsInvalid)
    assert "is not a valid pin" in str(error)


def merge(server: GitServer, host: Host, version: int) -> str:
    """Propose a version on a branch, merge it with a commit of its own, as most hosts do, and release that."""
    server.git("checkout", "--quiet", "-B", "proposal")
    release(server, version)
    server.git("checkout", "--quiet", "main")
    server.git("merge", "--quiet", "--no-ff", "--message", f"Merge the promotion of {version}", "proposal")
    commit = server.push(f"After {version}", other=f"{version} {len(host.pulls)}")
    merged = server.git("rev-parse", "HEAD^")
    server.git("push", "--quiet", str(server.bare), "HEAD:refs/heads/production")
    settings = read_settings()
    pull = host.open_pull_request(branch_of(Kind.PROMOTION, settings), "main", f"Promote {version}", "")
    host._set(pull.number, state=State.MERGED, merge_commit=merged)
    return commit


def recorded(world: World) -> list[dict[str, Any]]:
    data = world.cluster.objects["configmaps", CONFIG_MAP]["data"]
    return [json.loads(text) for text in data.values()]


def test_who_approved_what_is_served_is_recorded_once(
    world: World, server: GitServer, wait: Wait, host: Host, results: Results
) -> None:
    release(server, 6)
    commit = merge(server, host, 7)
    add(world, VERIFY, "Succeeded", 7)
    pod = add(world, CHECK, "Succeeded", 7)
    result = wait(commit)
    assert result.exit_code == 0, result.exception
    assert "promotion from 6 to 7, merged by ada, approved by bob" in result.output
    [record] = recorded(world)
    told = {key: record[key] for key in ("version", "sha256", "from", "kind", "served_since")}
    assert told == {"version": 7, "sha256": SHA, "from": 6, "kind": "promotion", "served_since": SINCE}
    # A later sync checks the version again: it has been served since the first time.
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = "2026-12-24T00:00:00Z"
    assert wait(commit).output == f"Production serves version 7 since {SINCE}\n"
    assert results()["since"] == SINCE
    assert recorded(world) == [record]


def test_a_rollback_to_what_was_served_before_is_recorded_as_well(
    world: World, server: GitServer, wait: Wait, host: Host
) -> None:
    """Given 8 has failed its check, and so has no record, when 7 is served again, then that is another promotion."""
    release(server, 6)
    for since in (SINCE, "2026-12-24T00:00:00Z"):
        commit = merge(server, host, 7)
        add(world, VERIFY, "Succeeded", 7)
        pod = add(world, CHECK, "Succeeded", 7)
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = since
        assert f"Production serves version 7 since {since}\n" in wait(commit).output
        release(server, 8)
    assert [(each["version"], each["from"]) for each in recorded(world)] == [(7, 6), (7, 8)]


def test_a_new_hold_is_not_another_promotion(world: World, server: GitServer, wait: Wait, host: Host) -> None:
    release(server, 6)
    merge(server, host, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, CHECK, "Succeeded", 7)
    (server.work / PIN).write_text(render(Pin("jukebox", 7, SHA, "wait for the audit")))
    commit = server.push("Hold")
    server.git("push", "--quiet", str(server.bare), f"{commit}:refs/heads/production")
    assert wait(commit).exit_code == 0
    [record] = recorded(world)
    assert record["kind"] == "promotion"
    assert wait(commit).exit_code == 0
    assert recorded(world) == [record]


def test_a_check_of_an_earlier_sync_counts_for_nothing(
    world: World, server: GitServer, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the sync of 8 does not end, when 7 is pinned again, the check of 7 from before 8 proves nothing."""
    add(world, CHECK, "Succeeded", 7)
    add(world, VERIFY, "Succeeded", 8)
    result = wait(release(server, 7), "--timeout", "0")
    assert isinstance(result.exception, NotServed)


@pytest.mark.parametrize("fault", ["no token", "host", "cluster"])
def test_what_cannot_be_recorded_is_served_all_the_same(
    request: pytest.FixtureRequest, world: World, server: GitServer, wait: Wait, results: Results, fault: str
) -> None:
    if fault != "no token":
        request.getfixturevalue("host").fails = ("pull_requests", False) if fault == "host" else None
    if fault == "cluster":
        del world.cluster.objects["configmaps", CONFIG_MAP]
    release(server, 6)
    commit = release(server, 7)
    add(world, VERIFY, "Succeeded", 7)
    add(world, CHECK, "Succeeded", 7)
    result = wait(commit)
    assert result.exit_code == 0, result.exception
    assert "The promotion was not recorded: " in result.output
    assert results() == {"served": "7", "since": SINCE, "why": ""}


def test_a_check_that_fails_rolls_back_if_the_settings_say_so(
    world: World, server: GitServer, wait: Wait, host: Host
) -> None:
    """Given 6 was served and has passed, when 7 answers wrongly, then 6 is proposed; the run fails all the same."""
    add(world, VERIFY, "Succeeded", 6)
    add(world, CHECK, "Succeeded", 6)
    assert wait(release(server, 6)).exit_code == 0
    commit = release(server, 7)
    pod = add(world, CHECK, "Failed", 7, message="ModelServerRefuses: other numbers")
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    ended["finishedAt"] = f"{datetime.now(UTC) - timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"
    result = wait(commit)
    assert isinstance(result.exception, NotServed)
    assert host.pulls == []
    result = wait(commit, rollback_on_failure="yes")
    assert isinstance(result.exception, NotServed)
    assert "The rollback to jukebox 6 is proposed: https://git.corp/pulls/1" in result.output
    [pull] = host.pulls
    assert pull.head == "rollback/jukebox/prod"
    pin = host.repository.read_pin(pull.head)
    assert (pin.version, "other numbers" in pin.hold) == (6, True)


def test_a_verification_that_fails_rolls_nothing_back(world: World, server: GitServer, wait: Wait, host: Host) -> None:
    """The version before is served still."""
    add(world, CHECK, "Succeeded", 6)
    wait(release(server, 6))
    commit = release(server, 7)
    add(world, VERIFY, "Failed", 7)
    assert isinstance(wait(commit, rollback_on_failure="yes").exception, NotServed)
    assert host.pulls == []
