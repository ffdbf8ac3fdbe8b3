"""What ``jukebox promote`` proposes, and what it does not, in a real repository."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.core.store import open_store
from scripts.clients.git_hosts import PullRequest, State
from scripts.pins import PIN, render
from scripts.promote import promote, refused_by, unfit
from scripts.proposals import Base, Found, Kind, Proposal, Proposals
from scripts.start import Reason
from tests.core.test_hostile_text import CONTROL, HOSTILE
from tests.scripts.proposing import World, candidate, pin, sha
from tests.versions import publish_version

BETTER, WORSE, ALIKE = (-0.2, -0.3, -0.1), (0.2, 0.1, 0.3), (-0.02, -0.1, 0.1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository whose main pins version 3."""
    world = World(tmp_path)
    world.repository.pin(3)
    return world


def test_a_good_model_is_proposed_with_what_a_reviewer_decides_from(world: World) -> None:
    said = promote(world.proposals(), candidate(7), reason=Reason.DATA)
    assert said == "jukebox 7 is proposed: https://git.corp/pulls/1. A person merges it."
    [pull] = world.host.pulls
    assert pull.title == "Promote jukebox 7 to production"
    assert "It replaces version 3." in pull.body
    headings = re.findall("^### (.+)$", pull.body, re.MULTILINE)
    assert headings == ["Verdict", "Metrics", "Data", "Parity", "Origin"]
    assert "| no-worse-than-champion |" in pull.body
    assert "Version 2, champion" in pull.body
    assert "Baseline" in pull.body
    commit = f"{7:040x}"
    assert f"[`{commit[:12]}`](https://git.corp/commit/{commit})" in pull.body
    assert "started by new data, and has no commit of its own" in pull.body
    assert world.repository.changed("main", world.branch()) == [PIN]
    assert world.proposed() == pin(7)


def test_the_source_is_compared_with_that_of_the_served_version(world: World) -> None:
    promote(world.proposals(), candidate(7))
    world.host.merge(1, world.repository.tip(world.branch()), "Promote 7")
    promote(world.proposals(), candidate(8))
    assert f"https://git.corp/compare/{7:040x}...{8:040x}" in world.host.pulls[1].body


def test_the_second_time_nothing_changes(world: World) -> None:
    first = promote(world.proposals(), candidate(7))
    calls, tip = [*world.host.calls], world.repository.tip(world.branch())
    assert promote(world.proposals(), candidate(7)) == first
    assert world.host.calls == calls
    assert world.repository.tip(world.branch()) == tip


def test_a_dry_run_shows_the_proposal_and_changes_nothing(world: World) -> None:
    said = promote(world.proposals(), candidate(7), dry_run=True)
    assert said.startswith("Promote jukebox 7 to production\n")
    assert "### Verdict" in said
    assert world.host.calls == []
    assert not world.repository.tip(world.branch())


@pytest.mark.parametrize("order", [(7, 8), (8, 7)], ids=str)
@pytest.mark.parametrize(
    ("found", "winner"), [(BETTER, 8), (WORSE, 7)], ids=["the newer is better", "the older is better"]
)
@pytest.mark.parametrize("beside", ["each other", "the same"])
def test_of_two_models_the_better_one_is_proposed_in_either_order(
    world: World, order: tuple[int, int], found: tuple[float, float, float], winner: int, beside: str
) -> None:
    candidates = {
        7: candidate(7, {3: (0.0, -0.01, 0.01)}),
        8: candidate(8, {7 if beside == "each other" else 3: found}),
    }
    said = [promote(world.proposals(), candidates[number]) for number in order]
    assert world.proposed() == pin(winner)
    [pull] = world.host.pulls
    assert f"version={winner} " in pull.body
    if order[0] == winner:
        assert f"jukebox {order[1]} is not proposed: {pull.url} proposes {winner}, and it is worse" in said[1]
        assert not world.host.comments
    else:
        [comment] = world.host.comments[1]
        assert comment.startswith(f"Version {winner} replaces version {order[0]}: it is better")
        assert "95 % interval" in comment


