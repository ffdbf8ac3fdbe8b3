"""How a command prints what it has found: for people, on a terminal or in a log, or for programs."""

from enum import StrEnum

from rich.console import Console

WIDE = 200  # columns where nobody sees an edge


class Output(StrEnum):
    """How it is printed."""

    TABLE = "table"
    JSON = "json"


def console() -> Console:
    """The console to print tables on: in colour on a terminal, plain and unbroken in a log."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = WIDE
    return found
