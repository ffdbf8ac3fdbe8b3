"""The examples that preprocessing writes, read back as arrays."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.schema import FEATURE_NAMES

TEST_SPLITS = {"seen": "test-seen", "unseen": "test-unseen"}


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


def read_split(folder: Path, split: str) -> Examples:
    """Read a split that preprocess_data wrote to ``folder``."""
    frame = pl.read_parquet(folder / f"{split}.parquet")
    return Examples(frame.select(FEATURE_NAMES).to_numpy(), frame["counts"].to_numpy())


def read_description(folder: Path) -> dict[str, Any]:
    """Read what preprocess_data says of the splits in ``folder``: features, labels, mean, variance, sizes."""
    description: dict[str, Any] = json.loads((folder / "preprocessing.json").read_text())
    return description


def write_predictions(folder: Path, split: str, probabilities: NDArray[np.float32]) -> None:
    """Write float32[examples, labels], in the order of the split's examples."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = pl.Array(pl.Float32, probabilities.shape[1])
    pl.DataFrame({"probabilities": pl.Series(probabilities, dtype=dtype)}).write_parquet(folder / f"{split}.parquet")


def read_predictions(folder: Path, split: str) -> NDArray[np.float32]:
    """Read what ``write_predictions`` wrote."""
    probabilities: NDArray[np.float32] = pl.read_parquet(folder / f"{split}.parquet")["probabilities"].to_numpy()
    return probabilities
