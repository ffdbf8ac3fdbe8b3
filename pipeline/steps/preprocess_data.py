"""Preprocess the data: from the tables to training examples, all numeric, in splits that do not leak.

The model defines the examples and their splits. This step writes the splits, and learns from the training
examples what the network needs: how columns become numbers, their mean and variance, the unit of the target.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.core import encoders
from pipeline.core.contract import TRAIN, VALIDATION, Model, Split
from pipeline.core.data import open_data
from pipeline.core.documents import write_json
from pipeline.core.errors import DataInvalid
from pipeline.core.examples import DESCRIPTION, SLICE, Reader, file_of
from pipeline.core.log import log
from pipeline.core.parts import Unusable

SEE_REPORT = "see the report of validate-data"


def preprocess_data(model: Model, tables: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Write the examples of each split and their description; return the description.

    ``tables`` are the folders of Parquet parts, by the tables' names. ``folder`` receives ``<split>.parquet`` for each
    split of the model: the columns of its examples in their own units; and ``preprocessing.json``: ``encoding``, see
    ``encoders.fit``; ``features``, the names of the network's inputs; ``labels``; over the rows of the training split
    alone ``mean`` and ``variance`` (float[features]) and ``offset`` and ``factor`` (float[labels]) of the outputs; and
    the size of each split.

    Raises DataInvalid, in one sentence, if the data cannot be used or nothing is left to train on. Validation refuses
    such data too, and its report has the details; this step may run in parallel, so its error only refers to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with model.examples(open_data(model, tables, scratch=folder)) as found:
            sizes = {name: _write(file_of(folder, name), split) for name, split in found.splits.items()}
            labels = [*found.labels]
    except Unusable as error:
        raise DataInvalid(f"{error.table} cannot be used ({error}): {SEE_REPORT}") from error
    for name in (TRAIN, VALIDATION):
        if not sizes[name]["examples"]:
            raise DataInvalid(
                f"no {name} example is left, because there are too few rows, or because the ids of the tables do not "
                f"match: {SEE_REPORT}"
            )
    train = pl.scan_parquet(file_of(folder, TRAIN), glob=False)
    labels = labels or model.kind.labels(train.select(model.kind.target).collect())
    encoding = encoders.fit(model.features, train)
    description: dict[str, Any] = {"features": encoders.names(encoding), "labels": labels, "encoding": encoding}
    reader = Reader(folder, model, description)
    description |= _moments(reader) | _scale(reader)
    for name, size in sizes.items():
        size["rows"] = int(sum(part.rows.sum() for part in reader.slices(name)))
        log.info("%s: %d examples, %d rows", name, size["examples"], size["rows"])
    description["splits"] = sizes
    write_json(folder / DESCRIPTION, description)
    return description


def _write(file: Path, split: Split) -> dict[str, Any]:
    """Write a split; return its size, without the rows behind it, and its days."""
    split.rows.sink_parquet(file, row_group_size=SLICE, maintain_order=True)
    return {
        "examples": pl.scan_parquet(file, glob=False).select(pl.len()).collect().item(),
        "rows": 0,
        "first_day": split.first_day and str(split.first_day),
        "last_day": split.last_day and str(split.last_day),
    }


def _moments(reader: Reader) -> dict[str, list[float]]:
    """Mean and variance of each feature over the training rows; a constant feature gets variance 1, and so stays 0."""
    rows = sum(part.rows.sum() for part in reader.slices(TRAIN))
    mean = variance = np.zeros(len(reader.description["features"]))
    # float64 values of all features of all examples would take most of this step's memory.
    for part in reader.slices(TRAIN):
        mean = np.vstack([mean, part.vectors * part.rows[:, None]]).sum(axis=0)
    mean = mean / rows
    for part in reader.slices(TRAIN):
        variance = np.vstack([variance, np.square(part.vectors - mean) * part.rows[:, None]]).sum(axis=0)
    variance = variance / rows
    return {"mean": mean.tolist(), "variance": np.where(variance > 0, variance, 1.0).tolist()}


def _scale(reader: Reader) -> dict[str, list[float]]:
    """Offset and factor of the outputs."""
    total = squares = np.zeros(len(reader.description["labels"]))
    rows = 0.0
    for part in reader.slices(TRAIN):
        total = total + part.target.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(part.target, dtype=np.float64).sum(axis=0)
        rows += float(part.rows.sum())
    offset, factor = reader.model.kind.scale(total, squares, rows)
    return {"offset": offset, "factor": factor}
