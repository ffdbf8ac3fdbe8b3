"""The charts: a million rankings, reduced a batch at a time to the views of the rules.

``charts`` has a row for each country (null: Global) and day, ``entries`` one for each song id. Memory is that of these,
however many rankings there are.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.contract import Data
from pipeline.core.parts import Batch, Known, Parts, Sums, TooMany, reading_table
from pipeline.models.jukebox.tables import (
    CHART_PLACES,
    COUNTRY,
    DATE,
    FIRST_DAY,
    ID,
    MOST_CHARTS,
    MOST_SONGS,
    RANK,
    RANKINGS,
    SONGS,
)

BUCKET = 1 << 20  # rankings whose songs are compared at once, 8 bytes each
NO_DAY = np.iinfo(np.int32).max
PLACES = [f"places_{word}" for word in range(-(-CHART_PLACES // 64))]  # uint64, a bit a place
KNOWN_ID = pl.when(pl.col(ID) != "").then(ID).alias(ID)  # an empty id is a missing one


def views(data: Data) -> Mapping[str, pl.LazyFrame]:
    """Reduce the rankings.

    ``charts``, a row for each country and day: COUNTRY, DATE and, int64, ``rows``; uint32, ``repeated`` (rows whose id
    the chart has already) and ``doubled`` (rows whose rank, a valid one, the chart has already); ``last_place``,
    float64. ``entries``, a row for each id: ID and, int64, ``rows`` and ``of_countries``; ``is_song``, whether songs
    has it. ``country_charts``: ``charts`` without the Global chart, and without days that cannot be. ``countries``:
    COUNTRY, its ``rows`` in these, and their ``median`` over the countries.

    Raises TooMany if there are more charts or ids than the limits of the tables allow.
    """
    with reading_table(RANKINGS.name):
        charts, entries = _reduced(data.parts[RANKINGS.name], data[SONGS.name])
    # An invalid day must not affect other rules: a day in the future is not the last day.
    tomorrow = data.today + timedelta(days=1)
    possible = pl.col(DATE).is_null() | pl.col(DATE).is_between(FIRST_DAY, tomorrow)
    country_charts = charts.lazy().filter(possible, pl.col(COUNTRY).is_not_null())
    countries = country_charts.group_by(COUNTRY).agg(pl.col("rows").sum()).sort("rows", COUNTRY)
    return {
        "charts": charts.lazy(),
        "entries": entries.lazy(),
        "country_charts": country_charts,
        "countries": countries.with_columns(median=pl.col("rows").median()),
    }


def _reduced(rankings: Parts, songs: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``charts``, ordered, and ``entries``."""
    coded = _Coded(rankings, songs)
    charts = Sums([COUNTRY, DATE], [pl.col("rows").sum()], MOST_CHARTS, "pairs of a country and a day")
    entries = _Entries(MOST_SONGS)
    spans: list[tuple[Batch, int, int]] = []  # each batch with its first and its last day
    for batch in (None, *rankings.batches):  # an empty batch first, which gives the sums their types
        frame = coded.read(batch, (ID, COUNTRY, DATE))
        charts.add(frame.group_by(COUNTRY, DATE).agg(rows=pl.len()))
        entries.add(frame.group_by(ID).agg(rows=pl.len(), of_countries=pl.col(COUNTRY).is_not_null().sum()))
        if batch:
            spans.append((batch, *frame.select(first=pl.col(DATE).min(), last=pl.col(DATE).max()).row(0)))
    by_day = charts.total().sort(DATE, COUNTRY)
    del charts
    day = pl.col(DATE).replace(NO_DAY, None).cast(pl.Date)
    charts_frame = by_day.select(coded.texts(by_day[COUNTRY]), day, "rows", *_measured(coded, by_day, spans))
    found = entries.total()
    found = found.with_columns(coded.texts(found[ID]), is_song=coded.is_song(found[ID]))
    order = charts_frame.select(pl.arg_sort_by(COUNTRY, DATE)).to_series()
    # A column at a time: two copies of all columns would be the step's peak of memory.
    columns = (charts_frame.drop_in_place(name).gather(order) for name in charts_frame.columns)
    return pl.DataFrame(columns).with_columns(pl.col("rows").cast(pl.Int64)), found


