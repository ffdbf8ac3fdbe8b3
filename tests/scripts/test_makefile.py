"""What the Makefile installs and names from outside, it checks or pins; nothing here asks the network."""

import os
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
OLD, NEW = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile and a Containerfile whose base image is pinned."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").write_text("")
    (folder / "requirements.lock").write_text(f"uv==1.0 \\\n    --hash={OLD}\nzipp==1.0 \\\n    --hash={OLD}\n")
    (folder / "Containerfile").write_text(f"ARG BASE_IMAGE=example.com:1/python:3@{OLD}\nFROM ${{BASE_IMAGE}}\n")
    return folder


def make(folder: Path, target: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PIP_"))}
    return subprocess.run(
        ["make", target], cwd=folder, env=kept | environment, capture_output=True, text=True, check=False
    )


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_an_installer_that_is_not_the_locked_one_is_not_installed(clone: Path, tmp_path: Path) -> None:
    with ZipFile(tmp_path / "uv-1.0-py3-none-any.whl", "w") as wheel:
        about = "uv-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    done = make(clone, ".venv/ready", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (clone / ".venv" / "uv").exists()


def test_refresh_names_the_digest_that_the_tag_has_now(clone: Path, tmp_path: Path) -> None:
    # skopeo takes a tag or a digest; with the old digest, it would tell nothing new.
    write_program(
        tmp_path / "bin" / "skopeo", f'case "$*" in *docker://example.com:1/python:3) echo {NEW};; *) exit 1; esac'
    )
    write_program(clone / ".venv" / "uv" / "bin" / "uv", f'echo "$*" >{tmp_path / "locked"}')
    (clone / ".venv" / "ready").touch()
    done = make(clone, "refresh", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert (clone / "Containerfile").read_text().splitlines()[0] == f"ARG BASE_IMAGE=example.com:1/python:3@{NEW}"
    assert "--upgrade" in (tmp_path / "locked").read_text()
