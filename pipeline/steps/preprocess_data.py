"""Preprocess data: from chart rows to training examples, all numeric, in splits that do not leak.

A row of the charts says: this song stood in this country on this day. Rows that share a feature vector differ only in
the country, so they become one *example* with a count per country. The cross entropy over the rows,

    − 1/N · Σ_rows log p(country | x)  =  − 1/N · Σ_examples Σ_countries count · log p(country | x)

is the same number, and 14,000 examples stand for a million rows. ``splits.py`` says which are held out.

The charts are read twice, a batch at a time: for their days, and for the counts. The counts of each batch go to disk:
the memory is that of the songs.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from pipeline.core.documents import write_json
from pipeline.core.errors import DataInvalid
from pipeline.core.examples import SLICE
from pipeline.core.log import log
from pipeline.core.parts import BATCH, Known, Parts, Unusable
from pipeline.models.jukebox.schema import COUNTRY, COUNTRY_CODE, DATE, FEATURE_NAMES, ID, MOST_SONGS, RANKINGS, SONGS
from pipeline.models.jukebox.splits import SPLITS, first_later_day, hashes, split_of

SEE_REPORT = "the report of validate-data says what is wrong with the data and what to do"


def preprocess_data(songs: Path, rankings: Path, folder: Path) -> dict[str, Any]:
    """Write the examples of each split and what describes them; return the description.

    ``songs`` and ``rankings`` are folders of Parquet parts. ``folder`` receives ``<split>.parquet`` for each of
    ``SPLITS``: the 13 features as float32 columns and ``counts``, uint32[countries], the number of chart rows of the
    example in each country; and ``preprocessing.json``: ``features``, ``labels`` (the countries, sorted), ``mean``
    and ``variance`` (float[13], over the rows of the training split alone) and the size of each split. Until it
    returns, files without a name in ``folder`` take up to 8 bytes a chart row.

    Raises DataInvalid, in one sentence, where the data cannot be used or nothing is left to train on. Validation
    refuses such data too, and its report explains it; this step may run beside it and must not speak over it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recordings = _Recordings(Parts(songs, SONGS))
    except Unusable as error:
        raise DataInvalid(f"songs cannot be used ({error}): {SEE_REPORT}") from error
    with ExitStack() as files:
        try:
            charts = _Charts(Parts(rankings, RANKINGS), recordings, folder, files)
        except Unusable as error:
            raise DataInvalid(f"rankings cannot be used ({error}): {SEE_REPORT}") from error
        return _write_splits(folder, recordings, charts)


def _write_splits(folder: Path, recordings: "_Recordings", charts: "_Charts") -> dict[str, Any]:
    split = split_of(recordings.hashes, charts.rows[:, 0] > 0)
    summary: dict[str, Any] = {"features": list(FEATURE_NAMES), "labels": charts.labels}
    sizes = {}
    for number, name in enumerate(SPLITS):
        mine = (split == number) & (charts.rows > 0)
        examples = np.flatnonzero(mine.any(axis=1))
        rows = np.where(mine, charts.rows, 0).sum(axis=1, dtype=np.int64)[examples]
        if name in ("train", "validation") and not len(examples):
            raise DataInvalid(
                f"no {name} example is left of {charts.rows.sum()} chart rows of countries and "
                f"{len(recordings.vectors)} recordings, because there are too few songs or the ids of rankings and "
                f"songs do not meet: {SEE_REPORT}"
            )
        if name == "train":
            summary["mean"], summary["variance"] = _moments(recordings.vectors, examples, rows)
        _write(folder / f"{name}.parquet", recordings.vectors, examples, charts, mine)
        sizes[name] = {
            "examples": len(examples),
            "rows": int(rows.sum()),
            "first_day": str(charts.first[mine].min().astype("datetime64[D]")) if len(examples) else None,
            "last_day": str(charts.last[mine].max().astype("datetime64[D]")) if len(examples) else None,
        }
        log.info("%s: %d examples, %d rows", name, sizes[name]["examples"], sizes[name]["rows"])
    summary["splits"] = sizes
    write_json(folder / "preprocessing.json", summary)
    return summary


