"""Validate data: does it keep its contract, and how far is it from what the champion was trained on.

The songs, some ten thousand, are checked row by row. The rankings, millions, are first reduced, a batch at a time, to a
row a chart (a country and a day) and a row a song, which are checked in their place. Then totals are held against
limits. All that is wrong is named at once; an error stops the pipeline, a warning does not.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandera.polars as pa
import polars as pl
from numpy.typing import NDArray
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors
from polars.io.plugins import register_io_source

from pipeline.core.data_profile import describe, shift
from pipeline.core.documents import write_json
from pipeline.core.errors import DataInvalid
from pipeline.core.log import log
from pipeline.core.parts import Batch, Known, Parts, Sums, TooMany, Unusable
from pipeline.models.jukebox.rules import (
    CHART_PLACES,
    COUNTS,
    ENTRY_ROWS,
    FIRST_DAY,
    LIMITS,
    PRESENT,
    RULES,
    SONG_ROWS,
    TOTAL_ROWS,
    Limits,
    chart_rows,
    country_rows,
    feature_rows,
    shift_rows,
)
from pipeline.models.jukebox.splits import SPLITS, first_later_day, hashes, split_of
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, FEATURES, ID, RANK, RANKINGS, SONGS

EXAMPLES = 5
SENTENCES = 13  # as many as there are features
SHOWN_NAMES = 40
LONGEST_TEXT = 60
ESCAPED = str.maketrans({character: f"&#{ord(character)};" for character in "&<|[`"})
SLICE = 1 << 14  # songs
BUCKET = 1 << 20  # rankings whose songs are compared at once, 8 bytes each
NO_DAY = np.iinfo(np.int32).max
PLACES = [f"places_{word}" for word in range(-(-CHART_PLACES // 64))]  # uint64, a bit a place
KNOWN_ID = pl.when(pl.col(ID) != "").then(ID).alias(ID)  # an empty id is a missing one

Result = TypeVar("Result")


def validate_data(
    songs: Path,
    rankings: Path,
    report: Path,
    *,
    data_version: str,
    today: date,
    limits: Limits = LIMITS,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the data against its contract; write what was found to ``report``, as JSON, and return it.

    ``songs`` and ``rankings`` are folders of ``*.parquet``, ``reference`` is the profile of the data that the champion
    was trained on. The report has ``passed``; ``checks``, each with ``name``, ``severity``, ``passed``, ``count`` of
    what breaks it, at most five ``examples`` and ``message``; ``profile``, see ``data_profile.describe``; and
    ``shift``, by quantity, null without a reference. A check is left out where another one says that its columns
    cannot be used.

    Integers of any width, floats, decimals and booleans are numbers; a Date, a Datetime of any unit and an ISO date
    that is stored as text are days; dictionary-encoded and binary text is text. ``today`` is that of UTC: a chart of
    tomorrow, which it is already at UTC+14, is a warning, a later one an error.

    Raises DataInvalid, which names all failed checks of severity error; the report is written before.
    """
    found = _Found()
    song_rows = _used("songs", songs, SONGS.schema, found, lambda parts: _songs(parts, limits))
    charts, entries = _used(
        "rankings", rankings, RANKINGS.schema, found, lambda parts: _reduced(parts, song_rows, limits)
    )
    # What is wrong must not spoil what else is said: a day in the future is not the last day.
    tomorrow = today + timedelta(days=1)
    possible = pl.col(DATE).is_null() | pl.col(DATE).is_between(FIRST_DAY, tomorrow)
    sound = charts.lazy().select(COUNTRY, DATE, "rows").filter(possible)
    charted = _charted(song_rows, entries)
    profile = {"songs": charted.select("rows").collect().height, **describe(charted, sound)}

    for name, column in SONG_ROWS.columns.items():  # one at a time, for all of them are most of what there is of songs
        schema = pa.DataFrameSchema({name: column})
        if _errors(schema, song_rows.select(name).collect()):
            values = song_rows.select(list(dict.fromkeys([ID, "name", name]))).collect()
            _check_rows(schema, values, found, "songs", show=[ID, "name"])
    _check_rows(chart_rows(today), charts, found, "rankings", show=[COUNTRY, DATE, "rows"], weight="rows")
    _check_rows(ENTRY_ROWS, entries, found, "rankings", show=[ID, "rows"], weight="rows")
    _check_named(feature_rows(limits), _of_features(song_rows), found)
    countries = sound.drop_nulls(COUNTRY).group_by(COUNTRY).agg(pl.col("rows").sum()).sort("rows", COUNTRY).collect()
    median = float(np.median(countries["rows"])) if len(countries) else 0.0
    _check_named(country_rows(limits, median), countries, found)
    totals = _totals(song_rows, charts, entries, profile, today, limits)
    _check_totals({**totals, **_learnable(charted, charts)}, found)
    moved = None
    if reference is None:
        found.notes["shift"] = "there is no champion to compare the data with"
    else:
        moved = shift(charted, profile["country_shares"], reference)
        _check_named(shift_rows(limits), moved, found)

    checks = found.checks()
    errors = [check for check in checks if check["severity"] == "error" and not check["passed"]]
    result = {
        "passed": not errors,
        "data_version": data_version,
        "checks": checks,
        "profile": profile,
        "shift": None if moved is None else {row.pop("quantity"): row for row in moved.to_dicts()},
    }
    write_json(report, result)
    for check in checks:
        if not check["passed"] and check["severity"] == "warning":
            log.warning("%s: %s", check["name"], check["message"])
    if errors:
        raise DataInvalid(_complaint(errors))
    log.info("%d checks passed, %d warn", sum(c["passed"] for c in checks), sum(not c["passed"] for c in checks))
    return result


