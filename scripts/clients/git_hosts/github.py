"""GitHub: github.com, ghe.com and Enterprise Server."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pipeline.core.errors import HostRefuses
from scripts.clients.git_hosts.base import CONTEXT, Checks, GitHost, PullRequest, State, moment

NOTHING = "0" * 40  # the hash of no commit
GOOD = ("success", "neutral", "skipped")  # the conclusions of a check that let a merge pass
# The states of a review that are more than a comment; the last is Gitea's word.
VERDICTS = ("APPROVED", "DISMISSED", "CHANGES_REQUESTED", "REQUEST_CHANGES")


class GitHub(GitHost):
    """A repository on GitHub."""

    @property
    def _root(self) -> str:
        return f"/repos/{quote(self._repository)}"

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }

    def pull_requests(self, head: str, base: str) -> list[PullRequest]:
        """Return the newest hundred."""
        owner = self._repository.partition("/")[0]
        # Without an owner, the branch is ignored.
        query = {"state": "all", "head": f"{owner}:{head}", "base": base, "sort": "created", "direction": "desc"}
        found = map(self._read, self._get("pulls", **query, per_page="100"))
        return [each for each in found if (each.head, each.base) == (head, base)]

    def pull_request(self, number: int) -> PullRequest:
        return self._read(self._get(f"pulls/{number}"))

    def _read(self, found: Mapping[str, Any]) -> PullRequest:
        merged = bool(found.get("merged_at"))
        return PullRequest(
            number=found["number"],
            url=found["html_url"],
            title=found["title"],
            body=found.get("body") or "",
            state=State.MERGED if merged else State(found["state"]),
            head=self._branch(found["head"]),
            head_commit=found["head"]["sha"],
            base=found["base"]["ref"],
            # Of an open one, GitHub shows a commit that was made to try the merge.
            merge_commit=(found.get("merge_commit_sha") or "") if merged else "",
        )

    def _branch(self, head: Mapping[str, Any]) -> str:
        """The branch of a pull request; empty if it is in another repository, or that is deleted."""
        there = (head.get("repo") or {}).get("full_name", "")
        return str(head["ref"]) if there.lower() == self._repository.lower() else ""

    def _open(self, head: str, base: str, title: str, body: str) -> PullRequest:
        sent = {"head": head, "base": base, "title": title, "body": body}
        return self._read(self._parsed(self._change("POST", "pulls", sent)))

    def _edit(self, number: int, title: str, body: str) -> None:
        self._change("PATCH", f"pulls/{number}", {"title": title, "body": body})

    def _close(self, number: int) -> None:
        self._change("PATCH", f"pulls/{number}", {"state": "closed"})

    def _comments(self, number: int) -> Iterator[str]:
        return (each.get("body") or "" for each in self._pages(f"issues/{number}/comments", per_page="100"))

    def _comment(self, number: int, text: str) -> None:
        self._change("POST", f"issues/{number}/comments", {"body": text})

    def _merge(self, number: int, head_commit: str, title: str) -> None:
        allowed = self._get("")
        # One commit, as it is one change; a host that does not say what it allows, allows that.
        methods = {"squash": "allow_squash_merge", "merge": "allow_merge_commit", "rebase": "allow_rebase_merge"}
        method = next((each for each, key in methods.items() if allowed.get(key, True)), "squash")
        sent = {"sha": head_commit, "merge_method": method, "commit_title": title}
        self._change("PUT", f"pulls/{number}/merge", sent)

    def _set_status(self, commit: str, state: str, more: Mapping[str, str]) -> None:
        # It knows nothing that is cancelled.
        word = "error" if state == "cancelled" else str(state)
        self._change("POST", f"statuses/{commit}", {"state": word, "context": CONTEXT, **more})

    def checks(self, commit: str) -> Checks:
        """Return what the statuses and the check runs say, which are two worlds."""
        status = self._get(f"commits/{commit}/status")
        said = [status["state"]] if status["total_count"] else []
        runs = self._pages(f"commits/{commit}/check-runs", "check_runs", filter="latest", per_page="100")
        said += [each["conclusion"] if each["status"] == "completed" else "pending" for each in runs]
        if any(each not in (*GOOD, "pending") for each in said):
            return Checks.FAILURE
        return Checks.PENDING if "pending" in said else Checks.SUCCESS if said else Checks.NONE

    def record(self, number: int) -> dict[str, Any]:
        found = self._get(f"pulls/{number}")
        # The last word of each reviewer counts.
        approves = {
            each["user"]["login"]: each["state"] == "APPROVED" and not each.get("dismissed")
            for each in self._pages(f"pulls/{number}/reviews", per_page="100")
            if each.get("user") and each["state"] in VERDICTS
        }
        return {
            "number": number,
            "url": found["html_url"],
            "title": found["title"],
            "merged_at": found.get("merged_at"),
            "merged_by": (found.get("merged_by") or {}).get("login"),
            "approved_by": [who for who, yes in approves.items() if yes],
        }

    def compare_url(self, old: str, new: str) -> str:
        return f"{self._page}/compare/{old}...{new}"

    def commit_url(self, commit: str) -> str:
        return f"{self._page}/commit/{commit}"

    def rights(self) -> list[str]:
        answer = self._answer("")
        scopes = answer.headers.get("X-OAuth-Scopes")
        lacking = []
        if not (self._parsed(answer).get("permissions") or {}).get("push", True):
            lacking.append("write access of its user to the repository")
        if scopes:  # a classic token says what it has
            known = {each.strip() for each in scopes.split(",")}
            return lacking + ([] if known & {"repo", "public_repo"} else ["the scope repo"])
        # Others say it only of a request. These are refused for what they ask, and earlier if a right is missing.
        branch = {"ref": "refs/heads/jukebox-has-the-right", "sha": NOTHING}
        pull = {"title": "-", "head": "jukebox-has-no-such-branch", "base": self._repository}
        for right, path, body in (
            ("contents", "git/refs", branch),
            ("pull_requests", "pulls", pull),
            ("statuses", f"statuses/{NOTHING}", {"state": "success", "context": CONTEXT}),
        ):
            if self._status("POST", path, body) in (403, 404):
                lacking.append(f"the permission {right}: write")
        if self._status("GET", "commits/HEAD/check-runs") == 403:
            lacking.append("the permission checks: read")
        return lacking

    def _status(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> int:
        """The status with which a request that cannot have an effect is refused; 200 if it is not."""
        try:
            self._send(method, self._path(path), body=body)
        except HostRefuses as error:
            if error.status in (0, 401, 429):
                raise
            return error.status
        return 200

    def expires(self) -> datetime | None:
        return moment(self._answer("").headers.get("GitHub-Authentication-Token-Expiration"))