@pytest.mark.parametrize("order", [(7, 8), (8, 7)], ids=str)
def test_a_twin_leaves_the_open_proposal_and_its_reviews_alone(world: World, order: tuple[int, int]) -> None:
    candidates = {7: candidate(7), 8: candidate(8, {7: ALIKE})}
    promote(world.proposals(), candidates[order[0]])
    tip, calls = world.repository.tip(world.branch()), [*world.host.calls]
    assert "not significantly better" in promote(world.proposals(), candidates[order[1]])
    assert world.repository.tip(world.branch()) == tip
    assert world.host.calls == calls


def test_words_that_come_after_those_of_a_better_model_are_corrected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given 9 is proposed, and has checked its words, while those of 8 are on their way, then 9 is what is said."""
    promote(world.proposals(), candidate(7))
    edit = world.host.edit

    def late(number: int, *, title: str | None = None, body: str | None = None) -> None:
        monkeypatch.setattr(world.host, "edit", edit)
        assert "jukebox 9 is proposed" in promote(world.proposals(), candidate(9, {7: BETTER, 8: BETTER}))
        edit(number, title=title, body=body)

    monkeypatch.setattr(world.host, "edit", late)
    said = promote(world.proposals(), candidate(8, {7: BETTER}))
    assert said.startswith("jukebox 8 is not proposed: https://git.corp/pulls/1 proposes 9, and it is worse")
    [pull] = world.host.pulls
    assert pull.title == "Promote jukebox 9 to production"
    assert "version=9 " in pull.body
    assert "run=run-9 -->" in pull.body
    assert candidate(9).summary.split()[0] in pull.body
    assert world.proposed() == pin(9)
    # Once more, and the details are there.
    promote(world.proposals(), candidate(9, {7: BETTER, 8: BETTER}))
    assert "### Verdict" in world.host.pulls[0].body


@pytest.mark.parametrize("first", [8, 9])
def test_of_two_models_between_push_and_pull_request_the_better_one_is_proposed(
    world: World, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Given one has pushed its branch, when the other proposes before the pull request is there, then 9 is proposed."""
    candidates = {8: candidate(8), 9: candidate(9, {8: BETTER})}
    opening = world.host.open_pull_request

    def late(*words: str) -> PullRequest:
        monkeypatch.setattr(world.host, "open_pull_request", opening)
        promote(world.proposals(), candidates[17 - first])
        return opening(*words)

    monkeypatch.setattr(world.host, "open_pull_request", late)
    promote(world.proposals(), candidates[first])
    [pull] = world.host.pulls
    assert (pull.title, world.proposed()) == ("Promote jukebox 9 to production", pin(9))
    assert "version=9 " in pull.body


