"""Evaluate the model on the test splits, and decide whether it is good enough.

Everything is counted over the rows behind the examples: one with 40 rows of one label and 10 of another counts as 50.
The model is compared with the baseline, which uses no features, and with the versions that it must not be worse than,
on the rows of the labels that both know: the champion, and the version that production serves.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.core.champion import CHAMPION, NONE, SERVED, Champion, Served, Version
from pipeline.core.contract import TRAIN, Model
from pipeline.core.documents import CheckResult, Evaluation, Verdict, write_json
from pipeline.core.encoders import encode
from pipeline.core.errors import DataInvalid, SettingsInvalid
from pipeline.core.examples import Reader
from pipeline.core.kinds import Check, Floats, Metric, Scored
from pipeline.core.log import log
from pipeline.core.options import GATE_MODES, parse_thresholds
from pipeline.core.runtimes import onnxruntime_of

ALL = "all"


def evaluate_model(
    model: Model,
    examples: Path,
    predictions: Path,
    evaluation: Path,
    verdict: Path,
    *,
    champion: Champion | None = None,
    champion_version: str = "",
    served: Served | None = None,
    damaged: Sequence[str] = (),
    mode: str = "enforce",
    thresholds: Mapping[str, Any] | None = None,
) -> tuple[Evaluation, Verdict]:
    """Compare the predictions that train_model wrote with the targets; write and return evaluation and verdict.

    See ``judge`` for their contents and what is raised.
    """
    result, decision = judge(
        model,
        examples,
        predictions,
        champion=champion,
        champion_version=champion_version,
        served=served,
        damaged=damaged,
        mode=mode,
        thresholds=thresholds,
    )
    write_json(evaluation, result)
    write_json(verdict, decision)
    log.info("%s", decision["summary"])
    return result, decision


def judge(
    model: Model,
    examples: Path,
    predictions: Path,
    *,
    champion: Champion | None = None,
    champion_version: str = "",
    served: Served | None = None,
    damaged: Sequence[str] = (),
    mode: str = "enforce",
    thresholds: Mapping[str, Any] | None = None,
) -> tuple[Evaluation, Verdict]:
    """Return evaluation and verdict.

    ``examples`` and ``predictions`` are the folders of preprocess_data and train_model. Confidence intervals (95 %)
    are over examples, not rows: an example's rows are all alike, and a hundred of them are not a hundred observations.

    ``champion`` is what ``champion.search`` found for ``champion_version``, with what is ``damaged``. ``served`` is the
    version that production serves: each check against the champion is made against it as well, unless it is the
    champion. So the tolerance cannot add up over a chain of models, each a little worse than the one before. If a
    version cannot be compared, evaluation and verdict say why, and the other checks decide. The verdict keeps
    ``champion_version``, ``served``, ``mode`` and ``thresholds``, so that publish_model can judge again. Mode off
    judges nothing, so nothing passes.

    Raises HyperparametersInvalid for an unknown threshold, SettingsInvalid for an unknown mode.
    """
    if mode not in GATE_MODES:
        raise SettingsInvalid(f"gate_mode is {mode!r}; expected one of {', '.join(GATE_MODES)}")
    checks = parse_thresholds(model, thresholds or {})
    reader = Reader(examples, model)
    labels = reader.labels
    always = _baseline(reader)
    ours, theirs = _Answers(model, labels), _Answers(model, labels)
    for split, test, predicted in reader.answered(predictions):
        scored = Scored(predicted, test.target, test.rows)
        ours.add(split, scored, test.frame)
        theirs.add(split, Scored(np.broadcast_to(always, predicted.shape), test.target, test.rows), test.frame)
    result: Evaluation = {
        "labels": [*labels],
        "model": ours.by_split(),
        "baseline": theirs.by_split(),
        "champion": None,
        "served": None,
        "not_compared": "",
        "served_not_compared": "",
        "damaged": [*damaged],
        "slices": ours.by_slice(),
        "figures": ours.figures(),
    }
    both: dict[str, _Both] = {}
    if champion_version == NONE:
        # This also leaves out what production serves: a person says that the old metrics mean nothing.
        result["not_compared"] = "it was not compared, because champion_version is none"
    if champion:
        found = _beside(model, champion, reader, predictions)
        if isinstance(found, str):
            result["not_compared"] = f"version {champion.version} cannot be compared with it: {found}"
            log.warning("%s", result["not_compared"])
        else:
            both[CHAMPION] = found
            described = found.describe(model, ours.rows(ALL))
            result["champion"] = {"version": champion.version, "is_best": champion.is_best, **described}
    is_champion = bool(served and champion and served.version == champion.version)
    if served and not is_champion and champion_version != NONE:
        found = _beside(model, served.found, reader, predictions) if served.found else served.fault
        if isinstance(found, str):
            result["served_not_compared"] = (
                f"production serves version {served.version}, which cannot be compared with it: {found}"
            )
            log.warning("%s", result["served_not_compared"])
        else:
            both[SERVED] = found
            result["served"] = {"version": served.version, **found.describe(model, ours.rows(ALL))}
    checks = [each for check in checks for each in _against_both(check)]
    asked = [] if mode == "off" else [check for check in checks if check.against in ("", "baseline", *both)]
    results = [each for check in asked for each in _asked(model, check, ours, theirs, both)]
    decision: Verdict = {
        # all() is true without checks, but then nothing was judged.
        "passed": bool(results) and all(each["passed"] for each in results),
        "mode": mode,
        "checks": results,
        "summary": _in_words(model, results, result, mode),
        "champion": {"version": champion.version, "is_best": champion.is_best, "compared": CHAMPION in both}
        if champion
        else None,
        "served": {"version": served.version, "compared": (CHAMPION if is_champion else SERVED) in both}
        if served
        else None,
        "champion_version": champion_version,
        "thresholds": {check.name: check.threshold for check in checks if check.against != SERVED},
    }
    return result, decision


def _against_both(check: Check) -> Iterator[Check]:
    """A check, and for one against the champion, the same against the version that production serves."""
    yield check
    if check.against == CHAMPION:
        yield check.of_served()


def _baseline(reader: Reader) -> Floats:
    """The baseline's constant prediction, float64[labels]."""
    target, rows = np.zeros(len(reader.labels)), 0.0
    for part in reader.slices(TRAIN):
        target = target + part.target.sum(axis=0)
        rows += float(part.rows.sum())
    return reader.model.kind.baseline(target, rows)


