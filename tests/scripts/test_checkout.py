"""``jukebox checkout`` from a real Git server."""

import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.core.errors import HostRefuses, SettingsInvalid
from scripts.cli import app
from scripts.git import commit_time
from scripts.pins import PIN, Pin, render
from tests.git_server import GitServer, serve_git
from tests.settings_file import use_settings, write_git_secret

TOKEN = "a-token-that-nobody-may-read"
Checkout = Callable[..., Result]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    (tmp_path / "server").mkdir()
    with serve_git(tmp_path / "server") as served:
        yield served


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def checkout(server: GitServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """``jukebox checkout`` of what the server has, into the folder."""

    def call(*options: str, branch: str = "main") -> Result:
        use_settings(monkeypatch, tmp_path / "settings.yaml", repository=server.url, branch=branch)
        return CliRunner().invoke(app, ["checkout", str(folder), *options])

    return call


def test_the_exact_commit_is_there_and_named(
    server: GitServer, checkout: Checkout, folder: Path, tmp_path: Path
) -> None:
    first = server.push("First, ü", a="1")
    server.push("Second", a="2")
    result = checkout("--commit", first, "--result-dir", str(tmp_path / "results"))
    assert result.exit_code == 0, result.output
    assert result.output == f"{first} Ada: First, ü\n"
    assert (folder / "a").read_text() == "1"
    assert (tmp_path / "results" / "commit").read_text() == first


def test_when_the_commit_was_made_can_be_told_after(
    server: GitServer, checkout: Checkout, folder: Path, tmp_path: Path
) -> None:
    commit = server.push("First", a="1")
    checkout("--commit", commit, "--result-dir", str(tmp_path / "results"))
    (folder / "pipeline").mkdir()
    made = datetime.fromisoformat(commit_time(folder / "pipeline", commit))
    assert made.tzinfo
    assert (tmp_path / "results" / "commit-time").read_text() == made.isoformat()
    assert timedelta() <= datetime.now(UTC) - made < timedelta(hours=1)


@pytest.mark.parametrize("commit", ["", "HEAD", "main", "1" * 40, "1" * 40 + "-dirty", "--help"])
def test_of_what_is_no_commit_here_no_time_is_told(
    server: GitServer, checkout: Checkout, folder: Path, commit: str
) -> None:
    server.push("First", a="1")
    checkout()
    assert commit_time(folder, commit) == ""


def test_without_a_commit_it_is_the_head_of_the_branch(server: GitServer, checkout: Checkout, folder: Path) -> None:
    server.push("Main", a="1")
    head = server.push("Other", branch="other", a="2")
    assert checkout(branch="other").output.startswith(head)
    assert (folder / "a").read_text() == "2"


def test_a_second_time_nothing_of_the_first_is_left(server: GitServer, checkout: Checkout, folder: Path) -> None:
    """Given a folder where tests have run, then it holds the commit and nothing else."""
    first, second = server.push("First", a="1", b="1"), server.push("Second", a="2")
    checkout("--commit", second)
    (folder / "a").write_text("changed")
    (folder / "b").unlink()
    (folder / "new").mkdir()
    (folder / "new" / "file").write_text("")
    for commit, text in ((second, "2"), (first, "1"), (first, "1")):
        assert checkout("--commit", commit).exit_code == 0
        assert {path.name: path.read_text() for path in folder.iterdir() if path.is_file()} == {"a": text, "b": "1"}
        assert not (folder / "new").exists()


@pytest.mark.parametrize(("commit", "branch"), [("1" * 40, "main"), ("", "nowhere")], ids=["commit", "branch"])
def test_what_is_not_there_is_named(server: GitServer, checkout: Checkout, commit: str, branch: str) -> None:
    server.push()
    error = checkout("--commit", commit, branch=branch).exception
    assert isinstance(error, HostRefuses)
    assert (commit or branch) in str(error)
    assert "Check that it was pushed" in str(error)


def test_a_hash_that_is_short_is_refused(server: GitServer, checkout: Checkout) -> None:
    result = checkout("--commit", server.push()[:12])
    assert isinstance(result.exception, SettingsInvalid)
    assert "expected its full hash" in str(result.exception)


def test_a_server_that_is_away_is_named(server: GitServer, checkout: Checkout) -> None:
    server.url = server.url.replace("127.0.0.1", "localhost").rpartition(":")[0] + ":1/acme/jukebox.git"
    error = checkout().exception
    assert isinstance(error, HostRefuses)
    assert "localhost port 1" in str(error)


def test_a_token_opens_the_repository_and_is_in_no_argument_and_no_output(
    server: GitServer, checkout: Checkout, folder: Path, tmp_path: Path
) -> None:
    commit, server.token = server.push(), TOKEN
    for name, text in {"right": TOKEN, "wrong": "other-token"}.items():
        write_git_secret(tmp_path / name, server.url.removesuffix(".git"), text)
    result = checkout("--git-secret", str(tmp_path / "right"))
    assert result.exit_code == 0, result.output
    assert result.output.startswith(commit)
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept
    assert TOKEN not in "".join(server.requests)
    for name in ("wrong", "missing"):
        error = checkout("--git-secret", str(tmp_path / name)).exception
        assert isinstance(error, HostRefuses)
        assert "other-token" not in str(error)
        assert ("there is none" in str(error)) == (name == "missing")


@pytest.mark.parametrize("meant", ["https://example.com/acme/jukebox", "", None])
def test_a_token_of_another_repository_is_shown_to_nobody(
    server: GitServer, checkout: Checkout, tmp_path: Path, meant: str | None
) -> None:
    """An installation of before there was such a key is told what to do."""
    server.push()
    server.token = TOKEN
    secret = write_git_secret(tmp_path / "secret", meant or "", TOKEN)
    if meant is None:
        (secret / "repository").unlink()
    error = checkout("--git-secret", str(secret)).exception
    assert isinstance(error, SettingsInvalid)
    assert f"is for {meant or 'an unnamed repository'}, expected {server.url}" in str(error)
    assert "`jukebox secrets --git-token-file FILE`" in str(error)
    assert server.requests == []


@pytest.mark.parametrize("where", ["the same host", "another host", "another repository"])
def test_a_redirection_is_followed_and_the_token_stays(
    server: GitServer, checkout: Checkout, tmp_path: Path, where: str
) -> None:
    """As GitLab redirects to the address with .git, and an attacker's host to itself, which asks for a token."""
    commit, server.token = server.push(), TOKEN
    shown: list[str] = []
    origin = server.url.removesuffix("/acme/jukebox.git")
    to = f"{origin}/acme/jukebox.git"
    if where == "another host":
        to = f"{origin.replace('127.0.0.1', 'localhost')}/acme/jukebox.git"
    elif where == "another repository":
        to = f"{origin}/evil/jukebox.git"
    secret = write_git_secret(tmp_path / "secret", f"{origin}/acme/jukebox", TOKEN)
    server.url, server.redirects, server.shown = f"{origin}/acme/jukebox", {"/acme/jukebox/": f"{to}/"}, shown
    result = checkout("--git-secret", str(secret))
    if where == "the same host":
        assert result.output.startswith(commit), result.exception
        assert set(shown) == {"", f"git:{TOKEN}"}
    else:
        assert isinstance(result.exception, HostRefuses)
        assert set(shown) == {""}, "the other one was asked, and was shown nothing"


def test_a_copy_of_a_checkout_is_what_was_pushed_whatever_its_files_have_become(
    server: GitServer, checkout: Checkout, folder: Path, tmp_path: Path
) -> None:
    commit = server.push("First", a="1")
    checkout()
    (folder / "a").write_text("changed")
    (folder / "b").write_text("new")
    copy = tmp_path / "copy"
    for _ in range(2):
        result = CliRunner().invoke(app, ["checkout", str(copy), "--source", str(folder), "--commit", commit])
        assert result.exit_code == 0, result.exception
        assert {path.name: path.read_text() for path in copy.iterdir() if path.is_file()} == {"a": "1"}
    other = CliRunner().invoke(app, ["checkout", str(copy), "--source", str(folder), "--commit", "1" * 40])
    assert isinstance(other.exception, HostRefuses)


def test_what_is_no_commit_is_not_taken_for_one(server: GitServer, checkout: Checkout) -> None:
    commit = server.push()
    server.git("tag", "--annotate", "--message=v1", "v1")
    server.git("push", "--quiet", str(server.bare), "v1")
    tag = server.git("rev-parse", "v1")
    assert tag != commit
    error = checkout("--commit", tag).exception
    assert isinstance(error, SettingsInvalid)
    assert f"{tag} is not a commit" in str(error)


def test_a_damaged_object_is_refused(server: GitServer, checkout: Checkout) -> None:
    """A tree with a folder .git, which a checkout would write to."""
    server.push(a="1")
    blob = server.git("rev-parse", "HEAD:a")
    inner = server.git("rev-parse", "HEAD^{tree}")
    (server.work / "tree").write_bytes(b"40000 .git\0" + bytes.fromhex(inner) + b"100644 a\0" + bytes.fromhex(blob))
    tree = server.git("hash-object", "-t", "tree", "--literally", "-w", "tree")
    commit = server.git("commit-tree", tree, "-m", "Damaged")
    server.git("push", "--quiet", "--force", str(server.bare), f"{commit}:refs/heads/main")
    for options in ((), ("--commit", commit)):
        error = checkout(*options).exception
        assert isinstance(error, HostRefuses)
        assert "hasDotgit" in str(error)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "inner/../..", "circle"])
