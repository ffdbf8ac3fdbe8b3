"""Texts from outside, as they may be shown: of a commit, an alert, a table, a log or a published version."""


def printable(text: str) -> str:
    """Return a text without what a terminal would obey: it could move the cursor, or hide what was said.

    Line breaks stay; letters that cannot be seen, and marks that turn the direction, do not.
    """
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def one_line(text: str) -> str:
    """The same on one line, with single spaces."""
    return " ".join(printable(text).split())