class _Parts:
    """The parts of the metrics, gathered a slice of the examples at a time."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics
        self._rows: list[Floats] = []
        self._parts: dict[str, list[Floats]] = {metric.name: [] for metric in metrics}

    def add(self, scored: Scored) -> None:
        self._rows.append(scored.rows.astype(np.float64))
        for metric in self._metrics:
            self._parts[metric.name].append(metric.parts(scored).astype(np.float64, copy=False))

    @property
    def rows(self) -> Floats:
        """float64[examples]."""
        return np.concatenate(self._rows) if self._rows else np.zeros(0)

    def of(self, metric: Metric) -> Floats:
        """float64[examples, any]."""
        return np.concatenate(self._parts[metric.name])

    def value(self, metric: Metric) -> float | None:
        """The metric's value, or None if it is not defined."""
        return metric.combine(self.of(metric), self.rows) if self.rows.any() else None

    def describe(self) -> dict[str, Any] | None:
        """All metrics, with the intervals of those that have one; None without rows."""
        rows = self.rows
        if not rows.any():
            return None
        found: dict[str, Any] = {"rows": int(rows.sum()), "examples": len(rows)}
        found |= {metric.name: self.value(metric) for metric in self._metrics}
        intervals = {metric.name: metric.interval(self.of(metric), rows) for metric in self._metrics}
        return found | {f"{name}_interval": each for name, each in intervals.items() if each}


