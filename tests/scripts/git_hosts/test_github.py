"""GitHub: our calls are those that its own description has, and its answers are understood."""

from collections.abc import Iterator
from typing import Any

import pytest
from tenacity import wait_none

from pipeline.core.errors import HostRefuses
from scripts.clients.git_hosts import CONTEXT, Checks, GitHost, State, base
from tests.scripts.git_hosts.connecting import TOKEN, host_at
from tests.scripts.git_hosts.github_api import example, faults
from tests.scripts.git_hosts.stub import Answer, Stub, serve_stub

R, SHA, OTHER = "/repos/acme/jukebox", "a" * 40, "b" * 40
HEAD, BASE = "promote/jukebox/prod", "main"


@pytest.fixture
def github(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Every call to it must be one that GitHub describes."""
    monkeypatch.setattr(base, "wait_exponential_jitter", lambda **_: wait_none())
    with serve_stub("/api/v3") as stub:
        yield stub
    wrong = [fault for call in stub.calls for fault in faults(call.method, call.path, call.query, call.body)]
    assert not wrong


@pytest.fixture
def host(github: Stub) -> GitHost:
    return host_at(github.url, "github")


def pull(number: int = 1347, **changes: Any) -> dict[str, Any]:
    """GitHub's example of a pull request, as an open one of ours."""
    found: dict[str, Any] = example("GET", f"{R}/pulls/1")
    head = {**found["head"], "ref": HEAD, "sha": SHA, "repo": {"full_name": "Acme/Jukebox"}}
    ours = {"number": number, "merged_at": None, "head": head, "base": {**found["base"], "ref": BASE}}
    return found | ours | changes


def test_a_wrong_call_is_found() -> None:
    assert faults("POST", f"{R}/pulls", {}, {"head": "x", "base": "main"}) == []
    assert faults("POST", f"{R}/pulls", {}, {"head": "x", "base": "main", "text": "x"})
    assert faults("POST", f"{R}/pulls", {}, {"head": "x"})
    assert faults("GET", f"{R}/pulls", {"state": "opened"}, None)
    assert faults("GET", f"{R}/pulls", {"branch": "x"}, None)
    assert faults("POST", f"{R}/statuses/{SHA}", {}, {"state": "cancelled"})
    assert faults("PATCH", f"{R}/issues/1", {}, {"title": "x"})


def test_the_pull_requests_of_a_branch_of_this_repository_are_found(github: Stub, host: GitHost) -> None:
    foreign = pull(9, head={**pull()["head"], "repo": {"full_name": "eve/jukebox"}})
    deleted = pull(8, head={**pull()["head"], "repo": None})
    merged, closed = pull(6, state="closed", merged_at="2026-11-01T10:00:00Z"), pull(5, state="closed")
    github.on("GET", f"{R}/pulls", Answer([foreign, deleted, pull(7), merged, closed]))
    found = host.pull_requests(HEAD, BASE)
    assert [(each.number, each.state) for each in found] == [(7, State.OPEN), (6, State.MERGED), (5, State.CLOSED)]
    assert [bool(each.merge_commit) for each in found] == [False, True, False]
    assert (found[0].head_commit, found[0].url) == (SHA, "https://github.com/octocat/Hello-World/pull/1347")
    [call] = github.calls
    assert call.query["head"] == f"acme:{HEAD}"
    assert call.query["state"] == "all"
    assert call.headers["Authorization"] == f"Bearer {TOKEN}"
    assert call.headers["User-Agent"]


def test_a_pull_request_that_exists_is_found_after_the_refusal(github: Stub, host: GitHost) -> None:
    exists = {
        "message": "Validation Failed",
        "errors": [{"resource": "PullRequest", "message": f"A pull request already exists for acme:{HEAD}."}],
    }
    github.on("GET", f"{R}/pulls", Answer([]), Answer([pull(7)]))
    github.on("POST", f"{R}/pulls", Answer(exists, 422))
    assert host.open_pull_request(HEAD, BASE, "Promote 7", "Why").number == 7
    assert len(github.made("POST")) == 1


def test_a_pull_request_without_a_difference_is_refused_once(github: Stub, host: GitHost) -> None:
    nothing = {"message": "Validation Failed", "errors": [{"message": f"No commits between main and {HEAD}"}]}
    github.on("GET", f"{R}/pulls", Answer([]))
    github.on("POST", f"{R}/pulls", Answer(nothing, 422))
    with pytest.raises(HostRefuses, match="answers 422: Validation Failed; message: No commits between") as error:
        host.open_pull_request(HEAD, BASE, "Promote 7", "Why")
    assert error.value.status == 422
    assert "\n" not in str(error.value)
    assert len(github.made("POST")) == 1


def test_a_proposal_is_opened_edited_commented_and_closed(github: Stub, host: GitHost) -> None:
    github.on("GET", f"{R}/pulls", Answer([]), Answer([pull(7)]))
    github.on("POST", f"{R}/pulls", Answer(pull(7), 201))
    assert host.open_pull_request(HEAD, BASE, "Promote\n7", "Why").number == 7
    github.on("GET", f"{R}/pulls/7", Answer(pull(7)))
    github.on("PATCH", f"{R}/pulls/7", Answer(pull(7)))
    host.edit(7, title="Promote 8")
    host.close(7)
    more = {"Link": f'<{github.url}{R}/issues/7/comments?page=2>; rel="next"'}
    comments = f"{R}/issues/7/comments"
    github.on("GET", comments, Answer(example("GET", comments), headers=more), Answer([{"body": "Said"}]))
    github.on("POST", comments, Answer(example("POST", comments), 201))
    host.comment(7, "Superseded")
    github.on("GET", comments, Answer(example("GET", comments), headers=more), Answer([{"body": "Said"}]))
    host.comment(7, "Said")
    bodies = [each.body for each in github.calls if each.body]
    assert bodies == [
        {"head": HEAD, "base": BASE, "title": "Promote 7", "body": "Why"},
        {"title": "Promote 8", "body": pull()["body"]},
        {"state": "closed"},
        {"body": "Superseded"},
    ]


@pytest.mark.parametrize(
    ("statuses", "runs", "checks"),
    [
        ([], [], Checks.NONE),
        (["success"], [], Checks.SUCCESS),
        ([], ["success", "neutral", "skipped"], Checks.SUCCESS),
        (["success"], ["in_progress"], Checks.PENDING),
        (["pending"], ["success"], Checks.PENDING),
        (["pending"], ["timed_out"], Checks.FAILURE),
        (["failure"], ["in_progress"], Checks.FAILURE),
        (["success"], ["action_required"], Checks.FAILURE),
    ],
)
def test_statuses_and_check_runs_are_one_answer(
    github: Stub, host: GitHost, statuses: list[str], runs: list[str], checks: Checks
) -> None:
    status = f"{R}/commits/{SHA}/status"
    state = statuses[0] if statuses else "pending"
    github.on("GET", status, Answer(example("GET", status) | {"state": state, "total_count": len(statuses)}))
    path = f"{R}/commits/{SHA}/check-runs"
    [like] = example("GET", path)["check_runs"]
    ended = [
        like | ({"status": each, "conclusion": None} if each == "in_progress" else {"conclusion": each})
        for each in runs
    ]
    # A page has one entry here.
    more = {"Link": f'<{github.url}{path}?page=2>; rel="next"'}
    pages = [{"total_count": len(ended), "check_runs": [each]} for each in ended] or [
        {"total_count": 0, "check_runs": []}
    ]
    github.on("GET", path, *(Answer(each, headers=more) for each in pages[:-1]), Answer(pages[-1]))
    assert host.checks(SHA) is checks


@pytest.mark.parametrize(
    ("status", "message", "attempts", "why"),
    [
        (405, "Pull Request is not mergeable", 1, "answers 405: Pull Request is not mergeable"),
        (405, "Base branch was modified. Review and try the merge again.", 4, "answers 405: Base branch was modified"),
        (409, "Head branch was modified. Review and try the merge again.", 1, "answers 409: Head branch"),
        (405, "Changes must be made through the merge queue", 1, "through the merge queue"),
    ],
)
def test_a_merge_that_is_refused_says_why(
    github: Stub, host: GitHost, status: int, message: str, attempts: int, why: str
) -> None:
    github.on("GET", R, Answer(example("GET", R)))
    github.on("GET", f"{R}/pulls/7", Answer(pull(7)))
    github.on("PUT", f"{R}/pulls/7/merge", Answer({"message": message}, status))
    with pytest.raises(HostRefuses, match=why):
        host.merge(7, SHA, "Promote 7")
    assert len(github.made("PUT")) == attempts


def test_a_merge_is_of_the_commit_that_was_checked(github: Stub, host: GitHost) -> None:
    allowed = example("GET", R) | {"allow_squash_merge": False}
    github.on("GET", R, Answer(allowed))
    github.on("GET", f"{R}/pulls/7", Answer(pull(7)))
    github.on("PUT", f"{R}/pulls/7/merge", Answer(example("PUT", f"{R}/pulls/7/merge")))
    host.merge(7, SHA, "Promote 7")
    [call] = github.made("PUT")
    assert call.body == {"sha": SHA, "merge_method": "merge", "commit_title": "Promote 7"}
    with pytest.raises(HostRefuses, match="has the commit aaaaaaaaaaaa now, expected bbbbbbbbbbbb"):
        host.merge(7, OTHER, "Promote 7")


def test_the_last_word_of_each_reviewer_is_recorded(github: Stub, host: GitHost) -> None:
    merged = pull(7, state="closed", merged_at="2026-11-01T10:00:00Z", merged_by={"login": "ada"})
    github.on("GET", f"{R}/pulls/7", Answer(merged))
    [like] = example("GET", f"{R}/pulls/7/reviews")
    words = [("bob", "APPROVED"), ("eve", "APPROVED"), ("eve", "CHANGES_REQUESTED"), ("bob", "COMMENTED")]
    reviews = [like | {"user": {"login": who}, "state": state} for who, state in words]
    github.on("GET", f"{R}/pulls/7/reviews", Answer(reviews))
    assert host.record(7) == {
        "number": 7,
        "url": merged["html_url"],
        "title": merged["title"],
        "merged_at": "2026-11-01T10:00:00Z",
        "merged_by": "ada",
        "approved_by": ["bob"],
    }


def test_a_status_is_set_in_githubs_words(github: Stub, host: GitHost) -> None:
    github.on("POST", f"{R}/statuses/{SHA}", Answer(example("POST", f"{R}/statuses/{SHA}"), 201))
    for state in ("pending", "success", "failure", "error", "cancelled"):
        host.set_status(SHA, state, "text", "https://example.com")
    assert [call.body["state"] for call in github.calls] == ["pending", "success", "failure", "error", "error"]
    assert {call.body["context"] for call in github.calls} == {CONTEXT}


DENIED = Answer({"message": "Resource not accessible by personal access token"}, 403)
WRITER = example("GET", R) | {"permissions": {"pull": True, "push": True}}


@pytest.mark.parametrize(
    ("repository", "probe", "lacking"),
    [
        (Answer(WRITER, headers={"X-OAuth-Scopes": "repo, read:org"}), DENIED, []),
        (Answer(WRITER, headers={"X-OAuth-Scopes": "read:org"}), DENIED, ["the scope repo"]),
        (Answer(WRITER), Answer({"message": "Validation Failed"}, 422), []),
        (
            Answer(example("GET", R)),
            DENIED,
            [
                "write access of its user to the repository",
                "the permission contents: write",
                "the permission pull_requests: write",
                "the permission statuses: write",
                "the permission checks: read",
            ],
        ),
    ],
    ids=["classic", "classic without a scope", "fine-grained", "fine-grained that may read"],
)
def test_what_a_token_lacks_is_said(
    github: Stub, host: GitHost, repository: Answer, probe: Answer, lacking: list[str]
) -> None:
    github.on("GET", R, repository)
    for method, path in (
        ("POST", "git/refs"),
        ("POST", "pulls"),
        ("POST", f"statuses/{'0' * 40}"),
        ("GET", "commits/HEAD/check-runs"),
    ):
        github.on(method, f"{R}/{path}", probe)
    assert host.rights() == lacking
