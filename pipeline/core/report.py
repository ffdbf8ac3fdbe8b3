"""The page about a run, and the pieces of it that the Kubeflow dashboard shows.

A page is one self-contained HTML file without scripts. Documents that a run did not reach are absent; the page then
says where the run stopped, and shows the rest.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.core import charts
from pipeline.core.contract import Model
from pipeline.core.documents import Evaluation, Scores, Verdict, to_json
from pipeline.core.kinds import Metric
from pipeline.core.sources import redact
from pipeline.core.store import FAILED
from pipeline.core.texts import one_line

# An error is shown in full up to this length; of a longer one, the beginning and the end (characters).
LONGEST_ERROR = 12_000
DOCUMENTS = ("tables", "validation", "preprocessing", "training", "evaluation", "verdict", "parity", "lineage")
# The sections of the page: the title of each, and the document that it needs. Its id is the title in lower case. The
# figures and the slices follow the evaluation.
SECTIONS = (
    ("Verdict", "verdict"),
    ("Steps", "steps"),
    ("Data", "validation"),
    ("Training", "training"),
    ("Evaluation", "evaluation"),
    ("Parity", "parity"),
    ("Lineage", "run"),
)
ALL = "all"  # test splits together
LABEL, CONFUSION = "label", "confusion"
# A slice of more values than this is shown as two tables side by side.
LONGEST_TABLE = 12
STRONGEST_CONFUSIONS = 14
IN_USE = "What is in use stays in use."
NOTHING_PUBLISHED = f"Nothing was published. {IN_USE}"


@dataclass(frozen=True)
class Step:
    """A step of a run. ``seconds`` is wall time; ``error`` is the message of a failed one, of any length."""

    name: str
    state: Literal["succeeded", "failed", "skipped", "running"]
    seconds: float
    peak_memory_mib: int | None
    depends_on: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run. ``store`` is the root of the model store, where the model is published."""

    name: str
    id: str
    started: datetime
    state: Literal["succeeded", "failed"]
    steps: tuple[Step, ...]
    parameters: Mapping[str, Any]
    store: str


@dataclass(frozen=True)
class Headline:
    """The result of a run in words: a title and two sentences."""

    state: Literal["succeeded", "failed", "warning"]
    title: str
    sentences: tuple[str, ...]


def render_report(model: Model, documents: Mapping[str, Any], run: Run) -> str:
    """Return the page about a run of ``model``; the same input gives the same bytes.

    ``documents`` holds the parsed JSON of those of the fetched tables, validation, preprocessing, training, evaluation,
    verdict, parity and lineage that the run wrote. Credentials in URLs, also in errors, are left out.

    Raises graphlib.CycleError if the steps' dependencies form a cycle, jinja2.UndefinedError if a document lacks a
    field.
    """
    found = {name: _without_credentials(documents.get(name)) for name in DOCUMENTS}
    run = replace(
        run,
        parameters=_without_credentials(run.parameters),
        store=_without_credentials(run.store),
        steps=tuple(replace(step, error=_shorten(_without_credentials(step.error))) for step in run.steps),
    )
    training, evaluation, lineage = found["training"], found["evaluation"], found["lineage"]
    if lineage:
        # If the champion had changed by the time of publishing, the model was judged again.
        found["verdict"] = lineage["verdict"]
    known = {step.name for step in run.steps}
    there = {**found, "steps": known, "run": run}
    about = {**about_evaluation(model, evaluation), "pictures": _pictures(model, evaluation)} if evaluation else {}
    parts = [*about["pictures"]["figures"], *(["slices"] if about["slices"] else [])] if evaluation else []
    sections = [title for title, needs in SECTIONS if there[needs]]
    if evaluation:
        after = sections.index("Evaluation") + 1
        sections[after:after] = [part.capitalize() for part in parts]
    return environment().get_template("report.html.j2").render(
        **found,
        **{"contract": model, **about},
        run=run,
        headline=headline(model, found, run),
        sections=sections,
        missing=_listed(title.lower() for title, needs in SECTIONS if not there[needs]),
        stopped_at=_listed(step.name for step in run.steps if step.state == "failed"),
        steps={step.name: step for step in run.steps},
        graph=charts.layout({s.name: [d for d in s.depends_on if d in known] for s in run.steps}) if known else None,
        box=charts.BOX,
        curves=charts.training_curves(model.kind, training) if training else (),
        units={column.name: column.unit for table in model.tables for column in table.columns},
        reproduce=_reproduce(lineage, run),
    )  # fmt: skip


