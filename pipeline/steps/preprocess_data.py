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
from pipeline.examples import SLICE
from pipeline.log import log
from pipeline.parts import Parts, Sums, Unusable
from pipeline.schema import COUNTRY, COUNTRY_CODE, DATE, FEATURE_NAMES, ID, MOST_SONGS, RANKINGS, SONGS
from pipeline.splits import SPLITS, first_later_day, hashes, split_of

SEE_REPORT = "the report of validate-data says what is wrong with the data and what to do"
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
    of_cell = split.ravel()[charts.cells // charts.countries]
    of_days = np.where(charts.first < NO_DAY, split, len(SPLITS))
    summary: dict[str, Any] = {"features": list(FEATURE_NAMES), "labels": charts.labels}
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for number, name in enumerate(SPLITS):
        mine = of_cell == number
        example = charts.cells[mine] // (2 * charts.countries)  # ascending
        begins = np.flatnonzero(np.append(True, example[1:] != example[:-1])[: len(example)])
        examples = example[begins]
        if name in ("train", "validation") and not len(examples):
            raise DataInvalid(
                f"no {name} example is left of {charts.rows.sum()} chart rows of countries and "
                f"{len(recordings.vectors)} recordings, because there are too few songs or the ids of rankings and "
                f"songs do not meet: {SEE_REPORT}"
            )
        vectors, column, rows = recordings.vectors[examples], charts.column(mine), charts.rows[mine]
        if name == "train":
            summary["mean"], summary["variance"] = _moments(vectors, np.add.reduceat(rows, begins, dtype=np.int64))
        _write(folder / f"{name}.parquet", vectors, begins, column, rows, len(charts.labels))
        days = of_days == number
        sizes[name] = {
            "examples": len(examples),
            "rows": int(rows.sum(dtype=np.int64)),
            "first_day": str(charts.first[days].min().astype("datetime64[D]")) if days.any() else None,
            "last_day": str(charts.last[days].max().astype("datetime64[D]")) if days.any() else None,
        }
        log.info("%s: %d examples, %d rows", name, sizes[name]["examples"], sizes[name]["rows"])
    summary["splits"] = sizes
    write_json(folder / "preprocessing.json", summary)
    return summary


class _Recordings:
    """The distinct feature vectors, ordered by their hash.

    ``vectors``: float32[recordings, 13]; ``hashes``: uint64[recordings]; ``ids``: the songs', and ``of_id``,
    uint32[ids], which of the recordings each of them has.
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
        frame = pl.concat(frames).filter(pl.col(ID).is_first_distinct())
        del frames
        vectors = frame.select(FEATURE_NAMES).to_numpy()
        self.ids = pl.Enum(frame[ID])
        del frame
        # By their hash, of 64 bits, which decides their split, too.
        self.hashes, first, of_id = np.unique(hashes(vectors), return_index=True, return_inverse=True)
        self.vectors = vectors[first] + np.float32(0)  # which makes 0.0 of -0.0, as the hash does
        self.of_id = of_id.astype(np.uint32)


class _Charts:
    """The rankings of countries, counted.

    A cell is a recording on the earlier days or on the later ones in a country. ``cells``, uint32[cells], are their
    numbers, ascending: ``(2 * recording + later) * countries + country``; ``rows``, uint32[cells], says how often.
    ``labels`` are those of the countries that have a cell. ``first`` and ``last``, int32[recordings, 2], are days since
    1970 of each recording's earlier and later rows; NO_DAY and its negative without one.
    """

    def __init__(self, rankings: Parts, recordings: _Recordings) -> None:
        columns = (ID, COUNTRY, DATE)
        _require(rankings, columns)
        days = np.empty(0, dtype=np.int32)
        found: set[str] = set()
        for frame in rankings.frames((COUNTRY, DATE)):
            charts = frame.drop_nulls()  # the Global chart is no country; validation refuses rows without a day
            found.update(charts[COUNTRY].unique())
            if wrong := [country for country in found if not re.fullmatch(COUNTRY_CODE, country)]:
                raise Unusable("types", COUNTRY, f"{wrong[0][:9]!r} is not a valid country")
            days = np.union1d(days, charts[DATE].to_physical().to_numpy())
        split_day = first_later_day(days)
        countries = pl.Enum(sorted(found))
        self.countries = max(1, len(found))
        used = np.zeros(self.countries, dtype=bool)
        first = np.full(2 * len(recordings.vectors), NO_DAY, dtype=np.int32)
        last = -first
        cells = Sums(["cell"], [pl.col("rows").sum()])
        cells.add(pl.DataFrame(schema={"cell": pl.UInt32, "rows": pl.UInt32}))
        for frame in rankings.frames(columns):
            charts = frame.select(
                pl.col(ID).cast(recordings.ids, strict=False).to_physical(),  # null: no song of ours
                pl.col(COUNTRY).cast(countries, strict=False).to_physical(),  # null: Global, or of no day
                pl.col(DATE).to_physical(),
            ).drop_nulls()
            day, country = charts[DATE].to_numpy(), charts[COUNTRY].to_numpy()
            side = 2 * recordings.of_id[charts[ID].to_numpy()]
            if split_day is not None:
                side += day >= split_day
            np.minimum.at(first, side, day)
            np.maximum.at(last, side, day)
            used[country] = True
            cell, rows = np.unique(side * np.uint32(self.countries) + country, return_counts=True)
            cells.add(pl.DataFrame({"cell": cell, "rows": rows.astype(np.uint32)}))
        total = cells.total().sort("cell")
        self.cells, self.rows = total["cell"].to_numpy(), total["rows"].to_numpy()
        self.first, self.last = first.reshape(-1, 2), last.reshape(-1, 2)
        self.labels = [country for country, is_used in zip(sorted(found), used, strict=False) if is_used]
        self._position = (np.cumsum(used) - 1).astype(np.uint16)

    def column(self, mine: NDArray[np.bool_]) -> NDArray[np.uint16]:
        """Which of the labels those cells have that are ``mine``, uint16[mine]."""
        columns: NDArray[np.uint16] = self._position[self.cells[mine] % self.countries]
        return columns


def _require(parts: Parts, columns: tuple[str, ...]) -> None:
    for column in columns:
        if fault := parts.faults.get(column):
            raise fault


def _write(
    file: Path,
    vectors: NDArray[np.float32],
    begins: NDArray[np.intp],
    column: NDArray[np.uint16],
    rows: NDArray[np.uint32],
    labels: int,
) -> None:
    """Write examples. ``column`` and ``rows`` are their counts that are not 0; an example's begin at its ``begins``."""
    schema = pl.Schema(dict.fromkeys(FEATURE_NAMES, pl.Float32) | {"counts": pl.Array(pl.UInt32, labels)})
    ends = np.append(begins[1:], len(rows))

    def dense(*_: Any) -> Iterator[pl.DataFrame]:
        """All counts at once would be the largest thing of this step by far."""
        for first in range(0, max(1, len(vectors)), SLICE):
            some = slice(first, first + SLICE)
            table = np.zeros((len(vectors[some]), labels), dtype=np.uint32)
            lengths = ends[some] - begins[some]
            cells = slice(begins[first], ends[some][-1]) if len(lengths) else slice(0)
            # Where earlier and later days are in one split, an example has two cells of a country.
            np.add.at(table, (np.repeat(np.arange(len(table)), lengths), column[cells]), rows[cells])
            yield pl.DataFrame(vectors[some], schema=list(FEATURE_NAMES)).with_columns(
                pl.Series("counts", table, dtype=schema["counts"])
            )

    source = register_io_source(dense, schema=schema)
    source.sink_parquet(file, row_group_size=SLICE, maintain_order=True)


def _moments(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and variance of each feature over the rows; a constant feature gets variance 1, and so stays 0."""
    # In place: a float64 of each feature of each example is much beside all else that is here.
    weighted = vectors.astype(np.float64)
    weighted *= rows[:, None]
    mean = weighted.sum(axis=0) / rows.sum()
    np.square(np.subtract(vectors, mean, out=weighted), out=weighted)
    weighted *= rows[:, None]
    variance = weighted.sum(axis=0) / rows.sum()
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
