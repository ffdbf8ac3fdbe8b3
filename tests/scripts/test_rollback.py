"""What ``jukebox rollback`` proposes, by hand and after a failed check, in a real repository."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import HostRefuses, SettingsInvalid, VersionBroken
from pipeline.core.store import open_store
from scripts.clients.git_hosts import Checks, State
from scripts.pins import PIN, Pin, history
from scripts.promote import promote
from scripts.promotion_record import Record
from scripts.proposals import Kind
from scripts.rollback import _target, after_failed_check, roll_back
from tests.scripts.proposing import World, candidate, pin
from tests.versions import publish_version

TODAY = f"{datetime.now(UTC):%Y-%m-%d}"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository that has pinned 1, 2 and 3, and has released it."""
    return pinned(World(tmp_path))


def pinned(world: World, *numbers: int) -> World:
    for number in numbers or (1, 2, 3):
        world.repository.pin(number)
    released(world)
    return world


def released(world: World) -> None:
    world.repository.git("update-ref", "refs/heads/production", world.repository.tip("main"))


def target(world: World, to: int = 0, root: str = "/nowhere") -> Pin:
    proposed = world.proposals()
    return _target(proposed.base().pin, history(proposed.clone, "main"), to, root)


def test_the_version_that_was_pinned_before_is_pinned_again_with_a_hold(world: World) -> None:
    said = roll_back(world.proposals(), target(world), "wrong  answers\n")
    assert said == "The rollback to jukebox 2 is proposed: https://git.corp/pulls/1. A person merges it."
    [pull] = world.host.pulls
    assert pull.title == "Roll jukebox back to 2 in production"
    assert (pull.head, pull.base) == ("rollback/jukebox/prod", "main")
    hold = f"rolled back from version 3 on {TODAY}: wrong answers"
    assert world.proposed(Kind.ROLLBACK) == pin(2, hold)
    assert world.repository.changed("main", pull.head) == [PIN]
    assert "nothing is proposed until a person empties `hold`" in pull.body


def test_the_second_time_nothing_changes(world: World) -> None:
    first = roll_back(world.proposals(), pin(2), "wrong answers")
    calls, tip = [*world.host.calls], world.repository.tip(world.branch(Kind.ROLLBACK))
    assert roll_back(world.proposals(), pin(2), "wrong answers") == first
    assert world.host.calls == calls
    assert world.repository.tip(world.branch(Kind.ROLLBACK)) == tip


def test_a_second_call_on_a_later_day_finds_nothing_to_change(world: World) -> None:
    hold = "rolled back from version 3 on 2026-01-02: wrong answers"
    proposed = world.proposals()
    roll_back(proposed, pin(2), "wrong answers")
    tip = proposed.clone.commit_file(
        world.repository.tip("main"),
        PIN,
        world.repository.git("show", f"{world.branch(Kind.ROLLBACK)}:{PIN}").replace(TODAY, "2026-01-02").encode()
        + b"\n",
        "Earlier",
    )
    assert proposed.clone.push(world.branch(Kind.ROLLBACK), tip, world.repository.tip(world.branch(Kind.ROLLBACK)))
    roll_back(world.proposals(), pin(2), "wrong answers")
    assert world.proposed(Kind.ROLLBACK) == pin(2, hold)


def test_an_open_promotion_is_closed_and_none_is_proposed_until_the_hold_is_removed(world: World) -> None:
    promote(world.proposals(), candidate(4))
    roll_back(world.proposals(), pin(2), "wrong answers")
    promotion, rollback = world.host.pulls
    assert (promotion.state, rollback.state) == (State.CLOSED, State.OPEN)
    assert world.host.comments[promotion.number] == [f"A rollback is proposed, which holds promotions: {rollback.url}"]
    assert "proposes a rollback" in promote(world.proposals(), candidate(5))
    world.host.merge(rollback.number, world.repository.tip(rollback.head), rollback.title)
    assert "holds promotions" in promote(world.proposals(), candidate(5))
    world.repository.pin(2)
    assert "is proposed" in promote(world.proposals(), candidate(5))


@pytest.mark.parametrize(
    ("numbers", "before"),
    [((1, 2), 1), ((1, 2, 3), 2), ((1, 2, 1, 3), 1), ((1, 2, 3, 2), 1), ((1, 3, 1, 2, 3, 4), 3)],
    ids=str,
)
def test_the_default_is_what_was_served_before(tmp_path: Path, numbers: tuple[int, ...], before: int) -> None:
    assert target(pinned(World(tmp_path), *numbers)) == pin(before)


def test_a_rollback_of_a_rollback_goes_further_back(world: World) -> None:
    world.repository.pin(2, "rolled back from version 3 on 2026-11-28")
    assert target(world) == pin(1)


@pytest.mark.parametrize(
    ("numbers", "to", "why"),
    [
        ((), 0, "pins no version, so there is nothing to roll back"),
        ((1,), 0, "no version was pinned before version 1: name a version with --to"),
        ((1, 2), 7, r"version 7 was never pinned \(versions that were: 1, 2\)\. The model store /nowhere cannot"),
    ],
)
def test_what_cannot_be_rolled_back_to_is_said(tmp_path: Path, numbers: tuple[int, ...], to: int, why: str) -> None:
    world = World(tmp_path)
    for number in numbers:
        world.repository.pin(number)
    with pytest.raises(SettingsInvalid, match=why):
        target(world, to)


