"""What a reviewer reads of a proposal: the body of its pull request, in Markdown that all Git hosts show alike.

All texts come from a run, so pushed code has printed them: each is shown as text, links nowhere, and calls nobody.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.candidate import Candidate
from pipeline.core.report import ALL, number
from pipeline.core.texts import one_line
from pipeline.settings import Settings
from scripts.causes import cleaned
from scripts.clients.git_hosts import GitHost
from scripts.git import is_full_hash
from scripts.pins import Pin
from scripts.start import Reason

MOST_SHIFTS = 10  # that are shown without a warning
STATISTICS = {"psi": "population stability index", "mean_difference": "difference of the mean, standard deviations"}
INTERVAL = "_interval"  # ends the name of a metric's interval
LONGEST = 400  # characters of a text that is not ours
REASONS = {
    Reason.PUSH: "a push of its commit",
    Reason.DATA: "new data",
    Reason.ALERT: "an alert",
    Reason.SCHEDULE: "the schedule",
    Reason.MANUAL: "a start by hand",
}
_SIGNS = re.compile(r"([\\`*_{}\[\]()<>#|~!$^&])")
_SOURCE = re.compile(r"<!-- source: ([0-9a-f]{40}|[0-9a-f]{64}) -->")
# What a host makes a link, a mention or a reference of, although its signs are escaped.
_CALLS = re.compile(r"[@#!%~$&](?=\w)|(?<=\w):(?=//)|\bwww(?=\.)|\bGH(?=-\d)", re.IGNORECASE)
# What begins a list, a line or a command of GitLab.
_BEGIN = re.compile(r"^([-+=/])")


def body_of(
    candidate: Candidate, before: Pin, settings: Settings, host: GitHost, *, reason: Reason | None, source: str
) -> str:
    """Return the body for a model, if ``before`` is what is pinned.

    ``reason`` is why its run was started, if that is known; ``source`` the commit of the code that made what is served,
    or an empty text.
    """
    served = f"It replaces version {before.version}." if before.version else "Production serves nothing yet."
    parts = [
        f"Merging this serves version **{candidate.number}** of {text(candidate.model)} in production. {served}",
        text(candidate.summary),
        _section("Verdict", _checks(candidate.checks)),
        _section("Metrics", _metrics(candidate)),
        _section("Data", _data(candidate)),
        _section("Parity", _parity(candidate.parity)),
        _section("Origin", _origin(candidate, settings, host, reason, source)),
        f"<!-- source: {candidate.run['commit']} -->" if is_full_hash(candidate.run["commit"]) else "",
    ]
    return "\n\n".join(filter(None, parts))


def source_in(body: str) -> str:
    """The commit of the code that made the version that a body proposes; empty if it does not say it."""
    found = _SOURCE.search(body)
    return found[1] if found else ""


def text(value: object) -> str:
    """A text from outside, on one line, as Markdown that shows it as it is: without a link, a mention or a command."""
    found = one_line(cleaned(str(value)))
    found = found if len(found) <= LONGEST else f"{found[:LONGEST]}…"
    return _BEGIN.sub(r"\\\1", _SIGNS.sub(r"\\\1", _CALLS.sub(lambda call: f"{call[0]}\u200b", found)))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, of cells that are Markdown; empty without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + " --- |" * len(heads)
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *lines]) if lines else ""


def link(words: str, url: str) -> str:
    """A link, or the words alone if there is no address, or not a valid one."""
    return f"[{words}]({url})" if re.fullmatch(r"https?://[^\s()<>]+", url) else words


def _section(title: str, content: str) -> str:
    return f"### {title}\n\n{content}" if content else ""


def _checks(checks: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            text(check["name"]) + (f", on {text(check['where'])}" if check["where"] else ""),
            _value(check["value"], check["interval"]),
            f"{'≤' if check['comparison'] == '<=' else '≥'} {number(check['threshold'])}",
            "passed" if check["passed"] else "**failed**",
            text(check["description"]),
        )
        for check in checks
    ]
    return table(("Check", "Found (95 % interval)", "Must be", "Result", "What it is"), rows)


def _metrics(candidate: Candidate) -> str:
    """The metrics on all test rows, beside those of what production serves, of the champion and of the baseline."""
    metrics, heads, columns = candidate.metrics, ["Metric"], []
    served, champion = metrics["served"], metrics["champion"]
    for head, splits in (
        (f"Version {candidate.number}", metrics["model"]),
        (f"Version {served['version']}, served" if served else "", served and served["metrics"]),
        (
            f"Version {champion['version']}, champion" if champion and champion != served else "",
            champion and champion["metrics"],
        ),
        ("Baseline", metrics["baseline"]),
    ):
        if head:
            heads.append(head)
            columns.append((splits or {}).get(ALL) or {})
    names = [name for name in columns[0] if not name.endswith(INTERVAL) and not isinstance(columns[0][name], list)]
    rows = [
        (text(name), *(_value(column.get(name), column.get(f"{name}{INTERVAL}")) for column in columns))
        for name in names
    ]
    return "\n\n".join(filter(None, (table(heads, rows), *_differences(candidate))))


def _differences(candidate: Candidate) -> Iterator[str]:
    """A sentence for each version that the model was compared with, and one if production's was not."""
    found = {each["version"]: each for each in candidate.difference.values() if each}
    for version, difference in found.items():
        if difference["value"] is not None:
            value = _value(difference["value"], difference["interval"], sign="+")
            yield (
                f"On the rows that both know, the difference of {text(difference['metric'])} from version {version} is "
                f"{value}; below 0, the new version is better."
            )
    for beside in (candidate.metrics["served"], candidate.metrics["champion"]):
        if beside and beside["rows_left_out"] and found.pop(beside["version"], None):
            yield f"{number(beside['rows_left_out'])} rows have labels that version {beside['version']} does not know."


