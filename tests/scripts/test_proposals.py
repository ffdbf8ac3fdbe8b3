"""Proposals in a real repository, beside a Git host that may fail at each call."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import HostRefuses, SettingsInvalid
from scripts.clients.git_hosts import Checks, State
from scripts.git import Clone
from scripts.pins import PIN, render
from scripts.proposals import END, Kind, Proposal, proposed_in, with_marked
from tests.scripts.proposing import World, pin

CALLS = ("pull_requests", "open", "edit", "comment", "close")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository that pins nothing."""
    return World(tmp_path)


def proposal(number: int, hold: str = "") -> Proposal:
    return Proposal(pin(number, hold), f"Promote {number}", f"It is version {number}.", "Good.", f"run-{number}")


def propose(world: World, number: int, comment: str = "", clone: type[Clone] = Clone) -> bool:
    proposed = world.proposals(clone)
    return bool(proposed.propose(proposed.base(), proposed.find(Kind.PROMOTION), proposal(number), comment))


def test_a_proposal_is_one_commit_that_changes_exactly_the_pin(world: World) -> None:
    assert propose(world, 7)
    [pull] = world.host.pulls
    assert (pull.title, pull.head, pull.base) == ("Promote 7", "promote/jukebox/prod", "main")
    assert proposed_in(pull.body) == pin(7)
    main, branch = world.repository.tip("main"), world.repository.tip(pull.head)
    assert world.repository.git("rev-parse", f"{branch}^") == main
    assert world.repository.changed(main, branch) == [PIN]
    assert world.repository.read_pin(pull.head) == pin(7)


def test_the_second_call_writes_nothing(world: World) -> None:
    assert propose(world, 7)
    before, tip = [*world.host.calls], world.repository.tip(world.branch())
    assert propose(world, 7, "a comment that nobody needs")
    assert world.host.calls == before
    assert world.repository.tip(world.branch()) == tip


def test_another_version_replaces_it_in_the_same_pull_request(world: World) -> None:
    assert propose(world, 7)
    assert propose(world, 8, "Version 8 is better.")
    [pull] = world.host.pulls
    assert pull.title == "Promote 8"
    assert proposed_in(pull.body) == pin(8)
    assert "version 7" not in pull.body
    assert world.proposed() == pin(8)
    assert world.host.comments == {1: ["Version 8 is better."]}


def test_what_people_have_written_stays(world: World) -> None:
    assert propose(world, 7)
    mine = f"Wait for Ada.\r\n\r\n{world.host.pulls[0].body}\r\n\r\nBob agrees.".replace("\n\r", "\n")
    world.host.edit(1, title="Please review: 7", body=mine)
    calls = len(world.host.calls)
    assert propose(world, 7)
    assert len(world.host.calls) == calls
    assert propose(world, 8)
    body = world.host.pulls[0].body
    assert body.startswith("Wait for Ada.\n\n<!-- promotion:")
    assert body.endswith(f"{END}\n\nBob agrees.")
    assert "It is version 8." in body
    assert "It is version 7." not in body


def test_a_title_of_another_version_is_corrected(world: World) -> None:
    """Two processes may write at once, each its title and its body."""
    assert propose(world, 8)
    world.host.edit(1, title="Promote 7")
    assert propose(world, 8)
    assert world.host.pulls[0].title == "Promote 8"


@pytest.mark.parametrize("end", [f"\n{END}", ""])
def test_a_body_whose_markers_were_removed_loses_nothing(end: str) -> None:
    marked = proposal(8).marked
    assert with_marked("Mine.", marked) == f"{marked}\n\nMine."
    begin = proposal(7).marked.splitlines()[0]
    body = with_marked(f"{begin}\nold{end}\nMine.", marked)
    assert body.startswith(marked)
    assert body.endswith("Mine.")
    assert body.count("<!-- promotion:") == 1


