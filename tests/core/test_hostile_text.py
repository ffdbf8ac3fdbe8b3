"""Text from outside (a commit, an alert, a row, a log) in each place that shows it: as text, and as nothing else."""

import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipeline.core.report import environment, summary_markdown
from pipeline.core.texts import one_line, printable
from scripts.causes import cleaned
from scripts.cli import app
from scripts.clients.git_hosts import Host
from scripts.output import console
from scripts.status import _table, find_models
from tests.active_model import MODEL, TABLES
from tests.report_fixture import documents
from tests.scripts.test_commit_status import host
from tests.settings_file import use_settings, write_git_secret
from tests.versions import publish_version

HOSTILE = (
    "<!channel> <!here|x> <https://evil.example|log in> @channel @here [log in](https://evil.example) <at>all</at> "
    "<users/all> <script>alert(1)</script> **bold** ![](https://evil.example/pixel) [/red] [bold] {{ 7*7 }} "
    "\x1b[2J\x1b]8;;https://evil.example\x07\x9b31m \r\n::error:: \u202egnp.exe \x00 end"
)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_a_chat_calls_nobody_and_links_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "url"
    use_settings(monkeypatch, tmp_path / "settings.yaml", run_page="https://kubeflow.corp/runs")
    with host(200) as (url, asked):
        file.write_text(f"{url}/hook")
        words = ["notify", f"push of 0a1b: {HOSTILE}", "Failed", "--url-file", str(file)]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [(_, _, body)] = asked
    text = body["text"]
    assert not re.search(r"[<>]|(?<!\w)@\w|\]\(", text)
    assert re.findall(r"\w+://\S+", text) == ["https://kubeflow.corp/runs"]
    assert not CONTROL.search(text)
    assert not CONTROL.search(result.output)
    assert "failed" in text
    assert "log in" in text


def test_what_is_not_hostile_is_told_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "url"
    text = "push of 0a1b by ada@example.com: image r.corp/x@sha256:aaaa, 7 > 5"
    with host(200) as (url, asked):
        file.write_text(f"{url}/hook")
        CliRunner().invoke(app, ["notify", text, "Succeeded", "--url-file", str(file)])
    assert asked[0][2]["text"] == text.replace(">", "›") + ": succeeded"


@pytest.mark.parametrize("git_host", Host)
def test_a_commits_status_is_one_line_that_can_be_seen(
    git_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with host(201) as (url, asked):
        use_settings(monkeypatch, tmp_path / "settings.yaml", repository=f"{url}/o/n", git_host=git_host)
        secret = write_git_secret(tmp_path / "secret", f"{url}/o/n", "a-token")
        words = ["commit-status", "a" * 40, "Failed", "--git-secret", str(secret), "--description", HOSTILE]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    [(_, _, body)] = asked
    assert not CONTROL.search(body["description"])
    assert "\n" not in body["description"]


def test_a_log_that_is_shown_again_moves_no_cursor() -> None:
    assert cleaned("one\n\x1b[2Jtwo\x07") == "one\n [2Jtwo "
    assert not CONTROL.search(cleaned(HOSTILE) + printable(HOSTILE) + one_line(HOSTILE))


def test_the_dashboards_summary_is_text() -> None:
    lineage = documents(labels=5)["lineage"]
    lineage["run"]["name"] = lineage["verdict"]["summary"] = lineage["model"]["name"] = HOSTILE
    lineage["data"][TABLES[0]]["sha256"] = HOSTILE
    text = summary_markdown(lineage, HOSTILE)
    assert not re.search(r"(?<!\\)[<>\[\]!`]", text)
    assert not CONTROL.search(text)


@pytest.mark.parametrize("template", ["_parts.html.j2", "evaluation.html.j2", "model-card.html.j2", "report.html.j2"])
def test_no_template_takes_text_for_markup(template: str) -> None:
    source, _, _ = environment().loader.get_source(environment(), template)  # type: ignore[union-attr]
    assert "safe" not in re.findall(r"\|\s*(\w+)", source)
    assert "autoescape" not in source
    assert not re.search(r"<script|\son\w+=", source)
    assert environment().from_string("{{ text }}").render(text=HOSTILE).count("<") == 0


def test_the_models_of_a_store_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_version(str(tmp_path), "[/red]", model={"version": HOSTILE})
    rows, note = find_models(str(tmp_path), "jukebox", 10)
    assert note == ""
    console().print(_table(rows))
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    assert "[/red]" in shown


def test_a_row_and_a_label_are_shown_as_text(tmp_path: Path) -> None:
    publish_version(str(tmp_path / "models"), "a", labels=("[/red]", HOSTILE, "JP", "KR"))
    texts = [column.name for column in MODEL.tables[0].columns if column.dtype is pl.String]
    row = dict(zip(texts, ("1", HOSTILE, "[/bold]"), strict=True)) | {column.name: 0.5 for column in MODEL.features}
    pl.DataFrame([row]).write_parquet(tmp_path / "table.parquet")
    words = ["predict", "1", "--table", str(tmp_path / "table.parquet"), "--model-store", str(tmp_path / "models")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert not CONTROL.search(result.output)
    assert "[/red]" in result.output
