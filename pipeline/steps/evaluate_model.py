"""Evaluate model: how good it is on songs it never met and on later days of songs it knows, and whether that is enough.

Everything is counted over chart rows: an example with 40 rows in MX and 10 in US asks 50 times, and the most probable
country answers right 40 or 10 times. Beside the model stand the baseline, which always answers with the training
rows' country frequencies, and the champion, the model that is served now, on the same rows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.champion import Champion
from pipeline.documents import write_json
from pipeline.errors import SettingsInvalid
from pipeline.examples import TEST_SPLITS, read_description, read_predictions, read_split
from pipeline.log import log
from pipeline.options import GATE_MODES, Thresholds, parse
from pipeline.runtimes import onnx_probabilities

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
    mode: str = "enforce",
    thresholds: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the predictions that train_model wrote with what happened; write and return evaluation and verdict.

    ``examples`` and ``predictions`` are the folders of preprocess_data and train_model. Confidence intervals (95 %)
    are over songs, not rows: a song's rows are all alike, and a hundred of them are no hundred observations.

    Raises HyperparametersInvalid for an unknown threshold, SettingsInvalid for an unknown mode.
    """
    if mode not in GATE_MODES:
        raise SettingsInvalid(f"gate_mode is {mode!r}; expected one of {', '.join(GATE_MODES)}")
    limits = parse(Thresholds, thresholds or {})
    description = read_description(examples)
    labels: list[str] = description["labels"]
    train_rows = read_split(examples, "train").counts.sum(axis=0, dtype=np.float64)
    # One row more for each country (Laplace's rule), so that none is impossible.
    frequencies = (train_rows + 1) / (train_rows.sum() + len(labels))
    splits = {name: read_split(examples, split) for name, split in TEST_SPLITS.items()}
    counts = np.concatenate([split.counts for split in splits.values()])
    sizes = [len(split.vectors) for split in splits.values()]
    probabilities = np.concatenate([read_predictions(predictions, split) for split in TEST_SPLITS.values()])

    answers = {
        "model": _Answers(probabilities, counts),
        "baseline": _Answers(np.tile(frequencies, (len(counts), 1)), counts),
    }
    if champion:
        vectors = np.concatenate([split.vectors for split in splits.values()])
        theirs = onnx_probabilities(champion.onnx, vectors)
        answers["champion"] = _Answers(_relabel(theirs, champion.labels, labels), counts)
    result: dict[str, Any] = {"labels": labels, "champion": None}
    for who, answer in answers.items():
        result[who] = {
            "seen": answer.metrics(slice(None, sizes[0])),
            "unseen": answer.metrics(slice(sizes[0], None)),
            "all": answer.metrics(slice(None)),
        }
    if champion:
        result["champion"]["version"] = champion.version
    model = answers["model"]
    result["calibration"] = model.calibration()
    result["confusion"] = confusion = model.confusion()
    result["countries"] = _per_country(confusion, model, labels)
    decision = _decide(answers, sizes[0], result, limits, mode)
    write_json(evaluation, result)
    write_json(verdict, decision)
    log.info("%s", decision["summary"])
    return result, decision


class _Answers:
    """Probabilities, float[examples, labels], beside the counts of what happened, uint32[examples, labels]."""

    def __init__(self, probabilities: NDArray[Any], counts: NDArray[np.uint32]) -> None:
        self.counts = counts
        self.rows: Floats = counts.sum(axis=1).astype(np.float64)
        self.best: NDArray[np.int64] = probabilities.argmax(axis=1)
        self.confidence: Floats = probabilities.max(axis=1).astype(np.float64)
        index = np.arange(len(counts))
        self.hits: Floats = counts[index, self.best].astype(np.float64)
        five = min(5, probabilities.shape[1])
        self.best_five = np.argpartition(-probabilities, five - 1, axis=1)[:, :five]
        self.hits_five: Floats = np.take_along_axis(counts, self.best_five, axis=1).sum(axis=1).astype(np.float64)
        self.surprise: Floats = -(counts * np.log(np.clip(probabilities, SMALLEST, 1))).sum(axis=1)

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

    def confusion(self) -> list[list[int]]:
        """Rows by true country (outer) and predicted country (inner)."""
        matrix = np.zeros((self.counts.shape[1],) * 2, dtype=np.int64)
        np.add.at(matrix.T, self.best, self.counts)
        return matrix.tolist()


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