class _Recordings:
    """The distinct feature vectors, ordered by their hash.

    ``vectors``: float32[recordings, 13]; ``hashes``: uint64[recordings].
    """

    def __init__(self, songs: Parts) -> None:
        _require(songs, (ID, *FEATURE_NAMES))
        if songs.rows > MOST_SONGS:
            raise Unusable("readable", "", f"{songs.rows:,} rows are more than {MOST_SONGS:,}")
        if not songs.rows:
            raise Unusable("readable", "", "there is no row")
        # Songs that validation refuses (no id, no number) would only crash here and hide its report.
        usable = pl.all_horizontal(pl.col(FEATURE_NAMES).is_finite(), pl.col(ID).is_not_null())
        narrow = pl.col(FEATURE_NAMES).cast(pl.Float32)
        vectors = np.empty((songs.rows, len(FEATURE_NAMES)), dtype=np.float32)
        ids, hashed = np.empty((2, songs.rows), dtype=np.uint64)
        end = 0
        for frame in songs.frames((ID, *FEATURE_NAMES)):
            kept = frame.with_columns(narrow).filter(usable.fill_null(False))
            begin, end = end, end + len(kept)
            vectors[begin:end] = kept.select(FEATURE_NAMES).to_numpy()
            ids[begin:end] = kept[ID].hash()
            hashed[begin:end] = hashes(vectors[begin:end])
        self._ids = Known(ids[:end])
        song = self._ids.first  # of the songs of one id the first counts
        self.hashes, first, of_id = np.unique(hashed[song], return_index=True, return_inverse=True)
        self._of_id = of_id.astype(np.uint32)
        self.vectors = vectors[song[first]]
        self.vectors += np.float32(0)  # which makes 0.0 of -0.0, as the hash does

    def of(self, ids: pl.Series) -> tuple[NDArray[np.bool_], NDArray[np.uint32]]:
        """Of which ids there is a song, bool[ids], and the recordings of these, uint32."""
        id_ = self._ids.find(ids)
        return id_ >= 0, self._of_id[id_[id_ >= 0]]


