"""The examples: from rows of the charts to training examples, in splits that do not leak.

A row of the charts means: on this day, this song was in the chart of this country. Rows that share a feature vector
differ only in the country, so they become one *example* with a count per country. The cross entropy over the rows,

    − 1/N · Σ_rows log p(country | x)  =  − 1/N · Σ_examples Σ_countries count · log p(country | x)

is the same number, and 14,000 examples stand for a million rows. ``splits.py`` decides which are held out.

The charts are read twice, a batch at a time: for their days, and for the counts. The counts of each batch go to disk:
the memory is that of the songs.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from pipeline.core.contract import Data, Split, Splits
from pipeline.core.examples import SLICE
from pipeline.core.parts import BATCH, Known, Parts, Unusable, reading_table
from pipeline.models.jukebox.splits import SPLITS, first_later_day, hashes, split_of
from pipeline.models.jukebox.tables import COUNTRY, COUNTRY_CODE, DATE, FEATURE_NAMES, ID, MOST_SONGS

TARGET = "counts"


@contextmanager
def examples(data: Data) -> Iterator[Splits]:
    """The recordings of each split, with ``counts``, uint32[countries]: their chart rows in each country.

    While the context lasts, files without a name in ``data.scratch`` take up to 8 bytes a chart row. Raises Unusable.
    """
    with reading_table("songs"):
        recordings = _Recordings(data.parts["songs"])
    with ExitStack() as files:
        with reading_table("rankings"):
            charts = _Charts(data.parts["rankings"], recordings, data.scratch, files)
        split = split_of(recordings.hashes, charts.rows[:, 0] > 0)
        of_name = {name: (split == number) & (charts.rows > 0) for number, name in enumerate(SPLITS)}
        yield Splits({name: _split(recordings, charts, mine) for name, mine in of_name.items()}, charts.labels)


def _split(recordings: "_Recordings", charts: "_Charts", mine: NDArray[np.bool_]) -> Split:
    """The recordings of which some side is ``mine``, bool[recordings, 2]."""
    some = np.flatnonzero(mine.any(axis=1))
    counts = pl.Array(pl.UInt32, len(charts.labels))

    def dense(*_: Any) -> Iterator[pl.DataFrame]:
        """All counts at once would take most of this step's memory."""
        for first in range(0, max(1, len(some)), SLICE):
            part = some[first : first + SLICE]
            table = pl.Series(TARGET, charts.counts(part, mine), dtype=counts)
            yield pl.DataFrame(recordings.vectors[part], schema=list(FEATURE_NAMES)).with_columns(table)

    schema = pl.Schema(dict.fromkeys(FEATURE_NAMES, pl.Float32) | {TARGET: counts})
    rows = register_io_source(dense, schema=schema)
    return Split(rows, _day(charts.first[mine].min()), _day(charts.last[mine].max())) if len(some) else Split(rows)


def _day(number: np.int32) -> date:
    day: date = number.astype("datetime64[D]").item()
    return day


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
        song = self._ids.first  # of songs with the same id, the first is used
        self.hashes, first, of_id = np.unique(hashed[song], return_index=True, return_inverse=True)
        self._of_id = of_id.astype(np.uint32)
        self.vectors = vectors[song[first]]
        self.vectors += np.float32(0)  # which makes 0.0 of -0.0, as the hash does

    def of(self, ids: pl.Series) -> tuple[NDArray[np.bool_], NDArray[np.uint32]]:
        """Whether each id has a song, bool[ids], and the recordings of those that have, uint32."""
        id_ = self._ids.find(ids)
        return id_ >= 0, self._of_id[id_[id_ >= 0]]


class _Charts:
    """The rankings of countries, counted.

    A side of a recording is its earlier days or its later ones. ``rows``, uint32[recordings, 2], counts those of each
    side, ``first`` and ``last``, int32[recordings, 2], are its days since 1970, where it has rows. ``labels`` are the
    countries that have rows. The counts by recording and country are in ``files`` in ``folder``.
    """

    def __init__(self, rankings: Parts, recordings: _Recordings, folder: Path, files: ExitStack) -> None:
        columns = (ID, COUNTRY, DATE)
        _require(rankings, columns)
        days = np.empty(0, dtype=np.int32)
        found: set[str] = set()
        for frame in rankings.frames((COUNTRY, DATE)):
            charts = frame.drop_nulls()  # the Global chart is not a country; validation refuses rows without a day
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
