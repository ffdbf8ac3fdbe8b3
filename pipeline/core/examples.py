"""The examples that preprocessing writes, read back as arrays."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.models.jukebox.schema import FEATURE_NAMES

TEST_SPLITS = {"seen": "test-seen", "unseen": "test-unseen"}
# Examples that are written, read and judged at once: with all their countries they are the largest thing of a step.
SLICE = 1 << 13


@dataclass(frozen=True)
class Examples:
    """``vectors``: float32[examples, 13] raw features; ``counts``: uint32[examples, labels] chart rows a country."""

    vectors: NDArray[np.float32]
    counts: NDArray[np.uint32]

    @property
    def rows(self) -> NDArray[np.int64]:
        """Chart rows of each example, int64[examples]."""
        rows: NDArray[np.int64] = self.counts.sum(axis=1, dtype=np.int64)
        return rows


# The name of a test split, a slice of its examples, and their predictions, float32[examples, labels].
Test = tuple[str, Examples, NDArray[np.float32]]


def read_split(folder: Path, split: str) -> Examples:
    """Read a split that preprocess_data wrote to ``folder``."""
    return _examples(pl.read_parquet(folder / f"{split}.parquet", glob=False))


def read_slices(folder: Path, split: str) -> Iterator[Examples]:
    """Read the same, ``SLICE`` examples at a time; a split without any is one slice."""
    return map(_examples, _slices(folder / f"{split}.parquet"))


def read_tests(examples: Path, predictions: Path) -> Iterator[Test]:
    """Read the slices of all ``TEST_SPLITS``, each with the name of its split and with its predictions."""
    for name, split in TEST_SPLITS.items():
        answers = read_predictions(predictions, split)
        for test, probabilities in zip(read_slices(examples, split), answers, strict=True):
            yield name, test, probabilities


def read_description(folder: Path) -> dict[str, Any]:
    """Read what preprocess_data says of the splits in ``folder``: features, labels, mean, variance, sizes."""
    description: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text())
    return description


def write_predictions(folder: Path, split: str, probabilities: NDArray[np.float32]) -> None:
    """Write float32[examples, labels], in the order of the split's examples."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = pl.Array(pl.Float32, probabilities.shape[1])
    pl.DataFrame({"probabilities": pl.Series(probabilities, dtype=dtype)}).write_parquet(
        folder / f"{split}.parquet", row_group_size=SLICE
    )


def read_predictions(folder: Path, split: str) -> Iterator[NDArray[np.float32]]:
    """Read what ``write_predictions`` wrote, in the slices of ``read_slices``."""
    return (frame["probabilities"].to_numpy() for frame in _slices(folder / f"{split}.parquet"))


def _examples(frame: pl.DataFrame) -> Examples:
    return Examples(frame.select(FEATURE_NAMES).to_numpy(), frame["counts"].to_numpy())


def _slices(file: Path) -> Iterator[pl.DataFrame]:
    table = pl.scan_parquet(file, glob=False)
    for first in range(0, max(1, table.select(pl.len()).collect().item()), SLICE):
        yield table.slice(first, SLICE).collect(engine="streaming")
