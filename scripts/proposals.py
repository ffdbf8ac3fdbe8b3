"""Proposals: pull requests that pin another version for production, one for a promotion and one for a rollback.

A proposal is a branch with one commit, which changes exactly the pin, and the pull request of that branch. Each call
looks at what the Git host has, does what is missing, and looks again. So a second call, after an error or beside
another process, finds what the first one did. A proposal is what its branch pins; the marker in the pull request's body
repeats it, and stays when the branch is gone.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from pipeline.checkout import page
from pipeline.core.documents import to_json
from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.core.texts import one_line
from pipeline.settings import Settings
from scripts.clients.git_hosts import Checks, GitHost, PullRequest, State, connect
from scripts.git import Clone, Signing, git, token_file
from scripts.pins import PIN, Pin, history, pin_at, render
from scripts.promotion_body import text

ENVIRONMENT = "prod"
ATTEMPTS = 5  # to propose, if others change the same branch meanwhile
OPENING = 10.0  # seconds from the push of a branch to its pull request, at most
CHECKS_PATIENCE, CHECKS_POLL = 480.0, 10.0  # seconds; the task may take ten minutes
CHECKS_GRACE = 120.0  # seconds after which a commit without checks has none, and a refused merge stays refused
END = "<!-- end of promotion -->"
_MARKER = re.compile(
    r"<!-- promotion: model=(?P<model>[a-z0-9-]+) environment=(?P<environment>[a-z]+) version=(?P<version>[1-9][0-9]*) "
    r"sha256=(?P<sha256>[0-9a-f]{64}) run=(?P<run>[\w.-]*) -->"
)
_FACTS = "Facts: "


class Kind(StrEnum):
    """The kinds of proposals; their names begin the names of the branches."""

    PROMOTION = "promote"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Proposal:
    """What a proposal says: the title and the body of its pull request, its pin, and what its commit says.

    Attributes:
        run: the id of the run that made the version; empty if it is not known.
        summary: a line for the commit's message.
        facts: what decides between this proposal and another one; JSON in the commit's message.
    """

    pin: Pin
    title: str
    body: str
    summary: str
    run: str = ""
    facts: dict[str, Any] | None = None

    @property
    def marked(self) -> str:
        """The body between its markers."""
        return f"{marker(self.pin, self.run)}\n{self.body.strip()}\n{END}"

    @property
    def message(self) -> str:
        """The commit's message."""
        facts = f"\n\n{_FACTS}{to_json({'run': self.run, **self.facts})}" if self.facts else ""
        return f"{self.title}\n\n{one_line(self.summary)}{facts}\n"


@dataclass(frozen=True)
class Found:
    """What the Git host has of one kind: its pull requests, newest first, and what its branch pins, if there is one."""

    kind: Kind
    pulls: list[PullRequest]
    tip: str | None
    pin: Pin | None
    facts: dict[str, Any]

    @property
    def open(self) -> PullRequest | None:
        """The open pull request; the newest if there is more than one."""
        return next((pull for pull in self.pulls if pull.state is State.OPEN), None)

    def closed(self, pin: Pin) -> PullRequest | None:
        """The newest pull request that proposed this version and was closed without a merge."""
        return next((pull for pull in self.pulls if pull.state is State.CLOSED and proposed_in(pull.body) == pin), None)


@dataclass(frozen=True)
class Base:
    """The tip of the branch of the settings, and what it pins."""

    commit: str
    pin: Pin


