"""What is missing is said, and what is built is built once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import build


def test_without_root_and_go_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "REGISTRY", tmp_path / "absent")
    monkeypatch.setattr(build, "folder", lambda part: tmp_path / part)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.Unavailable) as refused:
        build.require()
    for word in ("root", "https://go.dev/doc/install", "no apt-get", "KUBECONFIG="):
        assert word in str(refused.value)


def test_a_disk_without_room_is_named_before_it_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    build.room(0)
    with pytest.raises(build.Unavailable, match=rf"1000000 GB below {tmp_path}, where \d+ GB are free. Make room"):
        build.room(1_000_000)


def test_another_version_is_built_into_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(build.GO, tmp_path / "go")
    before = build.folder("pause")
    monkeypatch.setattr(build, "GO", tmp_path / "go")
    assert build.folder("pause") == before
    (tmp_path / "go" / "go.sum").write_text("another")
    assert build.folder("pause") != before


def test_another_version_of_gitea_rebuilds_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = {part: build.folder(part) for part in build.PARTS}
    monkeypatch.setattr(build, "GITEA", shutil.copytree(build.GITEA, tmp_path / "gitea"))
    (tmp_path / "gitea" / "go.sum").write_text("another")
    assert {part for part in build.PARTS if build.folder(part) != before[part]} == {"gitea"}


def test_who_comes_while_it_is_built_waits_for_that(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "from tests.cluster import build; print(build.build('pause'))")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    said = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert [text.count("building pause: downloading") for _, text in said].count(0) == 1
    assert (Path(said[0][0].strip()) / "jukebox.test" / "pause").is_file()


def test_a_build_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def interrupted(target: Path) -> None:
        (target / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build.kept(tmp_path / "built", interrupted)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_a_killed_build_has_left_is_not_taken_for_built(tmp_path: Path) -> None:
    words = "import os; from pathlib import Path; from tests.cluster import build\n"
    words += "build.kept(Path('built'), lambda target: ((target / 'half').touch(), os.kill(os.getpid(), 9)))"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run([sys.executable, "-c", words], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(path.is_dir() for path in tmp_path.iterdir())

    built = build.kept(tmp_path / "built", lambda target: (target / "whole").touch())

    assert [path.name for path in built.iterdir()] == ["whole"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [built]
