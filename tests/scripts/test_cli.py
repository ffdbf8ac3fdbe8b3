import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline.models.jukebox.tables import DATE
from pipeline.settings import read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts import cli, data_version
from tests.active_model import TABLES, write_tables

FIRST, *_, LAST = TABLES

ROOT = Path(__file__).parents[2]
COMMANDS = cli.Commands()


def jukebox(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run a command as the shell does; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["jukebox", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code if isinstance(ended.value.code, int) else int(ended.value.code is not None)


def shown(*arguments: str) -> str:
    """What a command prints, as words with single spaces between them, in a window so wide that nothing is broken."""
    result = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": "500"})
    assert result.exit_code == 0
    return words(result.output)


def words(text: str) -> str:
    """The text as it looks: without its markdown and its frames."""
    return " ".join(text.replace("`", "").replace("│", "").split())


def line(name: str) -> str:
    """What the list of commands says of one."""
    return words(f"{name} {COMMANDS[name].load().help.splitlines()[0]}")


def test_the_help_names_every_command_with_what_it_does() -> None:
    text = shown()
    for name in COMMANDS:
        assert line(name) in text


def test_the_help_groups_the_commands_by_who_uses_them() -> None:
    _, laptop, cluster, tasks = re.split("On a laptop|On a cluster|By the Tekton tasks", shown())
    assert line("run") in laptop
    assert line("doctor") in cluster
    manifests = "".join(path.read_text() for path in (ROOT / "tekton").rglob("*.yaml"))
    called = set(re.findall(r"command: \[jukebox, ([a-z-]+)", manifests))
    for name in called - {"compile", "replay"}:  # these two are for people first
        assert line(name) in tasks


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_an_example_and_explains_every_option(name: str) -> None:
    text = shown(name)
    assert f"Example: jukebox {name}" in text
    for parameter in COMMANDS[name].load().params:
        assert parameter.help, parameter.name
        assert words(parameter.help) in text


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [([], {"scripts.cli"}), (["settle"], {"scripts.cli", "scripts.settle"})],
    ids=["all commands", "settle"],
)
def test_the_help_loads_no_more_than_what_it_explains(arguments: list[str], loaded: set[str]) -> None:
    script = f"import sys; from scripts.cli import app; app([*{arguments}, '--help'], standalone_mode=False)"
    script += "; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    modules = set(done.stderr.split())
    assert {name for name in modules if name.startswith("scripts.")} == loaded
    assert not modules & {"kfp", "kubernetes", "numpy", "polars", "requests", "yaml"}


def test_what_works_ends_with_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert jukebox(monkeypatch, "compile", "--output", tmp_path / "pipeline.yaml") == 0


def test_what_the_user_can_mend_ends_with_1_and_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jukebox(monkeypatch, "compile", "--settings", tmp_path / "nowhere.yaml") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("SettingsInvalid: ")
    assert "nowhere.yaml" in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "No such command 'dance'"),
        (["compile", "--shiny"], "No such option"),
        (["predict"], "Missing argument 'row'"),
        (["predict", "River", "--top", "0"], "should be greater than"),
        (["sample", "--rows", "-1"], "should be greater than"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert jukebox(monkeypatch, *arguments) == 2
    assert message.casefold() in capsys.readouterr().err.casefold()


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jukebox(monkeypatch) == 2
    assert "compile" in "".join(capsys.readouterr())


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, str]:
    """The URIs of the tables."""
    return write_tables(tmp_path)


def test_the_data_version_is_printed_alone_and_follows_the_content(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tables: dict[str, str]
) -> None:
    given = [f"{name}={uri}" for name, uri in tables.items()]
    assert jukebox(monkeypatch, "data-version", *given) == 0
    before = capsys.readouterr().out
    assert before == resolve_data_version(tables) + "\n"
    assert jukebox(monkeypatch, "data-version", *given[::-1]) == 0
    assert capsys.readouterr().out == before
    Path(tables[LAST]).write_bytes(b"others")
    assert jukebox(monkeypatch, "data-version", *given) == 0
    assert capsys.readouterr().out != before


def test_the_data_of_the_settings_is_taken_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tables: dict[str, str],
) -> None:
    settings = replace(read_settings(), data=tables)
    monkeypatch.setattr(data_version, "read_settings", lambda: settings)
    assert jukebox(monkeypatch, "data-version") == 0
    assert capsys.readouterr().out == resolve_data_version(tables) + "\n"


@pytest.mark.parametrize(
    "given",
    [
        ["cars=a.csv"],
        [f"{FIRST}.csv"],
        [f"{FIRST}=a", f"{FIRST}=b"],
        [f"{FIRST}=a {FIRST}=b"],
        [f"{FIRST}="],
        [f"x {FIRST}=a"],
    ],
)
def test_what_is_no_table_with_its_uri_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    assert jukebox(monkeypatch, "data-version", *given) == 1
    assert f"expected TABLE=URI, once for each of the tables {', '.join(TABLES)}" in capsys.readouterr().err


def test_data_that_is_not_there_has_no_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tables: dict[str, str]
) -> None:
    given = " ".join(f"{name}={uri}" for name, uri in {**tables, LAST: f"{tmp_path}/nowhere.parquet"}.items())
    assert jukebox(monkeypatch, "data-version", given) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "nowhere.parquet" in printed.err


def test_a_sample_ends_yesterday_and_its_files_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = datetime.now(UTC).date()
    assert jukebox(monkeypatch, "sample", tmp_path, "--rows", "1000", "--seed", "5") == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == [f"{name}.parquet" for name in TABLES]
    last = pl.read_parquet(files[-1])[DATE].dt.date().max()
    assert last in {day - timedelta(days=1) for day in (before, datetime.now(UTC).date())}
