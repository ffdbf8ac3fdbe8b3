"""The commands in the pages run, or a comment before their block says why not."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKS = {"needs a cluster", "needs minutes"}

# The comment before a block, if there is one, and the block; it may be indented as part of a list.
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>.*?) -->\n)?^(?P<indent> *)```console\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


def blocks() -> list[tuple[str, str, list[str]]]:
    """Place, mark and commands of each block."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in BLOCK.finditer(text):
            lines = block["text"].replace("\\\n", "").splitlines()
            commands = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, block.start('indent')) + 1}"
            found.append((place, block["mark"] or "", commands))
    return found


# What acts on a cluster or a cloud, so never without a mark.
REMOTE = re.compile(r"\b(kubectl|aws|buildah|git push|make (bootstrap|teardown)|jukebox (doctor|secrets|status))\b")


UNMARKED = [(place, commands) for place, mark, commands in blocks() if not mark]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout whose `.venv` is this one, ready."""
    folder = tmp_path / "jukebox"
    left_out = shutil.ignore_patterns(".git", ".venv", ".tools", "build", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=left_out, symlinks=True)
    (folder / ".venv").mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name not in {"ready", "installed", "lock"}:
            (folder / ".venv" / entry.name).symlink_to(entry)
    for name in ("installed", "ready"):
        (folder / ".venv" / name).touch()
    return folder


def test_each_block_is_run_or_says_why_not() -> None:
    # The fences are counted apart from the pattern: a block that it does not match would be neither run nor marked.
    assert len(blocks()) == sum(len(re.findall(r"^ *```console", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert {mark for _, mark, _ in blocks()} - {""} <= MARKS
    assert [place for place, _, commands in blocks() if not commands] == []
    assert [place for place, commands in UNMARKED if REMOTE.search("\n".join(commands))] == []


@pytest.mark.parametrize(("place", "commands"), UNMARKED, ids=[place for place, _ in UNMARKED])
def test_the_commands_run(place: str, commands: list[str], copy: Path) -> None:
    # Nothing of the caller's environment but the programs: a block that lacks its mark must not find a kubeconfig, a
    # token or keys, and act on a real cluster.
    alone = {
        "PATH": f"{copy / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(copy),
        "PYTHONPATH": str(copy),
        "KUBECONFIG": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    script = "set -euo pipefail\n" + "\n".join(commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=copy,
        env=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{place}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