class Proposals:
    """The proposals of one model in the repository of the settings; methods raise HostRefuses."""

    def __init__(self, settings: Settings, host: GitHost, clone: Clone, signing: Signing | None = None) -> None:
        self.settings = settings
        self.host = host
        self.clone = clone
        self._signing = signing

    def base(self) -> Base:
        """Look at the branch of the settings; raises SettingsInvalid if its pin is not valid, or of another model."""
        commit = self._fetched(self.settings.branch)
        if commit is None:
            raise HostRefuses(
                f"The repository has no branch {self.settings.branch}: correct `branch` in the settings, or push it"
            )
        pin = pin_at(self.clone, commit)
        if pin.model != self.settings.model_name:
            raise SettingsInvalid(
                f"{PIN} is for the model {pin.model}, expected {self.settings.model_name}, the model of the settings: "
                "correct the pin on the branch"
            )
        return Base(commit, pin)

    def pins(self) -> list[Pin]:
        """The pins of the model that the branch of the settings has had, newest first."""
        return [pin for pin in history(self.clone, self.settings.branch) if pin.model == self.settings.model_name]

    def find(self, kind: Kind) -> Found:
        """Look for proposals of a kind."""
        begun = time.monotonic()
        while True:
            # The branch is read first: a pull request that is opened after that is met when the branch is pushed.
            tip = self._fetched(branch_of(kind, self.settings))
            pulls = self.host.pull_requests(branch_of(kind, self.settings), self.settings.branch)
            # A branch without a pull request: another process has pushed it just now, or ended before it opened one.
            opening = tip and not any(pull.state is State.OPEN or pull.head_commit == tip for pull in pulls)
            if not opening or time.monotonic() - begun >= OPENING:
                break
            time.sleep(OPENING / 10)
        pin, facts = None, {}
        if tip:
            try:
                pin = pin_at(self.clone, tip)
                facts = _facts(_message(self.clone, tip))
            except SettingsInvalid:
                pass  # somebody has changed the branch by hand; it is made anew
        return Found(kind, pulls, tip, pin, facts)

    def propose(self, base: Base, found: Found, proposal: Proposal, comment: str = "") -> PullRequest | None:
        """Have exactly this proposed; return its pull request, or None if another process interfered: look again.

        What is there already is left as it is, with the text that people have added to it. ``comment`` tells those who
        follow an open pull request why its version is replaced.
        """
        branch, commit = branch_of(found.kind, self.settings), found.tip
        if commit is None or not self._is_whole(commit, base, proposal.pin):
            content = render(proposal.pin).encode()
            commit = self.clone.commit_file(base.commit, PIN, content, proposal.message, self._signing)
            if not self.clone.push(branch, commit, found.tip):
                return None
        first = found.open
        for other in found.pulls:
            if first and other.state is State.OPEN and other.number != first.number:
                self.close(other, f"{first.url} proposes the same branch.")
        if first is None:
            opened = self.host.open_pull_request(branch, self.settings.branch, proposal.title, proposal.marked)
            if self._is_outrun(found.kind, commit):
                return None
            # Another process may have been faster: then its words, or its version, stand there.
            return opened if proposed_in(opened.body) == without_hold(proposal.pin) else None
        same = proposed_in(first.body) == without_hold(proposal.pin)
        if comment and not same:
            self.host.comment(first.number, comment)
        body = with_marked(first.body, proposal.marked)
        # People may have changed it; if it is that of another version, two processes have written at once.
        title = first.title if same and _kind_of(first.title) != _kind_of(proposal.title) else proposal.title
        if title != first.title or body != _lines(first.body):
            self.host.edit(
                first.number,
                title=title if title != first.title else None,
                body=body if body != _lines(first.body) else None,
            )
            if self._is_outrun(found.kind, commit):
                return None
            now = self.host.pull_request(first.number)
            if now.title != title or proposed_in(now.body) != without_hold(proposal.pin):
                return None
        return replace(first, title=title, body=body, head_commit=commit)

    def close(self, pull: PullRequest, why: str) -> None:
        """Close a pull request with a comment that says why."""
        self.host.comment(pull.number, why)
        self.host.close(pull.number)

    def merge(self, pull: PullRequest, kind: Kind) -> str:
        """Merge a pull request if the settings allow it, after its checks have passed; say in a sentence what was done.

        Only the head that was checked is merged, and a host that refuses the merge, as its rules may ask for a review,
        leaves it to a person. A promotion is not merged beside an open rollback.
        """
        if self.settings.merge_promotions != "after-checks":
            return "A person merges it."
        begun = time.monotonic()
        while True:
            checks = self.host.checks(pull.head_commit)
            patience = CHECKS_PATIENCE if checks is Checks.PENDING else CHECKS_GRACE
            why = {
                Checks.NONE: "it has no checks, and merge-promotions merges only after checks",
                Checks.PENDING: f"its checks have not ended after {CHECKS_PATIENCE / 60:g} minutes",
                Checks.FAILURE: "a check failed",
                Checks.SUCCESS: "",
            }[checks]
            if checks is Checks.SUCCESS:
                if kind is Kind.PROMOTION and (why := self._held()):
                    return f"It is not merged: {why}."
                try:
                    self.host.merge(pull.number, pull.head_commit, pull.title)
                except HostRefuses as error:
                    why = one_line(str(error))  # perhaps because a required check has not begun
                else:
                    return "Its checks have passed, and it is merged."
            if checks is Checks.FAILURE or time.monotonic() - begun >= patience:
                return f"It is not merged: {why}. A person decides."
            time.sleep(CHECKS_POLL)

    def _held(self) -> str:
        """Why no promotion may be merged now; empty if one may."""
        if hold := self.base().pin.hold:
            return f"{self.settings.branch} holds promotions ({hold})"
        back = self.find(Kind.ROLLBACK).open
        return f"{back.url} proposes a rollback" if back else ""

    def _is_outrun(self, kind: Kind, commit: str) -> bool:
        """Whether the branch has another commit by now, of another process; then the pull request says what that pins.

        That process may have checked its words before those of this one replaced them.
        """
        if self.clone.tip(branch_of(kind, self.settings)) == commit:
            return False
        self._say_what_is_pinned(kind)
        return True

    def _say_what_is_pinned(self, kind: Kind) -> None:
        """Let the open pull request of a kind say what its branch pins, as far as the branch's commit tells that."""
        found = self.find(kind)
        if not found.open or not found.tip or not found.pin:
            return
        title, _, rest = _message(self.clone, found.tip).partition("\n")
        other = _kind_of(found.open.title) == _kind_of(title) and found.open.title != title
        body = None
        if proposed_in(found.open.body) != without_hold(found.pin):
            [summary, *_] = rest.strip().splitlines() or [""]
            words = f"{text(summary)}\n\nTwo proposals were written at once: propose this one again for the details."
            marked = f"{marker(found.pin, str(found.facts.get('run', '')))}\n{words}\n{END}"
            body = with_marked(found.open.body, marked)
        if other or body:
            self.host.edit(found.open.number, title=title if other else None, body=body)

    def _is_whole(self, commit: str, base: Base, pin: Pin) -> bool:
        """Whether this commit of a proposal's branch changes the pin of the base to this one, and nothing else."""
        parent = f"{commit}^"
        return (
            self.clone.read(commit, PIN) == render(pin).encode()
            and self.clone.changed(parent, commit) == [PIN]
            and self.clone.read(parent, PIN) == self.clone.read(base.commit, PIN)
        )

    def _fetched(self, branch: str) -> str | None:
        """The tip of a branch, with its parent in the clone; None if there is no such branch."""
        tip = self.clone.tip(branch)
        if tip:
            self.clone.fetch(branch, depth=2)
        return tip


