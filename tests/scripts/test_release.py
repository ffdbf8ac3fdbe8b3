"""``jukebox release`` to a real Git server: production's branch moves forward only, and only once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import HostRefuses, SettingsInvalid
from scripts.cli import app
from scripts.git import Clone
from tests.git_server import GitServer, serve_git
from tests.settings_file import use_settings, write_git_secret

TOKEN = "a-token-that-nobody-may-read"
BRANCH = "production"
Release = Callable[..., str]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server") as served:
        served.token = TOKEN
        yield served


@pytest.fixture
def release(server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """``jukebox release``, with the token; return what it prints."""

    def call(commit: str, **settings: str) -> str:
        use_settings(monkeypatch, tmp_path / "settings.yaml", repository=server.url, prod_branch=BRANCH, **settings)
        secret = write_git_secret(tmp_path / "secret", server.url, TOKEN)
        result = CliRunner().invoke(app, ["release", commit, "--git-secret", str(secret)])
        if result.exception:
            raise result.exception
        return result.output

    return call


def released(server: GitServer) -> str:
    return server.git("ls-remote", str(server.bare), f"refs/heads/{BRANCH}").partition("\t")[0]


def test_the_first_release_creates_the_branch_and_the_next_ones_move_it_forward(
    server: GitServer, release: Release
) -> None:
    first, second = server.push("1"), server.push("2")
    assert release(first) == f"{BRANCH} is at {first[:12]} now; it is new\n"
    assert released(server) == first
    assert release(second) == f"{BRANCH} is at {second[:12]} now; it was at {first[:12]}\n"
    assert released(server) == second


def test_a_commit_that_is_released_already_changes_nothing(server: GitServer, release: Release) -> None:
    """Given two pushes whose tests end in the other order, then the branch does not move back."""
    first, second = server.push("1"), server.push("2")
    release(second)
    for commit in (second, first):
        assert release(commit) == f"{BRANCH} contains {commit[:12]} already; it is at {second[:12]}\n"
        assert released(server) == second


def test_a_branch_that_has_diverged_is_left_alone_and_says_how_to_go_on(server: GitServer, release: Release) -> None:
    server.push("1")
    other = server.push("What somebody pushed to it", branch=BRANCH)
    server.git("reset", "--quiet", "--hard", "HEAD^")
    commit = server.push("2", b="2")
    with pytest.raises(SettingsInvalid, match="does not descend from it") as error:
        release(commit)
    assert released(server) == other
    # What it says is what helps.
    words = str(error.value).rpartition("run: ")[2].split()
    assert words[:2] == ["git", "push"]
    server.git("fetch", "--quiet", str(server.bare), BRANCH)
    server.git(*(str(server.bare) if word == "origin" else word for word in words[1:]))
    assert released(server) == commit


def test_a_commit_that_the_branch_to_train_from_has_lost_is_not_released(server: GitServer, release: Release) -> None:
    first = server.push("1")
    lost = server.push("Mistake")
    release(first)
    server.git("branch", "kept", lost)
    server.git("push", "--quiet", str(server.bare), "kept")
    server.git("reset", "--quiet", "--hard", first)
    server.push("2", b="2")
    with pytest.raises(SettingsInvalid, match=f"{lost[:12]} is not on main any more"):
        release(lost)
    assert released(server) == first


@pytest.mark.parametrize("theirs", ["older", "newer"])
def test_two_releases_at_once_end_at_the_newer_commit(
    server: GitServer, release: Release, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    first, second, third = (server.push(text) for text in "123")
    release(first)
    ours, other = (third, second) if theirs == "older" else (second, third)
    push = Clone.push

    def outrun(self: Clone, branch: str, commit: str, expected: str | None) -> bool:
        monkeypatch.setattr(Clone, "push", push)
        server.git("push", "--quiet", str(server.bare), f"{other}:refs/heads/{BRANCH}")
        return push(self, branch, commit, expected)

    monkeypatch.setattr(Clone, "push", outrun)
    assert ("is at" if theirs == "older" else "contains") in release(ours)
    assert released(server) == third


def test_a_host_that_refuses_is_quoted(server: GitServer, release: Release) -> None:
    commit = server.push("1")
    hook = server.bare / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'production is protected' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(HostRefuses, match="production is protected"):
        release(commit)
    assert released(server) == ""


def test_without_production_nothing_is_released(server: GitServer, release: Release) -> None:
    assert "no prod-cluster" in release(server.push("1"), prod_cluster="")
    assert released(server) == ""


def test_what_is_not_a_full_hash_is_refused(server: GitServer, release: Release) -> None:
    with pytest.raises(SettingsInvalid, match="expected its full hash"):
        release(server.push("1")[:12])
