from pathlib import Path

import pytest

from pipeline.core.errors import SettingsInvalid
from scripts.pins import PIN, Pin, parse, read_pin, render

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