def _relabel(probabilities: NDArray[Any], theirs: list[str], ours: list[str]) -> NDArray[Any]:
    """Put the champion's columns in our order; a country that it does not know gets 0, one that we do not is lost."""
    column = {label: index for index, label in enumerate(theirs)}
    padded = np.pad(probabilities, ((0, 0), (0, 1)))
    return padded[:, [column.get(label, len(theirs)) for label in ours]]


def _per_country(confusion: list[list[int]], model: _Answers, labels: list[str]) -> list[dict[str, Any]]:
    matrix = np.array(confusion)
    rows, predicted, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    five = np.zeros(len(labels), dtype=np.int64)
    np.add.at(five, model.best_five, np.take_along_axis(model.counts, model.best_five, axis=1))
    return [
        {
            "country": label,
            "rows": int(rows[i]),
            "recall": float(right[i] / rows[i]) if rows[i] else None,
            "recall_top5": float(five[i] / rows[i]) if rows[i] else None,
            "precision": float(right[i] / predicted[i]) if predicted[i] else None,
        }
        for i, label in enumerate(labels)
    ]


def _decide(
    answers: Mapping[str, _Answers], seen: int, result: Mapping[str, Any], limits: Thresholds, mode: str
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

    champion = result["champion"]
    if mode != "off":
        model, rows = result["model"], answers["model"].rows
        # Songs never seen are the honest test; without any, the later days of known ones have to do.
        split, part = ("unseen", slice(seen, None)) if model["unseen"] else ("seen", slice(None, seen))
        gain = (answers["baseline"].surprise - answers["model"].surprise)[part]
        check(
            "gain-over-baseline",
            ratio(gain, rows[part]),
            ">=",
            limits.gain_over_baseline,
            f"nats of cross entropy below the country frequencies, on {split} songs",
            interval(gain, rows[part]),
        )
        if champion:
            loss = answers["model"].surprise - answers["champion"].surprise
            check(
                "no-worse-than-champion",
                ratio(loss, rows),
                "<=",
                limits.champion_tolerance,
                f"nats of cross entropy above version {champion['version']}, on the same test rows",
                interval(loss, rows),
            )
        check("top5-floor", model["all"]["top5"], ">=", limits.top5_floor, "share of test rows, top-5")
        check(
            "calibration-ceiling",
            model["all"]["calibration_error"],
            "<=",
            limits.calibration_ceiling,
            "expected calibration error over all test rows",
        )
    return {
        "passed": all(c["passed"] for c in checks),
        "mode": mode,
        "checks": checks,
        "champion": champion,
        "summary": _in_words(checks, result, mode),
    }


def _in_words(checks: list[dict[str, Any]], result: Mapping[str, Any], mode: str) -> str:
    if mode == "off":
        return "The gate is off: nothing was judged."
    failed = [c for c in checks if not c["passed"]]
    model = result["model"]["all"]
    champion = result["champion"]
    against = (
        f", cross entropy {model['cross_entropy']:.3f} against {champion['all']['cross_entropy']:.3f} of version "
        f"{champion['version']}"
        if champion
        else ", and there is no champion yet"
    )
    found = f"top-1 {model['top1']:.1%}, top-5 {model['top5']:.1%}{against}"
    if not failed:
        return f"Good enough: {found}."
    reasons = "; ".join(
        f"{c['name']} is {c['value']:.4f}, must be {c['comparison']} {c['threshold']:g} ({c['description']})"
        for c in failed
    )
    return f"Not good enough: {reasons}. Found {found}."
