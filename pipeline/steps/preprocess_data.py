"""Preprocess data: from chart rows to training examples, all numeric, in splits that do not leak.

A row of the charts says: this song stood in this country on this day. Rows that share a feature vector differ only in
the country, so they become one *example* with a count per country. The cross entropy over the rows,

    − 1/N · Σ_rows log p(country | x)  =  − 1/N · Σ_examples Σ_countries count · log p(country | x)

is the same number, and 14,000 examples stand for a million rows. ``pipeline/splits.py`` says which are held out.

The charts are read twice, a batch at a time: for their days, and for the counts.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from pipeline.documents import write_json
from pipeline.errors import DataInvalid
from pipeline.log import log
from pipeline.parts import Parts, Sums, Unusable
from pipeline.schema import COUNTRY, COUNTRY_CODE, DATE, FEATURE_NAMES, ID, MOST_SONGS, RANKINGS, SONGS
from pipeline.splits import SPLITS, first_later_day, hashes, split_of

SEE_REPORT = "the report of validate-data says what is wrong with the data and what to do"
WRITTEN = 1 << 14  # examples that are written at once
NO_DAY = np.iinfo(np.int32).max


def preprocess_data(songs: Path, rankings: Path, folder: Path) -> dict[str, Any]:
    """Write the examples of each split and what describes them; return the description.

    ``songs`` and ``rankings`` are folders of Parquet parts. ``folder`` receives ``<split>.parquet`` for each of
    ``SPLITS``: the 13 features as float32 columns and ``counts``, uint32[countries], the number of chart rows of the
    example in each country; and ``preprocessing.json``: ``features``, ``labels`` (the countries, sorted), ``mean``
    and ``variance`` (float[13], over the rows of the training split alone) and the size of each split.

    Raises DataInvalid, in one sentence, where the data cannot be used or nothing is left to train on. Validation
    refuses such data too, and its report explains it; this step may run beside it and must not speak over it.
    """
    try:
        recordings = _Recordings(Parts(songs, SONGS))
    except Unusable as error:
        raise DataInvalid(f"songs cannot be used ({error}): {SEE_REPORT}") from error
    try:
        charts = _Charts(Parts(rankings, RANKINGS), recordings)
    except Unusable as error:
        raise DataInvalid(f"rankings cannot be used ({error}): {SEE_REPORT}") from error
    split = split_of(recordings.hashes, charts.first[:, 0] < NO_DAY)
    of_cell = split[charts.example, charts.later]
    of_days = np.where(charts.first < NO_DAY, split, len(SPLITS))
    summary: dict[str, Any] = {"features": list(FEATURE_NAMES), "labels": charts.labels}
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for number, name in enumerate(SPLITS):
        cells = of_cell == number
        examples, row = np.unique(charts.example[cells], return_inverse=True)
        column, counts = charts.label[cells], charts.rows[cells]
        if name in ("train", "validation") and not len(examples):
            raise DataInvalid(
                f"no {name} example is left of {charts.rows.sum()} chart rows of countries and "
                f"{len(recordings.vectors)} recordings, because there are too few songs or the ids of rankings and "
                f"songs do not meet: {SEE_REPORT}"
            )
        vectors = recordings.vectors[examples]
        if name == "train":
            summary["mean"], summary["variance"] = _moments(vectors, np.bincount(row, weights=counts))
        _write(folder / f"{name}.parquet", vectors, row, column, counts, len(charts.labels))
        days = of_days == number
        sizes[name] = {
            "examples": len(examples),
            "rows": int(counts.sum()),
            "first_day": str(charts.first[days].min().astype("datetime64[D]")) if days.any() else None,
            "last_day": str(charts.last[days].max().astype("datetime64[D]")) if days.any() else None,
        }
        log.info("%s: %d examples, %d rows", name, sizes[name]["examples"], sizes[name]["rows"])
    summary["splits"] = sizes
    write_json(folder / "preprocessing.json", summary)
    return summary


class _Recordings:
    """The distinct feature vectors, ordered by their hash.

    ``vectors``: float32[recordings, 13]; ``hashes``: uint64[recordings]; ``ids``: which song has which recording
    (columns ID and ``example``, uint32).
    """

    def __init__(self, songs: Parts) -> None:
        _require(songs, (ID, *FEATURE_NAMES))
        if songs.rows > MOST_SONGS:
            raise Unusable("readable", "", f"{songs.rows:,} rows are more than {MOST_SONGS:,}")
        # Songs that validation refuses (no id, no number) would only crash here and hide its report.
        usable = pl.all_horizontal(pl.col(FEATURE_NAMES).is_finite(), pl.col(ID).is_not_null())
        narrow = pl.col(FEATURE_NAMES).cast(pl.Float32)
        frames = [
            frame.with_columns(narrow).filter(usable.fill_null(False)) for frame in songs.frames((ID, *FEATURE_NAMES))
        ]
        if not frames:
            raise Unusable("readable", "", "there is no row")
        frame = pl.concat(frames).unique(subset=ID, keep="first", maintain_order=True)
        del frames
        # -0.0 and 0.0 are one number, and must be one recording.
        vectors = frame.select(FEATURE_NAMES).to_numpy() + np.float32(0)
        distinct, of_song = np.unique(vectors, axis=0, return_inverse=True)
        hashed = hashes(distinct)
        order = np.argsort(hashed, kind="stable")
        self.vectors = distinct[order]
        self.hashes = hashed[order]
        rank = np.empty(len(order), dtype=np.uint32)
        rank[order] = np.arange(len(order), dtype=np.uint32)
        self.ids = frame.select(ID).with_columns(example=pl.Series(rank[of_song.ravel()]))


class _Charts:
    """The rankings of countries, counted.

    A cell is a recording in a country, on the earlier days or on the later ones: ``example`` and ``label``,
    uint32[cells], are indices of the recordings and of ``labels``, ``later``, uint8[cells], is 0 or 1, ``rows``,
    uint32[cells], says how often. ``first`` and ``last``, int32[recordings, 2], are days since 1970 of each
    recording's earlier and later rows; NO_DAY and its negative without one.
    """

    def __init__(self, rankings: Parts, recordings: _Recordings) -> None:
        columns = (ID, COUNTRY, DATE)
        _require(rankings, columns)
        days = np.empty(0, dtype=np.int32)
        countries: set[str] = set()
        for frame in rankings.frames((COUNTRY, DATE)):
            charts = frame.drop_nulls()  # the Global chart is no country; validation refuses rows without a day
            countries.update(charts[COUNTRY].unique())
            if wrong := [country for country in countries if not re.fullmatch(COUNTRY_CODE, country)]:
                raise Unusable("types", COUNTRY, f"{wrong[0][:9]!r} is not a valid country")
            days = np.union1d(days, charts[DATE].to_physical().to_numpy())
        split_day = first_later_day(days)
        codes = sorted(countries)
        first = np.full(2 * len(recordings.vectors), NO_DAY, dtype=np.int32)
        last = -first
        label = pl.col(COUNTRY).cast(pl.Enum(codes)).to_physical().cast(pl.UInt64)
        later = pl.lit(False) if split_day is None else pl.col(DATE).to_physical() >= split_day
        cell = (pl.col("example").cast(pl.UInt64) * len(codes) + label) * 2 + later.cast(pl.UInt64)
        cells = Sums(["cell"], [pl.col("rows").sum()])
        cells.add(pl.DataFrame(schema={"cell": pl.UInt64, "rows": pl.UInt32}))
        for frame in rankings.frames(columns):
            charts = frame.drop_nulls().join(recordings.ids, on=ID)
            side = charts.select(pl.col("example").cast(pl.Int64) * 2 + later).to_series().to_numpy()
            days = charts[DATE].to_physical().to_numpy()
            np.minimum.at(first, side, days)
            np.maximum.at(last, side, days)
            cells.add(charts.group_by(cell.alias("cell")).agg(pl.len().alias("rows")))
        self.first, self.last = first.reshape(-1, 2), last.reshape(-1, 2)
        counted = cells.total().sort("cell")
        keys = counted["cell"].to_numpy()
        used, self.label = np.unique((keys // 2 % max(1, len(codes))).astype(np.uint32), return_inverse=True)
        self.labels = [codes[number] for number in used]  # a country of unknown songs alone is none
        self.later = (keys % 2).astype(np.uint8)
        self.example = (keys // (2 * max(1, len(codes)))).astype(np.uint32)
        self.rows = counted["rows"].to_numpy()


def _require(parts: Parts, columns: tuple[str, ...]) -> None:
    for column in columns:
        if fault := parts.faults.get(column):
            raise fault


def _write(
    file: Path,
    vectors: NDArray[np.float32],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    counts: NDArray[np.uint32],
    labels: int,
) -> None:
    """Write examples; ``row`` (ascending), ``column`` and ``counts`` are their counts that are not 0."""
    schema = pl.Schema(dict.fromkeys(FEATURE_NAMES, pl.Float32) | {"counts": pl.Array(pl.UInt32, labels)})

    def dense(*_: Any) -> Iterator[pl.DataFrame]:
        """All counts at once would be the largest thing of this step by far."""
        for first in range(0, max(1, len(vectors)), WRITTEN):
            some = vectors[first : first + WRITTEN]
            begin, end = np.searchsorted(row, (first, first + WRITTEN))
            table = np.zeros((len(some), labels), dtype=np.uint32)
            # Where earlier and later days are in one split, an example has two cells of a country.
            np.add.at(table, (row[begin:end] - first, column[begin:end]), counts[begin:end])
            yield pl.DataFrame(some, schema=list(FEATURE_NAMES)).with_columns(
                pl.Series("counts", table, dtype=schema["counts"])
            )

    register_io_source(dense, schema=schema).sink_parquet(file, maintain_order=True)


def _moments(vectors: np.ndarray, weights: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and variance of each feature over the rows; a constant feature gets variance 1, and so stays 0."""
    mean = np.average(vectors.astype(np.float64), axis=0, weights=weights)
    variance = np.average((vectors - mean) ** 2, axis=0, weights=weights)
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