class _Answers:
    """Predictions with their targets: by split, and by the slices of the model."""

    def __init__(self, model: Model, labels: Sequence[str]) -> None:
        self._model = model
        self._labels = labels
        self.splits: dict[str, _Parts] = {}
        self.slices: dict[str, dict[str, _Parts]] = {name: {} for name in (*model.kind.slices, *model.slices)}
        self._figures = model.kind.figures(labels)

    def add(self, split: str, scored: Scored, frame: pl.DataFrame) -> None:
        """Add examples of a split; ``frame`` has their columns. Examples without rows are dropped."""
        known = scored.rows > 0
        if not known.all():
            scored, frame = scored.where(known), frame.filter(pl.Series(known))
        for name in (split, ALL):
            self.splits.setdefault(name, _Parts(self._model.all_metrics)).add(scored)
        self._figures.add(scored)
        found = dict(self._model.kind.sliced(scored, self._labels))
        for name, expression in self._model.slices.items():
            values = frame.select(pl.sql_expr(expression).cast(pl.String).fill_null("none")).to_series()
            found[name] = {value: scored.where((values == value).to_numpy()) for value in values.unique().sort()}
        for name, values_of in found.items():
            for value, some in values_of.items():
                self.slices[name].setdefault(value, _Parts(self._model.all_metrics)).add(some)

    def rows(self, split: str) -> Floats:
        """The rows behind each example."""
        return self.splits[split].rows

    def by_split(self) -> dict[str, Any]:
        """The metrics of each split, and of all."""
        return {name: parts.describe() for name, parts in self.splits.items()}

    def by_slice(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics of each value of each slice; one without rows has none."""
        return {
            name: [
                {"value": value, "rows": 0, "examples": 0, **(parts.describe() or {})} for value, parts in found.items()
            ]
            for name, found in self.slices.items()
        }

    def figures(self) -> dict[str, Any]:
        """The figures of the kind."""
        return self._figures.found()


@dataclass(frozen=True)
class _Both:
    """The model and a published version on the rows of the labels that both know."""

    model: _Answers
    version: _Answers
    only_model: list[str]
    only_version: list[str]

    def describe(self, model: Model, rows: Floats) -> dict[str, Any]:
        """The version's metrics by split, the model's on the same rows, and what is left out of all ``rows``."""
        primary = next(metric for metric in model.all_metrics if metric.name == model.kind.primary)
        value, interval = _difference(primary, self.model.splits[ALL], self.version.splits[ALL])
        return {
            **self.version.by_split(),
            "model": self.model.by_split(),
            "rows_left_out": int(rows.sum() - self.model.rows(ALL).sum()),
            "only_model": self.only_model,
            "only_champion": self.only_version,
            "difference": {"metric": primary.name, "value": value, "interval": interval},
        }


def _beside(model: Model, version: Version, reader: Reader, predictions: Path) -> _Both | str:
    """Compare a version with the model, or return the reason why that is not possible.

    A model gives no probability to a label that it does not know: each row of one would cost it 16.1 nats, and a few of
    them outweigh everything else. So both are compared on a question that both can answer: given that it is one of the
    labels that both know, which one.
    """
    labels = reader.labels
    shared = [label for label in labels if label in version.labels]
    if len(shared) < min(2, len(labels)):
        return f"of the labels, both know {', '.join(shared) or 'none'}, which is too few to compare"
    ours, theirs = ([known.index(label) for label in shared] for known in (labels, version.labels))
    ask = onnxruntime_of(version.onnx)
    answers = _Both(
        _Answers(model, shared),
        _Answers(model, shared),
        only_model=[label for label in labels if label not in version.labels],
        only_version=[label for label in version.labels if label not in labels],
    )
    for split, test, predicted in reader.answered(predictions):
        target, rows = model.kind.restrict(test.target, test.rows, ours)
        some = rows > 0
        if not some.any():
            continue
        frame = test.frame.filter(pl.Series(some))
        try:
            asked = ask(encode(frame, version.encoding))
        except DataInvalid as error:
            return f"it takes other columns than the examples have: {error}"
        for into, given, which in ((answers.model, predicted[some], ours), (answers.version, asked, theirs)):
            into.add(split, Scored(model.kind.given(given[:, which]), target[some], rows[some]), frame)
    return answers if answers.model.splits else "no test row has a label that both know"


def _asked(
    model: Model, check: Check, ours: _Answers, baseline: _Answers, both: Mapping[str, _Both]
) -> Iterator[CheckResult]:
    """The result of a check; nothing if no value of its slice has enough rows."""
    metric = next(each for each in model.all_metrics if each.name == check.metric)
    mine, other = ours, baseline if check.against == "baseline" else None
    if beside := both.get(check.against):
        mine, other = beside.model, beside.version
    places: Iterable[tuple[str, _Parts, _Parts | None]]
    if check.slice:
        values = mine.slices[check.slice]
        places = [
            (f"{check.slice} {value}", parts, other.slices[check.slice][value] if other else None)
            for value, parts in values.items()
            if parts.rows.sum() >= check.min_rows
        ]
    else:
        # If that split has no rows, all splits together are checked.
        split = check.split if check.split in mine.splits and mine.rows(check.split).any() else ALL
        places = [("" if split == ALL else split, mine.splits[split], other.splits[split] if other else None)]
    results = [_result(metric, check, *place) for place in places]
    if results:
        yield max(results, key=lambda each: (not each["passed"], _excess(check, each)))


def _excess(check: Check, result: CheckResult) -> float:
    """By how much a result is on the wrong side of its threshold."""
    if result["value"] is None:
        return float("inf")
    away: float = result["value"] - check.threshold
    return away if check.at_least is None else -away


def _result(metric: Metric, check: Check, where: str, parts: _Parts, other: _Parts | None) -> CheckResult:
    value, interval = parts.value(metric), metric.interval(parts.of(metric), parts.rows)
    if other:
        # With at_least, how much better it is; with at_most, how much worse.
        better = (metric.better == "higher") == (check.at_most is None)
        mine, theirs = (parts, other) if better else (other, parts)
        value, interval = _difference(metric, mine, theirs)
    # On few rows, one of two models is a little worse by chance: only a significant difference counts.
    decisive = interval[0] if check.against in (CHAMPION, SERVED) and interval else value
    passed = decisive is not None and (
        decisive <= check.threshold if check.at_least is None else decisive >= check.threshold
    )
    return {
        "name": check.name,
        "value": value,
        "interval": interval,
        "comparison": "<=" if check.at_least is None else ">=",
        "threshold": check.threshold,
        "passed": passed,
        "where": where,
        "against": check.against,
        "description": check.description,
    }


def _difference(metric: Metric, first: _Parts, second: _Parts) -> tuple[float | None, list[float] | None]:
    """By how much the first is above the second on the same rows, with the paired interval if the metric has one."""
    parts, rows = first.of(metric) - second.of(metric), first.rows
    if (interval := metric.interval(parts, rows)) is not None:
        return metric.combine(parts, rows), interval
    ours, theirs = first.value(metric), second.value(metric)
    return None if ours is None or theirs is None else ours - theirs, None


def _in_words(model: Model, checks: Sequence[CheckResult], result: Evaluation, mode: str) -> str:
    if mode == "off":
        return "The gate is off: nothing was judged."
    failed = [check for check in checks if not check["passed"]]
    found, champion, served = result["model"][ALL] or {}, result["champion"], result["served"]
    against = _beside_in_words(model, champion) if champion else ""
    if not champion:
        against = f", and {result['not_compared'] or 'there is no champion yet'}"
    if served:
        against += f"{_beside_in_words(model, served)}, which production serves"
    elif result["served_not_compared"]:
        against += f"; {result['served_not_compared']}"
    shown = [metric for metric in model.all_metrics if metric.percent or metric == model.kind.headline]
    words = ", ".join(f"{metric.title} {found[metric.name]:{'.1%' if metric.percent else '.4g'}}" for metric in shown)
    if not failed:
        return f"Good enough: {words}{against}."
    reasons = "; ".join(
        f"{check['name']} is {'not defined' if check['value'] is None else format(check['value'], '.4f')}"
        f"{' on ' + check['where'] if check['where'] else ''}, must be {check['comparison']} {check['threshold']:g} "
        f"({check['description']})"
        for check in failed
    )
    return f"Not good enough: {reasons}. Found {words}{against}."


def _beside_in_words(model: Model, version: Mapping[str, Any]) -> str:
    primary = next(metric for metric in model.all_metrics if metric.name == model.kind.primary)
    words = (
        f", {primary.title} {version['model'][ALL][primary.name]:.3f} against "
        f"{version[ALL][primary.name]:.3f} of version {version['version']}"
    )
    if version["rows_left_out"]:
        words += f", without {version['rows_left_out']} rows of labels that it does not know"
    return words
