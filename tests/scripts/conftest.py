"""Fixtures of the tests of the commands."""

import pytest


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once what a Git host may allow a minute later."""
    monkeypatch.setattr("scripts.proposals.CHECKS_GRACE", 0.0)
    monkeypatch.setattr("scripts.proposals.OPENING", 0.0)