def test_a_link_out_of_the_repository_is_refused(server: GitServer, checkout: Checkout, target: str) -> None:
    (server.work / "folder").mkdir()
    (server.work / "folder" / "link").symlink_to("../file.txt")
    server.push()
    assert checkout().exit_code == 0
    (server.work / "circle").symlink_to(target)
    (server.work / "folder" / "inner").symlink_to("..")
    server.push(text="1")
    error = checkout().exception
    assert isinstance(error, SettingsInvalid)
    assert "'circle' is a symbolic link out of the repository" in str(error)


def test_attributes_of_the_commit_change_nothing(server: GitServer, checkout: Checkout, folder: Path) -> None:
    (server.work / ".gitattributes").write_text("* text eol=crlf ident export-subst filter=evil\n")
    server.push(a="$Id$\n$Format:%H$\n")
    assert checkout().exit_code == 0
    assert (folder / "a").read_bytes() == b"$Id$\n$Format:%H$\n"
    archive = subprocess.run(["git", "archive", "HEAD", "a"], cwd=folder, check=True, capture_output=True).stdout
    assert b"$Format:%H$" in archive


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_volume_may_belong_to_another_uid(server: GitServer, checkout: Checkout, folder: Path) -> None:
    commit = server.push()
    folder.mkdir()
    for _ in range(2):
        os.chown(folder, 4711, 4711)
        assert checkout().output.startswith(commit)
        os.chown(folder / ".git", 4711, 4711)


