"""The examples that preprocessing writes, and their predictions, read as arrays."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.contract import TRAIN, VALIDATION, Model
from pipeline.core.encoders import encode

# Examples that are written, read and judged at once: with all their labels they take most of a step's memory.
SLICE = 1 << 13
DESCRIPTION = "preprocessing.json"


@dataclass(frozen=True)
class Examples:
    """Examples of a split.

    Args:
        frame: a row each, the columns in their own units.
        vectors: float32[examples, features].
        target: [examples, labels] in the outputs' unit; for a distribution, the rows of each label.
        rows: [examples], the rows behind each.
    """

    frame: pl.DataFrame
    vectors: NDArray[np.float32]
    target: NDArray[Any]
    rows: NDArray[Any]


# The name of a test (its split's name without "test-"), a slice of its examples, and their predictions,
# float32[examples, labels].
Test = tuple[str, Examples, NDArray[np.float32]]


class Reader:
    """Reads the splits that preprocess_data wrote to ``folder`` for ``model``.

    ``description`` is its description of them: features, labels, encoding, mean, variance, sizes.
    """

    def __init__(self, folder: Path, model: Model, description: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.model = model
        self.description = read_description(folder) if description is None else description
        self.labels: Sequence[str] = self.description["labels"]

    @property
    def tests(self) -> list[str]:
        """The names of the test splits."""
        return [name for name in self.description["splits"] if name not in (TRAIN, VALIDATION)]

    def read(self, split: str) -> Examples:
        """A whole split."""
        return self._examples(pl.read_parquet(file_of(self.folder, split), glob=False))

    def slices(self, split: str) -> Iterator[Examples]:
        """The same, ``SLICE`` examples at a time; a split without any is one slice."""
        return map(self._examples, _slices(file_of(self.folder, split)))

    def answered(self, predictions: Path) -> Iterator[Test]:
        """The slices of all test splits, each with the name of its test and with its predictions."""
        for split in self.tests:
            answers = read_predictions(predictions, split)
            for test, found in zip(self.slices(split), answers, strict=True):
                yield split.removeprefix("test-"), test, found

    def _examples(self, frame: pl.DataFrame) -> Examples:
        target, rows = self.model.kind.array(frame, self.labels)
        return Examples(frame, encode(frame, self.description["encoding"]), target, rows)


def file_of(folder: Path, split: str) -> Path:
    """The file of a split."""
    return folder / f"{split}.parquet"


def read_description(folder: Path) -> dict[str, Any]:
    """Read preprocess_data's description of the splits in ``folder``."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text())
    return description


def write_predictions(folder: Path, split: str, predictions: NDArray[np.float32]) -> None:
    """Write float32[examples, labels], in the order of the split's examples."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = pl.Array(pl.Float32, predictions.shape[1])
    pl.DataFrame({"predictions": pl.Series(predictions, dtype=dtype)}).write_parquet(
        file_of(folder, split), row_group_size=SLICE
    )


def read_predictions(folder: Path, split: str) -> Iterator[NDArray[np.float32]]:
    """Read what ``write_predictions`` wrote, in the slices of ``Reader.slices``."""
    return (frame["predictions"].to_numpy() for frame in _slices(file_of(folder, split)))


def _slices(file: Path) -> Iterator[pl.DataFrame]:
    table = pl.scan_parquet(file, glob=False)
    for first in range(0, max(1, table.select(pl.len()).collect().item()), SLICE):
        yield table.slice(first, SLICE).collect(engine="streaming")
