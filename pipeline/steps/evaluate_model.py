"""Evaluate model: how good it is on songs it never met and on later days of songs it knows, and whether that is enough.

Everything is counted over chart rows: an example with 40 rows in MX and 10 in US asks 50 times, and the most probable
country answers right 40 or 10 times. Beside the model stand the baseline, which always answers with the training
rows' country frequencies, and the champion, the version that it must be no worse than, on the rows of the countries
that both know.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.champion import NO_WORSE, NONE, Champion
from pipeline.documents import write_json
from pipeline.errors import SettingsInvalid
from pipeline.examples import TEST_SPLITS, read_description, read_predictions, read_split
from pipeline.log import log
from pipeline.options import GATE_MODES, Thresholds, parse
from pipeline.schema import FEATURE_NAMES

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

    ``champion`` is what ``pipeline.champion.search`` found for ``champion_version``, with what is ``damaged``. If the
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
    result: dict[str, Any] = {"labels": labels, "champion": None, "not_compared": "", "damaged": [*damaged]}
    if champion_version == NONE:
        result["not_compared"] = "it was compared with no other version, as champion_version says"
    for who, answer in answers.items():
        result[who] = answer.by_split(sizes[0])
    both = None
    if champion:
        vectors = np.concatenate([split.vectors for split in splits.values()])
        found = _beside(champion, vectors, probabilities, counts, labels, sizes[0])
        if isinstance(found, str):
            result["not_compared"] = f"version {champion.version} cannot be compared with it: {found}"
            log.warning("%s", result["not_compared"])
        else:
            both = found
            result["champion"] = {
                "version": champion.version,
                "is_best": champion.is_best,
                **both.describe(),
            }
    model = answers["model"]
    result["calibration"] = model.calibration()
    result["confusion"] = confusion = model.confusion()
    result["countries"] = _per_country(confusion, model, labels)
    decision = {
        **_decide(answers, both, sizes[0], result, limits, mode),
        "champion": champion
        and {"version": champion.version, "is_best": champion.is_best, "compared": both is not None},
        "champion_version": champion_version,
        "thresholds": limits.model_dump(),
    }
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

    def by_split(self, seen: int) -> dict[str, Any]:
        """The metrics of the first ``seen`` examples, of the others, and of all."""
        parts = {"seen": slice(None, seen), "unseen": slice(seen, None), "all": slice(None)}
        return {name: self.metrics(part) for name, part in parts.items()}

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


@dataclass(frozen=True)
class _Both:
    """The model and the champion on the rows of the countries that both know; ``seen`` of the examples come first."""

    model: _Answers
    champion: _Answers
    seen: int
    rows_left_out: int
    only_model: list[str]
    only_champion: list[str]

    def describe(self) -> dict[str, Any]:
        """The champion's metrics by split, the model's on the same rows, and what is left out."""
        return {
            **self.champion.by_split(self.seen),
            "model": self.model.by_split(self.seen),
            "rows_left_out": self.rows_left_out,
            "only_model": self.only_model,
            "only_champion": self.only_champion,
        }


def _beside(
    champion: Champion,
    vectors: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    counts: NDArray[np.uint32],
    labels: list[str],
    seen: int,
) -> _Both | str:
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
    kept = counts[:, ours]
    asked = kept.sum(axis=1) > 0
    if not asked.any():
        return "no test row is of a country that both know"
    columns = [FEATURE_NAMES.index(name) for name in champion.features]
    answered = champion.probabilities(np.ascontiguousarray(vectors[asked][:, columns]))
    return _Both(
        model=_Answers(_shares(probabilities[asked][:, ours]), kept[asked]),
        champion=_Answers(_shares(answered[:, theirs]), kept[asked]),
        seen=int(asked[:seen].sum()),
        rows_left_out=int(counts.sum(dtype=np.int64) - kept.sum(dtype=np.int64)),
        only_model=[label for label in labels if label not in champion.labels],
        only_champion=[label for label in champion.labels if label not in labels],
    )


def _shares(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row divided by its sum; where nothing is left for these countries, they are equally likely."""
    sums = probabilities.sum(axis=1, keepdims=True)
    shares = np.full_like(probabilities, 1 / probabilities.shape[1])
    np.divide(probabilities, sums, out=shares, where=sums > 0)
    return shares


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
    answers: Mapping[str, _Answers],
    both: _Both | None,
    seen: int,
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
        check("top5-floor", model["all"]["top5"], ">=", limits.top5_floor, "share of test rows, top-5")
        check(
            "calibration-ceiling",
            model["all"]["calibration_error"],
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
