"""Preprocess data: from chart rows to training examples, all numeric, in splits that do not leak.

A row of the charts says: this song stood in this country on this day. Rows that share a feature vector differ only in
the country, so they become one *example* with a count per country. The cross entropy over the rows,

    − 1/N · Σ_rows log p(country | x)  =  − 1/N · Σ_examples Σ_countries count · log p(country | x)

is the same number, and 14,000 examples stand for a million rows.

The splits answer two questions apart. *Unseen*: how good is the model on a song that it never met? One tenth of the
recordings, chosen by the hash of their features, so that a recording keeps its split when the data grows and a
champion is never examined on what it was trained on; and songs that came out after training ended. *Seen*: how good
is it on the later days of songs that it knows?
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.documents import write_json
from pipeline.errors import DataInvalid
from pipeline.log import log
from pipeline.schema import COUNTRY, DATE, FEATURE_NAMES, ID

SPLITS = ("train", "validation", "test-seen", "test-unseen")
# Shares of the recordings that are held out, and of the days (the last ones) that training does not see.
TEST_SONGS = 0.1
VALIDATION_SONGS = 0.1
LATER_DAYS = 0.2


def preprocess_data(songs: Path, rankings: Path, folder: Path) -> dict[str, Any]:
    """Write the examples of each split and what describes them; return the description.

    ``songs`` and ``rankings`` are folders of Parquet parts. ``folder`` receives ``<split>.parquet`` for each of
    ``SPLITS``: the 13 features as float32 columns and ``counts``, uint32[countries], the number of chart rows of the
    example in each country; and ``preprocessing.json``: ``features``, ``labels`` (the countries, sorted), ``mean``
    and ``variance`` (float[13], over the rows of the training split alone) and the size of each split.

    Raises DataInvalid where a column is missing or nothing is left to train on.
    """
    recordings = _recordings(_scan(songs, "songs", (ID, *FEATURE_NAMES)))
    charts = (
        _scan(rankings, "rankings", (ID, COUNTRY, DATE))
        .filter(pl.col(COUNTRY).is_not_null())  # the Global chart is no country
        .select(ID, COUNTRY, pl.col(DATE).cast(pl.Date))
    )
    days = charts.select(DATE).unique().collect(engine="streaming")[DATE].sort()
    first_later_day = days[-max(1, round(LATER_DAYS * len(days)))] if len(days) > 1 else None
    later = pl.lit(False) if first_later_day is None else pl.col(DATE) >= first_later_day
    cells = (
        charts.join(recordings.ids.lazy(), on=ID)
        .group_by("example", COUNTRY, later.alias("later"))
        .agg(pl.len().alias("rows"), pl.col(DATE).min().alias("first"), pl.col(DATE).max().alias("last"))
        .collect(engine="streaming")
    )
    labels = cells[COUNTRY].unique().sort().to_list()
    split = _split(recordings, cells)
    summary: dict[str, Any] = {"features": list(FEATURE_NAMES), "labels": labels}
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for number, name in enumerate(SPLITS):
        part = cells.filter(split == number)
        examples, counts = _counts(part, labels)
        vectors = recordings.vectors[examples]
        if name in ("train", "validation") and not len(examples):
            raise DataInvalid(
                f"no {name} example is left of {cells['rows'].sum()} chart rows of countries and "
                f"{len(recordings.vectors)} recordings: there are too few songs, or the ids of rankings and songs do "
                "not meet; see the report of validate-data"
            )
        if name == "train":
            summary["mean"], summary["variance"] = _moments(vectors, counts)
        pl.DataFrame(vectors, schema=list(FEATURE_NAMES)).with_columns(
            pl.Series("counts", counts, dtype=pl.Array(pl.UInt32, len(labels)))
        ).write_parquet(folder / f"{name}.parquet")
        sizes[name] = {
            "examples": len(examples),
            "rows": int(counts.sum()),
            "first_day": str(part["first"].min()) if len(part) else None,
            "last_day": str(part["last"].max()) if len(part) else None,
        }
        log.info("%s: %d examples, %d rows", name, sizes[name]["examples"], sizes[name]["rows"])
    summary["splits"] = sizes
    write_json(folder / "preprocessing.json", summary)
    return summary


class _Recordings:
    """The distinct feature vectors, ordered by their hash.

    ``vectors``: float32[recordings, 13]; ``place``: float64[recordings] in [0, 1), which decides the split;
    ``ids``: which song has which recording (columns ID and ``example``).
    """

    def __init__(self, ids: pl.Series, vectors: np.ndarray) -> None:
        # -0.0 and 0.0 are one number, and must be one recording.
        distinct, of_song = np.unique(vectors + np.float32(0), axis=0, return_inverse=True)
        digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in distinct.astype("<f4")]
        hashes = np.frombuffer(b"".join(digests), dtype=">u8")
        order = np.argsort(hashes, kind="stable")
        self.vectors = distinct[order]
        self.place = hashes[order] / 2.0**64
        rank = np.empty(len(order), dtype=np.uint32)
        rank[order] = np.arange(len(order), dtype=np.uint32)
        self.ids = pl.DataFrame({ID: ids, "example": rank[of_song.ravel()]})


def _scan(folder: Path, table: str, columns: tuple[str, ...]) -> pl.LazyFrame:
    frame = pl.scan_parquet(folder / "*.parquet")
    found = frame.collect_schema().names()
    missing = [column for column in columns if column not in found]
    if missing:
        raise DataInvalid(
            f"{table} has no column {', '.join(map(repr, missing))}; found {found}; "
            "the report of validate-data tells all that is wrong with the data"
        )
    return frame.select(columns)


def _recordings(songs: pl.LazyFrame) -> _Recordings:
    # Rows that validation refuses (no id, no number) would only crash here and hide its report.
    frame = (
        songs.with_columns(pl.col(FEATURE_NAMES).cast(pl.Float32, strict=False))
        .drop_nulls()
        .unique(subset=ID, keep="first", maintain_order=True)
        .collect(engine="streaming")
    )
    return _Recordings(frame[ID], frame.select(FEATURE_NAMES).to_numpy())


def _split(recordings: _Recordings, cells: pl.DataFrame) -> np.ndarray:
    """The split (an index of SPLITS) of each cell, uint8[cells]."""
    example, later = cells["example"].to_numpy(), cells["later"].to_numpy()
    place = recordings.place[example]
    early = np.zeros(len(recordings.vectors), dtype=bool)
    early[example[~later]] = True
    train, validation, seen, unseen = range(len(SPLITS))
    split = np.where(later, seen, train)
    split = np.where(early[example], split, unseen)  # came out when training was over
    split = np.where(place < TEST_SONGS + VALIDATION_SONGS, validation, split)
    return np.where(place < TEST_SONGS, unseen, split).astype(np.uint8)


def _counts(part: pl.DataFrame, labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a split, ascending, and their counts, uint32[examples, countries]."""
    examples, row = np.unique(part["example"].to_numpy(), return_inverse=True)
    column = part[COUNTRY].cast(pl.Enum(labels)).to_physical().to_numpy()
    counts = np.zeros((len(examples), len(labels)), dtype=np.uint32)
    np.add.at(counts, (row, column), part["rows"].to_numpy())
    return examples, counts


def _moments(vectors: np.ndarray, counts: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and variance of each feature over the rows; a constant feature gets variance 1, and so stays 0."""
    weights = counts.sum(axis=1)
    mean = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    variance = np.average((vectors - mean) ** 2, axis=0, weights=weights)
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
