"""GitLab: our calls are those of its documentation, and its answers are understood."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from tenacity import wait_none

from pipeline.core.errors import HostRefuses
from scripts.clients.git_hosts import CONTEXT, Checks, GitHost, State, base
from tests.scripts.git_hosts.connecting import TOKEN, host_at
from tests.scripts.git_hosts.stub import Answer, Call, Stub, serve_stub

P, SHA = "/projects/acme%2Fteam%2Fjukebox", "a" * 40
HEAD, BASE = "promote/jukebox/prod", "main"
# What GitLab 18 takes, from its documentation: of each call the names in the query, or in the body.
CALLS = {
    ("GET", r""): set(),
    ("GET", r"/merge_requests"): {"source_branch", "target_branch", "state", "order_by", "sort", "per_page", "page"},
    ("POST", r"/merge_requests"): {"source_branch", "target_branch", "title", "description"},
    ("GET", r"/merge_requests/\d+"): set(),
    ("PUT", r"/merge_requests/\d+"): {"title", "description", "state_event"},
    ("PUT", r"/merge_requests/\d+/merge"): {"sha", "merge_commit_message", "squash", "should_remove_source_branch"},
    ("GET", r"/merge_requests/\d+/notes"): {"sort", "order_by", "per_page", "page"},
    ("POST", r"/merge_requests/\d+/notes"): {"body"},
    ("GET", r"/merge_requests/\d+/approvals"): set(),
    ("POST", r"/statuses/\w{40}"): {"state", "name", "description", "target_url", "ref"},
    ("GET", r"/repository/commits/\w{40}/statuses"): {"ref", "name", "per_page", "page"},
}
STATES = {"pending", "running", "success", "failed", "canceled", "skipped"}
MERGE_REQUEST_STATES = {"opened", "closed", "locked", "merged", "all"}


def fault(call: Call) -> str:
    """What GitLab would not take of a call; nothing if it takes it."""
    if call.path == "/personal_access_tokens/self":
        return ""
    path = call.path.removeprefix(P)
    names = next(
        (taken for (how, each), taken in CALLS.items() if how == call.method and re.fullmatch(each, path)), None
    )
    sent = {**call.query, **(call.body or {})}
    words = STATES if "/statuses" in path else MERGE_REQUEST_STATES
    right = names is not None and sent.keys() <= names and sent.get("state", "success") in {*words, "success"}
    return "" if right else f"{call.method} {call.path} {sent}"


@pytest.fixture
def gitlab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """It is below a path, and every call to it must be one that GitLab takes."""
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    with serve_stub("/gitlab/api/v4") as stub:
        yield stub
    assert not list(filter(None, map(fault, stub.calls)))


@pytest.fixture
def host(gitlab: Stub) -> GitHost:
    web = gitlab.url.removesuffix("/api/v4")
    return host_at(gitlab.url, "gitlab", f"{web}/acme/team/jukebox.git")


def merge_request(iid: int = 7, **changes: Any) -> dict[str, Any]:
    return {
        "id": 9000 + iid,
        "iid": iid,
        "web_url": f"https://git.example.com/gitlab/acme/team/jukebox/-/merge_requests/{iid}",
        "title": "Promote 7",
        "description": None,
        "state": "opened",
        "source_branch": HEAD,
        "target_branch": BASE,
        "source_project_id": 3,
        "target_project_id": 3,
        "sha": SHA,
        "merge_commit_sha": None,
        "squash_commit_sha": None,
        **changes,
    }


def test_the_merge_requests_of_a_branch_are_found(gitlab: Stub, host: GitHost) -> None:
    found = [
        merge_request(9, source_project_id=4),
        merge_request(7),
        merge_request(6, state="merged", merge_commit_sha="c" * 40),
        merge_request(5, state="merged", squash_commit_sha="d" * 40),
        merge_request(4, state="merged"),
        merge_request(3, state="closed"),
        merge_request(2, state="locked"),
    ]
    gitlab.on("GET", f"{P}/merge_requests", Answer(found))
    read = host.pull_requests(HEAD, BASE)
    assert [(each.number, each.state, each.merge_commit[:1]) for each in read] == [
        (7, State.OPEN, ""),
        (6, State.MERGED, "c"),
        (5, State.MERGED, "d"),
        (4, State.MERGED, "a"),
        (3, State.CLOSED, ""),
        (2, State.OPEN, ""),
    ]
    [call] = gitlab.calls
    assert (call.query["source_branch"], call.query["target_branch"]) == (HEAD, BASE)
    assert call.headers["PRIVATE-TOKEN"] == TOKEN


def test_a_merge_request_that_exists_is_found_after_the_refusal(gitlab: Stub, host: GitHost) -> None:
    exists = {"message": ["Another open merge request already exists for this source branch: !7"]}
    gitlab.on("GET", f"{P}/merge_requests", Answer([]), Answer([merge_request(7)]))
    gitlab.on("POST", f"{P}/merge_requests", Answer(exists, 409))
    assert host.open_pull_request(HEAD, BASE, "Promote 7", "Why").number == 7
    assert len(gitlab.made("POST")) == 1


def test_a_proposal_is_opened_edited_commented_and_closed(gitlab: Stub, host: GitHost) -> None:
    gitlab.on("GET", f"{P}/merge_requests", Answer([]), Answer([merge_request()]))
    gitlab.on("POST", f"{P}/merge_requests", Answer(merge_request(), 201))
    assert host.open_pull_request(HEAD, BASE, "Promote 7", "Why").number == 7
    gitlab.on("GET", f"{P}/merge_requests/7", Answer(merge_request()))
    gitlab.on("PUT", f"{P}/merge_requests/7", Answer(merge_request()))
    gitlab.on("GET", f"{P}/merge_requests/7/notes", Answer([{"body": "Said"}]))
    gitlab.on("POST", f"{P}/merge_requests/7/notes", Answer({"body": "Superseded"}, 201))
    host.edit(7, body="Because")
    host.comment(7, "Said")
    host.comment(7, "Superseded")
    host.close(7)
    bodies = [each.body for each in gitlab.calls if each.body]
    assert bodies == [
        {"source_branch": HEAD, "target_branch": BASE, "title": "Promote 7", "description": "Why"},
        {"title": "Promote 7", "description": "Because"},
        {"body": "Superseded"},
        {"state_event": "close"},
    ]


@pytest.mark.parametrize(
    ("statuses", "checks"),
    [
        ([], Checks.NONE),
        (["success", "skipped"], Checks.SUCCESS),
        (["success", "running"], Checks.PENDING),
        (["success", "created"], Checks.PENDING),
        (["running", "failed"], Checks.FAILURE),
        (["success", "canceled"], Checks.FAILURE),
    ],
)
def test_the_statuses_of_a_commit_are_one_answer(
    gitlab: Stub, host: GitHost, statuses: list[str], checks: Checks
) -> None:
    said = [{"status": each, "name": each, "allow_failure": False} for each in statuses]
    optional = {"status": "failed", "name": "optional", "allow_failure": True}
    path = f"{P}/repository/commits/{SHA}/statuses"
    gitlab.on("GET", path, Answer([*said, optional]))
    assert host.checks(SHA) is checks


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (409, "SHA does not match HEAD of source branch"),
        (405, "405 Method Not Allowed"),
        (422, "Branch cannot be merged"),
        (401, "401 Unauthorized"),
    ],
)
def test_a_merge_that_is_refused_says_why(gitlab: Stub, host: GitHost, status: int, message: str) -> None:
    gitlab.on("GET", f"{P}/merge_requests/7", Answer(merge_request()))
    gitlab.on("PUT", f"{P}/merge_requests/7/merge", Answer({"message": message}, status))
    with pytest.raises(HostRefuses, match=f"answers {status}: {message}"):
        host.merge(7, SHA, "Promote 7")
    assert [each.body for each in gitlab.made("PUT")] == [{"sha": SHA, "merge_commit_message": "Promote 7"}]


def test_a_merge_whose_answer_is_lost_is_found_done(gitlab: Stub, host: GitHost) -> None:
    merged = merge_request(state="merged", merge_commit_sha="c" * 40)
    gitlab.on("GET", f"{P}/merge_requests/7", Answer(merge_request()), Answer(merged))
    gitlab.on("PUT", f"{P}/merge_requests/7/merge", Answer("<html>", 502))
    host.merge(7, SHA, "Promote 7")
    assert len(gitlab.made("PUT")) == 1


def test_who_approved_and_merged_is_recorded(gitlab: Stub, host: GitHost) -> None:
    merged = merge_request(state="merged", merged_at="2026-11-01T10:00:00Z", merge_user={"username": "ada"})
    gitlab.on("GET", f"{P}/merge_requests/7", Answer(merged))
    approvals = {"approved_by": [{"user": {"username": "bob"}}]}
    gitlab.on("GET", f"{P}/merge_requests/7/approvals", Answer(approvals))
    record = host.record(7)
    assert (record["merged_by"], record["merged_at"]) == ("ada", "2026-11-01T10:00:00Z")
    assert (record["approved_by"], record["url"]) == (["bob"], merged["web_url"])


def test_a_status_is_set_in_gitlabs_words(gitlab: Stub, host: GitHost) -> None:
    twice = Answer({"message": "Cannot transition status via :enqueue from :pending (Reason(s): …)"}, 400)
    gitlab.on("POST", f"{P}/statuses/{SHA}", Answer({}, 201), Answer({}, 201), Answer({}, 201), twice)
    for state in ("success", "failure", "cancelled", "pending"):
        host.set_status(SHA, state)
    assert [call.body["state"] for call in gitlab.calls] == ["success", "failed", "canceled", "pending"]
    assert {call.body["name"] for call in gitlab.calls} == {CONTEXT}
    gitlab.on("POST", f"{P}/statuses/{SHA}", Answer({"message": {"state": ["is invalid"]}}, 400))
    with pytest.raises(HostRefuses, match="answers 400: state: is invalid"):
        host.set_status(SHA, "success")


def test_a_status_that_another_one_holds_up_is_set_in_the_end(gitlab: Stub, host: GitHost) -> None:
    busy = Answer({"message": "Another update to this commit status is in progress"}, 409)
    gitlab.on("POST", f"{P}/statuses/{SHA}", busy, Answer({}, 201))
    host.set_status(SHA, "success")
    assert len(gitlab.calls) == 2


def test_a_project_that_was_moved_is_said(gitlab: Stub, host: GitHost) -> None:
    moved = {"message": "405 Non GET methods are not allowed for moved projects"}
    gitlab.on("POST", f"{P}/statuses/{SHA}", Answer(moved, 405))
    with pytest.raises(HostRefuses, match="renamed or moved, set repository in the settings"):
        host.set_status(SHA, "success")


def test_what_a_token_lacks_and_when_it_expires(gitlab: Stub, host: GitHost) -> None:
    itself = "/personal_access_tokens/self"
    gitlab.on("GET", itself, Answer({"scopes": ["api"], "expires_at": "2026-12-24"}))
    gitlab.on("GET", P, Answer({"permissions": {"project_access": None, "group_access": {"access_level": 30}}}))
    assert host.rights() == []
    assert f"{host.expires():%Y-%m-%d}" == "2026-12-24"
    gitlab.on("GET", itself, Answer({"scopes": ["read_api"], "expires_at": None}))
    gitlab.on("GET", P, Answer({"permissions": {"project_access": {"access_level": 20}, "group_access": None}}))
    assert host.rights() == ["the scope api", "the role Developer in the project"]
    assert host.expires() is None


def test_pages_are_named(host: GitHost, gitlab: Stub) -> None:
    page = gitlab.url.removesuffix("/api/v4") + "/acme/team/jukebox"
    assert host.compare_url("a", "b") == f"{page}/-/compare/a...b"
    assert host.commit_url("a") == f"{page}/-/commit/a"
