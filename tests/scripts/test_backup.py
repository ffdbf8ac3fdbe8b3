"""``jukebox backup`` and ``jukebox restore``: folders and a real S3 server, and what each refuses."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import SettingsInvalid, StoreBroken
from pipeline.core.store import open_store
from scripts.backup import open_place, read_manifest
from scripts.cli import app
from tests.s3_server import S3Server
from tests.versions import publish_version

RECORD = {"version": 4, "commit": "c" * 40, "merged_by": "ada", "served_since": "2026-11-28T10:05:00Z"}


def make_place(kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """An empty place for a store or for backups, in a folder or in a bucket."""
    if kind == "folder":
        return str(tmp_path / name)
    s3: S3Server = request.getfixturevalue("s3_environment")
    return f"s3://{s3.bucket()}/{name}"


def fill(root: str) -> None:
    """Publish 1 to 5, of which 3 failed and 2 and 5 were deleted; 4 is marked."""
    for run in ("a", "b"):
        publish_version(root, run)
    publish_version(root, "c", passed=False, apart=True)
    publish_version(root, "d")
    publish_version(root, "e")
    store = open_store(root, "jukebox")
    store.delete(2)
    store.delete(5)
    store.restore_file("4.pinned", b"for the audit")
    store.add_promotions(4, [RECORD])


def content(root: str) -> dict[str, bytes]:
    store = open_store(root, "jukebox")
    return {path: store.content(path) for path in store.files()}


def jukebox(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kinds", ["folder folder folder", "folder s3 s3", "s3 folder folder", "s3 s3 s3"])
def test_a_restored_store_is_the_same_and_its_numbers_continue(
    kinds: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    places = zip(kinds.split(), ("models", "backups", "restored"), strict=True)
    store, backups, restored = (make_place(kind, name, tmp_path, request) for kind, name in places)
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    jukebox("restore", backups, "--model-store", restored)
    assert content(restored) == content(store)
    found = open_store(restored, "jukebox")
    assert (found.versions(), found.failed(), found.pinned()) == ([1, 4], [3], {4})
    assert found.promotions(4) == [RECORD]
    assert publish_version(restored, "d") == 4, "a run that is retried has its version"
    assert publish_version(restored, "new") == 6, "5 was deleted, and its number is not used again"


def test_a_repeated_backup_copies_what_is_new_alone(tmp_path: Path) -> None:
    store, backups = str(tmp_path / "models"), str(tmp_path / "backups")
    fill(store)
    assert "of them new" in jukebox("backup", backups, "--model-store", store)
    assert " 0 of them new" in jukebox("backup", backups, "--model-store", store)
    publish_version(store, "f")
    # Its lineage differs from those of the others, and nothing else.
    assert " 1 of them new" in jukebox("backup", backups, "--model-store", store)
    names = sorted(path.name for path in (tmp_path / "backups" / "jukebox" / "backups").iterdir())
    assert len(names) == 3, "earlier backups stay"
    for number, name in enumerate((names[0], names[2])):
        restored = str(tmp_path / f"restored-{number}")
        jukebox("restore", backups, "--model-store", restored, "--name", name)
        assert open_store(restored, "jukebox").versions() == ([1, 4], [1, 4, 6])[number]


def test_a_store_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    store, backups, other = (str(tmp_path / name) for name in ("models", "backups", "other"))
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    publish_version(other, "another run")
    before = content(other)
    with pytest.raises(StoreBroken, match="is not empty"):
        jukebox("restore", backups, "--model-store", other)
    assert content(other) == before


def test_a_store_with_other_numbers_is_not_empty_though_it_has_no_version(tmp_path: Path) -> None:
    store, backups, other = (str(tmp_path / name) for name in ("models", "backups", "other"))
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    publish_version(other, "another run")
    open_store(other, "jukebox").delete(1)
    with pytest.raises(StoreBroken, match=r"is not empty: its \.claims/1"):
        jukebox("restore", backups, "--model-store", other)


def test_a_restore_that_was_interrupted_is_continued(tmp_path: Path) -> None:
    store, backups, restored = (str(tmp_path / name) for name in ("models", "backups", "restored"))
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    place = open_place(backups, "jukebox")
    _, manifest = read_manifest(place, "jukebox")
    lineage = next(digest for path, digest in manifest.files.items() if path == ".failed/3/lineage.json")
    object_file = tmp_path / "backups" / "jukebox" / "objects" / lineage
    kept = object_file.read_bytes()
    object_file.unlink()
    with pytest.raises(StoreBroken, match="cannot use the backup"):
        jukebox("restore", backups, "--model-store", restored)
    assert open_store(restored, "jukebox").failed() == [], "no half of a version"
    object_file.write_bytes(kept)
    jukebox("restore", backups, "--model-store", restored)
    assert content(restored) == content(store)


def test_an_interrupted_backup_does_not_exist(tmp_path: Path) -> None:
    store, backups = str(tmp_path / "models"), str(tmp_path / "backups")
    fill(store)
    place = tmp_path / "backups" / "jukebox"
    place.mkdir(parents=True)
    (place / "backups").write_text("a file where a folder must be")
    with pytest.raises(StoreBroken, match="cannot use the backup"):
        jukebox("backup", backups, "--model-store", store)
    (place / "backups").unlink()
    with pytest.raises(StoreBroken, match="has no backup: found none"):
        jukebox("restore", backups, "--model-store", str(tmp_path / "restored"))
    assert not list(place.glob("unfinished*"))


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    store, backups, restored = (str(tmp_path / name) for name in ("models", "backups", "restored"))
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    digest = hashlib.sha256((tmp_path / "models/jukebox/4/model.onnx").read_bytes()).hexdigest()
    (tmp_path / "backups" / "jukebox" / "objects" / digest).write_bytes(b"other bytes")
    with pytest.raises(StoreBroken, match=f"{digest} is damaged"):
        jukebox("restore", backups, "--model-store", restored)
    assert open_store(restored, "jukebox").versions() == []


def test_a_damaged_version_is_named_and_copied_as_it_is(tmp_path: Path) -> None:
    store, backups = str(tmp_path / "models"), str(tmp_path / "backups")
    fill(store)
    (tmp_path / "models" / "jukebox" / "4" / "labels.json").write_bytes(b"[]")
    assert "4/labels.json is not what was published" in jukebox("backup", backups, "--model-store", store)


def replaced(key: str, value: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_text("{"), "is not a backup"),
        (replaced("format", 2), "in format 2, expected 'jukebox' in format 1"),
        (replaced("model", "other"), "is of the model 'other'"),
        (replaced("files", [1]), "is not a backup"),
    ],
)
def test_what_is_not_a_backup_is_named(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    store, backups = str(tmp_path / "models"), str(tmp_path / "backups")
    fill(store)
    jukebox("backup", backups, "--model-store", store)
    [file] = (tmp_path / "backups" / "jukebox" / "backups").iterdir()
    change(file)
    with pytest.raises(StoreBroken, match=message):
        jukebox("restore", backups, "--model-store", str(tmp_path / "restored"))


def test_an_empty_store_is_not_backed_up(tmp_path: Path) -> None:
    with pytest.raises(StoreBroken, match="has no versions, so there is nothing to back up: check that it is mounted"):
        jukebox("backup", str(tmp_path / "backups"), "--model-store", str(tmp_path / "models"))


def test_an_address_of_another_kind_is_refused(tmp_path: Path) -> None:
    fill(str(tmp_path / "models"))
    with pytest.raises(SettingsInvalid, match=r"begins with 'ftp://': expected a folder or s3://bucket/prefix"):
        jukebox("backup", "ftp://host/backups", "--model-store", str(tmp_path / "models"))
