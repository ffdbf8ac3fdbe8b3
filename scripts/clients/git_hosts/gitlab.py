"""GitLab, also below a path and with subgroups."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pipeline.core.errors import HostRefuses
from scripts.clients.git_hosts.base import CONTEXT, Busy, Checks, GitHost, PullRequest, State, moment

WORDS = {"failure": "failed", "error": "failed", "cancelled": "canceled"}  # where they differ from ours
GOOD = ("success", "skipped")
DEVELOPER = 30  # the role that may push and open merge requests


class GitLab(GitHost):
    """A repository on GitLab, which calls it a project, and a pull request a merge request."""

    @property
    def _root(self) -> str:
        return f"/projects/{quote(self._repository, safe='')}"

    def _headers(self) -> dict[str, str]:
        return {"PRIVATE-TOKEN": self._token}

    def pull_requests(self, head: str, base: str) -> list[PullRequest]:
        """Return the newest hundred."""
        query = {"source_branch": head, "target_branch": base, "order_by": "created_at", "sort": "desc"}
        found = self._get("merge_requests", **query, state="all", per_page="100")
        return [self._read(each) for each in found if each["source_project_id"] == each["target_project_id"]]

    def pull_request(self, number: int) -> PullRequest:
        return self._read(self._get(f"merge_requests/{number}"))

    def _read(self, found: Mapping[str, Any]) -> PullRequest:
        # A merge request is locked while it is merged.
        state = State(found["state"]) if found["state"] in ("closed", "merged") else State.OPEN
        # Without a commit of the merge, the branch was moved forward to the merge request's own.
        merged = next(filter(None, (found.get(f"{key}sha") for key in ("merge_commit_", "squash_commit_", ""))), "")
        return PullRequest(
            number=found["iid"],
            url=found["web_url"],
            title=found["title"],
            body=found.get("description") or "",
            state=state,
            head=found["source_branch"],
            head_commit=found.get("sha") or "",
            base=found["target_branch"],
            merge_commit=merged if state is State.MERGED else "",
        )

    def _open(self, head: str, base: str, title: str, body: str) -> PullRequest:
        sent = {"source_branch": head, "target_branch": base, "title": title, "description": body}
        return self._read(self._parsed(self._change("POST", "merge_requests", sent)))

    def _edit(self, number: int, title: str, body: str) -> None:
        self._change("PUT", f"merge_requests/{number}", {"title": title, "description": body})

    def _close(self, number: int) -> None:
        self._change("PUT", f"merge_requests/{number}", {"state_event": "close"})

    def _comments(self, number: int) -> Iterator[str]:
        return (each["body"] for each in self._pages(f"merge_requests/{number}/notes", per_page="100"))

    def _comment(self, number: int, text: str) -> None:
        self._change("POST", f"merge_requests/{number}/notes", {"body": text})

    def _merge(self, number: int, head_commit: str, title: str) -> None:
        self._change("PUT", f"merge_requests/{number}/merge", {"sha": head_commit, "merge_commit_message": title})

    def _set_status(self, commit: str, state: str, more: Mapping[str, str]) -> None:
        try:
            self._change("POST", f"statuses/{commit}", {"state": WORDS.get(state, str(state)), "name": CONTEXT, **more})
        except HostRefuses as error:
            if error.status == 409:  # while another status of the commit is set
                raise Busy(str(error), error.status) from None
            # It refuses to set the state that a commit has.
            if error.status != 400 or "Cannot transition status" not in str(error):
                raise

    def checks(self, commit: str) -> Checks:
        # Those of pipelines' jobs are among them; the last of each name is listed.
        found = self._pages(f"repository/commits/{commit}/statuses", per_page="100")
        said = [each["status"] for each in found if not each.get("allow_failure")]
        if any(each in ("failed", "canceled", "canceling") for each in said):
            return Checks.FAILURE
        return Checks.PENDING if any(each not in GOOD for each in said) else Checks.SUCCESS if said else Checks.NONE

    def record(self, number: int) -> dict[str, Any]:
        found = self._get(f"merge_requests/{number}")
        approvals = self._get(f"merge_requests/{number}/approvals")
        return {
            "number": number,
            "url": found["web_url"],
            "title": found["title"],
            "merged_at": found.get("merged_at"),
            # The second is the name of older versions.
            "merged_by": (found.get("merge_user") or found.get("merged_by") or {}).get("username"),
            "approved_by": [each["user"]["username"] for each in approvals.get("approved_by") or ()],
        }

    def compare_url(self, old: str, new: str) -> str:
        return f"{self._page}/-/compare/{old}...{new}"

    def commit_url(self, commit: str) -> str:
        return f"{self._page}/-/commit/{commit}"

    def rights(self) -> list[str]:
        lacking = [] if "api" in self._token_itself().get("scopes", ()) else ["the scope api"]
        permissions = self._get("").get("permissions") or {}
        roles = [(each or {}).get("access_level", 0) for each in permissions.values()]
        return lacking + ([] if max(roles, default=0) >= DEVELOPER else ["the role Developer in the project"])

    def expires(self) -> datetime | None:
        return moment(self._token_itself().get("expires_at"))

    def _token_itself(self) -> dict[str, Any]:
        found: dict[str, Any] = self._parsed(self._answer("/personal_access_tokens/self"))
        return found
