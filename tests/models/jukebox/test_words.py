"""What the jukebox is about has no word outside its folders: everything else serves any model."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.models.jukebox import MODEL

ROOT = Path(__file__).parents[3]
# Names of its tables and columns that mean something else elsewhere.
ORDINARY = {"name", "energy", "key", "liveness", "mode"}
NAMES = {table.name for table in MODEL.tables} | {column.name for table in MODEL.tables for column in table.columns}
WORDS = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(NAMES - ORDINARY))}|songs?|rankings?|countr(?:y|ies)|artists?|albums?|music|musical"
    r"|spotify|popularity|chart(?:ed|ing)|top[-_ (]?5)(?![a-z])",
    re.IGNORECASE,
)
ALLOWED = (
    *("pipeline/models/jukebox/", "tests/models/jukebox/", "docs/", "manifests/settings/", "tests/settings.yaml"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("requirements.lock", "tests/cluster/go/"),  # names of others' packages
)
# What is no part of the repository where git does not say so.
LEFT_OUT = {"build", "site", "node_modules", "__pycache__"}


def files(root: Path) -> Iterator[Path]:
    """The files of a repository; without git, those of a folder but for what is hidden or made by tools."""
    if (root / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
        yield from (root / name for name in listed.stdout.split("\0") if name)
        return
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if not LEFT_OUT & set(parts) and not any(part.startswith(".") and part != ".ci" for part in parts):
            yield path


def found(root: Path) -> list[str]:
    """Each place, as file:line, with the word there; a file's own name has no line."""
    places = []
    for file in files(root):
        name = file.relative_to(root).as_posix()
        if name.startswith(ALLOWED) or not file.is_file():
            continue
        places += [f"{name}: {word[0]}" for word in WORDS.finditer(name)]
        for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
            places += [f"{name}:{number}: {word[0]}" for word in WORDS.finditer(line)]
    return sorted(places)


def test_no_word_of_the_domain_is_outside_the_jukebox() -> None:
    places = found(ROOT)
    assert not places, "move these to the jukebox's folders, or use generic words:\n" + "\n".join(places)


@pytest.mark.parametrize("git", [True, False], ids=["git", "no git"])
def test_a_word_is_found_with_its_file_and_line(tmp_path: Path, git: bool) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "a.py").write_text(
        "# charts and rank\nlast_song = COUNTRY_OF['Tempo']\nsongbird = 'top5-floor'\n"
    )
    (tmp_path / "scripts" / "rankings.bin").write_bytes(b"\xff\x00")
    (tmp_path / "README.md").write_text("songs")
    if git:
        for command in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)
        (tmp_path / "mine.txt").write_text("a song that is no part of the repository")
    else:
        (tmp_path / "build").mkdir()
        (tmp_path / "build" / "data.csv").write_text("song")
    assert found(tmp_path) == [
        "scripts/a.py:2: COUNTRY",
        "scripts/a.py:2: Tempo",
        "scripts/a.py:2: song",
        "scripts/a.py:3: top5",
        "scripts/rankings.bin: rankings",
    ]
