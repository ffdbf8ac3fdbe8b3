"""``jukebox rollback``: propose that production serves an earlier version again."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated

import typer

from pipeline.core.errors import HostRefuses, SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.texts import one_line
from pipeline.settings import read_settings
from scripts.clients.git_hosts import State
from scripts.git import GitSecret
from scripts.pins import PIN, Pin, is_rollback, pin_at, rollbacks
from scripts.promotion_body import text
from scripts.promotion_record import Record, passed
from scripts.proposals import ATTEMPTS, Base, Found, Kind, Proposal, Proposals, proposals, without_hold
from scripts.verify import check_version, is_readable

LATEST = timedelta(minutes=20)  # the age of a failed check that may still be acted upon
_DATE = re.compile(r" on (\d{4}-\d\d-\d\d)\b")


def command(
    to: Annotated[
        int, typer.Option(min=0, help="Number of the version; default: the one that was pinned before this one.")
    ] = 0,
    reason: Annotated[str, typer.Option(help="Why, in one line; the pin keeps it with the hold.")] = "",
    git_secret: GitSecret = None,
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
) -> None:
    """Propose that production serves an earlier version again, as a pull request that pins it and sets a hold.

    The version must have been pinned before, or be in the model store. If the store can be read from here, it must have
    the version with the right bytes; the sync asks it in any case. Open promotions are closed. Until a person empties
    `hold` in the pin file, nothing is proposed.

    Example: `jukebox rollback --reason "wrong answers for short inputs" --git-secret secret`
    """
    settings = read_settings()
    with proposals(settings, git_secret) as proposed:
        base = proposed.base()
        target = _target(base.pin, proposed.pins(), to, model_store or settings.model_store)
        print(roll_back(proposed, target, reason))


def roll_back(proposed: Proposals, target: Pin, reason: str) -> str:
    """Propose to pin ``target`` with a hold, and close what else is proposed; return in a sentence what was done.

    Raises HostRefuses.
    """
    name = f"{target.model} {target.version}"
    for _ in range(ATTEMPTS):
        base, found = proposed.base(), proposed.find(Kind.ROLLBACK)
        if base.pin.version == target.version:
            return f"No rollback is proposed: version {target.version} is pinned."
        if pull := proposed.propose(base, found, _proposal(base, found, target, reason)):
            for promotion in proposed.find(Kind.PROMOTION).pulls:
                if promotion.state is State.OPEN:
                    proposed.close(promotion, f"A rollback is proposed, which holds promotions: {pull.url}")
            return f"The rollback to {name} is proposed: {pull.url}. {proposed.merge(pull, Kind.ROLLBACK)}"
    raise HostRefuses(f"The rollback to {name} is not proposed: others change it all the time. Run this again")


def after_failed_check(
    proposed: Proposals,
    failed: Pin,
    ended: datetime,
    why: str,
    records: list[Record],
    unfit: Mapping[int, str] = MappingProxyType({}),
    now: datetime | None = None,
) -> str:
    """Roll back what has failed the check of the served version, if the settings and the limits allow it.

    ``failed`` is the pin that was checked, ``ended`` when the check did, ``why`` what it said, ``records`` those of the
    cluster, ``unfit`` the versions that must not be served. Returns in a sentence what was done, or why nothing was.
    Raises HostRefuses.
    """
    settings = proposed.settings
    if settings.rollback_on_failure != "yes":
        return "Nothing is rolled back: rollback-on-failure is no. To roll back by hand, use `jukebox rollback`."
    base = proposed.base()
    pins = proposed.pins()
    if why_not := _limit(proposed, base, pins, failed, (now or datetime.now(UTC)) - ended):
        return f"Nothing is rolled back: {why_not}. A person decides; see `jukebox rollback`."
    known, bad = passed(records), rollbacks(pins)
    good = (pin for pin in _before(base.pin, pins) if pin in known and pin.sha256 not in bad)
    target = next((pin for pin in good if pin.version not in unfit), None)
    if target is None:
        return (
            "Nothing is rolled back: no version that was pinned before has passed this check here, but for those that "
            "were rolled back or withdrawn. A person decides; see `jukebox rollback`."
        )
    return roll_back(proposed, target, f"version {failed.version} failed its check: {why}")


def _limit(proposed: Proposals, base: Base, pins: list[Pin], failed: Pin, age: timedelta) -> str:
    """Why a failed check is not acted upon; empty if it is."""
    settings = proposed.settings
    if age > LATEST:
        return f"the check ended {age.total_seconds() / 60:.0f} minutes ago, which is too long"
    if base.pin != failed:
        return f"the pin on {settings.branch} is another by now"
    if is_rollback(pins):
        return "what failed is a rollback itself"
    if base.pin.hold:
        return f"{settings.branch} holds the pin ({base.pin.hold})"
    released = _pin_of(proposed, settings.prod_branch)
    if released != failed:
        return f"{settings.prod_branch} does not have the pin of {settings.branch} yet"
    if found := proposed.find(Kind.ROLLBACK).open:
        return f"{found.url} proposes a rollback already"
    if settings.merge_promotions != "never" and (found := proposed.find(Kind.PROMOTION).open):
        return f"{found.url} may be merged at any time"
    return ""


def _pin_of(proposed: Proposals, branch: str) -> Pin | None:
    tip = proposed.clone.tip(branch)
    if tip is None:
        return None
    proposed.clone.fetch(branch, depth=2)
    return pin_at(proposed.clone, tip)


def _target(now: Pin, pins: list[Pin], to: int, root: str) -> Pin:
    """The pin to go back to, without a hold; raises SettingsInvalid if there is none, StoreBroken if it is damaged."""
    if now.version is None:
        raise SettingsInvalid(f"{PIN} pins no version, so there is nothing to roll back: use `jukebox promote`")
    known = {pin.version: pin for pin in reversed([*map(without_hold, pins)]) if pin.version}
    found = known.get(to) if to else next(iter(_before(now, pins)), None)
    number = found.version if found else to
    if not number:
        raise SettingsInvalid(f"no version was pinned before version {now.version}: name a version with --to")
    unreadable = f"The model store {root} cannot be read from here"
    if is_readable(root):
        try:
            return Pin(now.model, number, check_version(root, now.model, number, found.sha256 if found else None))
        except VersionBroken:
            raise
        except StoreBroken as error:
            unreadable = f"The model store cannot be read from here ({one_line(str(error))})"
    if found is None:
        raise SettingsInvalid(
            f"version {number} was never pinned (versions that were: {', '.join(map(str, known))}). {unreadable}: name "
            "another version, or the store with --model-store"
        )
    print(f"{unreadable}: the sync checks the version.")
    return found


def _before(now: Pin, pins: list[Pin]) -> list[Pin]:
    """The pins, without their holds, from before the version of ``now`` was pinned first; newest first.

    So a rollback of a rollback goes further back, and not forward to what was rolled back.
    """
    first = max((position for position, pin in enumerate(pins) if pin.version == now.version), default=-1)
    return [without_hold(pin) for pin in pins[first + 1 :] if pin.version]


def _proposal(base: Base, found: Found, target: Pin, reason: str) -> Proposal:
    # The date of an open proposal stays, so that a second call finds nothing to change.
    dated = _DATE.search(found.pin.hold) if found.open and found.pin else None
    date = dated[1] if dated else f"{datetime.now(UTC):%Y-%m-%d}"
    hold = f"rolled back from version {base.pin.version} on {date}" + (f": {one_line(reason)}" if reason else "")
    hold = hold.strip(" \"'")
    title = f"Roll {target.model} back to {target.version} in production"
    body = (
        f"Merging this serves version **{target.version}** of {text(target.model)} in production again, instead of "
        f"version {base.pin.version}.\n\n"
        f"{text(hold)}\n\n"
        f"It also holds promotions: nothing is proposed until a person empties `hold` in `{PIN}`."
    )
    return Proposal(Pin(target.model, target.version, target.sha256, hold), title, body, hold)
