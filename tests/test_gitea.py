"""The Git host of the tests does what theirs rely on."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from tests.gitea import Gitea, Refused
from tests.http_server import Answer, serve_http


def git(gitea: Gitea, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **gitea.environment}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@retry(retry=retry_if_result(lambda pull: not pull["mergeable"]), stop=stop_after_delay(60), wait=wait_fixed(0.05))
def mergeable(gitea: Gitea, path: str) -> Any:
    """A pull request, once Gitea has found out that it can be merged."""
    return gitea.api("GET", path)


def test_a_pull_request_of_one_user_is_approved_by_another_and_merged(gitea: Gitea, tmp_path: Path) -> None:
    where = "repos/reviewed/jukebox"
    url = gitea.repository("reviewed/jukebox", private=True)
    bot, reviewer = gitea.user("reviewed-bot", "write:repository", "write:issue", "read:user"), gitea.user("reviewer")
    for user in (bot, reviewer):
        gitea.allow("reviewed/jukebox", user.name)
    git(gitea, tmp_path, "init", "--quiet", "--initial-branch=main")
    git(gitea, tmp_path, "commit", "--quiet", "--allow-empty", "--message=Begin")
    git(gitea, tmp_path, "push", "--quiet", url, "main")
    gitea.protect("reviewed/jukebox", approvals=1)
    (tmp_path / "pin").write_text("7")
    git(bot, tmp_path, "add", "pin")
    git(bot, tmp_path, "commit", "--quiet", "--message=Serve 7")
    commit = git(bot, tmp_path, "rev-parse", "HEAD")
    with pytest.raises(subprocess.CalledProcessError):
        git(bot, tmp_path, "push", "--quiet", url, "main")
    git(bot, tmp_path, "push", "--quiet", url, "main:promote")

    pull = bot.api("POST", f"{where}/pulls", {"head": "promote", "base": "main", "title": "Serve 7", "body": "Why"})
    path = f"{where}/pulls/{pull['number']}"
    merge = {"Do": "merge", "head_commit_id": commit}
    assert mergeable(bot, path)["head"]["sha"] == commit
    with pytest.raises(Refused, match="Does not have enough approvals"):
        bot.api("POST", f"{path}/merge", merge)
    reviewer.api("POST", f"{path}/reviews", {"event": "APPROVED", "commit_id": commit})
    bot.api("POST", f"{path}/merge", merge)

    assert bot.api("GET", path)["merged_by"]["login"] == bot.name
    git(bot, tmp_path, "fetch", "--quiet", url, "main")
    assert git(bot, tmp_path, "show", "FETCH_HEAD:pin") == "7"


def test_a_push_is_sent_to_the_webhook(gitea: Gitea, tmp_path: Path) -> None:
    url = gitea.repository("hooked/jukebox")
    git(gitea, tmp_path, "init", "--quiet", "--initial-branch=main")
    git(gitea, tmp_path, "commit", "--quiet", "--allow-empty", "--message=Begin")
    with serve_http() as server:
        gitea.webhook("hooked/jukebox", server.serve("/events", Answer(status=202)), "a-secret")
        git(gitea, tmp_path, "push", "--quiet", url, "main")

        @retry(stop=stop_after_delay(60), wait=wait_fixed(0.05), reraise=True)
        def delivered() -> dict[str, str]:
            [(_, headers)] = server.requests
            return headers

        headers = delivered()
    assert (headers["X-Gitea-Event"], headers["Content-Type"]) == ("push", "application/json")
    assert headers["X-Hub-Signature-256"].startswith("sha256=")