class _Coded:
    """The rankings with numbers instead of texts, which take less memory and are faster to compare.

    An id has the number of its song; ids without a song have higher numbers.
    """

    def __init__(self, rankings: Parts, songs: pl.LazyFrame) -> None:
        self._rankings = rankings
        self._song_ids = songs.select(KNOWN_ID).drop_nulls()
        self._known = Known(self._song_ids.collect().to_series().hash().to_numpy())
        # Polars drops the numbers of a categorical type when its last series is deleted.
        self._numbered = {name: pl.Series(dtype=pl.Categorical(pl.Categories.random(name))) for name in (ID, COUNTRY)}

    def read(self, batch: Batch | None, columns: Sequence[str]) -> pl.DataFrame:
        """The columns of the batch: ID and COUNTRY as uint32, DATE as int32 days since 1970, or NO_DAY.

        None is a batch of no rows.
        """
        if batch is None:
            frame = pl.DataFrame(schema={name: self._rankings.columns[name] for name in columns})
        else:
            frame = self._rankings.read(batch, columns)
        return frame.with_columns(
            self._numbers(frame.select(KNOWN_ID).to_series()),
            pl.col(COUNTRY).cast(self._numbered[COUNTRY].dtype).to_physical(),
            pl.col(DATE).to_physical().fill_null(NO_DAY),
        )

    def _numbers(self, ids: pl.Series) -> pl.Series:
        songs = self._known.find(ids)
        other = (songs < 0) & ids.is_not_null().to_numpy()
        if other.any():
            codes = ids.filter(pl.Series(other)).cast(self._numbered[ID].dtype).to_physical()
            songs[other] = len(self._known.first) + codes.to_numpy()
        return pl.Series(ID, songs).set(ids.is_null(), None).cast(pl.UInt32)

    def is_song(self, ids: pl.Series) -> pl.Series:
        """Whether songs has each of the ids, given as numbers; null for a missing id."""
        return ids < len(self._known.first)

    def texts(self, numbers: pl.Series) -> pl.Series:
        """The texts of the numbers, which are those of ID or COUNTRY."""
        first = len(self._known.first) if numbers.name == ID else 0
        number = pl.col(numbers.name)
        other = pl.when(number >= first).then(number - first).cat.to(self._numbered[numbers.name].dtype)
        others = numbers.to_frame().select(other.cast(pl.String)).to_series()
        if not first:
            return others
        songs = self._song_ids.collect().to_series().gather(self._known.first)
        return songs.gather(numbers.set(numbers >= first, None)).zip_with(numbers < first, others)


class _Entries:
    """A row an id: ID, as a number, ``rows`` and ``of_countries``, added up over the batches."""

    def __init__(self, most: int) -> None:
        self._most = most
        # By the number of the id and 1; the row 0 is that of a missing id.
        self._rows = np.zeros(1, dtype=np.uint32)
        self._of_countries = np.zeros(1, dtype=np.uint32)

    def add(self, frame: pl.DataFrame) -> None:
        """Add a frame of different ids. Raises TooMany if there are more than ``most`` in all."""
        row = frame.select((pl.col(ID).cast(pl.Int64) + 1).fill_null(0)).to_series().to_numpy()
        more = max(0, int(row.max(initial=0)) + 1 - len(self._rows))
        self._rows = np.pad(self._rows, (0, more))
        self._of_countries = np.pad(self._of_countries, (0, more))
        self._rows[row] += frame["rows"].to_numpy()
        if np.count_nonzero(self._rows[1:]) > self._most:
            raise TooMany(f"more than {self._most:,} different ids")
        self._of_countries[row] += frame["of_countries"].to_numpy()

    def total(self) -> pl.DataFrame:
        """All of them."""
        frame = pl.DataFrame({"rows": self._rows, "of_countries": self._of_countries})
        number = pl.int_range(-1, pl.len() - 1)
        id_ = pl.when(number >= 0).then(number).cast(pl.UInt32).alias(ID)
        return frame.select(id_, pl.col("rows", "of_countries").cast(pl.Int64)).filter(pl.col("rows") > 0)