def test_the_store_is_asked_if_it_can_be_read(world: World, tmp_path: Path) -> None:
    root = str(tmp_path / "models")
    for run in range(4):
        publish_version(root, f"run-{run}")
    with pytest.raises(VersionBroken, match="another content than the pinned one"):
        target(world, root=root)
    found = target(world, to=4, root=root)  # which was never pinned
    assert found.version == 4
    open_store(root, "jukebox").withdraw(4, "its labels are wrong")
    with pytest.raises(VersionBroken, match="was withdrawn: its labels are wrong"):
        target(world, to=4, root=root)


def test_what_is_pinned_is_not_rolled_back_to(world: World) -> None:
    assert "version 3 is pinned" in roll_back(world.proposals(), pin(3), "")
    assert world.host.calls == []


def test_a_rollback_is_merged_only_if_the_settings_and_the_checks_allow_it(tmp_path: Path) -> None:
    world = pinned(World(tmp_path, merge_promotions="after-checks"))
    world.host.state = Checks.SUCCESS
    assert "it is merged" in roll_back(world.proposals(), pin(2), "")
    assert world.repository.read_pin() == pin(2, f"rolled back from version 3 on {TODAY}")


def test_a_branch_that_others_change_all_the_time_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = world.proposals()
    monkeypatch.setattr(proposed, "propose", lambda *given: None)
    with pytest.raises(HostRefuses, match="others change it all the time"):
        roll_back(proposed, pin(2), "")


def records(*numbers: int) -> list[Record]:
    return [{"model": "jukebox", "version": number, "sha256": pin(number).sha256} for number in numbers]


def after_failure(world: World, *passed: int, minutes: float = 5, failed: Pin | None = None) -> str:
    ended = NOW - timedelta(minutes=minutes)
    return after_failed_check(world.proposals(), failed or pin(3), ended, "wrong answer", records(*passed), now=NOW)


def test_after_a_failed_check_the_newest_version_that_passed_it_is_proposed(tmp_path: Path) -> None:
    world = pinned(World(tmp_path, rollback_on_failure="yes"))
    assert "The rollback to jukebox 1 is proposed" in after_failure(world, 1, 3)
    proposed = world.proposed(Kind.ROLLBACK)
    assert proposed
    assert proposed.version == 1
    assert "version 3 failed its check: wrong answer" in proposed.hold


def held(world: World) -> None:
    world.repository.pin(4)
    world.repository.pin(3, "rolled back from version 4 on 2026-11-28")
    released(world)


def changed(world: World) -> None:
    world.repository.pin(4)
    released(world)


def behind(world: World) -> None:
    world.repository.git("update-ref", "refs/heads/production", f"{world.repository.tip('main')}^")


def rolling_back(world: World) -> None:
    roll_back(world.proposals(), pin(1), "by hand")


def merging(world: World) -> None:
    promote(world.proposals(), candidate(4))


@pytest.mark.parametrize(
    ("prepare", "options", "settings", "why"),
    [
        (None, {"minutes": 21}, {}, "ended 21 minutes ago"),
        (None, {}, {"rollback_on_failure": "no"}, "rollback-on-failure is no"),
        (changed, {}, {}, "the pin on main is another by now"),
        (held, {"failed": pin(3, "rolled back from version 4 on 2026-11-28")}, {}, "a rollback itself"),
        (behind, {}, {}, "production does not have the pin of main yet"),
        (rolling_back, {}, {}, "https://git.corp/pulls/1 proposes a rollback already"),
        (merging, {}, {"merge_promotions": "after-checks"}, "https://git.corp/pulls/1 may be merged at any time"),
    ],
    ids=["old", "off", "changed", "of a rollback", "behind", "rolling back", "merging"],
)
def test_a_failed_check_is_acted_upon_within_limits(
    tmp_path: Path, prepare: Any, options: dict[str, Any], settings: dict[str, str], why: str
) -> None:
    world = pinned(World(tmp_path, **{"rollback_on_failure": "yes", **settings}))
    if prepare:
        prepare(world)
    calls = [*world.host.calls]
    said = after_failure(world, 1, 2, **options)
    assert said.startswith("Nothing is rolled back: ")
    assert why in said
    assert world.host.calls == calls


def test_a_rollback_is_not_rolled_back_though_its_hold_is_gone(tmp_path: Path) -> None:
    world = pinned(World(tmp_path, rollback_on_failure="yes"), 1, 2, 3)
    world.repository.pin(2, "rolled back from version 3 on 2026-11-28")
    world.repository.pin(2)
    released(world)
    assert "what failed is a rollback itself" in after_failure(world, 1, 2, 3, failed=pin(2))
    assert world.host.calls == []


def test_nothing_is_rolled_back_to_what_was_rolled_back_or_withdrawn(tmp_path: Path) -> None:
    world = pinned(World(tmp_path, rollback_on_failure="yes"), 1, 2, 3)
    world.repository.pin(2, "rolled back from version 3 on 2026-11-28")
    world.repository.pin(2)
    pinned(world, 4)
    proposed, ended = world.proposals(), NOW - timedelta(minutes=5)
    said = after_failed_check(proposed, pin(4), ended, "wrong", records(1, 2, 3), {2: "wrong labels"}, now=NOW)
    assert "The rollback to jukebox 1 is proposed" in said


def test_a_store_that_cannot_be_asked_leaves_the_check_to_the_sync(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    assert target(world, root="s3://bucket/models") == pin(2)
    assert "The model store cannot be read from here (" in capsys.readouterr().out


@pytest.mark.parametrize("passed", [(), (3,)])
def test_nothing_is_rolled_back_to_what_has_not_passed_the_check_here(tmp_path: Path, passed: tuple[int, ...]) -> None:
    world = pinned(World(tmp_path, rollback_on_failure="yes"))
    assert "no version that was pinned before has passed this check here" in after_failure(world, *passed)
    assert world.host.calls == []
