"""Gitea and Forgejo."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from scripts.clients.git_hosts.base import Checks, PullRequest
from scripts.clients.git_hosts.github import GitHub

SOME = 250  # closed pull requests of the base among which those of a branch are looked for


class Gitea(GitHub):
    """A repository on Gitea. Its API follows GitHub's; this is what differs."""

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self._token}"}

    def pull_requests(self, head: str, base: str) -> list[PullRequest]:
        """Return the open ones, and the closed ones that are among the newest 250 of the base."""
        # It cannot be asked for those of one branch.
        found = [
            self._read(each)
            for state, count in (("open", None), ("closed", SOME))
            for each in islice(self._pages("pulls", state=state, base_branch=base, limit="50"), count)
        ]
        ours = {each.number: each for each in found if (each.head, each.base) == (head, base)}
        return sorted(ours.values(), key=lambda each: each.number, reverse=True)

    def _branch(self, head: Mapping[str, Any]) -> str:
        # If the branch is deleted, ref becomes that of the pull request, and the label stays.
        return super()._branch({**head, "ref": head.get("label") or head["ref"]})

    def _merge(self, number: int, head_commit: str, title: str) -> None:
        style = self._get("").get("default_merge_style") or "merge"
        # The names of older versions, which newer ones know as well.
        sent = {"Do": style, "MergeTitleField": title, "head_commit_id": head_commit}
        self._change("POST", f"pulls/{number}/merge", sent)

    def checks(self, commit: str) -> Checks:
        found = self._get(f"commits/{commit}/status")
        if not found["total_count"]:
            return Checks.NONE
        state = found["state"]
        return Checks.SUCCESS if state == "skipped" else Checks(state) if state in list(Checks) else Checks.FAILURE

    def rights(self) -> list[str]:
        permissions = self._get("").get("permissions") or {}
        lacking = [] if permissions.get("push") else ["write access of its user to the repository"]
        # A token does not say what it may. These are of nothing, and refused earlier if a scope is missing.
        for scope, path in (("write:repository", "pulls/0"), ("write:issue", "issues/comments/0")):
            if self._status("PATCH", path, {"body": "-"}) == 403:
                lacking.append(f"the scope {scope}")
        return lacking
