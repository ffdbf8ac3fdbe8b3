from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import JukeboxError, SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.store import open_store
from scripts.cli import app
from scripts.verify import check_version
from tests.serving import model
from tests.versions import WEIGHTS, publish_version

CONTENT = model([*WEIGHTS])
SHA = sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store of three versions, of which 2 failed."""
    root = str(tmp_path / "models")
    publish_version(root, "a")
    publish_version(root, "b", passed=False, apart=True)
    publish_version(root, "c")
    return root


def verify(root: str, version: str, digest: str = SHA) -> str:
    given = [f"--version={version}", f"--sha256={digest}", "--model=jukebox", f"--model-store={root}"]
    result = CliRunner().invoke(app, ["verify", *given])
    if isinstance(result.exception, JukeboxError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_version_with_the_pinned_content_is_confirmed_in_one_line(root: str) -> None:
    assert verify(root, "3").splitlines() == [
        f"The model store has version 3 of jukebox with the pinned model.onnx ({SHA[:12]}…), and it passed"
    ]
    assert check_version(root, "jukebox", 3) == SHA


def test_nothing_pinned_is_no_error_and_needs_no_store() -> None:
    assert "production serves nothing" in verify("/nowhere", "", "")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("2", r"Version 2 \(.*/.failed/2\) did not pass its checks: Not good enough. Pin a version that passed"),
        ("9", r"Version 9 \(.*/9\) does not exist; there are: 1, 3. Restore it with `jukebox restore`, or pin"),
    ],
)
def test_what_may_not_be_served_is_refused_with_what_there_is(root: str, version: str, message: str) -> None:
    with pytest.raises(VersionBroken, match=message):
        verify(root, version)


def test_a_store_that_was_emptied_has_no_version(tmp_path: Path) -> None:
    with pytest.raises(VersionBroken, match="does not exist; there are: none"):
        verify(str(tmp_path), "1")


def test_other_bytes_under_the_pinned_number_are_refused(root: str) -> None:
    other = "0" * 64
    with pytest.raises(VersionBroken, match=f"another content .*is {SHA}, expected {other}"):
        verify(root, "3", other)
    Path(root, "jukebox", "3", "model.onnx").write_bytes(CONTENT + b"\0")
    with pytest.raises(VersionBroken, match=f"another content .*expected {SHA}"):
        verify(root, "3")


def test_a_damaged_version_is_refused(root: str) -> None:
    Path(root, "jukebox", "3", "labels.json").write_bytes(b"[]")
    with pytest.raises(VersionBroken, match=r"Version 3 .* is damaged: the sha256 of its labels.json"):
        verify(root, "3")


def test_a_withdrawn_version_is_refused_with_the_reason(root: str) -> None:
    open_store(root, "jukebox").withdraw(3, "it favours long flats")
    with pytest.raises(VersionBroken, match=r"Version 3 .* was withdrawn: it favours long flats"):
        verify(root, "3")


def test_a_version_that_an_older_release_published_without_having_passed_is_refused(root: str) -> None:
    publish_version(root, "d", passed=False)
    with pytest.raises(VersionBroken, match="published without having passed"):
        verify(root, "4")


@pytest.mark.parametrize("version", ["seven", "0", "-1", "²"])
def test_a_version_is_a_number(root: str, version: str) -> None:
    with pytest.raises(SettingsInvalid, match="expected the number of a version"):
        verify(root, version)


def test_a_version_without_a_digest_is_not_verified(root: str) -> None:
    with pytest.raises(SettingsInvalid, match="--sha256 is empty"):
        verify(root, "3", "")


def test_a_store_that_cannot_be_read_is_named(root: str) -> None:
    folder = Path(root, "jukebox")
    folder.rename(folder.with_name("elsewhere"))
    folder.write_bytes(b"")
    with pytest.raises(StoreBroken, match="jukebox"):
        verify(root, "3")
