"""Evaluate model: how good it is on songs it never met and on later days of songs it knows, and whether that is enough.

Everything is counted over chart rows: an example with 40 rows in MX and 10 in US asks 50 times, and the most probable
country answers right 40 or 10 times. Beside the model stand the baseline, which always answers with the training
rows' country frequencies, and the champion, the version that it must be no worse than, on the rows of the countries
that both know.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.champion import NO_WORSE, NONE, Champion
from pipeline.core.documents import write_json
from pipeline.core.errors import SettingsInvalid
from pipeline.core.examples import Test, read_description, read_slices, read_tests
from pipeline.core.log import log
from pipeline.core.options import GATE_MODES, Thresholds, parse
from pipeline.core.runtimes import onnxruntime_of
from pipeline.models.jukebox.schema import FEATURE_NAMES

Floats = NDArray[np.float64]

# Bins of confidence for the calibration error: Guo et al., On Calibration of Modern Neural Networks (2017), use 15.
BINS = 15
# A probability of 0 for what happened would cost infinitely much; float32 softmax has no meaning below this anyway.
SMALLEST = 1e-7
# Two-sided 95 % of the normal distribution.
Z = 1.96


def evaluate_model(
    examples: Path,
    predictions: Path,
    evaluation: Path,
    verdict: Path,
    *,
    champion: Champion | None = None,
    champion_version: str = "",
    damaged: Sequence[str] = (),
    mode: str = "enforce",
    thresholds: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the predictions that train_model wrote with what happened; write and return evaluation and verdict.

    See ``judge`` for what they are made of and what it raises.
    """
    result, decision = judge(
        examples,
        predictions,
        champion=champion,
        champion_version=champion_version,
        damaged=damaged,
        mode=mode,
        thresholds=thresholds,
    )
    write_json(evaluation, result)
    write_json(verdict, decision)
    log.info("%s", decision["summary"])
    return result, decision