def test_a_change_of_another_file_leaves_it_and_a_change_of_the_pin_makes_it_anew(world: World) -> None:
    assert propose(world, 7)
    tip = world.repository.tip(world.branch())
    world.repository.commit("Another file", README_md="Another")
    assert propose(world, 7)
    assert world.repository.tip(world.branch()) == tip
    world.repository.pin(3)
    assert propose(world, 7)
    assert world.repository.git("rev-parse", f"{world.branch()}^") == world.repository.tip("main")
    assert world.repository.changed("main", world.branch()) == [PIN]
    assert len(world.host.pulls) == 1


def test_a_branch_that_changes_more_than_the_pin_is_made_anew(world: World) -> None:
    assert propose(world, 7)
    more = {PIN: render(pin(7)), "README.md": "More"}
    world.repository.write("More", world.branch(), world.repository.tip("main"), more)
    assert propose(world, 7)
    assert world.repository.changed("main", world.branch()) == [PIN]


def test_a_branch_that_was_deleted_is_pushed_again(world: World) -> None:
    assert propose(world, 7)
    world.repository.git("update-ref", "-d", f"refs/heads/{world.branch()}")
    assert propose(world, 7)
    assert world.proposed() == pin(7)
    assert len(world.host.pulls) == 1


def test_a_branch_that_a_merged_proposal_has_left_is_used_again(world: World) -> None:
    assert propose(world, 7)
    world.host.merge(1, world.repository.tip(world.branch()), "Promote 7")
    assert propose(world, 8)
    assert [pull.state for pull in world.host.pulls] == [State.MERGED, State.OPEN]
    assert world.repository.git("rev-parse", f"{world.branch()}^") == world.repository.tip("main")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", CALLS)
def test_the_next_call_ends_what_the_host_has_interrupted(world: World, call: str, after: bool) -> None:
    """Whether the call had its effect or not, the second attempt leaves one pull request that says what it pins."""
    if call == "close":
        assert propose(world, 7)
        world.host.pulls.append(world.host.pulls[0].__class__(**{**vars(world.host.pulls[0]), "number": 2}))
    elif call != "open":
        assert propose(world, 7)
    world.host.fails = (call, after)
    with pytest.raises(HostRefuses):
        propose(world, 8, "Better.")
    assert world.host.fails is None
    assert propose(world, 8, "Better.")
    [pull] = [pull for pull in world.host.pulls if pull.state is State.OPEN]
    assert proposed_in(pull.body) == pin(8)
    assert world.proposed() == pin(8)
    assert len({*world.host.comments.get(pull.number, [])}) <= 1


class Outrun(Clone):
    """A clone whose first push another process outruns."""

    world: World
    number: int

    def push(self, branch: str, commit: str, expected: str | None) -> bool:
        clone, number = type(self), type(self).number
        if number:
            clone.number = 0
            assert propose(clone.world, number)
        return super().push(branch, commit, expected)


def test_who_loses_a_race_is_told_and_overwrites_nothing(world: World) -> None:
    Outrun.world, Outrun.number = world, 8
    assert not propose(world, 7, clone=Outrun)
    assert world.proposed() == pin(8)
    [pull] = world.host.pulls
    assert proposed_in(pull.body) == pin(8)


def test_a_pull_request_that_another_process_has_opened_is_not_taken_for_ours(world: World) -> None:
    first = world.proposals()
    base, found = first.base(), first.find(Kind.PROMOTION)
    assert propose(world, 8)
    world.repository.git("update-ref", "-d", f"refs/heads/{world.branch()}")
    assert first.propose(base, found, proposal(7)) is None


