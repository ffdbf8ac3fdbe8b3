"""``jukebox withdraw`` closes proposals and marks the version in the store."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import SettingsInvalid
from pipeline.core.store import open_store
from scripts.cli import app
from scripts.clients.git_hosts import State
from scripts.promote import promote
from scripts.proposals import Kind
from scripts.rollback import roll_back
from scripts.withdraw import withdraw
from tests.scripts.proposing import World, candidate, pin
from tests.settings_file import use_settings
from tests.versions import publish_version


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository whose main pins version 3."""
    world = World(tmp_path / "world")
    world.repository.pin(3)
    return world


def test_the_open_proposal_is_closed_with_the_reason(world: World) -> None:
    promote(world.proposals(), candidate(7))
    assert withdraw(world.proposals(), 7, "wrong labels, says @ada") == ["https://git.corp/pulls/1 is closed."]
    assert world.host.pulls[0].state is State.CLOSED
    assert world.host.comments[1] == ["Version 7 is withdrawn: wrong labels, says @\u200bada"]
    assert "was closed without a merge" in promote(world.proposals(), candidate(7))


def test_a_rollback_to_it_is_closed_as_well_and_other_proposals_stay(world: World) -> None:
    roll_back(world.proposals(), pin(2), "")
    assert withdraw(world.proposals(), 7, "wrong labels") == []
    assert withdraw(world.proposals(), 2, "wrong labels") == ["https://git.corp/pulls/1 is closed."]
    assert world.proposed(Kind.ROLLBACK) is None


def test_the_store_is_marked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(tmp_path / "models")
    number = publish_version(root, "run-1")
    use_settings(monkeypatch, tmp_path / "settings.yaml", model_store=root)
    words = ["withdraw", str(number), "--reason", "wrong labels"]
    assert CliRunner().invoke(app, words).output == "Version 1 is marked as withdrawn.\n"
    assert open_store(root, "jukebox").withdrawn(number) == "wrong labels"
    assert CliRunner().invoke(app, words).output == "Version 1 was withdrawn before.\n"


@pytest.mark.parametrize(
    ("reason", "why"),
    [(" \n", "the reason is empty"), ("wrong", "Version 7 is not withdrawn: the model store /models is not here")],
)
def test_what_marks_nothing_is_an_error(reason: str, why: str) -> None:
    result = CliRunner().invoke(app, ["withdraw", "7", "--reason", reason])
    assert isinstance(result.exception, SettingsInvalid)
    assert why in str(result.exception)
