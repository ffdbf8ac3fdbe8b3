"""Safe display of texts from outside: of a commit, an alert, a table, a log or a published version."""


def printable(text: str) -> str:
    """Return a text without control characters, which could move a terminal's cursor or hide text.

    Line breaks stay; invisible characters and marks of direction do not.
    """
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def one_line(text: str) -> str:
    """The same on one line, with single spaces."""
    return " ".join(printable(text).split())