def evaluation_html(model: Model, evaluation: Evaluation, verdict: Verdict) -> str:
    """Return a page with the verdict and the evaluation only, which the dashboard shows for evaluate-model."""
    evaluation = _without_credentials(evaluation)
    template = environment().get_template("evaluation.html.j2")
    return template.render(
        evaluation=evaluation,
        verdict=_without_credentials(verdict),
        pictures=_pictures(model, evaluation),
        **about_evaluation(model, evaluation),
    )


def summary_markdown(lineage: Mapping[str, Any], uri: str) -> str:
    """Return the dashboard's summary of a run that has published: the version, its address, and how good it is.

    If the version did not pass, the summary says that it is not served.

    ``lineage`` is the version's lineage.json, ``uri`` its address.
    """
    model = lineage["model"]
    title = f"**{_markdown(model['name'])} {_markdown(model['version'])}, version {model['number']}**"
    what = "Published" if lineage["verdict"]["passed"] else "Kept, but not served"
    paragraphs = (
        f"{title} · {_markdown(lineage['run']['name'])}",
        f"{what}: {_markdown(uri)}",
        _markdown(lineage["verdict"]["summary"]),
        *(
            # A version of an older release has no count of records.
            f"{name}: {number(table.get('records', table['rows']))} records read, {number(table['rows'])} rows "
            f"written, {number(table['bytes'])} bytes, sha256 {_markdown(table['sha256'])}"
            for name, table in lineage["data"].items()
            if isinstance(table, Mapping) and "sha256" in table
        ),
    )
    return "\n\n".join(paragraphs) + "\n"


def headline(model: Model, documents: Mapping[str, Any], run: Run) -> Headline:
    """Explain the result of a run to a reader who does not know the pipeline."""
    lineage, verdict, evaluation = documents["lineage"], documents["verdict"], documents["evaluation"]
    stopped_at = [step for step in run.steps if step.state == "failed"]
    because = _how_good(model, evaluation) if evaluation else ""
    if lineage:
        record = lineage["model"]
        verdict = lineage["verdict"]
        if not verdict["passed"]:
            title = f"Version {record['number']} is kept but not served"
            failed = _listed(check["name"] for check in _failed(verdict["checks"]))
            what = f"The model failed {failed}" if failed else "The gate was off, so the model was not judged"
            kept = f"It is in {run.store}/{record['name']}/{FAILED}/{record['number']}. {IN_USE}"
            return Headline("warning", title, (f"{what}. {kept}", because))
        title = f"Version {record['number']} is published"
        if run.state == "failed":
            last = _listed(step.name for step in stopped_at) or "the run"
            return Headline("warning", title, (f"The model was published, but {last} failed after that.", because))
        use = (
            "it may be proposed for production"
            if record["prod_flag"]
            else "it is a candidate, which production does not serve"
        )
        count = len(verdict["checks"])
        what = f"The model passed {f'all {count} checks' if count > 1 else 'its check'}: {use}."
        return Headline("succeeded", title, (what, because))
    if verdict and not verdict["passed"] and verdict["mode"] == "enforce":
        refused = _failed(verdict["checks"])
        reasons = _listed(
            f"{check['name']} ({'not defined' if check['value'] is None else number(check['value'])}, required "
            f"{comparison(check['comparison'])} {number(check['threshold'])})"
            for check in refused
        )
        what = f"It failed {len(refused)} of {len(verdict['checks'])} checks: {reasons}. {NOTHING_PUBLISHED}"
        return Headline("failed", "The model was refused", (what, because))
    if stopped_at:
        title = f"The run stopped at {_listed(step.name for step in stopped_at)}"
        validation = documents["validation"]
        wrong = [c["name"] for c in _failed(validation["checks"]) if c["severity"] == "error"] if validation else []
        what = (
            f"The data failed {len(wrong)} of {len(validation['checks'])} checks of its contract: {_listed(wrong)}."
            if wrong
            else ""
            if any(step.error for step in stopped_at)
            else "It left no message; see its log."
        )
        return Headline("failed", title, (what, NOTHING_PUBLISHED, because))
    if run.state == "failed":
        return Headline(
            "failed",
            "The run failed",
            ("No step reports a reason: see the log of the run.", NOTHING_PUBLISHED, because),
        )
    return Headline("succeeded", "The run succeeded", ("No model was published.", because))


