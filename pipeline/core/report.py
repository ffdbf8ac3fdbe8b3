"""The page about a run, and the pieces of it that the Kubeflow dashboard shows.

A page is one self-contained HTML file without scripts. What a run did not reach is absent from ``documents``; the page
then says where the run stopped, and shows what there is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.core import charts
from pipeline.core.documents import to_json
from pipeline.core.sources import redact
from pipeline.core.store import FAILED
from pipeline.core.texts import one_line
from pipeline.models.jukebox.tables import FEATURES

# An error is shown whole up to here; of a longer one, its begin and its end (characters).
LONGEST_ERROR = 12_000
DOCUMENTS = ("tables", "validation", "preprocessing", "training", "evaluation", "verdict", "parity", "lineage")
# What the page is made of: the id and the title of each section, and what it cannot do without.
SECTIONS = (
    ("verdict", "Verdict", "verdict"),
    ("steps", "Steps", "steps"),
    ("data", "Data", "validation"),
    ("training", "Training", "training"),
    ("evaluation", "Evaluation", "evaluation"),
    ("calibration", "Calibration", "evaluation"),
    ("countries", "Countries", "evaluation"),
    ("confusion", "Confusion", "evaluation"),
    ("parity", "Parity", "parity"),
    ("lineage", "Lineage", "run"),
)
STRONGEST_CONFUSIONS = 14
IN_USE = "What is in use stays in use."
NOTHING_PUBLISHED = f"Nothing was published. {IN_USE}"


@dataclass(frozen=True)
class Step:
    """A step of a run. ``seconds`` is wall time; ``error`` is what a failed one said, of any length."""

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
    """What came of a run, in words: a title and two sentences."""

    state: Literal["succeeded", "failed", "warning"]
    title: str
    sentences: tuple[str, ...]


def render_report(documents: Mapping[str, Any], run: Run) -> str:
    """Return the page about a run; the same input gives the same bytes.

    ``documents`` holds the parsed JSON of those of the fetched tables, validation, preprocessing, training, evaluation,
    verdict, parity and lineage that the run wrote. Credentials in URLs, also in errors, are left out.

    Raises graphlib.CycleError where the steps depend on one another in a circle, jinja2.UndefinedError where a
    document lacks a field.
    """
    found = {name: _without_credentials(documents.get(name)) for name in DOCUMENTS}
    run = replace(
        run,
        parameters=_without_credentials(run.parameters),
        store=_without_credentials(run.store),
        steps=tuple(replace(step, error=_shorten(_without_credentials(step.error))) for step in run.steps),
    )
    training, lineage = found["training"], found["lineage"]
    if lineage:
        # If the champion was another one by the time that it was published, the model was judged again.
        found["verdict"] = lineage["verdict"]
    known = {step.name for step in run.steps}
    there = {**found, "steps": known, "run": run}
    return environment().get_template("report.html.j2").render(
        **found,
        **_evaluation(found["evaluation"]),
        run=run,
        headline=headline(found, run),
        sections=[(id_, title) for id_, title, needs in SECTIONS if there[needs]],
        missing=_listed(title.lower() for _, title, needs in SECTIONS if not there[needs]),
        stopped_at=_listed(step.name for step in run.steps if step.state == "failed"),
        steps={step.name: step for step in run.steps},
        graph=charts.layout({s.name: [d for d in s.depends_on if d in known] for s in run.steps}) if known else None,
        box=charts.BOX,
        curves=charts.training_curves(training) if training else None,
        features={feature.name: feature for feature in FEATURES},
        reproduce=_reproduce(lineage, run),
    )  # fmt: skip


def evaluation_html(evaluation: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    """Return a page of the verdict and the evaluation alone: what the dashboard shows of evaluate-model."""
    evaluation = _without_credentials(evaluation)
    template = environment().get_template("evaluation.html.j2")
    return template.render(evaluation=evaluation, verdict=_without_credentials(verdict), **_evaluation(evaluation))


def summary_markdown(lineage: Mapping[str, Any], uri: str) -> str:
    """Return what the dashboard shows of a run that has published: which version, where it is, and how good it is.

    If the version did not pass, it says that nobody serves it.

    ``lineage`` is the version's lineage.json, ``uri`` its address.
    """
    model = lineage["model"]
    title = f"**{_markdown(model['name'])} {_markdown(model['version'])}, version {model['number']}**"
    what = "Published" if lineage["verdict"]["passed"] else "Kept, and served by nobody"
    paragraphs = (
        f"{title} · {_markdown(lineage['run']['name'])}",
        f"{what}: {_markdown(uri)}",
        _markdown(lineage["verdict"]["summary"]),
        *(
            # A version from before records were counted has no such figure.
            f"{name}: {number(table.get('records', table['rows']))} records read, {number(table['rows'])} rows "
            f"written, {number(table['bytes'])} bytes, sha256 {_markdown(table['sha256'])}"
            for name, table in lineage["data"].items()
            if name in ("songs", "rankings")
        ),
    )
    return "\n\n".join(paragraphs) + "\n"


def headline(documents: Mapping[str, Any], run: Run) -> Headline:
    """Say what came of a run, and why, so that someone who does not know the pipeline understands it."""
    lineage, verdict, evaluation = documents["lineage"], documents["verdict"], documents["evaluation"]
    stopped_at = [step for step in run.steps if step.state == "failed"]
    because = _how_good(evaluation) if evaluation else ""
    if lineage:
        model = lineage["model"]
        verdict = lineage["verdict"]
        if not verdict["passed"]:
            title = f"Version {model['number']} is kept, and served by nobody"
            failed = _listed(check["name"] for check in _failed(verdict["checks"]))
            what = f"The model failed {failed}" if failed else "The gate was off, so the model was not judged"
            kept = f"It lies in {run.store}/{model['name']}/{FAILED}/{model['number']}. {IN_USE}"
            return Headline("warning", title, (f"{what}. {kept}", because))
        title = f"Version {model['number']} is published"
        if run.state == "failed":
            last = _listed(step.name for step in stopped_at) or "the run"
            return Headline("warning", title, (f"The model was published, but {last} failed after that.", because))
        use = (
            "it may be proposed for production"
            if model["prod_flag"]
            else "it is a candidate, which production does not serve"
        )
        what = f"The model passed all {len(verdict['checks'])} checks: {use}."
        return Headline("succeeded", title, (what, because))
    if verdict and not verdict["passed"] and verdict["mode"] == "enforce":
        refused = _failed(verdict["checks"])
        reasons = _listed(
            f"{check['name']} ({number(check['value'])}, asked for {comparison(check['comparison'])} "
            f"{number(check['threshold'])})"
            for check in refused
        )
        what = f"It failed {len(refused)} of {len(verdict['checks'])} checks: {reasons}. {NOTHING_PUBLISHED}"
        return Headline("failed", "The model was refused", (what, because))
    if stopped_at:
        title = f"The run stopped at {_listed(step.name for step in stopped_at)}"
        validation = documents["validation"]
        wrong = [c["name"] for c in _failed(validation["checks"]) if c["severity"] == "error"] if validation else []
        what = (
            f"The data broke {len(wrong)} of {len(validation['checks'])} checks of its contract: {_listed(wrong)}."
            if wrong
            else ""
            if any(step.error for step in stopped_at)
            else "It left no message; its log tells more."
        )
        return Headline("failed", title, (what, NOTHING_PUBLISHED, because))
    if run.state == "failed":
        return Headline(
            "failed",
            "The run failed",
            ("No step says why: see the log of the run.", NOTHING_PUBLISHED, because),
        )
    return Headline("succeeded", "The run succeeded", ("No model was published.", because))


def _how_good(evaluation: Mapping[str, Any]) -> str:
    split = "unseen" if evaluation["model"]["unseen"] else "seen"
    model, baseline = evaluation["model"][split], evaluation["baseline"][split]
    songs = "songs it had never met" if split == "unseen" else "later days of songs it knows"
    text = f"On {songs}, its first guess was right for {percent(model['top1'])} of the chart rows"
    text += f" ({percent(baseline['top1'])} by always naming the commonest country)"
    champion = evaluation["champion"]
    if not champion:
        return f"{text}; {evaluation['not_compared'] or 'there is no champion yet to compare it with'}."
    theirs, ours = champion[split], champion["model"][split]
    if not theirs:
        return f"{text}; on these, version {champion['version']} knows none of the countries."
    difference = 100 * (ours["top1"] - theirs["top1"])
    who = "the champion" if champion["is_best"] else "which it was to be compared with"
    than = f"version {champion['version']}, {who} ({percent(theirs['top1'])})"
    if champion["rows_left_out"]:
        than += " on the rows of the countries that both know"
    if abs(difference) < 0.05:
        return f"{text}, the same as {than}."
    return f"{text}, {abs(difference):.1f} points {'more' if difference > 0 else 'less'} than {than}."


def compared(champion: Mapping[str, Any]) -> str:
    """What the version is called that the model stands beside: it may be another one than the champion."""
    return "champion" if champion["is_best"] else f"version {champion['version']}"


def _evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the evaluation's part of a page shows."""
    if not evaluation:
        return {}
    matrix, labels = evaluation["confusion"], evaluation["labels"]
    confusions = sorted(
        (
            {"true": true, "predicted": predicted, "rows": rows, "share": rows / sum(of_country)}
            for true, of_country in zip(labels, matrix, strict=True)
            for predicted, rows in zip(labels, of_country, strict=True)
            if true != predicted and rows
        ),
        key=lambda entry: (-entry["rows"], entry["true"], entry["predicted"]),
    )
    countries = sorted(evaluation["countries"], key=lambda entry: (-entry["rows"], entry["country"]))
    half = -(-len(countries) // 2)
    return {
        "scores": (
            charts.intervals(evaluation, "top1", "first guess right"),
            charts.intervals(evaluation, "cross_entropy", "cross entropy, nats (less is better)"),
        ),
        "reliability": charts.reliability(evaluation["calibration"]),
        "confusion": charts.confusion(labels, matrix),
        "confusions": confusions[:STRONGEST_CONFUSIONS],
        "countries": [part for part in (countries[:half], countries[half:]) if part],
    }


def _reproduce(lineage: Mapping[str, Any] | None, run: Run) -> dict[str, Any]:
    """What is known of what is needed to run it again, flat: dotted names and scalars. Results are shown elsewhere."""
    merged: dict[str, Any] = {"run": {"name": run.name, "id": run.id}, **(lineage or {})}
    for shown_elsewhere in ("metrics", "verdict", "parity"):
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
    """A number in as few digits as tell it: 1,129,882 · 0.1234 · 9.5 × 10⁻⁷."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}".replace("-", "−")
    if value and abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{digits.replace('-', '−')} × 10{raised}"
    return f"{value:.4g}".replace("-", "−")


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
    where many songs have the very same value they are empty: such a bin is drawn with 1/40 of the width.
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
        "failed": _failed, "failures_first": _failures_first,
        "number": number, "percent": percent, "seconds": seconds,
        "json": lambda value: to_json(value, ensure_ascii=False),
    }  # fmt: skip
    return found