@contextmanager
def proposals(settings: Settings, secret: Path | None) -> Iterator[Proposals]:
    """The proposals, through the token of the Secret's folder; raises SettingsInvalid if it has none."""
    file = token_file(secret, settings.repository)
    if not file:
        raise SettingsInvalid(
            f"{secret or 'No folder'} contains no token for the Git host: give the folder of the Secret "
            "jukebox-git-host with --git-secret: a file `token`, and a file `repository` with the repository's address"
        )
    with TemporaryDirectory() as folder:
        clone = Clone(Path(folder), settings.repository, secret)
        yield Proposals(settings, connect(settings, file.read_text().strip()), clone, _signing(file, settings))


def has_token(settings: Settings, secret: Path | None) -> bool:
    """Whether there is a token for the Git host; without one nothing can be proposed."""
    return token_file(secret, settings.repository) is not None


def branch_of(kind: Kind, settings: Settings) -> str:
    """The branch of a kind of proposals."""
    return f"{kind}/{settings.model_name}/{ENVIRONMENT}"


def without_hold(pin: Pin) -> Pin:
    """The version that is pinned: a pin without its hold."""
    return replace(pin, hold="")


def marker(pin: Pin, run: str) -> str:
    """The marker of a proposal's version in the body of its pull request; ``run`` is the id of the version's run."""
    return (
        f"<!-- promotion: model={pin.model} environment={ENVIRONMENT} version={pin.version} sha256={pin.sha256} "
        f"run={run} -->"
    )


def proposed_in(body: str) -> Pin | None:
    """The version that the body of a pull request says it proposes, without a hold; None if it says nothing."""
    found = _MARKER.search(body)
    return Pin(found["model"], int(found["version"]), found["sha256"]) if found else None


def run_in(body: str) -> str:
    """The id of the run of the version that the body of a pull request says it proposes; empty if it says nothing."""
    found = _MARKER.search(body)
    return found["run"] if found else ""


def with_marked(body: str, marked: str) -> str:
    """The body with this instead of what stood between its markers; all else is people's, and stays."""
    body = _lines(body)
    found = _MARKER.search(body)
    if not found:
        return f"{marked}\n\n{body.strip()}".strip()
    rest = body[found.end() :]
    return body[: found.start()] + marked + (rest.partition(END)[2] if END in rest else f"\n\n{rest.strip()}")


def _kind_of(title: str) -> str:
    """The title without its numbers: equal for proposals of two versions."""
    return re.sub(r"\d+", "", title)


def _lines(body: str) -> str:
    """The body with the line breaks that it was sent with: a host may return others."""
    return body.replace("\r\n", "\n")


def _signing(token: Path, settings: Settings) -> Signing | None:
    """The key beside the token that signs commits, with the email of the Git host's user whose key it is, if given."""
    key, email = token.with_name("signing-key"), token.with_name("signing-email")
    if not key.is_file():
        return None
    host = urlsplit(page(settings.repository)).hostname
    return Signing(key, "jukebox", email.read_text().strip() if email.is_file() else f"jukebox@{host}")


def _message(clone: Clone, commit: str) -> str:
    options = ("--no-patch", "--no-show-signature", "--format=%B")
    return git(clone.folder, "show", *options, commit, "--").decode(errors="replace")


def _facts(message: str) -> dict[str, Any]:
    """The facts in a commit's message; none if it has none, or if they are damaged."""
    for line in message.splitlines():
        if line.startswith(_FACTS):
            try:
                found = json.loads(line.removeprefix(_FACTS))
            except ValueError:
                return {}
            return found if isinstance(found, dict) else {}
    return {}