def _how_good(model: Model, evaluation: Evaluation) -> str:
    metric, splits = model.kind.headline, _splits(model, evaluation)
    split = next(iter(splits))
    ours, baseline = evaluation["model"][split], evaluation["baseline"][split]
    text = f"On {splits[split]}, {metric.title} is {score(ours, metric)} (baseline {score(baseline, metric)})"
    champion = evaluation["champion"]
    if not champion:
        return f"{text}; {evaluation['not_compared'] or 'there is no champion yet to compare it with'}."
    theirs, same_rows = champion.get(split), champion["model"].get(split)
    if not theirs:
        return f"{text}; on these, version {champion['version']} knows none of the labels."
    who = "the champion" if champion["is_best"] else "the requested version"
    than = f"version {champion['version']}, {who} ({score(theirs, metric)})"
    if champion["rows_left_out"]:
        than += " on the rows of the labels that both know"
    if score(same_rows, metric) == score(theirs, metric):
        return f"{text}, the same as {than}."
    difference = same_rows[metric.name] - theirs[metric.name]
    away = f"{100 * abs(difference):.1f} points" if metric.percent else aligned(abs(difference))
    return f"{text}, {away} {'more' if difference > 0 else 'less'} than {than}."


def compared(champion: Mapping[str, Any]) -> str:
    """The name of the version that the model is compared with, which need not be the champion."""
    return "champion" if champion["is_best"] else f"version {champion['version']}"


def about_evaluation(model: Model, evaluation: Evaluation) -> dict[str, Any]:
    """The variables of the templates that show an evaluation, except its pictures."""
    return {
        "contract": model,
        "splits": _splits(model, evaluation),
        "slices": _slices(model, evaluation),
    }


def _splits(model: Model, evaluation: Evaluation) -> dict[str, str]:
    """The test splits that have rows, the most important one first, with descriptions for people."""
    tests = [*model.tests, *(name for name in evaluation["model"] if name not in model.tests and name != ALL)]
    found = {name: model.tests.get(name, f"the {name} split") for name in tests if evaluation["model"].get(name)}
    return found if len(found) == 1 else {**found, ALL: "all test rows"}