def test_the_pull_request_of_a_branch_that_another_process_has_moved_says_what_is_pinned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given 8 has pushed, when 9 pushes before the pull request of 8 is there, then 8 does not say it is proposed."""
    opening = world.host.open_pull_request

    def late(*words: str) -> PullRequest:
        monkeypatch.setattr(world.host, "open_pull_request", opening)
        monkeypatch.setattr(world.host, "pull_requests", lambda *_: [])
        monkeypatch.setattr(Proposals, "propose", pushed)
        promote(world.proposals(), candidate(9, {8: BETTER}))
        monkeypatch.undo()
        return opening(*words)

    def pushed(proposed: Proposals, base: Base, found: Found, proposal: Proposal, _: str) -> PullRequest:
        """As far as it comes before the pull request is there."""
        commit = proposed.clone.commit_file(base.commit, PIN, render(proposal.pin).encode(), proposal.message)
        assert proposed.clone.push(world.branch(), commit, found.tip)
        return PullRequest(1, "", "", "", State.OPEN, "", "", "", "")

    monkeypatch.setattr(world.host, "open_pull_request", late)
    said = promote(world.proposals(), candidate(8))
    assert "jukebox 8 is not proposed: https://git.corp/pulls/1 proposes 9, and it is worse" in said
    [pull] = world.host.pulls
    assert (pull.title, world.proposed()) == ("Promote jukebox 9 to production", pin(9))


def test_a_model_that_was_not_compared_leaves_the_open_proposal_alone(world: World) -> None:
    promote(world.proposals(), candidate(7))
    assert "were not compared" in promote(world.proposals(), candidate(8, {6: BETTER}))
    assert world.proposed() == pin(7)


@pytest.mark.parametrize(
    ("changed", "settings", "why"),
    [
        ({"prod_flag": False}, {}, "prod_flag false"),
        ({"passed": False, "summary": "Not good enough: too wrong."}, {}, "it has not passed: Not good enough"),
        ({}, {"prod_cluster": ""}, "there is no production"),
        ({}, {}, ""),
    ],
)
def test_what_is_not_for_production_is_never_proposed(
    tmp_path: Path, changed: dict[str, Any], settings: dict[str, str], why: str
) -> None:
    found = unfit(candidate(7, **changed), World(tmp_path, **settings).settings)
    assert why in found
    assert bool(why) == bool(found)


def test_another_model_is_an_error(world: World) -> None:
    with pytest.raises(SettingsInvalid, match="published the model flats, expected jukebox"):
        unfit(candidate(7, model="flats"), world.settings)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (3, "production's pin has this version"),
        (2, "version 3 is pinned, and is not older; to go back, use `jukebox rollback`"),
    ],
)
def test_what_is_pinned_and_what_is_older_is_not_proposed(world: World, number: int, why: str) -> None:
    assert why in promote(world.proposals(), candidate(number))
    assert world.host.calls == []


def test_the_same_bytes_under_another_number_are_not_proposed(world: World) -> None:
    assert "the same bytes as version 3" in promote(world.proposals(), candidate(7, sha256=pin(3).sha256))
    assert world.host.calls == []


def test_a_hold_is_respected_until_a_person_removes_it(world: World) -> None:
    world.repository.pin(3, "rolled back from version 5 on 2026-11-27: wrong answers")
    said = promote(world.proposals(), candidate(7))
    assert "holds promotions (rolled back from version 5 on 2026-11-27: wrong answers)" in said
    assert world.host.calls == []
    world.repository.pin(3)
    promote(world.proposals(), candidate(7))
    assert world.proposed() == pin(7)


def test_what_a_person_has_declined_is_proposed_again_only_if_asked_for(world: World) -> None:
    promote(world.proposals(), candidate(7))
    world.host.close(1)
    calls = [*world.host.calls]
    assert "https://git.corp/pulls/1 proposed it and was closed without a merge" in promote(
        world.proposals(), candidate(7)
    )
    assert world.host.calls == calls
    assert world.proposed() is None
    promote(world.proposals(), candidate(7), again=True)
    assert world.proposed() == pin(7)
    assert "is proposed" in promote(world.proposals(), candidate(7))


def test_the_next_version_after_a_declined_one_is_proposed(world: World) -> None:
    promote(world.proposals(), candidate(7))
    world.host.close(1)
    promote(world.proposals(), candidate(8))
    assert world.proposed() == pin(8)
    assert [pull.state for pull in world.host.pulls] == [State.CLOSED, State.OPEN]
    assert "was closed without a merge" in promote(world.proposals(), candidate(7, {8: BETTER}))


def test_what_production_was_rolled_back_from_is_not_proposed_again_by_accident(world: World) -> None:
    world.repository.pin(7)
    world.repository.pin(3, "rolled back from version 7 on 2026-11-28")
    world.repository.pin(3)
    why = "production was rolled back from version 7"
    assert f"jukebox 7 is not proposed: {why}; --again" in promote(world.proposals(), candidate(7))
    twin = replace(candidate(8), sha256=sha(7))
    assert f"jukebox 8 is not proposed: {why}, which has the same bytes" in promote(world.proposals(), twin)
    assert world.host.calls == []
    promote(world.proposals(), candidate(7), again=True)
    assert world.proposed() == pin(7)
    assert "jukebox 9 is proposed" in promote(world.proposals(), candidate(9, {7: BETTER}))


def test_what_was_replaced_by_a_promotion_was_not_rolled_back(world: World) -> None:
    """Given 3 was replaced by 7, when code is reverted and the bytes of 3 come again, they are proposed."""
    world.repository.pin(7)
    again = replace(candidate(9), sha256=sha(3))
    assert "jukebox 9 is proposed" in promote(world.proposals(), again)


def test_what_was_rolled_back_once_and_then_served_again_is_proposed(world: World) -> None:
    for number in (7, 3, 7, 8):
        world.repository.pin(number)
    assert "jukebox 9 is proposed" in promote(world.proposals(), replace(candidate(9), sha256=sha(7)))


def test_what_the_job_beside_the_store_says_of_a_version_counts(world: World) -> None:
    said = promote(world.proposals(), candidate(7), told={7: "its labels are wrong"})
    assert said == "jukebox 7 is not proposed: it was withdrawn: its labels are wrong."


def test_thresholds_judge_a_proposal_again(world: World) -> None:
    promote(world.proposals(), candidate(7))
    found = world.proposals().find(Kind.PROMOTION).facts
    values = {check["name"]: check["value"] for check in candidate(7).checks}
    floor, ceiling = values["gain-over-baseline"], values["calibration-ceiling"]
    assert refused_by({"gain-over-baseline": floor, "calibration-ceiling": ceiling, "new": 1.0}, found) == ""
    assert refused_by({"no-worse-than-champion": -9.0}, found) == "", "the champion may be another one"
    said = refused_by({"gain-over-baseline": floor + 0.1, "calibration-ceiling": ceiling - 0.01}, found)
    assert said == (
        f"gain-over-baseline is {floor:.4g}, must be >= {floor + 0.1:g}; "
        f"calibration-ceiling is {ceiling:.4g}, must be <= {ceiling - 0.01:g}"
    )
    assert refused_by({"gain-over-baseline": 9.0}, {}) == "", "a proposal of an older release"


def test_nothing_is_proposed_beside_an_open_rollback(world: World) -> None:
    world.repository.write("Roll back", world.branch(Kind.ROLLBACK), world.repository.tip("main"), {"x": "y"})
    world.host.open_pull_request(world.branch(Kind.ROLLBACK), "main", "Roll back", "")
    assert "https://git.corp/pulls/1 proposes a rollback" in promote(world.proposals(), candidate(7))


def test_a_withdrawn_version_is_not_proposed(tmp_path: Path) -> None:
    root = str(tmp_path / "models")
    number = publish_version(root, "run-1")
    open_store(root, "jukebox").withdraw(number, "its labels are wrong")
    world = World(tmp_path / "world", model_store=root)
    assert "it was withdrawn: its labels are wrong" in promote(world.proposals(), candidate(number))


def test_a_change_of_mains_pin_makes_the_proposal_anew(world: World) -> None:
    promote(world.proposals(), candidate(7))
    world.repository.pin(4)
    promote(world.proposals(), candidate(7))
    assert world.repository.changed("main", world.branch()) == [PIN]
    assert world.repository.git("rev-parse", f"{world.branch()}^") == world.repository.tip("main")
    assert "It replaces version 4." in world.host.pulls[0].body


def test_who_always_loses_the_race_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = world.proposals()
    monkeypatch.setattr(proposed, "propose", lambda *given: None)
    with pytest.raises(HostRefuses, match="jukebox 7 is not proposed: others change the proposal"):
        promote(proposed, candidate(7))


def test_two_promotions_at_once_end_with_the_better_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, once = world.proposals(), iter([True])
    push = first.clone.push

    def outrun(branch: str, commit: str, expected: str | None) -> bool:
        if next(once, False):
            promote(world.proposals(), candidate(8, {7: BETTER}))
        return push(branch, commit, expected)

    monkeypatch.setattr(first.clone, "push", outrun)
    assert "https://git.corp/pulls/1 proposes 8, and it is worse" in promote(first, candidate(7))
    assert world.proposed() == pin(8)
    assert len(world.host.pulls) == 1


def test_hostile_text_is_shown_as_text(world: World) -> None:
    hostile = f"{HOSTILE} | closes #12 <!-- end of promotion --> /merge www.evil.example GH-1"
    check = {**candidate(7).checks[0], "name": hostile, "description": hostile}
    promote(world.proposals(), candidate(7, summary=f"/merge {hostile}", checks=[check]))
    body = world.host.pulls[0].body
    ours = re.findall(r"(?<!\\)<!--.*?-->", body)
    assert len(ours) == 3
    without = re.sub(r"(?<!\\)<!--.*?-->", "", body)
    assert not re.search(r"(?<!\\)[<>]|(?<!\w)[@#]\w|(?<!\\)\]\((?!https://git\.corp)|\bwww\.|GH-1", without)
    assert not re.search(r"^/", body, re.MULTILINE)
    assert {each.partition("/")[0] for each in re.findall(r"\w+://(\S+)", body)} <= {"git.corp"}
    assert not CONTROL.search(body)
    assert len(body.split("### Metrics")[0].split("### Verdict")[1].strip().splitlines()) == 3
