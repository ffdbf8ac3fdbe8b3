"""``jukebox settle``: wait until an upload of many objects may be over, so that all of them are in one training."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from pipeline.core.errors import SettingsInvalid

LONGEST = 15 * 60.0  # seconds: a clock that is wrong, or an event that is forged, holds nothing up for longer


def command(
    until: Annotated[str, typer.Argument(help="Time to wait for (RFC 3339); at most 15 minutes from now.")],
) -> None:
    """Wait until a time.

    Example: `jukebox settle 2026-11-24T09:40:00Z`
    """
    seconds = seconds_until(until, datetime.now(UTC))
    print(f"Waiting for {seconds:.0f} s", flush=True)
    time.sleep(seconds)


def seconds_until(until: str, now: datetime) -> float:
    """Seconds from ``now`` until the time, 0 where it is over, at most ``LONGEST``.

    Raises SettingsInvalid where it is no time with a zone.
    """
    try:
        left = (datetime.fromisoformat(until) - now).total_seconds()
    except (ValueError, TypeError):  # the latter where it names no zone
        raise SettingsInvalid(f"{until!r} is not a valid time of RFC 3339, for example 2026-11-24T09:40:00Z") from None
    return min(max(left, 0.0), LONGEST)