def _slices(model: Model, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The tables of each slice, the values with most rows first."""
    found = []
    for name, entries in evaluation["slices"].items():
        columns = [metric.title for metric in model.all_metrics]
        precision = _precision(evaluation) if name == LABEL else {}
        rows = [
            {
                "value": entry["value"],
                "rows": entry["rows"],
                "scores": [
                    *(score(entry, metric) for metric in model.all_metrics),
                    *([percent(precision[entry["value"]])] if precision else []),
                ],
            }
            for entry in sorted(entries, key=lambda entry: (-entry["rows"], entry["value"]))
        ]
        half = -(-len(rows) // 2) if len(rows) > LONGEST_TABLE else len(rows)
        tables = [part for part in (rows[:half], rows[half:]) if part]
        if tables:
            found.append({"name": name, "columns": [*columns, *(["precision"] if precision else [])], "tables": tables})
    return found


def _precision(evaluation: Evaluation) -> dict[str, float | None]:
    """How often a guess of each label was right; None if there was none."""
    labels, matrix = evaluation["labels"], evaluation["figures"][CONFUSION]
    guessed = [sum(column) for column in zip(*matrix, strict=True)]
    return {label: matrix[n][n] / guessed[n] if guessed[n] else None for n, label in enumerate(labels)}


def _pictures(model: Model, evaluation: Evaluation) -> dict[str, Any]:
    """The pictures of an evaluation, with the texts beside them."""
    primary = next(metric for metric in model.all_metrics if metric.name == model.kind.primary)
    splits = _splits(model, evaluation)
    shown = evaluation["model"][next(iter(splits))] or {}
    figures, drawn = evaluation["figures"], dict[str, Any]()
    if "calibration" in figures:
        drawn["calibration"] = charts.reliability(figures["calibration"])
    if CONFUSION in figures:
        labels, matrix = evaluation["labels"], figures[CONFUSION]
        drawn[CONFUSION] = (charts.confusion(labels, matrix), _confusions(labels, matrix))
    if "residuals" in figures:
        drawn["residuals"] = charts.residuals(figures["residuals"], model.unit)
    return {
        "scores": {
            metric.title: charts.intervals(evaluation, metric, splits)
            for metric in (model.kind.headline, primary)
            if f"{metric.name}_interval" in shown
        },
        "figures": drawn,
    }


def _confusions(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The strongest ones first."""
    found: Iterable[dict[str, Any]] = (
        {"true": true, "predicted": predicted, "rows": rows, "share": rows / sum(of_label)}
        for true, of_label in zip(labels, matrix, strict=True)
        for predicted, rows in zip(labels, of_label, strict=True)
        if true != predicted and rows
    )
    return sorted(found, key=lambda entry: (-entry["rows"], entry["true"], entry["predicted"]))[:STRONGEST_CONFUSIONS]


def _reproduce(lineage: Mapping[str, Any] | None, run: Run) -> dict[str, Any]:
    """Everything needed to run it again that is known, flat: dotted names and scalars. Results are shown elsewhere."""
    merged: dict[str, Any] = {"run": {"name": run.name, "id": run.id}, **(lineage or {})}
    for shown_elsewhere in ("shift", "encoding", "metrics", "beside", "verdict", "parity"):
        merged.pop(shown_elsewhere, None)
    if lineage:
        merged["data"] = {key: value for key, value in lineage["data"].items() if key != "profile"}
    flat = _flat({**merged, "parameters": run.parameters, "store": run.store})
    return {name: value for name, value in flat if value != ""}


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else to_json(value, ensure_ascii=False)


def _without_credentials(value: Any) -> Any:
    """The same, with each URL in a text redacted."""
    if isinstance(value, str):
        return re.sub(r"\w+://\S+", lambda url: redact(url[0]), value)
    if isinstance(value, Mapping):
        return {key: _without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(inner) for inner in value]
    return value


def _shorten(text: str) -> str:
    if len(text) <= LONGEST_ERROR:
        return text
    half = LONGEST_ERROR // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters are left out here …\n{text[-half:]}"


def _failed(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [check for check in checks if not check["passed"]]


def _failures_first(checks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Errors, then warnings, then what passed; otherwise in their order."""
    return sorted(checks, key=lambda check: (check["passed"], check.get("severity") == "warning"))


def _listed(names: Iterable[str]) -> str:
    *others, last = [*names] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line and without credentials."""
    return re.sub(r"([\\`*_{}\[\]()<>#|~&!])", r"\\\1", one_line(_without_credentials(text)))


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 → 12.3%."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None) -> str:
    """A number in as few digits as needed: 1,129,882 · 0.1234 · 9.5 × 10⁻⁷."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}".replace("-", "−")
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{digits.replace('-', '−')} × 10{raised}"
    return f"{value:.4g}".replace("-", "−")


def aligned(value: float | None, digits: int = 4) -> str:
    """A number for a column of numbers: with trailing zeros, so that digits align."""
    if value is None or isinstance(value, int) or not 0.01 <= abs(value) < 1000:
        return number(value)
    return f"{value:{f'#.{digits}g' if abs(value) >= 0.1 else '.3f'}}".rstrip(".").replace("-", "−")


def score(scores: Scores | None, metric: Metric) -> str:
    """The figure of a metric, a share as a percentage; – if it is not defined."""
    value = (scores or {}).get(metric.name)
    return percent(value) if metric.percent else aligned(value)


def interval(scores: Scores, metric: Metric) -> str:
    """The 95 % interval of the same, or "" if it has none."""
    ends = scores.get(f"{metric.name}_interval")
    if not ends:
        return ""
    low, high = (f"{100 * end:.1f}" if metric.percent else aligned(end, 3) for end in ends)
    return f"{low} to {high}" if ends[0] < 0 else f"{low}–{high}"


def sentence(text: str) -> str:
    """With a capital in front."""
    return text[:1].upper() + text[1:]


def seconds(value: float) -> str:
    """A duration: 0.42 s · 12.3 s · 3 min 20 s · 2 h 5 min."""
    if value < 60:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def comparison(sign: str) -> str:
    """The sign as it is printed."""
    return {">=": "≥", "<=": "≤"}[sign]


def bars(profile: Mapping[str, Any]) -> list[tuple[float, float, float]]:
    """A feature's histogram as bars: left, width and height, each a share of the picture.

    ``profile`` has ``edges``, float[11], and ``shares``, float[10]. A bar's area is its share. Bins may be uneven, and
    if many rows have the very same value they are empty: such a bin is drawn with 1/40 of the width.
    """
    edges, shares = profile["edges"], profile["shares"]
    span = (edges[-1] - edges[0]) or 1.0
    found = [
        ((low - edges[0]) / span, max((high - low) / span, 1 / 40), share)
        for low, high, share in zip(edges, edges[1:], shares, strict=False)
    ]
    highest = max((share / width for _, width, share in found), default=0) or 1.0
    return [(min(left, 1 - width), width, share / width / highest) for left, width, share in found]


@cache
def environment() -> Environment:
    """The templates of this package, escaping what they show, with the filters that print numbers."""
    found = Environment(
        loader=PackageLoader("pipeline.core"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "bars": bars, "compared": compared, "comparison": comparison,
        "failed": _failed, "failures_first": _failures_first, "interval": interval,
        "number": number, "percent": percent, "score": score, "seconds": seconds, "sentence": sentence,
        "json": lambda value: to_json(value, ensure_ascii=False),
    }  # fmt: skip
    return found
