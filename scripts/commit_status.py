"""``jukebox commit-status``: show beside a commit, on its Git host, what became of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import requests
import typer
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from pipeline.errors import JukeboxError, SettingsInvalid
from pipeline.server import TIMEOUT
from pipeline.settings import read_settings

CONTEXT = "jukebox/continuous-training"
DESCRIPTION_LIMIT = 140  # characters; GitHub refuses longer ones


class Host(StrEnum):
    """What serves the repository."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"


class State(StrEnum):
    """What became of the commit; the second line are Tekton's words for its tasks' status."""

    PENDING, SUCCESS, FAILURE, ERROR = "pending", "success", "failure", "error"
    SUCCEEDED, COMPLETED, FAILED, NONE = "Succeeded", "Completed", "Failed", "None"


# Tekton's words: Completed is a success with skipped tasks; with None the tasks ended in no way that it could tell.
WORDS = {"Succeeded": "success", "Completed": "success", "Failed": "failure", "None": "error"}
GITLAB_WORDS = {"failure": "failed", "error": "failed"}


class HostRefuses(JukeboxError):
    """The Git host does not take the status."""


class _Passing(HostRefuses):
    """The host is away or busy."""


@dataclass(frozen=True)
class Request:
    """What the host is sent: an address, headers with the token, and JSON."""

    url: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def command(
    commit: Annotated[str, typer.Argument(help="Full hash of the commit.")],
    state: Annotated[State, typer.Argument(help="Also in Tekton's words.")],
    host: Annotated[Host, typer.Option(help="What serves the repository.")],
    token_file: Annotated[Path, typer.Option(help="File with a token that may set a commit's status.")],
    description: Annotated[str, typer.Option(help="One line, shown beside the state.")] = "",
    target_url: Annotated[str, typer.Option(help="Where to look further.")] = "",
    repository: Annotated[str, typer.Option(help="Its web address; else the settings say.")] = "",
) -> None:
    """Set the commit's status; without a token there is nothing to set, which is said and no error.

    Example: `jukebox commit-status 0a1b… success --host github --token-file token --description "Published 7"`
    """
    token = read_secret(token_file)
    if not token:
        print(f"No commit status is set: {token_file} holds no token")
        return
    request = build_request(
        host,
        repository or read_settings().repository,
        commit,
        state,
        token=token,
        description=description,
        target_url=target_url,
    )
    retrying = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential_jitter(multiplier=1, max=10),
        retry=retry_if_exception_type(_Passing),
        reraise=True,
    )
    retrying(_send, request)
    print(f"{CONTEXT} of {commit[:12]} is {state}")


def read_secret(file: Path) -> str:
    """The one line in a file, or nothing where it is missing: a Secret may be optional."""
    return file.read_text().strip() if file.is_file() else ""


def build_request(
    host: Host, repository: str, commit: str, state: State, *, token: str, description: str = "", target_url: str = ""
) -> Request:
    """Return the request that sets a commit's status.

    ``repository`` is its web or clone address over https. Raises SettingsInvalid where that or the commit is none.
    """
    where = urlsplit(repository.removesuffix("/").removesuffix(".git"))
    path = where.path.strip("/")
    if where.scheme not in ("https", "http") or not where.hostname or "/" not in path:
        raise SettingsInvalid("the repository is no address as https://host/organisation/name")
    if not (len(commit) in (40, 64) and set(commit) <= set("0123456789abcdef")):
        raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
    base = f"{where.scheme}://{where.hostname}{f':{where.port}' if where.port else ''}"
    word = WORDS.get(state, str(state))
    body = {"description": _cut(description)} | ({"target_url": target_url} if target_url else {})
    if host is Host.GITLAB:
        url = f"{base}/api/v4/projects/{quote(path, safe='')}/statuses/{commit}"
        return Request(url, {"PRIVATE-TOKEN": token}, {"state": GITLAB_WORDS.get(word, word), "name": CONTEXT, **body})
    if host is Host.GITEA:
        api, scheme = f"{base}/api/v1", "token"
    else:
        scheme = "Bearer"
        api = "https://api.github.com" if where.hostname == "github.com" else f"{base}/api/v3"
    url = f"{api}/repos/{quote(path)}/statuses/{commit}"
    return Request(url, {"Authorization": f"{scheme} {token}"}, {"state": word, "context": CONTEXT, **body})


def _send(request: Request) -> None:
    try:
        answer = requests.post(
            request.url, json=request.body, headers=request.headers, timeout=TIMEOUT, allow_redirects=False
        )
    except requests.exceptions.SSLError as error:
        raise HostRefuses(f"{request.url}: its certificate is not trusted: {error}") from None
    except OSError as error:
        raise _Passing(f"{request.url} does not answer: {type(error).__name__}") from None
    # GitLab refuses to set the state that a commit has.
    if answer.ok or (answer.status_code == 400 and "Cannot transition status" in answer.text):
        return
    kind = _Passing if answer.status_code in (429, 500, 502, 503, 504) else HostRefuses
    raise kind(
        f"{request.url} answers {answer.status_code}: {answer.text[:300]}\n"
        "Check the repository's address, and that the token may set a commit's status there."
    )


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= DESCRIPTION_LIMIT else line[: DESCRIPTION_LIMIT - 1] + "…"
