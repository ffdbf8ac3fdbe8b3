"""The bare clone, against a real Git server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import HostRefuses, SettingsInvalid
from scripts.git import Clone, Signing, git
from tests.git_server import GitServer, serve_git
from tests.settings_file import write_git_secret

PIN, TOKEN = "pins/prod.yaml", "a-token-that-nobody-may-read"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """A repository whose main pins 1, and has a first commit without a pin; only the token is let in."""
    with serve_git(tmp_path) as served:
        served.push("First")
        pin(served, 1)
        served.token = TOKEN
        yield served


def pin(server: GitServer, version: int, branch: str = "main") -> str:
    server.work.joinpath("pins").mkdir(exist_ok=True)
    return server.push(f"Pin {version}", branch, **{"pins/prod-yaml": f"version: {version}\n"})


@pytest.fixture
def clone(server: GitServer, tmp_path: Path) -> Clone:
    return new_clone(server, tmp_path / "clone")


def new_clone(server: GitServer, folder: Path) -> Clone:
    folder.mkdir()
    return Clone(folder, server.url, write_git_secret(folder.with_suffix(".secret"), server.url, TOKEN))


def propose(clone: Clone, version: int, parent: str) -> str:
    return clone.commit_file(parent, PIN, b"version: %d\n" % version, f"Pin {version}\n")


def test_what_a_branch_has_is_read_by_its_commit(server: GitServer, clone: Clone) -> None:
    tip = clone.tip("main")
    assert tip == server.git("rev-parse", "HEAD")
    clone.fetch("main", depth=1)
    assert clone.read(tip, PIN) == b"version: 1\n"
    assert clone.read(tip, "pins") is None
    assert clone.read(tip, "other") is None
    assert clone.tip("production") is None
    with pytest.raises(SettingsInvalid, match="git ls-tree failed"):
        clone.read("f" * 40, PIN)


def test_a_branch_is_not_taken_for_one_whose_name_ends_as_its_own(server: GitServer, clone: Clone) -> None:
    server.git("push", "--quiet", str(server.bare), "HEAD:refs/heads/old/refs/heads/new")
    assert clone.tip("new") is None


def test_a_link_is_not_read(server: GitServer, clone: Clone) -> None:
    (server.work / "link").symlink_to("/etc/passwd")
    tip = server.push("Link")
    clone.fetch(tip)
    assert clone.read(tip, "link") is None


def test_a_commit_changes_one_file_and_nothing_else(server: GitServer, clone: Clone) -> None:
    tip = clone.tip("main")
    assert tip
    clone.fetch(tip, depth=2)
    commit = propose(clone, 2, tip)
    assert clone.changed(tip, commit) == [PIN]
    assert clone.read(commit, PIN) == b"version: 2\n"
    assert clone.push("promote/jukebox/prod", commit, None)
    assert clone.tip("promote/jukebox/prod") == commit
    shown = git(server.bare, "log", "-1", "--format=%an <%ae> %cn <%ce> %s", commit).decode().strip()
    assert shown == "jukebox <jukebox@127.0.0.1> jukebox <jukebox@127.0.0.1> Pin 2"
    assert git(server.bare, "ls-tree", "-r", "--name-only", commit).decode().split() == ["file.txt", PIN]


def test_a_file_that_is_new_is_added(server: GitServer, clone: Clone) -> None:
    tip = clone.tip("main")
    assert tip
    clone.fetch(tip)
    commit = clone.commit_file(tip, "a new/file, of mine", b"\r\n\x00", "Add it\n")
    assert clone.changed(tip, commit) == ["a new/file, of mine"]
    assert clone.read(commit, "a new/file, of mine") == b"\r\n\x00"


def test_equal_inputs_make_the_same_commit(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    tip = clone.tip("main")
    assert tip
    clone.fetch(tip)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_DATE", "2026-11-28T10:00:00Z")
    assert propose(clone, 2, tip) == propose(clone, 2, tip)


def test_of_two_who_push_one_wins_and_the_other_is_told(server: GitServer, tmp_path: Path) -> None:
    ours, theirs = new_clone(server, tmp_path / "ours"), new_clone(server, tmp_path / "theirs")
    tip = ours.tip("main")
    assert tip
    for each in (ours, theirs):
        each.fetch(tip)
    first, second = propose(ours, 2, tip), propose(theirs, 3, tip)
    assert ours.push("promote", first, None)
    assert not theirs.push("promote", second, None)
    assert theirs.push("promote", second, first)
    assert not ours.push("promote", first, tip)
    assert theirs.push("promote", second, tip), "it is there already"
    assert ours.tip("promote") == second


def test_a_push_that_the_host_refuses_says_its_words(server: GitServer, clone: Clone) -> None:
    tip = clone.tip("main")
    assert tip
    clone.fetch(tip)
    hook = server.bare / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho main is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(HostRefuses, match=r"(?s)branch main cannot be pushed.*main is protected.*may push") as error:
        clone.push("main", propose(clone, 2, tip), tip)
    assert TOKEN not in str(error.value)


def test_a_push_whose_answer_is_lost_is_found_done(server: GitServer, clone: Clone) -> None:
    """The server ends after the branch has moved."""
    tip = clone.tip("main")
    assert tip
    clone.fetch(tip)
    commit = propose(clone, 2, tip)
    hook = server.bare / "hooks" / "post-receive"
    hook.write_text("#!/bin/sh\nkill -9 $PPID\n")
    hook.chmod(0o755)
    assert clone.push("promote", commit, None)
    assert clone.tip("promote") == commit


def test_the_history_of_a_file_is_that_of_the_branch(server: GitServer, clone: Clone) -> None:
    """Whatever else was pushed, and whether it came by a merge: also if the branch itself was merged into it."""
    one = server.git("rev-parse", "HEAD")
    two = pin(server, 2)
    server.push("Something else")
    server.git("checkout", "--quiet", "-b", "side", one)
    server.push("Side", "side", side="1")
    three = pin_on_main(server, 3)
    server.git("checkout", "--quiet", "side")
    server.git("merge", "--quiet", "--no-edit", "main")
    server.push("Merged", "main", more="2")
    clone.fetch("main", depth=1)
    clone.fetch("main")
    tip = clone.tip("main")
    assert tip
    assert clone.log(tip, PIN) == [three, two, one]


def pin_on_main(server: GitServer, version: int) -> str:
    server.git("checkout", "--quiet", "main")
    return pin(server, version)


def test_which_commit_descends_from_which(server: GitServer, clone: Clone) -> None:
    old = server.git("rev-parse", "HEAD")
    new = server.push("Newer")
    clone.fetch("main")
    assert clone.is_ancestor(old, new)
    assert clone.is_ancestor(new, new)
    assert not clone.is_ancestor(new, old)
    with pytest.raises(SettingsInvalid, match="merge-base failed"):
        clone.is_ancestor("f" * 40, new)


def test_a_host_that_does_not_answer_is_said(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "http://127.0.0.1:1/acme/jukebox", None)
    with pytest.raises(HostRefuses, match=r"(?s)branch main cannot be read.*there is none in a Secret"):
        clone.tip("main")
    with pytest.raises(HostRefuses, match="cannot be fetched"):
        clone.fetch("main")


def test_a_token_that_is_refused_is_said_and_not_shown(server: GitServer, clone: Clone) -> None:
    server.token = "another"
    with pytest.raises(HostRefuses, match="token may read it") as error:
        clone.tip("main")
    assert TOKEN not in str(error.value)


def test_a_token_goes_to_no_repository_but_its_own(server: GitServer, tmp_path: Path) -> None:
    secret = write_git_secret(tmp_path / "secret", "https://elsewhere.example.com/a/b", TOKEN)
    with pytest.raises(SettingsInvalid, match="is for https://elsewhere"):
        Clone(tmp_path, server.url, secret).tip("main")
    assert not server.requests


def test_a_commit_is_signed_if_a_key_is_given(clone: Clone, tmp_path: Path) -> None:
    tip, key = clone.tip("main"), tmp_path / "key"
    assert tip
    clone.fetch(tip)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signing = Signing(key, "Jukebox", "jukebox@example.com")
    commit = clone.commit_file(tip, PIN, b"version: 2\n", "Pin 2\n", signing)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"jukebox@example.com {key.with_suffix('.pub').read_text()}")
    verify = ["git", "-c", f"gpg.ssh.allowedSignersFile={allowed}", "verify-commit", commit]
    done = subprocess.run(verify, cwd=clone.folder, capture_output=True, text=True, check=False)
    assert 'Good "git" signature for jukebox@example.com' in done.stderr
    assert done.returncode == 0
    assert git(clone.folder, "log", "-1", "--format=%an %ae", commit).decode().strip() == "Jukebox jukebox@example.com"
    with pytest.raises(SettingsInvalid, match="commit-tree failed"):
        clone.commit_file(tip, PIN, b"", "Pin\n", Signing(tmp_path / "missing", "Jukebox", "jukebox@example.com"))


def test_a_repository_on_this_machine_is_a_host_too(server: GitServer, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    clone = Clone(folder, server.bare.as_uri(), None)
    tip = clone.tip("main")
    assert tip
    clone.fetch("main", depth=2)
    commit = propose(clone, 2, tip)
    assert clone.push("production", commit, None)
    assert git(server.bare, "rev-parse", "production").decode().strip() == commit
