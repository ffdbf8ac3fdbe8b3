"""``jukebox settle``: how long it waits."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import SettingsInvalid
from scripts.cli import app
from scripts.settle import seconds_until

NOW = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        ("2026-11-24T09:40:00Z", 600),
        ("2026-11-24T10:31:00+01:00", 60),
        ("2026-11-24T09:29:59.5Z", 0),
        ("2026-11-24T09:45:00Z", 900),
        ("2038-01-19T03:14:08Z", 900),
    ],
)
def test_it_waits_until_the_time_and_for_a_quarter_of_an_hour_at_most(until: str, seconds: float) -> None:
    assert seconds_until(until, NOW) == seconds


@pytest.mark.parametrize("until", ["soon", "", "2026-11-24T09:40:00", "2026-13-24T09:40:00Z", "1764000000"])
def test_what_is_no_time_is_said(until: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"is not a valid time of RFC 3339, for example 2026-"):
        seconds_until(until, NOW)


def test_the_command_sleeps_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert CliRunner().invoke(app, ["settle", until]).output == "Waiting for 900 s\n"
    assert slept == [900]