def _data(candidate: Candidate) -> str:
    data = candidate.data
    days = f", from {text(data['first_day'])} to {text(data['last_day'])}" if data["first_day"] else ""
    examples = ", ".join(f"{text(split)} {number(count)}" for split, count in data["examples"].items())
    tables = table(
        ("Table", "Rows", "sha256"),
        [(text(name), number(facts["rows"]), f"`{facts['sha256']}`") for name, facts in data["tables"].items()],
    )
    words = f"Examples: {examples}; {number(data['rows_of_examples'])} rows{days}."
    if not candidate.shift_from:
        shift = "There is no earlier version whose data this could be compared with."
    else:
        beside = candidate.metrics[candidate.shift_from]
        which = f"version {beside['version']}" if beside else "the version"
        than = f"{which}, which production serves" if candidate.shift_from == "served" else f"{which}, the champion"
        shown = [each for place, each in enumerate(candidate.shift) if place < MOST_SHIFTS or each["severity"]]
        rows = [
            (text(each["column"]), STATISTICS[each["statistic"]], number(each["value"]), _warned(each["severity"]))
            for each in shown
        ]
        shift = f"Shift from the data of {than}, the largest first:\n\n" + table(
            ("Column", "Statistic", "Value", ""), rows
        )
    return "\n\n".join(filter(None, (tables, words, shift)))


def _parity(parity: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (
            f"{text(each['runtime'])} {text(each['version'])}",
            number(each["max_absolute"]),
            number(each["max_relative"]),
            number(each["decisions_changed"]),
        )
        for each in parity
    ]
    return table(("Runtime, beside Keras", "Largest difference", "Relative", "Decisions changed"), rows)


def _origin(candidate: Candidate, settings: Settings, host: GitHost, reason: Reason | None, before: str) -> str:
    run, data = candidate.run, candidate.data["version"]
    commit = run["commit"] if is_full_hash(run["commit"]) else ""
    source = link(f"`{commit[:12]}`", host.commit_url(commit)) if commit else "not known"
    if commit and before and before != commit:
        source += f" ({link('source since the served version', host.compare_url(before, commit))})"
    page = settings.run_page.replace("{run}", run["id"]) if "{pipeline-run}" not in settings.run_page else ""
    rows = [
        ("Commit", f"{source}{', ' + text(run['commit_time']) if run['commit_time'] else ''}"),
        ("Run", link(text(run["name"]), page) + f" (`{run['id']}`)"),
        ("Started by", REASONS[reason] if reason else "not known"),
        ("Data", f"`{text(data)}`"),
        ("Image", f"`{run['image']}`"),
        ("Model", f"`sha256:{candidate.sha256}`, {text(candidate.version)}, published {text(candidate.created)}"),
        ("Model card", f"`model-card.html` in version {candidate.number} of the model store, and in the run"),
    ]
    words = ""
    if reason not in (None, Reason.PUSH):
        words = (
            f"\n\nThe run was started by {REASONS[reason]}, and has no commit of its own: it trained the code of "
            f"{source} on the data `{text(data[:12])}…`."
        )
    return table(("", ""), rows) + words


def _value(value: float | None, interval: Sequence[float] | None, sign: str = "") -> str:
    plus = sign if sign and value is not None and value > 0 else ""
    between = f" ({number(interval[0])} to {number(interval[1])})" if interval else ""
    return f"{plus}{number(value)}{between}"


def _warned(severity: str) -> str:
    return f"**{severity}**" if severity else ""
