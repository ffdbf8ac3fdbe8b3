"""Validate the data: against the model's contract, and by its distance from what the champion was trained on.

Some rules follow from the columns of the tables, the model adds its own, and the last ones check the examples that the
model makes from the data. All violations are reported at once; an error stops the pipeline, a warning does not.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.core import data_profile
from pipeline.core.column_rules import Seen, look_at, rules_of
from pipeline.core.contract import TRAIN, VALIDATION, Data, Model, folder_of
from pipeline.core.data import lazy
from pipeline.core.data_profile import LARGEST_DIFFERENCE, LARGEST_INDEX
from pipeline.core.documents import write_json
from pipeline.core.errors import DataInvalid
from pipeline.core.log import log
from pipeline.core.parts import TooMany, Unusable
from pipeline.core.rules import EXAMPLES, Finding, Rule, told

LONGEST_TEXT = 60
ESCAPED = str.maketrans({character: f"&#{ord(character)};" for character in "&<|[`"})


def validate_data(
    model: Model,
    tables: Mapping[str, Path],
    report: Path,
    *,
    data_version: str,
    today: date,
    reference: Mapping[str, Any] | None = None,
    served: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the data against the model's contract; write the result to ``report``, as JSON, and return it.

    ``tables`` are the folders of Parquet parts, by the tables' names; ``reference`` is the profile of the data that the
    champion was trained on, ``served`` that of the version that production serves. The report has ``passed``;
    ``checks``, each with ``name``, ``severity``, ``passed``, ``count`` of violations, at most five ``examples`` and
    ``message``; ``profile``, which has ``rows`` of each table and what ``data_profile.describe`` returns; ``shift``, by
    quantity, null without a reference; and ``shift_from_served`` likewise. A check is skipped if another one reports
    that its columns cannot be used.

    Integers of any width, floats, decimals and booleans are numbers; a Date, a Datetime of any unit and an ISO date
    that is stored as text are days; dictionary-encoded and binary text is text. ``today`` is that of UTC.

    Raises DataInvalid, which names all failed checks of severity error; the report is written before.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    seen = {
        table.name: look_at(table, tables[table.name], [other for other in model.tables if other is not table])
        for table in model.tables
    }
    rows = {name: each.parts.rows for name, each in seen.items()}
    data = _with_views(model, seen, report.parent, today)
    unusable = {f"{name}.{column}" for name, each in seen.items() for column in each.unusable}
    rules = [rule for each in seen.values() for rule in rules_of(each)] + list(model.rules)
    _require_own_names(rules)
    checks = [check for rule in rules if (check := _checked(rule, data, unusable))]
    learnt, fault = _learnt(model, data, broken=any(_is_error(check) for check in checks))
    profile = {"rows": rows} | data_profile.describe(model, learnt)
    moved, moved_from_served = (
        data_profile.shift(model, learnt, each) if each is not None and learnt.examples else None
        for each in (reference, served)
    )
    found = (_checked(rule, data, set()) for rule in _of_examples(learnt, fault, moved, reference is not None))
    checks += [check for check in found if check]

    errors = [check for check in checks if _is_error(check)]
    result = {
        "passed": not errors,
        "data_version": data_version,
        "checks": checks,
        "profile": profile,
        "shift": _by_quantity(moved),
        "shift_from_served": _by_quantity(moved_from_served),
    }
    write_json(report, result)
    for check in checks:
        if not check["passed"] and check["severity"] == "warning":
            log.warning("%s: %s", check["name"], check["message"])
    if errors:
        raise DataInvalid(_complaint(model, errors))
    log.info(
        "%d checks passed, %d gave a warning", sum(c["passed"] for c in checks), sum(not c["passed"] for c in checks)
    )
    return result


def markdown(report: Mapping[str, Any]) -> str:
    """What validate_data returned, as Markdown: the checks, failures first, and the profile in a few lines."""
    order = ("**error**", "**warning**", "passed")
    checks = sorted(report["checks"], key=lambda check: order.index(_state(check)))
    profile = report["profile"]
    sizes = ", ".join(f"{rows:,} rows of {_cell(name)}" for name, rows in profile["rows"].items())
    examples = sum(profile["examples"].values())
    days = f", {profile['first_day']} to {profile['last_day']}" if profile["first_day"] else ""
    lines = [
        f"# Data validation: {'passed' if report['passed'] else 'failed'}",
        "",
        f"{sizes}: {examples:,} examples with {profile['rows_of_examples']:,} rows behind them{days}.",
        "",
        "| check | result | count | what was found |",
        "|---|---|---:|---|",
        *(
            f"| {check['name']} | {_state(check)} | {check['count']:,} | {_cell(check['message'])} |"
            for check in checks
        ),
    ]
    for check in checks:
        if not check["passed"] and check["examples"]:
            columns = list(dict.fromkeys(column for row in check["examples"] for column in row))
            lines += ["", f"{check['name']}, for example:", "", f"| {' | '.join(map(_cell, columns))} |"]
            lines += ["|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in check["examples"]]
    described = profile["features"] | ({"the target": profile["target"]} if profile["target"] else {})
    if described:
        lines += ["", "| feature | mean | standard deviation | smallest | largest |", "|---|---:|---:|---:|---:|"]
        lines += [
            f"| {_cell(name)} | {' | '.join(_cell(values[key]) for key in ('mean', 'std', 'min', 'max'))} |"
            for name, values in described.items()
        ]
    return "\n".join(lines) + "\n"


def _state(check: Mapping[str, Any]) -> str:
    return "passed" if check["passed"] else f"**{check['severity']}**"


def _cell(value: object) -> str:
    """The value as text that cannot end a cell of a Markdown table, or begin HTML, a link or an image in it."""
    text = "" if value is None else str(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(text.translate(ESCAPED).split())


def _with_views(model: Model, seen: Mapping[str, Seen], scratch: Path, today: date) -> Data:
    """The usable parts of the tables, and the model's views of them."""
    while True:
        parts = {name: each.parts for name, each in seen.items()}
        data = Data(parts, {name: lazy(each.table, each.parts) for name, each in seen.items()}, scratch, today)
        try:
            return replace(data, tables={**data.tables, **model.views(data)})
        except TooMany as error:
            if not seen[error.table].parts.batches:
                raise
            seen[error.table].refuse("size", f"{error.table} has {error}")


