from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import SettingsInvalid
from scripts.git import Clone
from scripts.pins import PIN, Pin, history, parse, read_pin, render
from tests.git_server import GitServer, serve_git

ROOT = Path(__file__).parents[2]
SHA = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "pin",
    [
        Pin("jukebox"),
        Pin("cars", 7, SHA),
        Pin("cars", 7, SHA, "2026-11-28: version 8 is worse, see #12"),
        Pin("cars", 7, SHA, 'it says "no": - {a}, &b *c ${d} %e 🙂 \\n é'),
        Pin("cars", hold="no model of this data"),
    ],
)
def test_what_is_written_is_read_again(pin: Pin) -> None:
    assert parse(render(pin)) == pin
    assert render(parse(render(pin))) == render(pin)


def test_comments_are_free_and_a_person_may_quote_a_value() -> None:
    text = render(Pin("cars", 7, SHA, "ask Ada")).replace("- version=7", '- "version=7" # of Tuesday')
    assert parse(f"# mine\n{text}") == Pin("cars", 7, SHA, "ask Ada")


def test_the_pin_of_this_repository_is_in_order() -> None:
    assert (ROOT / PIN).read_text() == render(read_pin(ROOT))


@pytest.mark.parametrize(
    ("found", "given"),
    [
        ("version=7", "version=07"),
        ("version=7", "version=0"),
        ("version=7", "version="),
        (f"sha256={SHA}", "sha256="),
        (f"sha256={SHA}", f"sha256={SHA.upper()}"),
        ("model=cars", "model=Cars"),
        ("model=cars", "model=../cars"),
        ("- version=7\n", ""),
        ("- model=cars", "- model=cars\n      - more=1"),
        ("kind: Component", "kind: Component\npatches: [{patch: '- {op: remove, path: /spec}', target: {kind: Pod}}]"),
        ("kind: Component", "kind: Component\nresources: [../../base]"),
        ("name: jukebox-pin", "name: jukebox-dashboard"),
        ("disableNameSuffixHash: true", "disableNameSuffixHash: false"),
        ("literals:", "files:"),
        ("---", "--- {"),
        ("- version=7", "- [version=7]"),
        ("- hold=", "- hold=\t7"),
    ],
)
def test_a_file_that_is_not_a_pin_alone_is_refused_and_named(found: str, given: str) -> None:
    text = render(Pin("cars", 7, SHA))
    assert found in text
    with pytest.raises(SettingsInvalid, match="pin"):
        parse(text.replace(found, given))


@pytest.mark.parametrize("hold", ["two\nlines", "a\u2028b", " padded", '"quoted"', "\x1b[2J"])
def test_a_hold_is_one_printable_line(hold: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"the pin's hold is .* expected a printable line"):
        Pin("cars", 7, SHA, hold)


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"null", b"[1]"])
def test_a_checkout_without_a_valid_pin_is_named_with_what_to_do(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / PIN
    if content is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with pytest.raises(SettingsInvalid, match=r"is not a valid pin: .* Restore it"):
        read_pin(tmp_path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    """A repository whose first commit has no pin."""
    with serve_git(tmp_path) as served:
        served.push("First")
        yield served


def commit(server: GitServer, text: str) -> None:
    file = server.work / PIN
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    server.push("Change the pin")


def pinned(server: GitServer, folder: Path, branch: str = "main") -> list[Pin]:
    folder.mkdir()
    return history(Clone(folder, server.url, None), branch)


def test_the_history_is_what_was_pinned_newest_first(server: GitServer, tmp_path: Path) -> None:
    none, one, two = Pin("cars"), Pin("cars", 1, SHA), Pin("cars", 2, SHA[::-1])
    back = replace(one, hold="2 is worse")
    for pin in (none, one):
        commit(server, render(pin))
    commit(server, f"# mine\n{render(one)}")  # says the same
    commit(server, "{")  # was never served
    for pin in (two, back):
        commit(server, render(pin))
    assert pinned(server, tmp_path / "clone") == [back, two, one, none]


def test_a_branch_without_a_pin_has_no_history(server: GitServer, tmp_path: Path) -> None:
    assert pinned(server, tmp_path / "clone") == []
    assert pinned(server, tmp_path / "another", "production") == []


def test_a_pin_that_is_not_valid_now_is_an_error(server: GitServer, tmp_path: Path) -> None:
    commit(server, render(Pin("cars", 1, SHA)))
    commit(server, "{")
    with pytest.raises(SettingsInvalid, match="is not a valid pin"):
        pinned(server, tmp_path / "clone")