def test_what_a_checkout_left_in_its_hooks_is_not_run(server: GitServer, checkout: Checkout, folder: Path) -> None:
    server.push()
    checkout()
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {folder}/../hooked\n")
    hook.chmod(0o755)
    subprocess.run(["git", "checkout", "--quiet", "--detach"], cwd=folder, check=True)
    assert (folder.parent / "hooked").exists()  # so git itself would have
    (folder.parent / "hooked").unlink()
    assert checkout().exit_code == 0
    assert not (folder.parent / "hooked").exists()


@pytest.fixture
def compared(server: GitServer, checkout: Checkout, tmp_path: Path) -> Callable[[str, str], dict[str, str]]:
    """What a checkout of a commit for a reason says of what is released."""

    def call(commit: str, reason: str = "push") -> dict[str, str]:
        results = tmp_path / "results"
        result = checkout("--commit", commit, "--reason", reason, "--result-dir", str(results))
        assert result.exit_code == 0, result.exception
        return {name: (results / name).read_text() for name in ("served-version", "tested", "pin-changed")}

    return call


def push_pin(server: GitServer, version: int | None, **files: str) -> str:
    """Push a commit that pins this version."""
    file = server.work / PIN
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(Pin("jukebox", version, "a" * 64 if version else "")))
    return server.push(f"Pin {version}", **files or {"b": "1"})


