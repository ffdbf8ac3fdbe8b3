"""What all Git hosts have in common: how they are asked, and how an effect is brought about once."""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from pipeline.checkout import page
from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.core.texts import one_line
from pipeline.core.trusted_ca import REMEDY
from scripts.clients.pipeline_server import said
from scripts.git import is_full_hash

CONTEXT = "jukebox/continuous-training"  # the name of our status of a commit
# In characters; each is accepted by all hosts.
DESCRIPTION_LIMIT, TITLE_LIMIT, BODY_LIMIT = 140, 200, 60_000
TIMEOUT = (5, 60)  # seconds to connect and to answer
ATTEMPTS = 4
LONGEST_WAIT = 60  # seconds, if the host says when to ask again
BUSY = (429, 500, 502, 503, 504)
MOVED = (301, 302, 303, 307, 308)
AGAIN = re.compile(r"try (again later|the merge again)", re.IGNORECASE)

Found = TypeVar("Found")


class Host(StrEnum):
    """The program that serves the repository."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"


class State(StrEnum):
    """The state of a pull request."""

    OPEN = "open"
    CLOSED = "closed"  # without a merge
    MERGED = "merged"


class Checks(StrEnum):
    """What all statuses and checks of a commit say together."""

    NONE = "none"  # nothing was reported
    PENDING = "pending"
    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True)
class PullRequest:
    """A pull request, which GitLab calls a merge request.

    Attributes:
        head: the branch that is to be merged, ``head_commit`` its newest commit.
        base: the branch to merge into.
        merge_commit: the commit of the base that has it; empty if it is not merged.
    """

    number: int
    url: str
    title: str
    body: str
    state: State
    head: str
    head_commit: str
    base: str
    merge_commit: str


class Busy(HostRefuses):
    """The host is unavailable or busy, and may answer in ``after`` seconds."""

    def __init__(self, message: str, status: int = 0, after: float = 0) -> None:
        super().__init__(message, status)
        self.after = after


def find_api(kind: Host, repository: str, api: str = "") -> tuple[str, str]:
    """Return the address of a host's API, and the path of the repository on the host.

    ``repository`` is its web or clone address over https, ``api`` the address of the API if it does not follow from
    that. Raises SettingsInvalid if the repository's address is invalid.
    """
    where = urlsplit(page(repository))
    if where.scheme not in ("https", "http") or not where.hostname or "/" not in where.path.strip("/"):
        raise SettingsInvalid("the repository is not a valid address: expected https://host/organisation/name")
    base = f"{where.scheme}://{where.hostname}{f':{where.port}' if where.port else ''}"
    api = (
        api.rstrip("/")
        or {
            Host.GITHUB: f"{where.scheme}://api.{where.hostname}" if _in_cloud(where.hostname) else f"{base}/api/v3",
            Host.GITLAB: f"{base}/api/v4",
            Host.GITEA: f"{base}/api/v1",
        }[kind]
    )
    # Of a host below a path, the addresses of its pages begin as that of its API.
    below = urlsplit(re.sub(r"/api/v\d+$", "", api)).path.strip("/") if urlsplit(api).netloc == where.netloc else ""
    path = where.path.strip("/")
    return api, path.removeprefix(f"{below}/") if below else path


def _in_cloud(hostname: str) -> bool:
    return hostname == "github.com" or hostname.endswith(".ghe.com")


class GitHost(ABC):
    """A repository on its Git host.

    All methods raise HostRefuses, in one line, if the host refuses a request or does not answer. Each effect can be
    asked for again: what is there already is not done twice, also if the host's answer was lost.
    """

    def __init__(self, api: str, repository: str, page_url: str, token: str) -> None:
        self._api, self._repository, self._page, self._token = api, repository, page(page_url), token

    # What a host must know.

    @property
    @abstractmethod
    def _root(self) -> str:
        """The path of the repository in the API."""

    @abstractmethod
    def _headers(self) -> dict[str, str]:
        """The headers that let us in."""

    @abstractmethod
    def pull_requests(self, head: str, base: str) -> list[PullRequest]:
        """Return the pull requests of a branch of this repository, newest first: open, closed and merged ones."""

    @abstractmethod
    def pull_request(self, number: int) -> PullRequest:
        """Return a pull request by its number."""

    @abstractmethod
    def _open(self, head: str, base: str, title: str, body: str) -> PullRequest: ...

    @abstractmethod
    def _edit(self, number: int, title: str, body: str) -> None: ...

    @abstractmethod
    def _close(self, number: int) -> None: ...

    @abstractmethod
    def _comments(self, number: int) -> Iterator[str]: ...

    @abstractmethod
    def _comment(self, number: int, text: str) -> None: ...

    @abstractmethod
    def _merge(self, number: int, head_commit: str, title: str) -> None: ...

    @abstractmethod
    def _set_status(self, commit: str, state: str, more: Mapping[str, str]) -> None: ...

    @abstractmethod
    def checks(self, commit: str) -> Checks:
        """Return what the statuses and checks of a commit say. The host itself knows which of them it requires."""

    @abstractmethod
    def record(self, number: int) -> dict[str, Any]:
        """Return who merged a pull request and when: number, url, title, merged_at, merged_by, approved_by."""

    @abstractmethod
    def compare_url(self, old: str, new: str) -> str:
        """Return the address of the page with the difference between two commits."""

    @abstractmethod
    def commit_url(self, commit: str) -> str:
        """Return the address of a commit's page."""

    @abstractmethod
    def rights(self) -> list[str]:
        """Return what the token lacks, each in words; empty if it lacks nothing. Nothing is changed."""

    @abstractmethod
    def expires(self) -> datetime | None:
        """Return when the token expires; None if it does not, or the host does not say it."""

    # What is the same on all of them.

    def open_pull_request(self, head: str, base: str, title: str, body: str) -> PullRequest:
        """Open a pull request, or return the open one of these branches, whatever its title and body are."""

        def open_ones() -> list[PullRequest]:
            found = (each for each in self.pull_requests(head, base) if each.state is State.OPEN)
            return sorted(found, key=lambda each: each.number)

        def look() -> PullRequest | None:
            return next(iter(open_ones()), None)

        def act() -> PullRequest:
            opened = self._open(head, base, _title(title), _body(body))
            # Of two who ask at once, Gitea lets both open one. All of them agree on the first.
            first, *others = open_ones() or [opened]
            for each in others:
                self.close(each.number)
            return first

        return _bring_about(look, act)

    def edit(self, number: int, *, title: str | None = None, body: str | None = None) -> None:
        """Give a pull request this title and this body; nothing is sent if it has them."""
        there = self.pull_request(number)
        new_title = there.title if title is None else _title(title)
        new_body = there.body if body is None else _body(body)

        def look() -> bool | None:
            found = self.pull_request(number)
            return (found.title == new_title and _same(found.body, new_body)) or None

        _bring_about(look, lambda: self._edit(number, new_title, new_body) or True)

    def comment(self, number: int, text: str) -> None:
        """Comment on a pull request, unless it has a comment with this text."""
        text = _body(text)

        def look() -> bool | None:
            return any(_same(each, text) for each in self._comments(number)) or None

        _bring_about(look, lambda: self._comment(number, text) or True)

    def close(self, number: int) -> None:
        """Close a pull request without a merge; nothing happens if it is closed or merged."""

        def look() -> bool | None:
            return self.pull_request(number).state is not State.OPEN or None

        _bring_about(look, lambda: self._close(number) or True)

    def merge(self, number: int, head_commit: str, title: str) -> None:
        """Merge a pull request if ``head_commit`` is the newest commit of its branch; ``title`` is the commit's.

        Nothing happens if it is merged. Raises HostRefuses with the host's words if it cannot be merged.
        """

        def look() -> bool | None:
            found = self.pull_request(number)
            if found.state is State.CLOSED:
                raise HostRefuses(f"{found.url} cannot be merged: it was closed. Propose the version again")
            if found.state is State.OPEN and found.head_commit != head_commit:
                raise HostRefuses(
                    f"{found.url} cannot be merged: its branch has the commit {found.head_commit[:12]} now, expected "
                    f"{head_commit[:12]}. Check the new one"
                )
            return found.state is State.MERGED or None

        def act() -> bool:
            try:
                self._merge(number, head_commit, _title(title))
            except HostRefuses as error:
                # The host still looks whether it can be merged.
                if error.status == 405 and AGAIN.search(str(error)):
                    raise Busy(str(error), error.status) from None
                raise
            return True

        _bring_about(look, act)

    def set_status(self, commit: str, state: str, description: str = "", target_url: str = "") -> None:
        """Set our status of a commit: ``state`` is pending, success, failure, error or cancelled.

        The description becomes one line of at most 140 characters. Raises SettingsInvalid if the commit is not a full
        hash.
        """
        if not is_full_hash(commit):
            raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
        # Of a digest its first characters are enough to know it by.
        line = re.sub(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}", r"\1", one_line(description))
        more = {"description": _cut(line, DESCRIPTION_LIMIT)} | ({"target_url": target_url} if target_url else {})
        # A status that is set twice is the same status.
        _retrying()(self._set_status, commit, state, more)

    # How a host is asked.

    def _get(self, path: str, **query: str) -> Any:
        """Return the JSON of a path of the repository."""
        return self._parsed(self._answer(path, query))

    def _answer(self, path: str, query: Mapping[str, str] | None = None) -> requests.Response:
        """The answer to a GET of a path of the repository, or of the API if it begins with a slash."""
        try:
            return _retrying()(self._send, "GET", self._path(path), query)
        except Busy as error:  # who asks after an effect has attempts of its own
            raise HostRefuses(str(error), error.status) from None

    def _pages(self, path: str, key: str = "", **query: str) -> Iterator[Any]:
        """Yield the entries of a list, which may be below a key of an object, page after page."""
        number = 1
        while True:
            answer = self._answer(path, {**query, "page": str(number)})
            found = self._parsed(answer)
            yield from found[key] if key else found
            if "next" not in answer.links:
                return
            number += 1

    def _change(self, method: str, path: str, body: Mapping[str, Any]) -> requests.Response:
        """Send a request that has an effect, once."""
        return self._send(method, self._path(path), body=body)

    def _path(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._root}/{path}".rstrip("/")

    def _send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> requests.Response:
        request = f"{method} {self._api}{path}"
        try:
            answer = requests.request(
                method,
                f"{self._api}{path}",
                params=query,
                json=body,
                auth=self._let_in,
                timeout=TIMEOUT,
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise HostRefuses(f"{request}: the certificate is not trusted: {said(error)}; {REMEDY}") from None
        except OSError as error:
            raise Busy(f"{request}: the host does not answer: {one_line(said(error))}. Check its address") from None
        if answer.status_code < 300:
            return answer
        raise self._refusal(request, answer)

    def _let_in(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        # As a function, since requests would replace a header by what a file .netrc has for this host.
        request.headers.update(self._headers())
        return request

    def _refusal(self, request: str, answer: requests.Response) -> HostRefuses:
        code = answer.status_code
        words = one_line(_words(answer))
        if self._token:  # a public repository needs none to be read
            words = words.replace(self._token, "…")
        words = words[:300]
        what = f"{request} answers {code}" + (f": {words}" if words else "")
        if code in MOVED or (code == 405 and "moved project" in words):
            target = urlsplit(answer.headers.get("Location", ""))
            # Without the query, which may contain secrets.
            elsewhere = f" It redirects to {target._replace(query='', fragment='').geturl()}." if target.path else ""
            return HostRefuses(
                f"{what}.{elsewhere} If the repository was renamed or moved, set repository in the settings to its new "
                "address, and store the token again with `jukebox secrets --git-token-file FILE`",
                code,
            )
        after = _seconds(answer)
        if code in BUSY or after is not None:
            if (after or 0) > LONGEST_WAIT:
                return HostRefuses(f"{what}. It asks to wait {after:.0f} s: run this again then", code)
            return Busy(f"{what}. The host is busy or out of order: run this again later", code, after or 0)
        return HostRefuses(f"{what}. {self._advice(answer)}", code)

    def _advice(self, answer: requests.Response) -> str:
        """What to do if a request is refused."""
        if answer.status_code == 401:
            return "The token is wrong or has expired: store a new one with `jukebox secrets --git-token-file FILE`"
        if answer.status_code in (403, 404):
            return "Check the repository's address, and the token's rights with `jukebox doctor`"
        return "Check what the host says"

    def _parsed(self, answer: requests.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            kind = answer.headers.get("Content-Type", "none")
            raise HostRefuses(
                f"GET {urlsplit(answer.url)._replace(query='').geturl()} answers {answer.status_code} without JSON "
                f"(content type: {kind}). Set git-api in the settings to the address of the host's API",
                answer.status_code,
            ) from None


def _bring_about(look: Callable[[], Found | None], act: Callable[[], Found]) -> Found:
    """Return what ``look`` finds, or what ``act`` returns if there is nothing.

    An error does not tell whether a request had its effect. So after one, look again; act again only if the host was
    busy and the effect is not there.
    """

    def once() -> Found:
        try:
            return act()
        except HostRefuses:
            if (found := look()) is not None:
                return found
            raise

    found = look()
    return _retrying()(once) if found is None else found


def _retrying() -> Retrying:
    return Retrying(stop=stop_after_attempt(ATTEMPTS), wait=_wait, retry=retry_if_exception_type(Busy), reraise=True)


def _wait(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the host asks for, or more and more."""
    error = state.outcome.exception() if state.outcome else None
    after = error.after if isinstance(error, Busy) else 0
    return after or wait_exponential_jitter(initial=1, max=10)(state)


def _seconds(answer: requests.Response) -> float | None:
    """In how many seconds the host wants to be asked again; None if it does not say so."""
    after = answer.headers.get("Retry-After", "")
    if after.isdecimal():
        return int(after)
    reset = answer.headers.get("X-RateLimit-Reset", "")
    if answer.status_code in (403, 429) and answer.headers.get("X-RateLimit-Remaining") == "0" and reset.isdecimal():
        return max(int(reset) - time.time(), 0)
    return None


def _words(answer: requests.Response) -> str:
    """What a host says of an error, whatever its form: text, a list or an object; nothing if it is a page."""
    try:
        found = answer.json()
    except ValueError:
        return "" if "html" in answer.headers.get("Content-Type", "") else answer.text
    if not isinstance(found, dict):
        return str(found)
    parts = [found.get(key) for key in ("message", "error", "error_description", "errors")]
    return "; ".join(each if isinstance(each, str) else to_line(each) for each in parts if each)


def to_line(value: Any) -> str:
    """The texts in a list or an object of any depth, with commas."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {to_line(each)}" for key, each in value.items())
    return ", ".join(map(to_line, value)) if isinstance(value, list) else str(value)


def moment(text: str | None) -> datetime | None:
    """Read a time as the hosts write it, as 2026-12-24 or 2026-12-24 09:40:00 +0100; None if it is not one."""
    try:
        found = datetime.fromisoformat((text or "").replace(" ", "T", 1).replace(" ", "").replace("UTC", "+00:00"))
    except ValueError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _same(one: str, other: str) -> bool:
    """Tell whether two texts are the same to a host, some of which change the ends of lines."""
    return one.replace("\r\n", "\n").strip() == other.replace("\r\n", "\n").strip()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _title(text: str) -> str:
    return _cut(one_line(text), TITLE_LIMIT)


def _body(text: str) -> str:
    return _cut(text, BODY_LIMIT)