class _Charts:
    """The rankings of countries, counted.

    A side of a recording is its earlier days or its later ones. ``rows``, uint32[recordings, 2], counts those of each
    side, ``first`` and ``last``, int32[recordings, 2], are its days since 1970, where it has rows. ``labels`` are the
    countries that have rows. How many of them are whose lies in ``files`` in ``folder``.
    """

    def __init__(self, rankings: Parts, recordings: _Recordings, folder: Path, files: ExitStack) -> None:
        columns = (ID, COUNTRY, DATE)
        _require(rankings, columns)
        days = np.empty(0, dtype=np.int32)
        found: set[str] = set()
        for frame in rankings.frames((COUNTRY, DATE)):
            charts = frame.drop_nulls()  # the Global chart is no country; validation refuses rows without a day
            found.update(charts[COUNTRY].unique())
            if wrong := [country for country in found if not re.fullmatch(COUNTRY_CODE, country)]:
                raise Unusable("types", COUNTRY, f"{wrong[0][:9]!r} is not a valid country")
            days = np.union1d(days, charts[DATE].unique().to_physical().to_numpy())
        split_day = first_later_day(days)
        countries = pl.Enum(sorted(found))
        self._countries = max(1, len(found))
        self._used = np.zeros(self._countries, dtype=bool)
        sides = 2 * len(recordings.vectors)
        first = np.full(sides, np.iinfo(np.int32).max, dtype=np.int32)
        last = -first
        total = np.zeros(sides, dtype=np.uint32)
        # A cell is a side in a country: its number is side * countries + country. Each file has those of SLICE
        # recordings, as pairs of uint32: a cell, and how many rows of a batch it has.
        begins = np.arange(0, sides, 2 * SLICE) * self._countries
        self._files = [files.enter_context(TemporaryFile(dir=folder)) for _ in begins]  # noqa: SIM115 see ExitStack
        for frame in rankings.frames(columns):
            charts = frame.with_columns(pl.col(COUNTRY).cast(countries, strict=False)).drop_nulls()
            known, recording = recordings.of(charts[ID])
            side, day = 2 * recording, charts[DATE].to_physical().to_numpy()[known]
            if split_day is not None:
                side += day >= split_day
            np.minimum.at(first, side, day)
            np.maximum.at(last, side, day)
            country = charts[COUNTRY].to_physical().to_numpy()[known]
            self._used[country] = True
            pairs = np.unique(side * np.uint32(self._countries) + country, return_counts=True)
            cells = np.column_stack([values.astype(np.uint32) for values in pairs])
            np.add.at(total, pairs[0] // self._countries, cells[:, 1])
            pieces = np.split(cells, np.searchsorted(pairs[0], begins[1:]))
            for file, mine in zip(self._files, pieces, strict=False):  # no recording: no file, and an empty piece
                file.write(mine.data)
        self.rows, self.first, self.last = (values.reshape(-1, 2) for values in (total, first, last))
        self.labels = [country for country, used in zip(sorted(found), self._used, strict=False) if used]

    def counts(self, recordings: NDArray[np.intp], mine: NDArray[np.bool_]) -> NDArray[np.uint32]:
        """Rows by label, uint32[recordings, labels], of ascending recordings; of their sides those that are ``mine``.

        ``mine`` is bool[all recordings, 2].
        """
        counts = np.zeros((len(recordings), self._countries), dtype=np.uint32)
        place = np.full(len(mine), -1, dtype=np.int32)
        place[recordings] = np.arange(len(recordings))
        place = np.where(mine, place[:, None], -1).ravel()
        for number in np.unique(recordings // SLICE):
            file = self._files[number]
            file.seek(0)
            while read := file.read(BATCH):
                cell, rows = np.frombuffer(read, dtype=np.uint32).reshape(-1, 2).T
                side, country = np.divmod(cell, self._countries)
                wanted = place[side] >= 0
                np.add.at(counts.ravel(), place[side[wanted]] * self._countries + country[wanted], rows[wanted])
        return counts[:, self._used]


def _require(parts: Parts, columns: tuple[str, ...]) -> None:
    for column in columns:
        if fault := parts.faults.get(column):
            raise fault


def _write(
    file: Path, vectors: NDArray[np.float32], examples: NDArray[np.intp], charts: _Charts, mine: NDArray[np.bool_]
) -> None:
    """Write the recordings that are examples of a split; ``mine`` are the sides that are in it."""
    counts = pl.Array(pl.UInt32, len(charts.labels))

    def dense(*_: Any) -> Iterator[pl.DataFrame]:
        """All counts at once would be the largest thing of this step by far."""
        for first in range(0, max(1, len(examples)), SLICE):
            some = examples[first : first + SLICE]
            table = pl.Series("counts", charts.counts(some, mine), dtype=counts)
            yield pl.DataFrame(vectors[some], schema=list(FEATURE_NAMES)).with_columns(table)

    schema = pl.Schema(dict.fromkeys(FEATURE_NAMES, pl.Float32) | {"counts": counts})
    source = register_io_source(dense, schema=schema)
    source.sink_parquet(file, row_group_size=SLICE, maintain_order=True)


def _moments(
    vectors: NDArray[np.float32], examples: NDArray[np.intp], rows: NDArray[np.int64]
) -> tuple[list[float], list[float]]:
    """Mean and variance of each feature over the rows; a constant feature gets variance 1, and so stays 0."""
    mean = np.zeros(vectors.shape[1])
    variance = np.zeros(vectors.shape[1])
    # A float64 of each feature of each example is much beside all else that is here.
    slices = [slice(first, first + SLICE) for first in range(0, len(examples), SLICE)]
    for some in slices:
        weighted = vectors[examples[some]] * rows[some, None]
        mean = np.vstack([mean, weighted]).sum(axis=0)
    mean /= rows.sum()
    for some in slices:
        weighted = np.square(vectors[examples[some]] - mean) * rows[some, None]
        variance = np.vstack([variance, weighted]).sum(axis=0)
    variance /= rows.sum()
    return mean.tolist(), np.where(variance > 0, variance, 1.0).tolist()
