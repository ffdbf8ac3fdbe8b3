"""``jukebox checkout`` from a real Git server."""

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.errors import HostRefuses, SettingsInvalid
from scripts.cli import app
from scripts.git import commit_time
from tests.git_server import GitServer, serve_git

TOKEN = "a-token-that-nobody-may-read"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server") as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "source"


def checkout(server: GitServer, folder: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["checkout", server.url, str(folder), *options])


def test_the_exact_commit_is_there_and_named(server: GitServer, folder: Path, tmp_path: Path) -> None:
    first = server.push("First, ü", a="1")
    server.push("Second", a="2")
    result = checkout(server, folder, "--commit", first, "--result-dir", str(tmp_path / "results"))
    assert result.exit_code == 0, result.output
    assert result.output == f"{first} Ada: First, ü\n"
    assert (folder / "a").read_text() == "1"
    assert (tmp_path / "results" / "commit").read_text() == first


def test_when_the_commit_was_made_can_be_told_after(server: GitServer, folder: Path) -> None:
    commit = server.push("First", a="1")
    checkout(server, folder, "--commit", commit)
    (folder / "pipeline").mkdir()
    made = datetime.fromisoformat(commit_time(folder / "pipeline", commit))
    assert made.tzinfo
    assert timedelta() <= datetime.now(UTC) - made < timedelta(hours=1)


@pytest.mark.parametrize("commit", ["", "HEAD", "main", "1" * 40, "1" * 40 + "-dirty", "--help"])
def test_of_what_is_no_commit_here_no_time_is_told(server: GitServer, folder: Path, commit: str) -> None:
    server.push("First", a="1")
    checkout(server, folder)
    assert commit_time(folder, commit) == ""


def test_without_a_commit_it_is_the_head_of_the_branch(server: GitServer, folder: Path) -> None:
    server.push("Main", a="1")
    head = server.push("Other", branch="other", a="2")
    assert checkout(server, folder, "--branch", "other").output.startswith(head)
    assert (folder / "a").read_text() == "2"


def test_a_second_time_nothing_of_the_first_is_left(server: GitServer, folder: Path) -> None:
    """Given a folder where tests have run, then it holds the commit and nothing else."""
    first, second = server.push("First", a="1", b="1"), server.push("Second", a="2")
    checkout(server, folder, "--commit", second)
    (folder / "a").write_text("changed")
    (folder / "b").unlink()
    (folder / "new").mkdir()
    (folder / "new" / "file").write_text("")
    for commit, text in ((second, "2"), (first, "1"), (first, "1")):
        assert checkout(server, folder, "--commit", commit).exit_code == 0
        assert {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} == {"a": text, "b": "1"}
        assert not (folder / "new").exists()


@pytest.mark.parametrize("options", [("--commit", "1" * 40), ("--branch", "nowhere")], ids=["commit", "branch"])
def test_what_is_not_there_is_named(server: GitServer, folder: Path, options: tuple[str, str]) -> None:
    server.push()
    error = checkout(server, folder, *options).exception
    assert isinstance(error, HostRefuses)
    assert options[1] in str(error)
    assert "Check that it was pushed" in str(error)


def test_a_hash_that_is_short_is_refused(server: GitServer, folder: Path) -> None:
    result = checkout(server, folder, "--commit", server.push()[:12])
    assert isinstance(result.exception, SettingsInvalid)
    assert "expected its full hash" in str(result.exception)


def test_a_server_that_is_away_is_named(server: GitServer, folder: Path) -> None:
    server.url = server.url.replace("127.0.0.1", "localhost").rpartition(":")[0] + ":1/acme/jukebox.git"
    error = checkout(server, folder).exception
    assert isinstance(error, HostRefuses)
    assert "localhost port 1" in str(error)


def test_a_token_opens_the_repository_and_is_in_no_argument_and_no_output(
    server: GitServer, folder: Path, tmp_path: Path
) -> None:
    commit, server.token = server.push(), TOKEN
    for file, text in {"right": TOKEN + "\n", "wrong": "other-token"}.items():
        (tmp_path / file).write_text(text)
    result = checkout(server, folder, "--token-file", str(tmp_path / "right"))
    assert result.exit_code == 0, result.output
    assert result.output.startswith(commit)
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept
    assert TOKEN not in "".join(server.requests)
    for file in ("wrong", "missing"):
        error = checkout(server, folder, "--token-file", str(tmp_path / file)).exception
        assert isinstance(error, HostRefuses)
        assert "other-token" not in str(error)
        assert ("there is none" in str(error)) == (file == "missing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_volume_may_belong_to_another_uid(server: GitServer, folder: Path) -> None:
    commit = server.push()
    folder.mkdir()
    for _ in range(2):
        os.chown(folder, 4711, 4711)
        assert checkout(server, folder).output.startswith(commit)
        os.chown(folder / ".git", 4711, 4711)


def test_what_a_checkout_left_in_its_hooks_is_not_run(server: GitServer, folder: Path) -> None:
    server.push()
    checkout(server, folder)
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {folder}/../hooked\n")
    hook.chmod(0o755)
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=folder, check=True)
    assert (folder.parent / "hooked").exists()  # so git itself would have
    (folder.parent / "hooked").unlink()
    assert checkout(server, folder).exit_code == 0
    assert not (folder.parent / "hooked").exists()
