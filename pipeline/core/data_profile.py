"""The profile of the data that a model learns from, and its distance from the profile of other data.

The features are weighted by rows: an example that stands for 900 rows counts 900 times, as it does in training. Days
are not part of a profile, because they always move.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.contract import TRAIN, Column, Model, Splits
from pipeline.core.examples import SLICE
from pipeline.core.parts import READ_AS

BINS = 10
# A bin or a label that only one side has would make the index infinite.
SMALLEST_SHARE = 1e-4
LARGEST = float(np.finfo(np.float32).max)  # the squares of larger values would leave float64, too
LABELS = "labels"
MOST_VALUES = 50  # of a category; the others are one
# From 0.1 to 0.25 it is some shift, from 0.25 on a large one (Siddiqi, Credit Risk Scorecards, 2006).
LARGEST_INDEX = 0.25
# Standard deviations: from 0.2 on it is an effect (Cohen, Statistical Power Analysis, 1988).
LARGEST_DIFFERENCE = 0.2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Learnt:
    """The examples of all splits, before encoding.

    Args:
        examples: of each split.
        features: a row an example: numbers as float32, categories as text.
        rows: float64[examples], the rows behind each.
        shares: of each label; empty for a number.
        target: float64[examples] if the target is a number; NaN if it is not known.
        first_day: of the rows behind them, if these have days.
        last_day: likewise.
    """

    examples: Mapping[str, int]
    features: pl.DataFrame
    rows: Floats
    shares: Mapping[str, float]
    target: Floats | None
    first_day: date | None
    last_day: date | None


NOTHING = Learnt({}, pl.DataFrame(), np.zeros(0), {}, None, None, None)


def gather(model: Model, splits: Splits) -> Learnt:
    """Read all examples once."""
    kind = model.kind
    is_number = kind.activation == "linear"
    labels = [*splits.labels]
    if not labels and len(train := splits.splits[TRAIN].rows.select(kind.target).collect()):
        labels = kind.labels(train)
    kept = [pl.col(each.name).cast(pl.String if _is_text(each) else pl.Float32) for each in _described(model)]
    examples = {}
    frames, rows, targets = [], [np.zeros(0)], [np.zeros(0)]
    total = np.zeros(len(labels))
    for name, split in splits.splits.items():
        examples[name] = 0
        for frame in split.rows.collect_batches(chunk_size=SLICE, maintain_order=True):
            if not len(frame):
                continue
            target, behind = kind.array(frame, labels)
            examples[name] += len(frame)
            frames.append(frame.select(kept))
            rows.append(np.asarray(behind, dtype=np.float64))
            if is_number:
                targets.append(np.where(behind > 0, target[:, 0], np.nan))
            else:
                total += target.sum(axis=0)
    schema = {each.name: pl.String if _is_text(each) else pl.Float32 for each in _described(model)}
    shares = {} if is_number or not total.sum() else dict(zip(labels, (total / total.sum()).tolist(), strict=True))
    days = [day for split in splits.splits.values() for day in (split.first_day, split.last_day) if day]
    return Learnt(
        examples,
        pl.concat([pl.DataFrame(schema=schema), *frames]),
        np.concatenate(rows),
        shares,
        np.concatenate(targets) if is_number else None,
        min(days, default=None),
        max(days, default=None),
    )


def describe(model: Model, learnt: Learnt) -> dict[str, Any]:
    """Describe the examples, fit for JSON.

    ``examples`` of each split, and the ``rows_of_examples`` in all; ``first_day`` and ``last_day``, or null;
    ``features``, moments and ten bins of those that are numbers; ``categories``, the shares of the values of those
    that are texts; ``label_shares``, or, if the target is a number, ``target`` like a feature. A feature that has no
    value is left out.
    """
    features: dict[str, Any] = {}
    categories: dict[str, Any] = {}
    for column in _described(model) if learnt.examples else []:
        values, weights = _known(learnt, column)
        if len(values):
            if _is_text(column):
                categories[column.name] = _value_shares(values, weights)
            else:
                features[column.name] = _moments(values.to_numpy(), weights, column)
    target = None
    if learnt.target is not None and np.isfinite(learnt.target).any():
        target = _moments(learnt.target[np.isfinite(learnt.target)], None)
    return {
        "examples": dict(learnt.examples),
        "rows_of_examples": int(learnt.rows.sum()),
        "first_day": learnt.first_day and str(learnt.first_day),
        "last_day": learnt.last_day and str(learnt.last_day),
        "features": features,
        "categories": categories,
        "label_shares": dict(learnt.shares),
        "target": target,
    }


def shift(model: Model, learnt: Learnt, reference: Mapping[str, Any]) -> pl.DataFrame:
    """The distance of the examples from ``reference``, a profile: a row per quantity, the features and then the target.

    Columns: ``quantity``; ``psi``, float64, the population stability index Σ (q − p) ln(q / p) over the reference's
    bins or over the values, with p the reference's shares and q those of the data (Siddiqi, Credit Risk Scorecards,
    2006); ``mean_difference``, float64, in standard deviations of the reference, null if it is not a number. A
    quantity that one of the two lacks is left out.
    """
    found: list[tuple[str, float, float | None]] = []
    for column in _described(model):
        values, weights = _known(learnt, column)
        if not len(values):
            continue
        if _is_text(column):
            if known := reference.get("categories", {}).get(column.name):
                found.append((column.name, _index_of(known, _value_shares(values, weights)), None))
        elif known := reference.get("features", {}).get(column.name):
            found.append((column.name, *_moved(values.to_numpy(), weights, known)))
    if learnt.target is not None and (known := reference.get("target")):
        target = learnt.target[np.isfinite(learnt.target)]
        if len(target):
            found.append((model.kind.target, *_moved(target, np.ones(len(target)), known)))
    if learnt.shares and (known := reference.get("label_shares")):
        found.append((LABELS, _index_of(known, learnt.shares), None))
    schema = {"quantity": pl.String, "psi": pl.Float64, "mean_difference": pl.Float64}
    return pl.DataFrame(found, schema=schema, orient="row")


def _described(model: Model) -> list[Column]:
    return [column for column in model.features if READ_AS[column.dtype] != pl.Date]


def _is_text(column: Column) -> bool:
    return READ_AS[column.dtype] == pl.String


def _known(learnt: Learnt, column: Column) -> tuple[pl.Series, Floats]:
    """The valid values of a feature, and their weights, float64[values]."""
    value = pl.col(column.name)
    known = value.is_not_null() & (value != "" if _is_text(column) else value.cast(pl.Float64).abs() <= LARGEST)
    mask = learnt.features.select(known.fill_null(False) & (pl.Series(learnt.rows) > 0)).to_series()
    return learnt.features[column.name].filter(mask), learnt.rows[mask.to_numpy()]


def _moments(values: NDArray[Any], weights: Floats | None, column: Column | None = None) -> dict[str, Any]:
    """Moments and bins of the values, float[n], each counted as often as its weight.

    The bins are the deciles, but have equal width over the whole range for a discrete feature, because most of its
    deciles coincide.
    """
    values = values.astype(np.float64)
    weights = np.ones(len(values)) if weights is None else weights
    mean = np.average(values, weights=weights)
    if column and column.discrete and isinstance(column.low, int | float) and isinstance(column.high, int | float):
        edges = np.linspace(column.low, column.high, BINS + 1)
    else:
        order = np.argsort(values)
        passed = np.cumsum(weights[order])
        edges = values[order][np.searchsorted(passed, np.linspace(0, passed[-1], BINS + 1))]
    return {
        "mean": float(mean),
        "std": float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        "min": float(values.min()),
        "max": float(values.max()),
        "edges": edges.tolist(),
        "shares": _shares(values, weights, edges).tolist(),
    }


def _moved(values: NDArray[Any], weights: Floats, known: Mapping[str, Any]) -> tuple[float, float]:
    values = values.astype(np.float64)
    difference = float(np.average(values, weights=weights)) - known["mean"]
    psi = _stability_index(np.array(known["shares"]), _shares(values, weights, np.array(known["edges"])))
    return psi, difference / (known["std"] or 1.0)


def _shares(values: Floats, weights: Floats, edges: Floats) -> Floats:
    """The share of each bin, float64[edges - 1]; a bin holds its upper edge, the outer ones also what is beyond."""
    # If edges coincide, the first of their bins takes all: two profiles then put a value into the same bin.
    bins = np.searchsorted(edges[1:-1], values, side="left")
    shares: Floats = np.bincount(bins, weights=weights, minlength=len(edges) - 1) / weights.sum()
    return shares


def _value_shares(values: pl.Series, weights: Floats) -> dict[str, float]:
    """The shares of the most common values, the largest first."""
    frame = pl.DataFrame({"value": values, "rows": weights}).group_by("value").agg(pl.col("rows").sum())
    most = frame.sort("rows", "value", descending=[True, False]).head(MOST_VALUES)
    return dict(zip(most["value"], (most["rows"] / weights.sum()).to_list(), strict=True))


def _index_of(before: Mapping[str, float], now: Mapping[str, float]) -> float:
    names = sorted({*before, *now})
    return _stability_index(*(np.array([side.get(name, 0.0) for name in names]) for side in (before, now)))


def _stability_index(before: Floats, now: Floats) -> float:
    p, q = np.maximum(before, SMALLEST_SHARE), np.maximum(now, SMALLEST_SHARE)
    return float(((q - p) * np.log(q / p)).sum())
