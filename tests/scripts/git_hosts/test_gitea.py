"""Pull requests on a real Gitea."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed, wait_none

from pipeline.core.errors import HostRefuses
from pipeline.settings import read_settings
from scripts.clients.git_hosts import Checks, GitHost, State, base, connect
from scripts.git import Clone
from tests.gitea import Gitea
from tests.scripts.git_hosts.faulty import Fault, Faulty, serve_faulty
from tests.settings_file import SETTINGS_FILE, write_git_secret

BRANCH, PIN = "promote/jukebox/prod", "pins/prod.yaml"


@dataclass
class Project:
    """A repository with a branch that changes the pin of main, and its host behind a proxy that can fail."""

    gitea: Gitea
    bot: Gitea
    name: str
    clone: Clone
    proxy: Faulty
    host: GitHost

    def propose(self, version: int, branch: str = BRANCH) -> str:
        """Push a branch with one commit on top of main; return the commit."""
        tip = self.clone.tip("main")
        assert tip
        self.clone.fetch(tip)
        commit = self.clone.commit_file(tip, PIN, b"version: %d\n" % version, f"Pin {version}\n")
        assert self.clone.push(branch, commit, self.clone.tip(branch))
        return commit

    def pulls(self, state: str = "all") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.gitea.api("GET", f"repos/{self.name}/pulls?state={state}")
        return found


@pytest.fixture(scope="module")
def proxy(gitea: Gitea) -> Iterator[Faulty]:
    with serve_faulty(gitea.url) as served:
        yield served


@pytest.fixture
def project(gitea: Gitea, proxy: Faulty, tmp_path: Path, request: pytest.FixtureRequest) -> Project:
    name = f"hosts/{request.node.name.partition('[')[0][-60:]}-{abs(hash(request.node.name)) % 10**8}"
    gitea.repository(name, private=True)
    bot = gitea.user("hosts-bot", "write:repository", "write:issue")
    gitea.allow(name, bot.name)
    content = {"content": "dmVyc2lvbjogMQo=", "message": "Pin 1", "branch": "main"}
    gitea.api("POST", f"repos/{name}/contents/{PIN}", content)
    repository = f"{proxy.url}/{name}"
    folder = tmp_path / "clone"
    folder.mkdir()
    clone = Clone(folder, repository, write_git_secret(tmp_path / "secret", repository, bot.token))
    settings = replace(read_settings(SETTINGS_FILE), repository=repository, git_host="gitea", git_api="")
    proxy.faults.clear()
    proxy.requests.clear()
    return Project(gitea, bot, name, clone, proxy, connect(settings, bot.token))


@retry(retry=retry_if_result(lambda found: not found), stop=stop_after_delay(60), wait=wait_fixed(0.05))
def until(condition: Any) -> Any:
    return condition()


def test_a_proposal_is_opened_edited_and_merged_once(project: Project) -> None:
    commit = project.propose(2)
    host = project.host
    opened = host.open_pull_request(BRANCH, "main", "Promote 2", "Why\r\n\r\nbecause")
    assert (opened.state, opened.head, opened.head_commit, opened.base) == (State.OPEN, BRANCH, commit, "main")
    assert opened.merge_commit == ""
    assert opened.url.endswith(f"{project.name}/pulls/{opened.number}")
    assert host.open_pull_request(BRANCH, "main", "Another title", "") == opened

    newer = project.propose(3)
    host.edit(opened.number, title="Promote 3", body="Better")
    host.comment(opened.number, "3 supersedes 2")
    writes = len(project.proxy.writes)
    host.edit(opened.number, title="Promote 3", body="Better\n")
    host.comment(opened.number, "3 supersedes 2")
    assert len(project.proxy.writes) == writes
    [found] = until(lambda: [each for each in host.pull_requests(BRANCH, "main") if each.head_commit == newer])
    assert (found.number, found.title, found.body) == (opened.number, "Promote 3", "Better")
    comments = project.gitea.api("GET", f"repos/{project.name}/issues/{opened.number}/comments")
    assert [each["body"] for each in comments] == ["3 supersedes 2"]

    with pytest.raises(HostRefuses, match=f"has the commit {newer[:12]} now, expected {commit[:12]}"):
        host.merge(opened.number, commit, "Promote 3")
    host.merge(opened.number, newer, "Promote 3 to production")
    host.merge(opened.number, newer, "Promote 3 to production")
    [merged] = host.pull_requests(BRANCH, "main")
    assert (merged.state, merged.merge_commit) == (State.MERGED, project.clone.tip("main"))
    project.clone.fetch("main")
    assert project.clone.read(merged.merge_commit, PIN) == b"version: 3\n"
    record = host.record(opened.number)
    assert (record["number"], record["merged_by"], record["approved_by"]) == (opened.number, "hosts-bot", [])
    assert record["merged_at"]
    host.close(opened.number)
    assert host.pull_request(opened.number).state is State.MERGED


def test_the_newest_proposal_of_a_branch_comes_first(project: Project) -> None:
    host = project.host
    project.propose(2)
    project.propose(7, "another")
    first = host.open_pull_request(BRANCH, "main", "Promote 2", "")
    host.close(first.number)
    host.close(first.number)
    host.open_pull_request("another", "main", "Promote 7", "")
    second = host.open_pull_request(BRANCH, "main", "Promote 2 again", "")
    found = host.pull_requests(BRANCH, "main")
    assert [(each.number, each.state) for each in found] == [
        (second.number, State.OPEN),
        (first.number, State.CLOSED),
    ]
    assert host.pull_requests(BRANCH, "another") == []
    assert host.pull_requests("missing", "main") == []


def test_a_proposal_that_a_person_closed_is_found_closed_and_not_merged(project: Project) -> None:
    commit = project.propose(2)
    opened = project.host.open_pull_request(BRANCH, "main", "Promote 2", "")
    project.gitea.api("PATCH", f"repos/{project.name}/pulls/{opened.number}", {"state": "closed"})
    with pytest.raises(HostRefuses, match="it was closed"):
        project.host.merge(opened.number, commit, "Promote 2")
    assert project.host.pull_requests(BRANCH, "main")[0].state is State.CLOSED


def test_a_proposal_whose_branch_was_deleted_is_found_by_its_branch(project: Project) -> None:
    project.propose(2)
    opened = project.host.open_pull_request(BRANCH, "main", "Promote 2", "")
    project.gitea.api("DELETE", f"repos/{project.name}/branches/{BRANCH}")
    [found] = until(lambda: [each for each in project.host.pull_requests(BRANCH, "main") if each.state is State.CLOSED])
    assert found.number == opened.number
    project.propose(2)
    assert project.host.open_pull_request(BRANCH, "main", "Promote 2", "").number != opened.number


def test_a_branch_of_the_same_name_in_a_fork_is_not_ours(project: Project) -> None:
    project.propose(2)
    forker = project.gitea.user("hosts-forker")
    project.gitea.allow(project.name, forker.name, "read")
    fork = project.gitea.user(forker.name).api("POST", f"repos/{project.name}/forks", {"name": project.name[6:]})
    until(lambda: _has_branch(forker, fork["full_name"]))
    body = {"title": "Mine", "head": f"{forker.name}:{BRANCH}", "base": "main"}
    forker.api("POST", f"repos/{project.name}/pulls", body)
    assert project.host.pull_requests(BRANCH, "main") == []


def _has_branch(user: Gitea, repository: str) -> bool:
    return any(each["name"] == BRANCH for each in user.api("GET", f"repos/{repository}/branches"))


def test_two_at_once_open_one(project: Project) -> None:
    project.propose(2)
    with ThreadPoolExecutor(4) as pool:
        opened = pool.map(lambda n: project.host.open_pull_request(BRANCH, "main", f"Promote {n}", ""), range(4))
        numbers = {each.number for each in opened}
    [left] = project.pulls("open")
    assert left["number"] in numbers
    again = project.host.open_pull_request(BRANCH, "main", "Promote", "")
    assert again.number == left["number"]


def test_what_a_rule_asks_for_is_respected_and_said(project: Project) -> None:
    host, clone = project.host, project.clone
    commit = project.propose(2)
    project.gitea.protect(project.name, checks=("ci/test",))
    with pytest.raises(HostRefuses, match=r"(?s)main cannot be pushed.*protected branch main"):
        clone.push("main", commit, clone.tip("main"))
    opened = host.open_pull_request(BRANCH, "main", "Promote 2", "")
    assert host.checks(commit) is Checks.NONE
    set_status(project, commit, "pending")
    assert host.checks(commit) is Checks.PENDING
    refused = until(lambda: _refusal(host, opened.number, commit))
    assert "answers 405: Not all required status checks successful" in refused
    assert project.bot.token not in refused
    set_status(project, commit, "failure")
    assert host.checks(commit) is Checks.FAILURE
    set_status(project, commit, "success")
    assert host.checks(commit) is Checks.SUCCESS
    host.merge(opened.number, commit, "Promote 2")
    assert host.pull_request(opened.number).state is State.MERGED


def _refusal(host: GitHost, number: int, commit: str) -> str:
    with pytest.raises(HostRefuses) as error:
        host.merge(number, commit, "Promote")
    return "" if "try again later" in str(error.value) else str(error.value)


def set_status(project: Project, commit: str, state: str) -> None:
    body = {"state": state, "context": "ci/test"}
    project.gitea.api("POST", f"repos/{project.name}/statuses/{commit}", body)


def test_a_conflict_is_said_in_the_end(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = project.propose(2)
    opened = project.host.open_pull_request(BRANCH, "main", "Promote 2", "")
    assert project.clone.push("main", project.propose(3, "main"), project.clone.tip("main"))
    until(lambda: not project.host._get(f"pulls/{opened.number}")["mergeable"])
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    with pytest.raises(HostRefuses, match="answers 405: Please try again later"):
        project.host.merge(opened.number, commit, "Promote 2")


def test_who_approved_is_recorded(project: Project) -> None:
    commit = project.propose(2)
    opened = project.host.open_pull_request(BRANCH, "main", "Promote 2", "")
    reviews = f"repos/{project.name}/pulls/{opened.number}/reviews"
    for name, events in (("hosts-one", ["APPROVED"]), ("hosts-two", ["APPROVED", "REQUEST_CHANGES"])):
        reviewer = project.gitea.user(name)
        project.gitea.allow(project.name, name)
        for event in events:
            reviewer.api("POST", reviews, {"event": event, "body": event, "commit_id": commit})
    project.host.merge(opened.number, commit, "Promote 2")
    assert project.host.record(opened.number)["approved_by"] == ["hosts-one"]


def test_our_status_of_a_commit_is_shown(project: Project) -> None:
    commit = project.propose(2)
    project.host.set_status(commit, "cancelled", "superseded\nby push-2", "https://example.com/run")
    [status] = project.gitea.api("GET", f"repos/{project.name}/commits/{commit}/statuses")
    keys = ("status", "context", "description", "target_url")
    assert [status[key] for key in keys] == ["error", base.CONTEXT, "superseded by push-2", "https://example.com/run"]


def test_texts_that_are_too_long_are_cut_once(project: Project) -> None:
    project.propose(2)
    opened = project.host.open_pull_request(BRANCH, "main", "long " * 100, "x" * 100_000)
    assert (len(opened.title), len(opened.body)) == (200, 60_000)
    writes = len(project.proxy.writes)
    project.host.edit(opened.number, title="long " * 100, body="x" * 100_000)
    assert len(project.proxy.writes) == writes


def test_what_a_token_lacks_is_said(project: Project, gitea: Gitea) -> None:
    assert project.host.rights() == []
    settings = replace(read_settings(SETTINGS_FILE), repository=f"{gitea.url}/{project.name}", git_host="gitea")
    weak = gitea.user("hosts-weak", "read:repository")
    gitea.allow(project.name, weak.name, "read")
    assert connect(settings, weak.token).rights() == [
        "write access of its user to the repository",
        "the scope write:repository",
        "the scope write:issue",
    ]
    with pytest.raises(HostRefuses, match=r"answers 401.*store a new one with `jukebox secrets"):
        connect(settings, "no-token").rights()


@pytest.mark.parametrize(("after", "status"), [(False, 500), (True, 502), (True, 0)])
def test_a_fault_at_any_write_leaves_each_effect_once(
    project: Project, monkeypatch: pytest.MonkeyPatch, after: bool, status: int
) -> None:
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    host, proxy = project.host, project.proxy
    commit = project.propose(2)

    def failing(method: str, path: str) -> None:
        assert not proxy.faults, "the fault before was met"
        proxy.faults.append(Fault(method, path, after, status))

    failing("POST", "/pulls")
    opened = host.open_pull_request(BRANCH, "main", "Promote 2", "")
    failing("PATCH", "/pulls/")
    host.edit(opened.number, body="Why")
    failing("POST", "/comments")
    host.comment(opened.number, "Well done")
    failing("POST", "/statuses/")
    host.set_status(commit, "success")
    failing("GET", "/pulls")
    assert len(host.pull_requests(BRANCH, "main")) == 1
    failing("POST", "/merge")
    host.merge(opened.number, commit, "Promote 2")
    assert not proxy.faults
    [pull] = project.pulls()
    assert (pull["body"], pull["merged"], pull["comments"]) == ("Why", True, 1)
    project.propose(3)
    other = host.open_pull_request(BRANCH, "main", "Promote 3", "")
    failing("PATCH", "/pulls/")
    host.close(other.number)
    assert [each["number"] for each in project.pulls("closed")] == [other.number, opened.number]


@pytest.mark.parametrize("after", [False, True])
def test_a_push_that_fails_is_refused_or_found_done(project: Project, after: bool) -> None:
    commit = project.propose(2)
    project.proxy.faults.append(Fault("POST", "git-receive-pack", after))
    if after:
        assert project.clone.push("production", commit, None)
    else:
        with pytest.raises(HostRefuses, match="502"):
            project.clone.push("production", commit, None)
    assert project.clone.tip("production") == (commit if after else None)


def test_a_host_that_stays_out_of_order_is_asked_four_times(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    project.propose(2)
    project.proxy.faults += [Fault("POST", "/pulls", after=False)] * 9
    with pytest.raises(HostRefuses, match=r"POST http\S+/pulls answers 502\. The host is busy or out of order"):
        project.host.open_pull_request(BRANCH, "main", "Promote 2", "")
    assert len(project.proxy.writes) == 4
    assert project.pulls() == []


def test_a_renamed_repository_is_said_and_nothing_is_sent_elsewhere(project: Project) -> None:
    commit = project.propose(2)
    renamed = f"{project.name[6:40]}-new"
    project.gitea.api("PATCH", f"repos/{project.name}", {"name": renamed})
    for act in (
        lambda: project.host.set_status(commit, "success"),
        lambda: project.host.open_pull_request(BRANCH, "main", "Promote 2", ""),
    ):
        with pytest.raises(HostRefuses, match=rf"answers 301.*{renamed}.*set repository in the settings"):
            act()
    assert project.gitea.api("GET", f"repos/hosts/{renamed}/commits/{commit}/statuses") in ([], None)


def test_pages_are_named(project: Project) -> None:
    old, new = "a" * 40, "b" * 40
    page = f"{project.proxy.url}/{project.name}"
    assert project.host.compare_url(old, new) == f"{page}/compare/{old}...{new}"
    assert project.host.commit_url(old) == f"{page}/commit/{old}"
