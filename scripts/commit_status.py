"""``jukebox commit-status``: show beside a commit, on its Git host, what became of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import requests
import typer
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from pipeline.checkout import page
from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.core.texts import one_line
from pipeline.core.trusted_ca import REMEDY
from pipeline.settings import read_settings
from scripts.clients.pipeline_server import TIMEOUT
from scripts.git import GitSecret, is_full_hash, token_file
from scripts.outcome import Last, PipelineRun, Served, State, SupersededBy, Tests, link, look_up, outcome

CONTEXT = "jukebox/continuous-training"
DESCRIPTION_LIMIT = 140  # characters; GitHub refuses longer ones


class Host(StrEnum):
    """What serves the repository."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"


# The hosts' words where they differ from ours; GitHub and Gitea know nothing that is cancelled.
GITLAB_WORDS = {State.FAILURE: "failed", State.ERROR: "failed", State.CANCELLED: "canceled"}
OTHER_WORDS = {State.CANCELLED: "error"}


class _Passing(HostRefuses):
    """The host is unavailable or busy."""


@dataclass(frozen=True)
class Request:
    """What the host is sent: an address, headers with the token, and JSON."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def command(
    commit: Annotated[str, typer.Argument(help="Full hash of the commit.")],
    state: Annotated[State, typer.Argument(help="The new state; Tekton's statuses are accepted too.")],
    git_secret: GitSecret = None,
    last: Last = State.SUCCESS,
    tests: Tests = State.SUCCESS,
    served: Served = State.SUCCESS,
    superseded_by: SupersededBy = "",
    description: Annotated[str, typer.Option(help="One line to show next to the state.")] = "",
    pipeline_run: PipelineRun = "",
) -> None:
    """Set the status of a commit on the Git host. Without a token, it only prints a message.

    The status includes the cause if the run failed, a link to the run's page if the settings have one, and whether the
    CI image is stale. The settings name the repository, its Git host and the page.

    Example: `jukebox commit-status 0a1b… success --git-secret secret --description "Published 7"`
    """
    settings = read_settings()
    file = token_file(git_secret, settings.repository)
    if not file:
        print(f"The commit status was not set: {git_secret} contains no token")
        return
    word, phrase = outcome(state, last, superseded_by, tests, served)
    told = look_up(pipeline_run, settings)
    what = f"{description} {phrase}".strip()
    # The cause comes first: there is room for little.
    why = told.why if word in (State.FAILURE, State.ERROR) else ""
    request = build_request(
        Host(settings.git_host),
        settings.repository,
        commit,
        word,
        token=read_secret(file),
        description=(f"{why} ({what})" if why else what) + told.notice,
        target_url=link(settings.run_page, pipeline_run, told),
    )
    retrying = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential_jitter(multiplier=1, max=10),
        retry=retry_if_exception_type(_Passing),
        reraise=True,
    )
    retrying(_send, request)
    print(f"{CONTEXT} of {commit[:12]} is {word}: {phrase}")


def read_secret(file: Path) -> str:
    """The one line in a file, or nothing if it is missing: a Secret may be optional."""
    return file.read_text().strip() if file.is_file() else ""


def build_request(
    host: Host, repository: str, commit: str, state: State, *, token: str, description: str = "", target_url: str = ""
) -> Request:
    """Return the request that sets a commit's status to a state that is in none of Tekton's words.

    Raises SettingsInvalid where repository or commit is none.
    """
    if not is_full_hash(commit):
        raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
    url, headers = find_api(host, repository, token)
    words, key = (GITLAB_WORDS, "name") if host is Host.GITLAB else (OTHER_WORDS, "context")
    body = {"state": words.get(state, state), key: CONTEXT, "description": _cut(description)}
    return Request(f"{url}/statuses/{commit}", headers, body | ({"target_url": target_url} if target_url else {}))


def find_api(host: Host, repository: str, token: str) -> tuple[str, dict[str, str]]:
    """Return the address of a repository in the API of its host, and the headers that let us in.

    ``repository`` is its web or clone address over https. Raises SettingsInvalid if it is invalid.
    """
    where = urlsplit(page(repository))
    path = where.path.strip("/")
    if where.scheme not in ("https", "http") or not where.hostname or "/" not in path:
        raise SettingsInvalid("the repository is not a valid address: expected https://host/organisation/name")
    base = f"{where.scheme}://{where.hostname}{f':{where.port}' if where.port else ''}"
    if host is Host.GITLAB:
        return f"{base}/api/v4/projects/{quote(path, safe='')}", {"PRIVATE-TOKEN": token}
    if host is Host.GITEA:
        return f"{base}/api/v1/repos/{quote(path)}", {"Authorization": f"token {token}"}
    api = "https://api.github.com" if where.hostname == "github.com" else f"{base}/api/v3"
    return f"{api}/repos/{quote(path)}", {"Authorization": f"Bearer {token}"}


def _send(request: Request) -> None:
    try:
        answer = requests.post(
            request.url, json=request.body, headers=request.headers, timeout=TIMEOUT, allow_redirects=False
        )
    except requests.exceptions.SSLError as error:
        raise HostRefuses(f"{request.url}: the certificate is not trusted: {error}; {REMEDY}") from None
    except OSError as error:
        raise _Passing(f"{request.url} does not answer: {type(error).__name__}") from None
    # GitLab refuses to set the state that a commit has.
    if answer.status_code < 300 or (answer.status_code == 400 and "Cannot transition status" in answer.text):
        return
    kind = _Passing if answer.status_code in (429, 500, 502, 503, 504) else HostRefuses
    raise kind(
        f"{request.url} answers {answer.status_code}: {answer.text[:300]}\n"
        "Check the repository's address, and that the token may set commit statuses there."
    )


def _cut(text: str) -> str:
    # Of a digest its first characters are enough to know it by.
    line = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1", one_line(text))
    return line if len(line) <= DESCRIPTION_LIMIT else line[: DESCRIPTION_LIMIT - 1] + "…"
