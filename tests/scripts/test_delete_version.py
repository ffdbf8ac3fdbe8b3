from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import SettingsInvalid, StoreBroken
from pipeline.core.store import open_store
from scripts.cli import app
from scripts.pins import PIN, Pin, render
from tests.settings_file import SETTINGS_FILE
from tests.versions import publish_version


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of six versions: 2 is the champion, 3 failed; this checkout pins 4 for production."""
    root = str(tmp_path / "models")
    publish_version(root, "a")
    publish_version(root, "b", worse_by=-0.1, than=1)
    publish_version(root, "c", passed=False, apart=True)
    for run in "def":
        publish_version(root, run, worse_by=0.01, than=2)
    settings = tmp_path / "fork" / "manifests" / "settings" / "settings.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text(SETTINGS_FILE.read_text())
    pin = tmp_path / "fork" / PIN
    pin.parent.mkdir(parents=True)
    pin.write_text(render(Pin("jukebox", 4, "ab" * 32)))
    monkeypatch.setenv("JUKEBOX_SETTINGS", str(settings))
    return root


def delete(root: str, *numbers: int) -> str:
    result = CliRunner().invoke(app, ["delete-version", *map(str, numbers), "--model-store", root])
    if isinstance(result.exception, SettingsInvalid | StoreBroken):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_versions_that_nothing_needs_go(root: str) -> None:
    printed = delete(root, 1, 3)
    assert printed == f"{root}/jukebox/1 deleted\n{root}/jukebox/.failed/3 deleted\n"
    store = open_store(root, "jukebox")
    assert (store.versions(), store.failed()) == ([2, 4, 5, 6], [])


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (2, "it is the champion"),
        (4, "production serves it, according to .*manifests/pins/prod/kustomization.yaml"),
        (5, "5.pinned protects it"),
        (6, "it is the newest that passed, which dev serves"),
    ],
)
def test_what_is_needed_is_refused_and_nothing_else_goes(root: str, number: int, reason: str) -> None:
    Path(root, "jukebox", "5.pinned").touch()
    with pytest.raises(SettingsInvalid, match=rf"Nothing is deleted: version {number}: {reason}"):
        delete(root, 1, number)
    assert open_store(root, "jukebox").versions() == [1, 2, 4, 5, 6]


def test_a_damaged_version_goes_though_it_is_the_newest(root: str) -> None:
    Path(root, "jukebox", "6", "lineage.json").unlink()
    delete(root, 6)
    assert open_store(root, "jukebox").newest() == 5


def test_a_version_that_an_older_release_let_be_served_goes_though_it_is_the_newest(root: str) -> None:
    publish_version(root, "failed", passed=False)
    delete(root, 7)
    assert open_store(root, "jukebox").newest() == 6


def test_a_version_that_is_not_there_is_told(root: str) -> None:
    with pytest.raises(StoreBroken, match=r"/jukebox/9 does not exist"):
        delete(root, 9)
