"""A repository with a pin, and a stand-in for its Git host, whose every call may fail before or after its effect."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from pipeline.core.candidate import Candidate, line
from pipeline.core.candidate import parse as parse_log
from pipeline.core.errors import HostRefuses
from pipeline.settings import Settings, read_settings
from scripts.clients.git_hosts import Checks, GitHost, PullRequest, State
from scripts.git import Clone
from scripts.pins import PIN, Pin, parse, render
from scripts.proposals import Kind, Proposals, branch_of
from tests.report_fixture import documents

MODEL = "jukebox"
NOBODYS = {
    **{f"GIT_{who}_NAME": "Ada" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "ada@example.com" for who in ("AUTHOR", "COMMITTER")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def sha(number: int) -> str:
    """The sha256 of a version of these tests."""
    return f"{number:064x}"


def pin(number: int | None, hold: str = "") -> Pin:
    """The pin of a version of these tests."""
    return Pin(MODEL, number, sha(number) if number else "", hold)


def candidate(number: int, worse: Mapping[int, Sequence[float]] = MappingProxyType({}), **changed: Any) -> Candidate:
    """What a run published; ``worse`` is the difference, with its interval, from versions that it was compared with."""
    lineage = documents()["lineage"]
    lineage["model"] |= {"number": number, "prod_flag": True}
    lineage["run"] |= {"id": f"run-{number}", "commit": f"{number:040x}"}
    lineage["sha256"]["model.onnx"] = sha(number)
    found = parse_log(f"step publish-model begins\n{line(lineage)}\n")
    assert found
    beside = [
        {"version": version, "metric": "cross_entropy", "value": value, "interval": [low, high]}
        for version, (value, low, high) in worse.items()
    ]
    difference = dict(zip_longest(("champion", "served"), beside))
    return replace(found, **{"difference": difference, **changed})


@dataclass
class Repository:
    """A bare repository in a folder, whose branches are written without a work tree."""

    folder: Path

    def git(self, *arguments: str, stdin: str = "") -> str:
        """Run git in it; return what it prints."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env={**os.environ, **NOBODYS},
            input=stdin,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def tip(self, branch: str) -> str:
        """The newest commit of a branch; empty if there is none."""
        return self.git("for-each-ref", "--format=%(objectname)", f"refs/heads/{branch}")

    def commit(self, message: str, branch: str = "main", **files: str) -> str:
        """Commit files (two underscores for a slash, one for a dot) on a branch, and return the hash."""
        parent, paths = (
            self.tip(branch),
            {name.replace("__", "/").replace("_", "."): text for name, text in files.items()},
        )
        return self.write(message, branch, parent, paths)

    def pin(self, number: int | None, hold: str = "", branch: str = "main") -> str:
        """Pin a version on a branch, as the merge of a proposal does."""
        return self.write(f"Pin {number}", branch, self.tip(branch), {PIN: render(pin(number, hold))})

    def write(self, message: str, branch: str, parent: str, files: dict[str, str]) -> str:
        index = self.folder / "index-of-the-tests"
        index.unlink(missing_ok=True)
        environment = {**os.environ, **NOBODYS, "GIT_INDEX_FILE": str(index)}

        def run(*arguments: str, stdin: str = "") -> str:
            return subprocess.run(
                ["git", *arguments],
                cwd=self.folder,
                env=environment,
                input=stdin,
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()

        if parent:
            run("read-tree", parent)
        for path, text in files.items():
            blob = run("hash-object", "-w", "--stdin", stdin=text)
            run("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        made = run("commit-tree", run("write-tree"), *(("-p", parent) if parent else ()), "-m", message)
        self.git("update-ref", f"refs/heads/{branch}", made)
        return made

    def read_pin(self, branch: str = "main") -> Pin:
        """What a branch pins."""
        return parse(self.git("show", f"{branch}:{PIN}") + "\n")

    def changed(self, old: str, new: str) -> list[str]:
        """The paths that differ."""
        return self.git("diff", "--name-only", old, new).split()


@dataclass
class Host:
    """A Git host of one repository, in memory.

    ``calls`` has the name of each call that writes. ``fails`` names a call, and when it fails: the number of its calls
    to let pass, and whether the effect is there nevertheless.
    """

    repository: Repository
    pulls: list[PullRequest] = field(default_factory=list)
    comments: dict[int, list[str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    state: Checks = Checks.NONE
    refuses_merge: str = ""
    fails: tuple[str, bool] | None = None

    @contextmanager
    def _call(self, name: str, *, writes: bool = True) -> Iterator[None]:
        failing, after = self.fails or ("", False)
        if failing == name and not after:
            self.fails = None
            raise HostRefuses(f"{name} answers 500")
        yield
        if writes:
            self.calls.append(name)
        if failing == name:
            self.fails = None
            raise HostRefuses(f"{name} answers 502")

    def pull_requests(self, head: str, base: str) -> list[PullRequest]:
        with self._call("pull_requests", writes=False):
            found = [each for each in self.pulls if each.head == head and each.base == base]
            return [self._now(each) for each in reversed(found)]

    def pull_request(self, number: int) -> PullRequest:
        with self._call("pull_request", writes=False):
            return self._now(self.pull(number))

    def open_pull_request(self, head: str, base: str, title: str, body: str) -> PullRequest:
        for pull in self.pull_requests(head, base):
            if pull.state is State.OPEN:
                return pull
        number = len(self.pulls) + 1
        with self._call("open"):
            pull = PullRequest(number, f"https://git.corp/pulls/{number}", title, body, State.OPEN, head, "", base, "")
            self.pulls.append(pull)
        return self._now(pull)

    def edit(self, number: int, *, title: str | None = None, body: str | None = None) -> None:
        with self._call("edit"):
            pull = self.pull(number)
            self._set(number, title=pull.title if title is None else title, body=pull.body if body is None else body)

    def comment(self, number: int, text: str) -> None:
        if text not in self.comments.get(number, []):
            with self._call("comment"):
                self.comments.setdefault(number, []).append(text)

    def close(self, number: int) -> None:
        with self._call("close"):
            self._set(number, state=State.CLOSED)

    def checks(self, commit: str) -> Checks:
        with self._call("checks", writes=False):
            return self.state

    def merge(self, number: int, head_commit: str, title: str) -> None:
        with self._call("merge"):
            if self.refuses_merge:
                raise HostRefuses(self.refuses_merge)
            pull = self._now(self.pull(number))
            if pull.head_commit != head_commit:
                raise HostRefuses("head out of date")
            pinned = self.repository.git("show", f"{pull.head}:{PIN}") + "\n"
            commit = self.repository.write(title, pull.base, self.repository.tip(pull.base), {PIN: pinned})
            self._set(number, state=State.MERGED, merge_commit=commit)

    def record(self, number: int) -> dict[str, Any]:
        pull = self.pull(number)
        return {
            "number": number,
            "url": pull.url,
            "title": pull.title,
            "merged_at": "2026-11-28T10:00:00Z",
            "merged_by": "ada",
            "approved_by": ["bob"],
        }

    def compare_url(self, old: str, new: str) -> str:
        return f"https://git.corp/compare/{old}...{new}"

    def commit_url(self, commit: str) -> str:
        return f"https://git.corp/commit/{commit}"

    def pull(self, number: int) -> PullRequest:
        """The pull request of this number."""
        return self.pulls[number - 1]

    def _now(self, pull: PullRequest) -> PullRequest:
        tip = self.repository.tip(pull.head)
        return replace(pull, head_commit=tip) if pull.state is State.OPEN and tip else pull

    def _set(self, number: int, **changes: Any) -> None:
        self.pulls[number - 1] = replace(self.pulls[number - 1], **changes)


class World:
    """A repository whose main pins nothing yet, its host, and the settings that name them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        (folder / "repository.git").mkdir(parents=True)
        self.folder = folder
        self.repository = Repository(folder / "repository.git")
        self.repository.git("init", "--quiet", "--bare", "--initial-branch=main", ".")
        self.repository.commit("Begin", README_md="A model")
        self.repository.pin(None)
        self.host = Host(self.repository)
        self.settings: Settings = replace(
            read_settings(),
            **{"repository": f"file://{self.repository.folder}", "model_store": "/nowhere", **settings},
        )
        self._clones = count()

    def proposals(self, clone: type[Clone] = Clone) -> Proposals:
        """A process's view of it."""
        folder = self.folder / f"clone-{next(self._clones)}"
        folder.mkdir()
        return Proposals(self.settings, cast(GitHost, self.host), clone(folder, self.settings.repository, None))

    def branch(self, kind: Kind = Kind.PROMOTION) -> str:
        """The branch of a kind of proposals."""
        return branch_of(kind, self.settings)

    def proposed(self, kind: Kind = Kind.PROMOTION) -> Pin | None:
        """What the open pull request of a kind proposes; None without one."""
        [*found] = [pull for pull in self.host.pull_requests(self.branch(kind), "main") if pull.state is State.OPEN]
        assert len(found) < 2
        return self.repository.read_pin(self.branch(kind)) if found else None
