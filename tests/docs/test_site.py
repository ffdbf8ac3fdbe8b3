"""The site builds in strict mode, and what strict mode does not see holds as well."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
ZENSICAL = Path(sys.executable).parent / "zensical"
ELSEWHERE = {"http", "https"}


class Page(HTMLParser):
    """A page's ``links``, ``loads`` that a browser asks for by itself, ``anchors`` and ``text``."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(file.read_text())

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in {"canonical", "next", "prev"}:
            self.loads.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])


def build(docs: Path, into: Path) -> "subprocess.CompletedProcess[str]":
    shutil.copytree(docs, into / "docs")
    shutil.copy(ROOT / "mkdocs.yml", into)
    command = [str(ZENSICAL), "build", "--strict", "--config-file", "mkdocs.yml"]
    return subprocess.run(command, cwd=into, capture_output=True, text=True, check=False, env={**os.environ, "CI": "1"})


def dangling(folder: Path) -> list[str]:
    """What the pages of a built site name and do not have: links, anchors, images, other hosts that are asked."""
    pages = {file: Page(file) for file in folder.rglob("*.html") if file.name != "404.html"}
    wrong = []
    for file, page in pages.items():
        for target in (*page.links, *page.loads):
            url = urlsplit(target)
            if url.scheme in ELSEWHERE or url.netloc:
                wrong += [f"{file.name} loads {target}"] if target in page.loads else []
                continue
            if url.scheme:
                continue
            path = unquote(url.path)
            other = (folder / path[1:] if path.startswith("/") else file.parent / path).resolve() if path else file
            other = other / "index.html" if other.is_dir() else other
            if not other.is_file():
                wrong.append(f"{file.name} names {target}")
            elif url.fragment and other in pages and unquote(url.fragment) not in pages[other].anchors | {"__top"}:
                wrong.append(f"{file.name} names {target}, and there is no such anchor")
    styles = [(file, file.read_text()) for file in folder.rglob("*.css")]
    wrong += [
        f"{file.name} loads {url}" for file, text in styles for url in re.findall(r"url\(['\"]?(https?:[^)]*)", text)
    ]
    return wrong


def test_the_site_builds_without_a_warning_and_all_that_it_names_is_there(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "build" / "site"
    assert dangling(site) == []
    # The marks of commands are comments, which a reader of the site does not see.
    assert [file.name for file in site.rglob("*.html") if "<!--" in Page(file).text] == []


@pytest.mark.parametrize(
    ("added", "named"),
    [
        ("![A picture](images/none.png)", "images/none.png"),
        ('<a href="none.html">a page</a>', "none.html"),
        ('<a href="data.html#none">an anchor</a>', "data.html#none"),
        ('<script src="https://example.com/a.js"></script>', "https://example.com/a.js"),
    ],
)
def test_what_strict_mode_does_not_see_is_found(added: str, named: str, tmp_path: Path) -> None:
    docs = tmp_path / "changed"
    shutil.copytree(ROOT / "docs", docs)
    with (docs / "index.md").open("a") as page:
        page.write(f"\n{added}\n")
    build(docs, tmp_path / "site")
    assert any(named in each for each in dangling(tmp_path / "site" / "build" / "site"))


def test_each_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    docs = ROOT / "docs"
    assert named == {str(file.relative_to(docs)) for file in docs.rglob("*.md")}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_what_the_files_beside_the_readme_name_is_there(name: str) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text())
    relative = [urlsplit(target).path for target in targets if urlsplit(target).scheme not in ELSEWHERE]
    assert [target for target in relative if not (ROOT / unquote(target)).exists()] == []