def judge(
    examples: Path,
    predictions: Path,
    *,
    champion: Champion | None = None,
    champion_version: str = "",
    damaged: Sequence[str] = (),
    mode: str = "enforce",
    thresholds: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return evaluation and verdict.

    ``examples`` and ``predictions`` are the folders of preprocess_data and train_model. Confidence intervals (95 %)
    are over songs, not rows: a song's rows are all alike, and a hundred of them are no hundred observations.

    ``champion`` is what ``champion.search`` found for ``champion_version``, with what is ``damaged``. If the
    two cannot be compared, evaluation and verdict say why, and the other checks decide. The verdict keeps
    ``champion_version``, ``mode`` and ``thresholds``, so that publish_model can judge again. Mode off judges nothing,
    so nothing passes.

    Raises HyperparametersInvalid for an unknown threshold, SettingsInvalid for an unknown mode.
    """
    if mode not in GATE_MODES:
        raise SettingsInvalid(f"gate_mode is {mode!r}; expected one of {', '.join(GATE_MODES)}")
    limits = parse(Thresholds, thresholds or {})
    description = read_description(examples)
    labels: list[str] = description["labels"]
    train_rows = np.zeros(len(labels))
    for train in read_slices(examples, "train"):
        train_rows += train.counts.sum(axis=0)
    # One row more for each country (Laplace's rule), so that none is impossible.
    frequencies = (train_rows + 1) / (train_rows.sum() + len(labels))
    tests = partial(read_tests, examples, predictions)
    model = _Answers(len(labels), ((split, answered, test.counts) for split, test, answered in tests()))
    always = ((split, np.broadcast_to(frequencies, test.counts.shape), test.counts) for split, test, _ in tests())
    baseline = _Answers(len(labels), always)
    result: dict[str, Any] = {"labels": labels, "champion": None, "not_compared": "", "damaged": [*damaged]}
    if champion_version == NONE:
        result["not_compared"] = "it was compared with no other version, as champion_version says"
    result["model"], result["baseline"] = model.by_split(), baseline.by_split()
    both = None
    if champion:
        found = _beside(champion, tests, labels)
        if isinstance(found, str):
            result["not_compared"] = f"version {champion.version} cannot be compared with it: {found}"
            log.warning("%s", result["not_compared"])
        else:
            both = found
            result["champion"] = {
                "version": champion.version,
                "is_best": champion.is_best,
                **both.describe(model.rows),
            }
    result["calibration"] = model.calibration()
    result["confusion"] = model.confusion.tolist()
    result["countries"] = _per_country(model, labels)
    decision = {
        **_decide(model, baseline, both, result, limits, mode),
        "champion": champion
        and {"version": champion.version, "is_best": champion.is_best, "compared": both is not None},
        "champion_version": champion_version,
        "thresholds": limits.model_dump(),
    }
    return result, decision


class _Answers:
    """Probabilities beside what happened.

    It is read a slice at a time: the name of the split, float[examples, labels] and the counts, uint32[examples,
    labels]. What is left of them is a few numbers of each example, float64[examples], and ``parts``, which of them are
    of which split; and of each country its rows by the predicted one, ``confusion``, int64[labels, labels], and those
    that were among the five most probable, ``five``, int64[labels].
    """

    def __init__(self, labels: int, slices: Iterable[tuple[str, NDArray[Any], NDArray[np.uint32]]]) -> None:
        self.confusion = np.zeros((labels, labels), dtype=np.int64)
        self.five = np.zeros(labels, dtype=np.int64)
        figures, seen = [], 0
        for split, probabilities, counts in slices:
            best = probabilities.argmax(axis=1)
            best_five = np.argpartition(-probabilities, min(5, labels) - 1, axis=1)[:, :5]
            of_five = np.take_along_axis(counts, best_five, axis=1)
            figures.append(
                np.array(
                    [
                        counts.sum(axis=1),
                        probabilities.max(axis=1),
                        counts[np.arange(len(counts)), best],
                        of_five.sum(axis=1),
                        -(counts * np.log(np.clip(probabilities, SMALLEST, 1))).sum(axis=1),
                    ]
                )
            )
            np.add.at(self.confusion.T, best, counts)
            np.add.at(self.five, best_five, of_five)
            seen += len(counts) if split == "seen" else 0
        self.rows, self.confidence, self.hits, self.hits_five, self.surprise = np.concatenate(figures, axis=1)
        self.parts = {"seen": slice(None, seen), "unseen": slice(seen, None), "all": slice(None)}

    def by_split(self) -> dict[str, Any]:
        """The metrics of the examples of each split, and of all."""
        return {name: self.metrics(part) for name, part in self.parts.items()}

    def metrics(self, part: slice) -> dict[str, Any] | None:
        rows = self.rows[part]
        if not len(rows):
            return None
        surprise, hits = self.surprise[part], self.hits[part]
        return {
            "rows": int(rows.sum()),
            "songs": len(rows),
            "top1": ratio(hits, rows),
            "top5": ratio(self.hits_five[part], rows),
            "cross_entropy": ratio(surprise, rows),
            "calibration_error": sum(b["rows"] * abs(b["confidence"] - b["accuracy"]) for b in self.calibration(part))
            / int(rows.sum()),
            "top1_interval": interval(hits, rows),
            "cross_entropy_interval": interval(surprise, rows),
        }

    def calibration(self, part: slice = slice(None)) -> list[dict[str, Any]]:
        """The bins of confidence that hold rows: how sure the model was, and how often it was right."""
        rows = self.rows[part]
        where = np.minimum((self.confidence[part] * BINS).astype(int), BINS - 1)
        total, sure, right = (
            np.bincount(where, weights, BINS) for weights in (rows, rows * self.confidence[part], self.hits[part])
        )
        return [
            {
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "confidence": float(sure[b] / total[b]),
                "accuracy": float(right[b] / total[b]),
                "rows": int(total[b]),
            }
            for b in np.flatnonzero(total)
        ]


def ratio(part: Floats, whole: Floats) -> float:
    """Sum over sum."""
    return float(part.sum() / whole.sum())


def interval(part: Floats, whole: Floats) -> list[float]:
    """The 95 % interval of ``ratio`` when songs, each with (part, whole), are drawn at random.

    The linearised variance of a ratio over clusters: Cochran, Sampling Techniques (3rd ed. 1977), section 6.4.
    """
    songs = len(part)
    r = ratio(part, whole)
    if songs < 2:
        return [r, r]
    deviation = np.sqrt(songs / (songs - 1) * ((part - r * whole) ** 2).sum()) / whole.sum()
    return [float(r - Z * deviation), float(r + Z * deviation)]


@dataclass(frozen=True)
class _Both:
    """The model and the champion on the rows of the countries that both know."""

    model: _Answers
    champion: _Answers
    only_model: list[str]
    only_champion: list[str]

    def describe(self, rows: Floats) -> dict[str, Any]:
        """The champion's metrics by split, the model's on the same rows, and what is left out of all ``rows``."""
        return {
            **self.champion.by_split(),
            "model": self.model.by_split(),
            "rows_left_out": int(rows.sum() - self.model.rows.sum()),
            "only_model": self.only_model,
            "only_champion": self.only_champion,
        }


def _beside(champion: Champion, tests: Callable[[], Iterable[Test]], labels: list[str]) -> _Both | str:
    """Put the champion beside the model, or say why that cannot be done.

    A model cannot give any chance to a country that it does not know: each row of one would cost it 16.1 nats, and a
    few of them outweigh all that it knows. So the question to both is the one that both can answer: given that it is
    one of the countries that both know, which one. The probabilities are divided by their sum over these.
    """
    if missing := [name for name in champion.features if name not in FEATURE_NAMES]:
        return f"it takes {', '.join(missing)}, which the examples do not have"
    shared = [label for label in labels if label in champion.labels]
    if len(shared) < 2:
        return f"of the countries, both know {', '.join(shared) or 'none'}; there is nothing to tell apart"
    ours, theirs = ([known.index(label) for label in shared] for known in (labels, champion.labels))
    columns = [FEATURE_NAMES.index(name) for name in champion.features]

    def asked() -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32], NDArray[np.uint32]]]:
        for split, test, probabilities in tests():
            counts = test.counts[:, ours]
            some = counts.any(axis=1)
            yield (
                split,
                np.ascontiguousarray(test.vectors[some][:, columns]),
                probabilities[some][:, ours],
                counts[some],
            )

    model = _Answers(len(shared), ((split, _shares(answered), counts) for split, _, answered, counts in asked()))
    if not len(model.rows):
        return "no test row is of a country that both know"
    ask = onnxruntime_of(champion.onnx)
    answers = ((split, _shares(ask(vectors)[:, theirs]), counts) for split, vectors, _, counts in asked())
    return _Both(
        model,
        _Answers(len(shared), answers),
        only_model=[label for label in labels if label not in champion.labels],
        only_champion=[label for label in champion.labels if label not in labels],
    )


def _shares(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its sum; where nothing is left for these countries, they are equally likely."""
    sums = probabilities.sum(axis=1, keepdims=True)
    shares = np.full_like(probabilities, 1 / probabilities.shape[1])
    np.divide(probabilities, sums, out=shares, where=sums > 0)
    return shares


def _per_country(model: _Answers, labels: list[str]) -> list[dict[str, Any]]:
    rows, predicted, right = model.confusion.sum(axis=1), model.confusion.sum(axis=0), model.confusion.diagonal()
    return [
        {
            "country": label,
            "rows": int(rows[i]),
            "recall": float(right[i] / rows[i]) if rows[i] else None,
            "recall_top5": float(model.five[i] / rows[i]) if rows[i] else None,
            "precision": float(right[i] / predicted[i]) if predicted[i] else None,
        }
        for i, label in enumerate(labels)
    ]


def _decide(
    model: _Answers,
    baseline: _Answers,
    both: _Both | None,
    result: Mapping[str, Any],
    limits: Thresholds,
    mode: str,
) -> dict[str, Any]:
    checks: list[dict[str, Any]] = []

    def check(
        name: str,
        value: float,
        comparison: str,
        threshold: float,
        description: str,
        interval: list[float] | None = None,
    ) -> None:
        passed = value >= threshold if comparison == ">=" else value <= threshold
        checks.append(
            {
                "name": name,
                "value": value,
                "interval": interval,
                "comparison": comparison,
                "threshold": threshold,
                "passed": bool(passed),
                "description": description,
            }
        )

    if mode != "off":
        found = result["model"]
        # Songs never seen are the honest test; without any, the later days of known ones have to do.
        split = "unseen" if found["unseen"] else "seen"
        part = model.parts[split]
        gain, rows = (baseline.surprise - model.surprise)[part], model.rows[part]
        check(
            "gain-over-baseline",
            ratio(gain, rows),
            ">=",
            limits.gain_over_baseline,
            f"nats of cross entropy below the country frequencies, on {split} songs",
            interval(gain, rows),
        )
        if both:
            loss = both.model.surprise - both.champion.surprise
            check(
                NO_WORSE,
                ratio(loss, both.model.rows),
                "<=",
                limits.champion_tolerance,
                f"nats of cross entropy above version {result['champion']['version']}, on the same test rows",
                interval(loss, both.model.rows),
            )
        check("top5-floor", found["all"]["top5"], ">=", limits.top5_floor, "share of test rows, top-5")
        check(
            "calibration-ceiling",
            found["all"]["calibration_error"],
            "<=",
            limits.calibration_ceiling,
            "expected calibration error over all test rows",
        )
    return {
        # Of no checks all pass, and nothing was judged.
        "passed": bool(checks) and all(c["passed"] for c in checks),
        "mode": mode,
        "checks": checks,
        "summary": _in_words(checks, result, mode),
    }


def _in_words(checks: list[dict[str, Any]], result: Mapping[str, Any], mode: str) -> str:
    if mode == "off":
        return "The gate is off: nothing was judged."
    failed = [c for c in checks if not c["passed"]]
    model = result["model"]["all"]
    champion = result["champion"]
    if champion:
        against = (
            f", cross entropy {champion['model']['all']['cross_entropy']:.3f} against "
            f"{champion['all']['cross_entropy']:.3f} of version {champion['version']}"
        )
        if champion["rows_left_out"]:
            against += f", without {champion['rows_left_out']} rows of countries that it does not know"
    else:
        against = f", and {result['not_compared'] or 'there is no champion yet'}"
    found = f"top-1 {model['top1']:.1%}, top-5 {model['top5']:.1%}{against}"
    if not failed:
        return f"Good enough: {found}."
    reasons = "; ".join(
        f"{c['name']} is {c['value']:.4f}, must be {c['comparison']} {c['threshold']:g} ({c['description']})"
        for c in failed
    )
    return f"Not good enough: {reasons}. Found {found}."