def _require_own_names(rules: Sequence[Rule]) -> None:
    names = [rule.name for rule in rules]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two rules have the name {', '.join(sorted(twice))}: rename the model's")


def _learnt(model: Model, data: Data, *, broken: bool) -> tuple[data_profile.Learnt, str]:
    """What the model will learn from; or NOTHING, with the reason unless the data is already known to be ``broken``.

    Examples of broken data may fail in any way; the checks have already found the cause.
    """
    try:
        with model.examples(data) as splits:
            return data_profile.gather(model, splits), ""
    except Unusable as error:
        return data_profile.NOTHING, "" if broken else f"{error.table} cannot be used: {error}"
    except Exception as error:
        if not broken:
            raise
        log.info("no examples can be made from this data: %s", type(error).__name__)
        return data_profile.NOTHING, ""


def _of_examples(
    learnt: data_profile.Learnt, fault: str, moved: pl.DataFrame | None, has_reference: bool
) -> Iterator[Rule]:
    """The rules about what the model will learn from; none if there is nothing and no ``fault``."""
    if fault or learnt.examples:
        found = [Finding(fault, 1)] if fault else []
        holds = "the model can make examples from the data"
        yield Rule("examples", lambda _: found, "Correct the data, or the model's examples.", holds)
    if not learnt.examples:
        return

    def enough(split: str, what: str) -> Callable[[Data], list[Finding]]:
        count = learnt.examples.get(split, 0)
        text = f"{count:,} examples to {what}, expected at least 1"
        return lambda _: [Finding(text, 0 if count else 1)]

    remedy = "Provide more distinct rows; the model's folder defines which of them are held out."
    yield Rule("enough-to-train", enough(TRAIN, "train on, not held out"), remedy)
    yield Rule("enough-to-validate", enough(VALIDATION, "validate with"), remedy)

    def shifted(_: Data) -> Iterator[Finding]:
        if moved is None:
            return
        said = f"{{quantity}}: stability index {{psi:.2f}}, expected less than {LARGEST_INDEX}"
        yield from told(moved, pl.col("psi") < LARGEST_INDEX, said)
        said = "{quantity}: mean {mean_difference:+.2f} standard deviations away, expected less than "
        yield from told(moved, pl.col("mean_difference").abs() < LARGEST_DIFFERENCE, f"{said}{LARGEST_DIFFERENCE}")

    yield Rule(
        "shift",
        shifted,
        "Train a new model, and compare it with the champion on this data.",
        "the data is like the champion's" if has_reference else "there is no champion to compare the data with",
        severity="warning",
    )


def _by_quantity(moved: pl.DataFrame | None) -> dict[str, Any] | None:
    return None if moved is None else {row.pop("quantity"): row for row in moved.to_dicts()}


def _checked(rule: Rule, data: Data, unusable: set[str]) -> dict[str, Any] | None:
    """The report's entry for a rule; None if it cannot be checked."""
    if unusable.intersection(rule.needs):
        return None
    findings = list(rule.look(data))
    broken = [finding for finding in findings if finding.count]
    message = "; ".join(finding.text for finding in broken or findings)
    message = f"{message}. {rule.remedy}" if broken else message or rule.holds
    if not message:
        return None
    frames = [finding.examples.head(EXAMPLES).to_dicts() for finding in broken if finding.examples is not None]
    rows = [row for frame in frames for row in frame][:EXAMPLES]
    return {
        "name": rule.name,
        "severity": rule.severity,
        "passed": not broken,
        "count": sum(finding.count for finding in findings),
        "examples": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "message": message,
    }


def _is_error(check: Mapping[str, Any]) -> bool:
    return check["severity"] == "error" and not check["passed"]


def _plain(value: object) -> object:
    """The value as a short JSON value."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


def _complaint(model: Model, errors: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"the data fails {len(errors)} of the checks of its contract:"]
    for check in errors:
        examples = "; ".join(
            ", ".join(f"{column} {value!r}" for column, value in row.items()) for row in check["examples"][:3]
        )
        lines.append(f"- {check['name']}: {check['message']}" + (f" For example: {examples}." if examples else ""))
    lines.append(
        "No model is trained on it. Correct the data at its source; if the contract is wrong, change the tables or the "
        f"rules in pipeline/models/{folder_of(model.name)}. The report of this step lists all checks."
    )
    return "\n".join(lines)