@pytest.mark.parametrize(
    ("settings", "checks", "refuses", "merged", "words"),
    [
        ({}, Checks.SUCCESS, "", False, "A person merges it"),
        ({"merge_promotions": "after-checks"}, Checks.SUCCESS, "", True, "it is merged"),
        ({"merge_promotions": "after-checks"}, Checks.FAILURE, "", False, "a check failed"),
        ({"merge_promotions": "after-checks"}, Checks.NONE, "", False, "it has no checks"),
        ({"merge_promotions": "after-checks"}, Checks.PENDING, "", False, "its checks have not ended"),
        ({"merge_promotions": "after-checks"}, Checks.SUCCESS, "405: needs approvals", False, "needs approvals"),
    ],
)
def test_it_is_merged_without_a_person_only_if_settings_and_checks_allow_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    checks: Checks,
    refuses: str,
    merged: bool,
    words: str,
) -> None:
    monkeypatch.setattr("scripts.proposals.CHECKS_PATIENCE", 0.0)
    world = World(tmp_path, **settings)
    world.host.state, world.host.refuses_merge = checks, refuses
    proposed = world.proposals()
    pull = proposed.propose(proposed.base(), proposed.find(Kind.PROMOTION), proposal(7))
    assert pull
    assert words in proposed.merge(pull, Kind.PROMOTION)
    assert (world.repository.read_pin() == pin(7)) == merged


def test_checks_that_begin_late_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.proposals.CHECKS_GRACE", 60.0)
    monkeypatch.setattr("scripts.proposals.CHECKS_POLL", 0.0)
    world = World(tmp_path, merge_promotions="after-checks")
    states = iter([Checks.NONE, Checks.PENDING, Checks.SUCCESS, Checks.PENDING, Checks.SUCCESS])
    refusals = iter(["405: a required check is expected", ""])

    def checks(_: str) -> Checks:
        state = next(states)
        world.host.refuses_merge = next(refusals) if state is Checks.SUCCESS else ""
        return state

    monkeypatch.setattr(world.host, "checks", checks)
    proposed = world.proposals()
    pull = proposed.propose(proposed.base(), proposed.find(Kind.PROMOTION), proposal(7))
    assert pull
    assert proposed.merge(pull, Kind.PROMOTION) == "Its checks have passed, and it is merged."
    assert world.repository.read_pin() == pin(7)


@pytest.mark.parametrize("what", ["a rollback", "a hold"])
def test_a_promotion_is_not_merged_beside_what_came_meanwhile(tmp_path: Path, what: str) -> None:
    world = World(tmp_path, merge_promotions="after-checks")
    world.host.state = Checks.SUCCESS
    proposed = world.proposals()
    pull = proposed.propose(proposed.base(), proposed.find(Kind.PROMOTION), proposal(7))
    assert pull
    if what == "a hold":
        world.repository.pin(3, "wait for the audit")
        why = "main holds promotions (wait for the audit)"
    else:
        back = world.branch(Kind.ROLLBACK)
        world.repository.write("Roll back", back, world.repository.tip("main"), {PIN: render(pin(2, "back"))})
        why = f"{world.host.open_pull_request(back, 'main', 'Roll back', '').url} proposes a rollback"
    assert proposed.merge(pull, Kind.PROMOTION) == f"It is not merged: {why}."
    assert world.repository.read_pin().version != 7


def test_a_head_that_was_not_checked_is_not_merged(tmp_path: Path) -> None:
    world = World(tmp_path, merge_promotions="after-checks")
    world.host.state = Checks.SUCCESS
    proposed = world.proposals()
    pull = proposed.propose(proposed.base(), proposed.find(Kind.PROMOTION), proposal(7))
    assert pull
    assert propose(world, 8)
    assert "head out of date" in proposed.merge(pull, Kind.PROMOTION)
    assert world.repository.read_pin() == pin(None)


def test_a_branch_without_a_pin_of_this_model_is_refused(world: World) -> None:
    world.repository.write("Other", "main", world.repository.tip("main"), {PIN: render(replace(pin(3), model="flats"))})
    with pytest.raises(SettingsInvalid, match="for the model flats, expected jukebox"):
        world.proposals().base()
    world.repository.commit("Damage", manifests__pins__prod__kustomization_yaml="{}")
    with pytest.raises(SettingsInvalid, match="not a valid pin"):
        world.proposals().base()


def test_a_branch_that_does_not_exist_is_said_so(tmp_path: Path) -> None:
    world = World(tmp_path, branch="trunk")
    with pytest.raises(HostRefuses, match="no branch trunk"):
        world.proposals().base()