def _measured(coded: _Coded, charts: pl.DataFrame, spans: Sequence[tuple[Batch, int, int]]) -> list[pl.Series]:
    """The other columns of each chart; ``charts`` are COUNTRY, DATE and ``rows`` in the order of their days.

    They are computed in buckets of charts with BUCKET rows in all. For each bucket, the batches whose days overlap it
    are read again: about once in all if the rows are sorted by day, as they usually are.
    """
    found: dict[str, NDArray[Any]] = {name: np.zeros(len(charts), dtype=np.uint32) for name in ("repeated", "doubled")}
    found["last_place"] = np.full(len(charts), -np.inf)
    days = charts[DATE].to_numpy()
    passed = np.cumsum(charts["rows"].to_numpy(), dtype=np.int64)
    begin = 0
    while begin < len(charts):
        before = passed[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(passed, before + BUCKET, side="right")))
        bucket = charts[begin:end].select(COUNTRY, DATE, chart=pl.int_range(pl.len()))
        songs = _Songs(int(passed[end - 1] - before) if end - begin > 1 else 0)
        taken = np.zeros((end - begin, len(PLACES)), dtype=np.uint64)
        for batch, first, last in spans:
            if first > days[end - 1] or last < days[begin]:
                continue
            frame = coded.read(batch, (ID, COUNTRY, DATE, RANK)).join(bucket, on=[COUNTRY, DATE], nulls_equal=True)
            songs.add(frame.drop_nulls(ID))
            of_batch = _ranks(frame)
            chart = begin + of_batch["chart"].to_numpy()
            found["last_place"][chart] = np.fmax(found["last_place"][chart], of_batch["last_place"].to_numpy())
            found["doubled"][chart] += of_batch["inside"].to_numpy()
            taken[chart - begin] |= of_batch.select(PLACES).to_numpy()
        found["doubled"][begin:end] -= np.bitwise_count(taken).sum(axis=1, dtype=np.uint32)
        found["repeated"][begin:end] = songs.repeated(end - begin)
        begin = end
    return [pl.Series(name, values) for name, values in found.items()]


class _Songs:
    """The pairs of a chart and a song of a bucket: its charts have ``rows`` in all, or it is one chart (``rows`` 0)."""

    def __init__(self, rows: int) -> None:
        self._pairs = np.empty(rows, dtype=np.int64)
        self._rows = 0
        self._once = np.zeros(0, dtype=bool)  # of one chart, however many rows it has: its songs

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows: ``chart`` and ID, both as numbers."""
        begin, self._rows = self._rows, self._rows + len(frame)
        if len(self._pairs):
            pairs = frame.select(pl.col("chart") * 2**32 + pl.col(ID)).to_series()
            self._pairs[begin : self._rows] = pairs.to_numpy()
        elif len(frame):
            songs = frame[ID].to_numpy()
            self._once = np.pad(self._once, (0, max(0, int(songs.max()) + 1 - len(self._once))))
            self._once[songs] = True

    def repeated(self, charts: int) -> NDArray[np.int64]:
        """How many rows of each chart have a song that it has already, int64[charts]."""
        if not len(self._pairs):
            return np.full(charts, self._rows - self._once.sum())
        pairs = self._pairs[: self._rows]
        pairs.sort()
        return np.bincount(pairs[1:][pairs[1:] == pairs[:-1]] >> 32, minlength=charts)


def _ranks(frame: pl.DataFrame) -> pl.DataFrame:
    """A row a ``chart`` of a batch: ``last_place``, ``inside`` (valid ranks), PLACES: a bit a place taken."""
    rank = pl.col(RANK)
    inside = rank.is_between(1, CHART_PLACES) & (rank % 1 == 0)
    place = frame.select(pl.when(inside).then(rank - 1).fill_null(-1).cast(pl.Int64)).to_series().to_numpy()
    bit = np.uint64(1) << (place % 64).astype(np.uint64)
    words = [pl.Series(name, np.where(place // 64 == word, bit, np.uint64(0))) for word, name in enumerate(PLACES)]
    return (
        frame.with_columns(words)
        .group_by("chart")
        .agg(
            inside.sum().alias("inside"),
            rank.max().cast(pl.Float64).alias("last_place"),
            pl.col(PLACES).bitwise_or(),
        )
    )
