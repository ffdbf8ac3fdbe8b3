"""Each console block of the pages carries a mark: the tests run it, or the mark says why they do not.

No mark, no run: a block that somebody adds cannot act on a real cluster because its mark was forgotten.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
RUN = "run by tests"
WHY_NOT = {"needs a cluster", "needs minutes"}

# The mark is an HTML comment in the line before the block. A block may be indented as part of a list.
BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>.*?) -->\n)?^(?P<indent> *)```console\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# What has commands is `console`; the others are not for a shell.
FENCE = re.compile(r"^ *```(\w+)", re.MULTILINE)
LANGUAGES = {"console", "python", "text", "yaml"}

# What acts on a cluster, a cloud, a registry or a Git host.
REMOTE = re.compile(
    r"\b(kubectl|oc|argocd|tkn|helm|aws|buildah|podman|docker|skopeo|curl|wget|ssh"
    r"|git\s+(push|pull|fetch|clone)"
    r"|make\s.*\b(bootstrap|teardown|soak|(test-|bench-)?cluster(-down)?)"
    r"|prod_train_save_pipeline\.py"
    r"|jukebox\s+(?!(run|predict|sample|data-version|compile|--help)\b)\S+)(?![\w.-])"
)


@dataclass(frozen=True)
class Block:
    """A console block of a page."""

    place: str
    mark: str
    commands: tuple[str, ...]


def blocks(text: str, name: str) -> Iterator[Block]:
    """Yield the console blocks of a page's text."""
    for block in BLOCK.finditer(text):
        lines = block["text"].replace("\\\n", "").splitlines()
        commands = tuple(line.strip()[2:] for line in lines if line.strip().startswith("$ "))
        yield Block(f"{name}:{text.count(chr(10), 0, block.start('indent')) + 1}", block["mark"] or "", commands)


def problems(text: str, name: str) -> list[str]:
    """What is wrong with the blocks of a page's text; nothing is run."""
    found = list(blocks(text, name))
    wrong = []
    languages = FENCE.findall(text)
    # The fences are counted apart from the pattern: a block that it does not match must not escape.
    if languages.count("console") != len(found):
        wrong.append(f"{name}: {languages.count('console')} console blocks begin, {len(found)} are complete")
    wrong += [f"{name}: a block is {language}" for language in sorted(set(languages) - LANGUAGES)]
    for block in found:
        if block.mark not in {RUN, *WHY_NOT}:
            wrong.append(f"{block.place}: the mark is {block.mark!r}, expected one of {sorted({RUN, *WHY_NOT})}")
        if not block.commands:
            wrong.append(f"{block.place}: no line begins with '$ '")
        remote = [match[0] for command in block.commands if (match := REMOTE.search(command))]
        if block.mark == RUN and remote:
            wrong.append(f"{block.place}: is marked {RUN!r}, and {remote[0]!r} acts on another machine")
    return wrong


def to_run(text: str, name: str) -> list[Block]:
    """The blocks that carry the mark; raises ValueError, so that nothing is run, if a page has any problem."""
    if wrong := problems(text, name):
        raise ValueError("\n".join(wrong))
    return [block for block in blocks(text, name) if block.mark == RUN]


def run(block: Block, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run the commands in a copy of the checkout, with no credentials."""
    # Of the caller's environment the programs alone: no kubeconfig, token or key.
    alone = {
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(folder),
        "KUBECONFIG": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    script = "set -euo pipefail\n" + "\n".join(block.commands)
    return subprocess.run(["bash", "-c", script], cwd=folder, env=alone, capture_output=True, text=True, check=False)


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


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_block_is_run_or_says_why_not(page: Path) -> None:
    assert problems(page.read_text(), name_of(page)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if RUN in page.read_text()], ids=name_of)
def test_the_marked_commands_run(page: Path, copy: Path) -> None:
    for block in to_run(page.read_text(), name_of(page)):
        done = run(block, copy)
        assert done.returncode == 0, f"{block.place}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


MARKED = "<!-- run by tests -->\n```console\n$ make help\n```\n"


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        ("```console\n$ make help\n```", "the mark is ''"),
        ("<!-- needs luck -->\n```console\n$ make help\n```", "the mark is 'needs luck'"),
        ("<!-- run by tests -->\n\n```console\n$ make help\n```", "the mark is ''"),
        ("<!-- run by tests -->\n```console\nmake help\n```", "no line begins with"),
        ("```console\n$ make help\n", "2 console blocks begin, 1 are complete"),
        ("```bash\nkubectl delete all --all\n```", "a block is bash"),
    ],
)
def test_a_page_with_a_block_that_has_no_mark_runs_nothing(added: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        to_run(f"{MARKED}\n{added}\n", "page.md")


@pytest.mark.parametrize(
    "command",
    [
        "kubectl delete namespace NAMESPACE",
        "make help && aws iam create-user --user-name a",
        "git  push",
        "make bootstrap",
        "make YES=1 teardown",
        "make test-cluster",
        "jukebox \\\n    secrets --rotate github",
        ".venv/bin/jukebox replay alert",
        ".venv/bin/python pipeline/prod_train_save_pipeline.py",
    ],
)
def test_a_marked_block_that_acts_on_another_machine_is_refused_before_it_runs(command: str) -> None:
    with pytest.raises(ValueError, match="acts on another machine"):
        to_run(f"{MARKED}\n<!-- run by tests -->\n```console\n$ {command}\n```\n", "page.md")


def test_only_the_marked_blocks_run(tmp_path: Path) -> None:
    text = "\n".join(
        f"<!-- {mark} -->\n```console\n$ touch '{mark}'\n```\n" for mark in ("needs a cluster", RUN, "needs minutes")
    )
    for block in to_run(text, "page.md"):
        assert run(block, tmp_path).returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == [RUN]


def test_the_commands_have_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.setenv(name, "of-the-caller")
    monkeypatch.setenv("KUBECONFIG", "/of-the-caller")
    done = run(Block("page.md:1", RUN, ("env",)), tmp_path)
    assert "of-the-caller" not in done.stdout
    assert f"HOME={tmp_path}" in done.stdout