def release(server: GitServer, commit: str) -> None:
    server.git("push", "--quiet", str(server.bare), f"{commit}:refs/heads/production")


def test_a_push_of_the_pin_alone_is_tested(server: GitServer, compared: Callable[..., dict[str, str]]) -> None:
    """Given commits after the released one, then only one that pins another version, and nothing else, is tested."""
    release(server, push_pin(server, None))
    first = push_pin(server, 7)
    assert compared(first) == {"served-version": "7", "tested": "true", "pin-changed": "true"}
    # Beside what no tests have seen, a pin is not tested either; it counts what is released, not the commit before.
    code, both = server.push("Code", a="1"), push_pin(server, 8)
    assert compared(code) == {"served-version": "7", "tested": "false", "pin-changed": "true"}
    assert compared(both) == {"served-version": "8", "tested": "false", "pin-changed": "true"}
    release(server, code)
    assert compared(both) == {"served-version": "8", "tested": "true", "pin-changed": "true"}
    assert compared(server.push("Code", a="2")) == {"served-version": "8", "tested": "false", "pin-changed": "true"}


def test_texts_that_were_never_released_need_no_tests(
    server: GitServer, compared: Callable[..., dict[str, str]]
) -> None:
    """A push of these only starts no run, so none releases them before the promotion is merged."""
    release(server, push_pin(server, None))
    server.push("Say whose it is", **{"README.md": "# Ours"})
    assert compared(push_pin(server, 7))["tested"] == "true"


def test_a_released_commit_is_trained_again_if_its_run_is(
    server: GitServer, compared: Callable[..., dict[str, str]]
) -> None:
    commit = push_pin(server, 7)
    for released in (commit, push_pin(server, 8)):
        release(server, released)
        assert compared(commit) == {"served-version": "7", "tested": "false", "pin-changed": "false"}


def test_what_is_no_push_is_not_compared(server: GitServer, compared: Callable[..., dict[str, str]]) -> None:
    """It trains, whatever is released."""
    release(server, push_pin(server, 1))
    commit = push_pin(server, 2)
    assert compared(commit, "schedule") == {"served-version": "2", "tested": "false", "pin-changed": "false"}


def test_before_the_first_release_nothing_is_tested(server: GitServer, compared: Callable[..., dict[str, str]]) -> None:
    nothing = {"tested": "false", "pin-changed": "false"}
    assert compared(server.push("Older than the pin", a="1")) == {"served-version": "", **nothing}
    assert compared(push_pin(server, None)) == {"served-version": "", **nothing}
    assert compared(push_pin(server, 3)) == {"served-version": "3", **nothing}


def test_a_pin_that_is_not_valid_stops_the_checkout(server: GitServer, checkout: Checkout) -> None:
    push_pin(server, 3)
    (server.work / PIN).write_text("resources: [secret.yaml]\n")
    error = checkout("--commit", server.push(), "--reason", "push").exception
    assert isinstance(error, SettingsInvalid)
    assert f"{PIN} is not a valid pin" in str(error)