def markdown(report: Mapping[str, Any]) -> str:
    """What validate_data returned, as Markdown: the checks, failures first, and the profile in a few lines."""
    order = ("**error**", "**warning**", "passed")
    checks = sorted(report["checks"], key=lambda check: order.index(_state(check)))
    profile = report["profile"]
    lines = [
        f"# Data validation: {'passed' if report['passed'] else 'failed'}",
        "",
        f"{profile['songs']:,} songs, {profile['charted_songs']:,} of them in the charts of countries; "
        f"{profile['rankings']:,} rankings in {profile['countries']} countries on {profile['days']} days, "
        f"{profile['first_day']} to {profile['last_day']}.",
        "",
        "| check | result | count | what was found |",
        "|---|---|---:|---|",
        *(
            f"| {check['name']} | {_state(check)} | {check['count']:,} | {_cell(check['message'])} |"
            for check in checks
        ),
    ]
    for check in checks:
        if not check["passed"] and check["examples"]:
            columns = list(dict.fromkeys(column for row in check["examples"] for column in row))
            lines += ["", f"{check['name']}, for example:", "", f"| {' | '.join(map(_cell, columns))} |"]
            lines += ["|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in check["examples"]]
    lines += ["", "| feature | mean | standard deviation | smallest | largest |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {' | '.join(_cell(values[key]) for key in ('mean', 'std', 'min', 'max'))} |"
        for name, values in profile["features"].items()
    ]
    return "\n".join(lines) + "\n"


def _state(check: Mapping[str, Any]) -> str:
    return "passed" if check["passed"] else f"**{check['severity']}**"


def _cell(value: object) -> str:
    """The value as text that cannot end a cell of a Markdown table, or begin HTML, a link or an image in it."""
    text = "" if value is None else str(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(text.translate(ESCAPED).split())


@dataclass(frozen=True)
class _Violation:
    rule: str
    text: str
    count: int
    examples: pl.DataFrame


@dataclass
class _Found:
    """What is wrong, what is said of a check that passes, and the columns (``table.column``) that cannot be used."""

    violations: list[_Violation] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)

    def add(self, rule: str, text: str, count: int = 1, examples: pl.DataFrame | None = None) -> None:
        """Note a failed check; a KeyError where RULES does not have it: nobody would ever hear of it."""
        if rule not in RULES:
            raise KeyError(f"the check {rule!r} has failed ({text}) and is not in RULES: correct its name")
        self.violations.append(_Violation(rule, text, count, pl.DataFrame() if examples is None else examples))

    def checks(self) -> list[dict[str, Any]]:
        """The checks that could be done, in the order of RULES."""
        checks = []
        for name, rule in RULES.items():
            lacking = [column in self.unusable for column in rule.needs]
            if lacking and (all(lacking) if rule.by_column else any(lacking)):
                continue
            broken = [violation for violation in self.violations if violation.rule == name]
            message = "; ".join(violation.text for violation in broken)
            message = f"{message}. {rule.remedy}" if broken else self.notes.get(name, rule.holds)
            if not message:  # a total of nothing, such as the age of no day
                continue
            rows = [row for violation in broken for row in violation.examples.head(EXAMPLES).to_dicts()]
            checks.append(
                {
                    "name": name,
                    "severity": rule.severity,
                    "passed": not broken,
                    "count": sum(violation.count for violation in broken),
                    "examples": [{key: _plain(value) for key, value in row.items()} for row in rows[:EXAMPLES]],
                    "message": message,
                }
            )
        return checks


def _plain(value: object) -> object:
    """The value as JSON can hold it, and short."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else value[: LONGEST_TEXT - 1] + "…"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.isoformat() if isinstance(value, date) else value


def _complaint(errors: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"the data breaks {len(errors)} of the rules of its contract:"]
    for check in errors:
        examples = "; ".join(
            ", ".join(f"{column} {value!r}" for column, value in row.items()) for row in check["examples"][:3]
        )
        lines.append(f"- {check['name']}: {check['message']}" + (f" For example: {examples}." if examples else ""))
    lines.append(
        "Nothing is trained on it. Correct the data at its source; where the contract is wrong, change "
        "schema.py or rules.py in pipeline/models/jukebox. The report of this step holds all checks."
    )
    return "\n".join(lines)


def _used(
    table: str,
    folder: Path,
    contract: Mapping[str, type[pl.DataType]],
    found: _Found,
    reduce: Callable[[Parts], Result],
) -> Result:
    """What ``reduce`` makes of the table. A column that cannot be used is null, a table that cannot be is empty."""
    try:
        parts = Parts(folder, contract)
        while True:
            try:
                result = reduce(parts)
            except Unusable as error:
                if not error.column:
                    raise
                # A value in the middle: the column is of another type than it seemed.
                parts.faults[error.column] = error
            else:
                _tell(table, parts, found)
                return result
    except Unusable as error:
        found.add(f"{table}-readable", f"{table} cannot be read: {error}")
    except TooMany as error:
        found.add(f"{table}-size", f"{table} has {error}")
    found.unusable.update(f"{table}.{name}" for name in contract)
    return reduce(Parts(None, contract))


def _tell(table: str, parts: Parts, found: _Found) -> None:
    """Note which columns cannot be used, and why."""
    found.unusable.update(f"{table}.{name}" for name in parts.faults)
    missing = [name for name in parts.faults if name not in parts.types]
    if missing:
        found.add(f"{table}-columns", _missing(table, missing, parts.types), len(missing))
    for name, fault in parts.faults.items():
        if name not in missing:
            found.add(f"{table}-{fault.rule}", str(fault))


def _songs(songs: Parts, limits: Limits) -> pl.LazyFrame:
    """A row a song: ID, texts and the features, float64; a column that cannot be used is null throughout.

    They are read again for each ``collect``, the columns that it asks for.
    """
    if songs.rows > limits.most_songs:
        raise TooMany(f"{songs.rows:,} rows, expected are at most {limits.most_songs:,}")
    schema = pl.Schema(songs.columns)
    for _ in songs.frames(list(schema)):
        pass  # a column that cannot be used has shown itself before anything is made of the others

    def read(columns: Sequence[str] | None, *_: Any) -> Iterator[pl.DataFrame]:
        empty = pl.DataFrame(schema=schema).select(columns or list(schema))
        for frame in chain([empty], songs.frames(empty.columns)):
            yield frame.with_columns(KNOWN_ID) if ID in frame.columns else frame

    return register_io_source(read, schema=schema)


def _reduced(rankings: Parts, songs: pl.LazyFrame, limits: Limits) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rankings as ``charts``, a row a country and day, and ``entries``, a row a song.

    ``charts``: COUNTRY, DATE, int64 ``rows`` and, uint32, COUNTS, ``repeated`` (rows whose id the chart has already)
    and ``doubled`` (rows whose rank, a valid one, the chart has already); ``last_place``, float64. ``entries``: ID and,
    int64, ``rows`` and ``of_countries``; ``first``, the first day in the chart of a country.

    Raises TooMany where there are more charts or ids than ``limits`` allow.
    """
    coded = _Coded(rankings, songs)
    charts = Sums([COUNTRY, DATE], [pl.col("rows").sum()], limits.most_charts, "pairs of a country and a day")
    entries = _Entries(limits.most_songs)
    spans: list[tuple[Batch, int, int]] = []  # each batch with its first and its last day
    of_country = pl.col(COUNTRY).is_not_null()
    for batch in (None, *rankings.batches):  # a batch of no rows first, which gives the sums their types
        frame = coded.read(batch, (ID, COUNTRY, DATE))
        charts.add(frame.group_by(COUNTRY, DATE).agg(rows=pl.len()))
        first = pl.col(DATE).filter(of_country).min()
        entries.add(frame.group_by(ID).agg(rows=pl.len(), of_countries=of_country.sum(), first=first))
        if batch:
            spans.append((batch, *frame.select(first=pl.col(DATE).min(), last=pl.col(DATE).max()).row(0)))
    by_day = charts.total().sort(DATE, COUNTRY)
    del charts
    day = pl.col(DATE).replace(NO_DAY, None).cast(pl.Date)
    charts_frame = by_day.select(coded.texts(by_day[COUNTRY]), day, "rows", *_measured(coded, by_day, spans))
    entries_frame = entries.total()
    entries_frame = entries_frame.with_columns(
        coded.texts(entries_frame[ID]), pl.col("first").replace(NO_DAY, None).cast(pl.Date)
    )
    order = charts_frame.select(pl.arg_sort_by(COUNTRY, DATE)).to_series()
    # A column at a time: all of them twice would be the peak of the step.
    columns = (charts_frame.drop_in_place(name).gather(order) for name in charts_frame.columns)
    return pl.DataFrame(columns).with_columns(pl.col("rows").cast(pl.Int64)), entries_frame


class _Coded:
    """The rankings with numbers in the place of texts, which take less memory and are faster to compare.

    An id has the number of its song; those of no song come after them.
    """

    def __init__(self, rankings: Parts, songs: pl.LazyFrame) -> None:
        self._rankings = rankings
        self._song_ids = songs.select(ID).drop_nulls()
        self._known = Known(self._song_ids.collect().to_series().hash().to_numpy())
        # Polars forgets the numbers of a categorical type as soon as there is no series of it.
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
    """A row an id: ID, as a number, ``rows``, ``of_countries`` and ``first``, added up over the batches."""

    def __init__(self, most: int) -> None:
        self._most = most
        # By the number of the id and 1; the row 0 is that of a missing id.
        self._rows = np.zeros(1, dtype=np.uint32)
        self._of_countries = np.zeros(1, dtype=np.uint32)
        self._first = np.full(1, NO_DAY, dtype=np.int32)

    def add(self, frame: pl.DataFrame) -> None:
        """Add a frame of different ids. Raises TooMany where there are more than ``most`` in all."""
        row = frame.select((pl.col(ID).cast(pl.Int64) + 1).fill_null(0)).to_series().to_numpy()
        more = max(0, int(row.max(initial=0)) + 1 - len(self._rows))
        self._rows = np.pad(self._rows, (0, more))
        self._of_countries = np.pad(self._of_countries, (0, more))
        self._first = np.pad(self._first, (0, more), constant_values=NO_DAY)
        self._rows[row] += frame["rows"].to_numpy()
        if np.count_nonzero(self._rows[1:]) > self._most:
            raise TooMany(f"more than {self._most:,} different ids")
        self._of_countries[row] += frame["of_countries"].to_numpy()
        self._first[row] = np.minimum(self._first[row], frame["first"].fill_null(NO_DAY).to_numpy())

    def total(self) -> pl.DataFrame:
        """All of them."""
        frame = pl.DataFrame({"rows": self._rows, "of_countries": self._of_countries, "first": self._first})
        number = pl.int_range(-1, pl.len() - 1)
        id_ = pl.when(number >= 0).then(number).cast(pl.UInt32).alias(ID)
        return frame.select(id_, pl.col("rows", "of_countries").cast(pl.Int64), "first").filter(pl.col("rows") > 0)


def _measured(coded: _Coded, charts: pl.DataFrame, spans: Sequence[tuple[Batch, int, int]]) -> list[pl.Series]:
    """What else is to be known of each chart; ``charts`` are COUNTRY, DATE and ``rows`` in the order of their days.

    It is found for as many charts at once as have BUCKET rows. For each such bucket the batches are read again, but
    only those whose days meet it: once in all where the rows are in the order of their days, as they mostly are.
    """
    found: dict[str, NDArray[Any]] = {
        name: np.zeros(len(charts), dtype=np.uint32) for name in (*COUNTS, "repeated", "doubled")
    }
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
            for name in COUNTS:
                found[name][chart] += of_batch[name].to_numpy()
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
    """A row a ``chart`` of a batch: COUNTS, ``last_place``, ``inside`` (valid ranks), PLACES: a bit a place taken."""
    rank = pl.col(RANK)
    inside = rank.is_between(1, CHART_PLACES) & (rank % 1 == 0)
    place = frame.select(pl.when(inside).then(rank - 1).fill_null(-1).cast(pl.Int64)).to_series().to_numpy()
    bit = np.uint64(1) << (place % 64).astype(np.uint64)
    words = [pl.Series(name, np.where(place // 64 == word, bit, np.uint64(0))) for word, name in enumerate(PLACES)]
    return (
        frame.with_columns(words)
        .group_by("chart")
        .agg(
            rank.is_null().sum().alias("ranks_missing"),
            (~inside).sum().alias("ranks_outside"),
            inside.sum().alias("inside"),
            rank.max().cast(pl.Float64).alias("last_place"),
            pl.col(PLACES).bitwise_or(),
        )
    )


def _missing(table: str, missing: Sequence[str], found: Mapping[str, pl.DataType]) -> str:
    """Which columns are missing, and which ones may be these under another name."""
    contract, other, other_contract = (
        (SONGS.schema, "rankings", RANKINGS.schema) if table == "songs" else (RANKINGS.schema, "songs", SONGS.schema)
    )
    if set(other_contract) <= set(found):
        return f"{table} has the columns of {other}, as if the two were swapped; it lacks {_quoted(missing)}"
    extra = [name for name in found if name not in contract]
    said = []
    for column in missing:
        near = [name for name in extra if len(name) > 1 and (name.lower() in column or column in name.lower())]
        near = near or difflib.get_close_matches(column, extra, n=1)
        alike = [name for name in extra if _kind(found[name]) == _kind(contract[column]())]
        if near:
            said.append(f"{column!r} (is it {near[0]!r}, renamed?)")
        elif alike:
            said.append(f"{column!r} (of its type and not of the contract: {_quoted(alike[:5])})")
        else:
            said.append(repr(column))
    return f"{table} has no column {', '.join(said)}; found {_quoted(found)}"


def _quoted(names: Iterable[str]) -> str:
    quoted = [repr(name) for name in names]
    more = [f"and {len(quoted) - SHOWN_NAMES} more"] if len(quoted) > SHOWN_NAMES else []
    return ", ".join(quoted[:SHOWN_NAMES] + more)


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_numeric() or dtype == pl.Boolean:
        return "number"
    return "day" if dtype.is_temporal() else str(dtype)


def _errors(schema: pa.DataFrameSchema, frame: Any) -> list[SchemaError]:
    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        for error in errors.schema_errors:
            if error.reason_code is SchemaErrorReason.CHECK_ERROR:  # a check that crashed, not one that failed
                raise error from None
        return list(errors.schema_errors)
    return []


def _failing(frame: pl.DataFrame, error: SchemaError) -> pl.DataFrame:
    if error.reason_code is SchemaErrorReason.SERIES_CONTAINS_NULLS:
        return frame.filter(pl.col(error.schema.name).is_null())
    return frame.filter(~error.check_output.to_series())


def _check_rows(
    schema: pa.DataFrameSchema, frame: pl.DataFrame, found: _Found, table: str, *, show: Sequence[str], weight: str = ""
) -> None:
    """Check row by row; ``show`` are the columns that tell a row apart, ``weight`` the rows of the table behind it."""
    total = frame[weight].sum() if weight else len(frame)
    for error in _errors(schema, frame):
        column, label = error.schema.name, error.schema.title or error.schema.name
        if f"{table}.{label}" in found.unusable:
            continue
        failing = _failing(frame, error)
        if error.reason_code is SchemaErrorReason.SERIES_CONTAINS_NULLS:
            rule, expected = f"{table}-complete", PRESENT
        else:
            rule, expected = error.check.name, error.check.description
        counted = column if column in COUNTS else weight
        count = int(failing[counted].sum()) if counted else len(failing)
        examples = failing.select(list(dict.fromkeys([*show, column])))
        found.add(rule, f"{label}: {count:,} of {total:,} {table}, expected is {expected}", count, examples)


def _check_named(schema: pa.DataFrameSchema, frame: pl.DataFrame, found: _Found) -> None:
    """Check a small table, each failing row of which is worth a sentence: the check's description, filled in.

    Its first column names the rows.
    """
    for error in _errors(schema, frame):
        failing = _failing(frame, error)
        sentences = [error.check.description.format(**row) for row in failing.head(SENTENCES).to_dicts()]
        if len(failing) > SENTENCES:
            sentences.append(f"and {len(failing) - SENTENCES} more")
        examples = failing.select(frame.columns[0], error.schema.name)
        found.add(error.check.name, "; ".join(sentences), len(failing), examples)


@dataclass(frozen=True)
class _Total:
    value: int
    what: str
    at_least: int | None = None
    at_most: int | None = None
    examples: pl.DataFrame | None = None

    def text(self) -> str:
        limit = f"at most {self.at_most:,}" if self.at_least is None else f"at least {self.at_least:,}"
        return f"{self.value:,} {self.what}, expected are {limit}"


def _check_totals(totals: Mapping[str, _Total], found: _Found) -> None:
    """Check each total against its limit; the count is what is too much in all, or what is lacking."""
    if unknown := totals.keys() - RULES.keys():
        raise KeyError(f"{sorted(unknown)} are not in RULES: correct their names")
    found.notes.update((rule, total.text()) for rule, total in totals.items())
    rows = [(rule, total.value, total.at_least, total.at_most) for rule, total in totals.items()]
    integers = dict.fromkeys(("value", "at_least", "at_most"), pl.Int64)
    frame = pl.DataFrame(rows, schema={"rule": pl.String, **integers}, orient="row")
    for error in _errors(TOTAL_ROWS, frame):
        for rule in _failing(frame, error)["rule"]:
            total = totals[rule]
            count = total.value if total.at_least is None else total.at_least - total.value
            found.add(rule, total.text(), count, total.examples)


def _totals(
    songs: pl.LazyFrame,
    charts: pl.DataFrame,
    entries: pl.DataFrame,
    profile: Mapping[str, Any],
    today: date,
    limits: Limits,
) -> dict[str, _Total]:
    rankings = int(charts["rows"].sum())
    of = f"of {rankings:,} rankings"
    song = Known(songs.select(ID).drop_nulls().collect().to_series().hash().to_numpy()).find(entries[ID])
    orphans = entries.select(ID, "rows").filter(pl.Series(song < 0)).drop_nulls(ID).sort("rows", ID, descending=True)
    dated = charts[DATE].count()
    of_day = pl.col(DATE).is_not_null()
    repeated = charts.filter(of_day, pl.col("repeated") > 0).select(COUNTRY, DATE, "rows", "repeated")
    doubled = charts.filter(of_day, pl.col("doubled") > 0).select(COUNTRY, DATE, "rows", "doubled")
    incomplete = charts.filter(of_day, pl.col("rows") < pl.col("last_place"))
    incomplete = incomplete.select(COUNTRY, DATE, "rows", "last_place")
    totals = {
        "rankings-unique": _Total(
            int(repeated["repeated"].sum()),
            f"{of} repeat a song in the chart of a country and day",
            at_most=int(limits.duplicates * rankings),
            examples=repeated,
        ),
        "places-unique": _Total(
            int(doubled["doubled"].sum()),
            f"{of} have a place that is taken in the chart of their country and day",
            at_most=int(limits.doubled_places * rankings),
            examples=doubled,
        ),
        "rankings-have-songs": _Total(
            int(orphans["rows"].sum()),
            f"{of} have an id that songs does not have",
            at_most=int(limits.orphans * rankings),
            examples=orphans,
        ),
        "enough-rankings": _Total(profile["rankings_of_countries"], "rankings of countries", at_least=limits.rankings),
        "enough-songs": _Total(profile["charted_songs"], "songs in the charts of countries", at_least=limits.songs),
        "enough-countries": _Total(profile["countries"], "countries", at_least=limits.countries),
        "enough-days": _Total(profile["days"], "days with charts of countries", at_least=limits.days),
        "charts-complete": _Total(
            len(incomplete),
            f"of {dated:,} charts have fewer rows than places",
            at_most=int(limits.incomplete_charts * dated),
            examples=incomplete,
        ),
    }
    if profile["days"]:
        first, last = date.fromisoformat(profile["first_day"]), date.fromisoformat(profile["last_day"])
        missing = (last - first).days + 1 - profile["days"]
        totals["days-consecutive"] = _Total(missing, f"days between {first} and {last} have no chart", at_most=0)
        totals["freshness"] = _Total(
            max(0, (today - last).days), f"days from the last chart, {last}, to {today}", at_most=limits.age
        )
    return totals


def _charted(songs: pl.LazyFrame, entries: pl.DataFrame) -> pl.LazyFrame:
    """The songs with ``rows``, int64, and the ``first`` day in the charts of countries; of those with one id the first.

    A song that is in none has 0 rows.
    """
    ids = songs.select(ID).collect().to_series()
    known = Known(entries[ID].hash().to_numpy())
    entry = known.find(ids)
    entry[~(ids.is_first_distinct() & ids.is_not_null()).to_numpy()] = -1
    del ids
    of_song = pl.Series(np.append(known.first, 0)[entry]).set(pl.Series(entry < 0), None)
    seen = entries.select(pl.col("of_countries", "first").gather(of_song))
    seen = seen.select(pl.col("of_countries").fill_null(0).alias("rows"), "first")
    return pl.concat([songs, seen.lazy()], how="horizontal")


def _learnable(charted: pl.LazyFrame, charts: pl.DataFrame) -> dict[str, _Total]:
    """Whether preprocess_data will have songs to train on and to validate with."""
    days = charts.drop_nulls([COUNTRY, DATE])[DATE].unique().sort().to_physical().to_numpy()
    later = first_later_day(days)
    to_train = to_validate = 0
    vectors = charted.select("first", pl.col(FEATURE_NAMES).cast(pl.Float32))
    for songs in vectors.collect_batches(chunk_size=SLICE):
        usable = songs.filter(pl.col("first").is_not_null(), pl.all_horizontal(pl.col(FEATURE_NAMES).is_finite()))
        first = usable["first"].to_physical().to_numpy()
        early = np.full(len(first), True) if later is None else first < later
        split = split_of(hashes(usable.select(FEATURE_NAMES).to_numpy()), early)[:, 0]
        to_train += int((early & (split == SPLITS.index("train"))).sum())
        to_validate += int((split == SPLITS.index("validation")).sum())
    return {
        "enough-to-train": _Total(to_train, "songs to train on, not held out", at_least=1),
        "enough-to-validate": _Total(to_validate, "songs to validate with", at_least=1),
    }


def _of_features(songs: pl.LazyFrame) -> pl.DataFrame:
    """A row a feature: its median over the songs, the share of its most common value, its usual bounds; or nulls."""
    rows = []
    for feature in FEATURES:
        values = songs.select(feature.name).collect().to_series().drop_nulls().to_numpy()
        low, high = feature.usual or (None, None)
        rows.append(
            {
                "feature": feature.name,
                "median": np.median(values) if len(values) else None,
                "most_common": np.unique(values, return_counts=True)[1].max() / len(values) if len(values) else None,
                "low": low,
                "high": high,
                "unit": feature.unit,
            }
        )
    numbers = dict.fromkeys(("median", "most_common", "low", "high"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides=numbers)
