"""Validate data: does it keep its contract, and how far has it moved from what the champion was trained on?

The rules are pandera schemas. The songs, some ten thousand, are checked row by row. The rankings, millions, are first
reduced in two streaming scans to a row a chart (a country and a day) and a row a song, and these are checked: nothing
that grows with the rankings is held but a hash of each row. A last schema holds totals against limits.

All that is wrong is named at once. An error stops the pipeline, a warning does not: drift is a reason to train anew, not
to refuse.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandera.polars as pa
import polars as pl
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from pipeline.errors import DataInvalid
from pipeline.log import log
from pipeline.profile import describe, shift
from pipeline.schema import COUNTRY, DATE, FEATURE_NAMES, FEATURES, ID, RANK, RANKINGS, SONGS, Feature

FIRST_DAY = date(2000, 1, 1)  # before there were streaming charts; 1970 is what a missing or misread time becomes
CHART_PLACES = 200  # the longest chart that Spotify publishes; the daily charts of this contract have 50
EXAMPLES = 5


@dataclass(frozen=True)
class Limits:
    """What the data must reach; the shares are of the rows unless said otherwise. The real charts of 2023 and 2025 pass.

    The smallest sizes are what the next steps can work with at all, not what makes a good model: that is the gate's.
    """

    rankings: int = 1_000
    """Rankings of countries, at least: with a fifth for the test, the standard error of an accuracy is 3.5 points."""
    songs: int = 100
    """Songs in the charts of countries, at least: ten to each decile of a feature."""
    countries: int = 2
    """Countries, at least: a softmax over one has nothing to decide."""
    days: int = 2
    """Days, at least: the later ones are the test."""
    orphans: float = 0.01
    """Rankings whose id has no song, at most: they are lost for training. The real charts have none."""
    duplicates: float = 0.001
    """Rankings that repeat a song in a country and day, at most: they count twice. The real charts have none."""
    doubled_places: float = 0.05
    """Rankings whose place in a chart is taken already, at most: more of them are two charts under one name, not ties."""
    most_common: float = 0.99
    """Songs that share one value of a feature, at most; in real songs it is at most 0.74 (songs that are not explicit)."""
    incomplete_charts: float = 0.1
    """Charts with fewer rows than their lowest place, at most; in the charts of 2023 it is 0.08. A warning."""
    small_country: float = 0.1
    """Rankings of a country, at least, as a share of the median country's. A warning."""
    age: int = 30
    """Days from the last chart to today, at most: charts turn over within weeks. A warning."""
    psi: float = 0.25
    """Population stability index, below: 0.1 to 0.25 is some shift, from 0.25 on a large one (Siddiqi, Credit Risk
    Scorecards, 2006). A warning."""
    mean_difference: float = 0.2
    """Standard deviations by which a feature's mean may move: from 0.2 on it is an effect (Cohen, Statistical Power
    Analysis, 1988). A warning."""


@dataclass(frozen=True)
class Rule:
    """A check as the report shows it.

    ``holds`` says what is so where the check passes, ``remedy`` what to do where it fails. The check is left out where a
    column that it ``needs`` cannot be used, or all of them where it is done column by column.
    """

    holds: str
    remedy: str
    needs: Sequence[str] = ()
    by_column: bool = False
    severity: Literal["error", "warning"] = "error"


_ID, _SONG = f"rankings.{ID}", f"songs.{ID}"
_COUNTRY, _DATE, _RANK = f"rankings.{COUNTRY}", f"rankings.{DATE}", f"rankings.{RANK}"
_FEATURES = tuple(f"songs.{name}" for name in FEATURE_NAMES)

RULES: dict[str, Rule] = {
    "songs-readable": Rule("the files of songs can be read", "Fetch or write the files anew."),
    "rankings-readable": Rule("the files of rankings can be read", "Fetch or write the files anew."),
    "songs-columns": Rule("songs has all its columns", "Name the columns of songs as the contract does."),
    "rankings-columns": Rule("rankings has all its columns", "Name the columns of rankings as the contract does."),
    "songs-types": Rule("the columns of songs have their types", "Convert the columns of songs where they are written."),
    "rankings-types": Rule(
        "the columns of rankings have their types",
        "Convert the columns of rankings where they are written; a day is a Date or a Datetime, not a text.",
    ),
    "songs-complete": Rule(
        "each song has an id and all features", "Fill in what is missing or leave such songs out.", (_SONG, *_FEATURES), True
    ),
    "song-ids-unique": Rule("each id is one song", "Keep one row an id in songs.", (_SONG,)),
    "features-in-range": Rule(
        "the features lie in their ranges", "Correct the values or leave such songs out.", _FEATURES, True
    ),
    "features-usual": Rule(
        "the features' medians are those of music in the contract's units",
        "Convert the feature to the unit of the contract (pipeline/schema.py).",
        _FEATURES,
        True,
    ),
    "features-vary": Rule(
        "no feature is nearly constant",
        "Look where the feature is written: a default has taken the place of its values, and nothing can be learnt of it.",
        _FEATURES,
        True,
    ),
    "rankings-complete": Rule(
        "each ranking has an id, a day and a rank", "Fill in what is missing or leave such rows out.", (_ID, _DATE, _RANK), True
    ),
    "country-codes": Rule(
        "countries are two capital letters, or null for the Global chart",
        "Write ISO 3166-1 alpha-2 codes, and null for the Global chart.",
        (_COUNTRY,),
    ),
    "dates": Rule(
        "the days are neither in the future nor before 2000", "Correct the days: often a unit was misread.", (_DATE,)
    ),
    "ranks": Rule(
        f"ranks are whole numbers from 1 to {CHART_PLACES}", "Correct the ranks or leave such rows out.", (_RANK,)
    ),
    "rankings-unique": Rule(
        "a song is once in the chart of a country and day",
        "Leave the repeated rows out: often a file was written twice, or two snapshots of a day were joined.",
        (_ID, _COUNTRY, _DATE),
    ),
    "places-unique": Rule(
        "a place in the chart of a country and day is taken once",
        "Look where the countries are written: two charts may have come under one name.",
        (_COUNTRY, _DATE, _RANK),
    ),
    "rankings-have-songs": Rule(
        "the rankings' ids have their songs",
        "Add the missing songs, or compare how the ids of the two tables are written.",
        (_ID, _SONG),
    ),
    "enough-rankings": Rule("there are enough rankings", "Give more days or countries.", (_COUNTRY,)),
    "enough-songs": Rule("enough songs stand in the charts of countries", "Give more days or countries.", (_ID, _COUNTRY, _SONG)),
    "enough-countries": Rule("there are enough countries", "Give more countries.", (_COUNTRY,)),
    "enough-days": Rule("there are enough days", "Give more days.", (_COUNTRY, _DATE)),
    "charts-complete": Rule(
        "charts have as many rows as places",
        "Look what has dropped rows.",
        (_COUNTRY, _DATE, _RANK),
        severity="warning",
    ),
    "days-consecutive": Rule(
        "no day is missing in between", "Fetch the missing days, if there are any.", (_COUNTRY, _DATE), severity="warning"
    ),
    "freshness": Rule("the charts are recent", "Look whether the data is still collected.", (_COUNTRY, _DATE), severity="warning"),
    "countries-covered": Rule(
        "no country has far fewer rankings than the others",
        "Look what the country's charts lack; the model will hardly name it.",
        (_COUNTRY,),
        severity="warning",
    ),
    "shift": Rule(
        "the data has not moved from what the champion was trained on",
        "Compare the new model with the champion on these; a shift is a reason to train anew.",
        (_ID, _COUNTRY, _SONG, *_FEATURES),
        by_column=True,
        severity="warning",
    ),
}  # fmt: skip


def validate_data(
    songs: Path,
    rankings: Path,
    report: Path,
    *,
    data_version: str,
    today: date,
    limits: Limits = Limits(),  # noqa: B008 - it is frozen
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check the data against its contract; write what was found to ``report``, as JSON, and return it.

    ``songs`` and ``rankings`` are folders of ``*.parquet``. ``reference`` is the profile of the data that the champion
    was trained on. The report has ``passed``, ``checks`` (``name``, ``severity``, ``passed``, ``count`` of what breaks the
    check, at most five ``examples``, ``message``), ``profile`` (see ``pipeline.profile.describe``) and ``shift`` (by
    quantity, null without a reference). A check whose columns cannot be used is left out: what is wrong with them is
    another check's message.

    Integers of any width, floats and booleans are numbers; a day is a Date or a Datetime of any unit. A text is neither.

    Raises DataInvalid, which names all checks of severity error that fail; the report is written then as well.
    """
    found = _Found()
    songs_frame = _songs(songs, found)
    charts, entries = _rankings(rankings, found)

    _check(_songs_schema(found.unusable), songs_frame, found, "songs", show=[ID, "name"])
    _check(_features_schema(limits), _features(songs_frame), found, "features", show=["feature"])
    _check(_charts_schema(today), charts, found, "rankings", show=[COUNTRY, DATE, "rows"], weight="rows")
    _check(_entries_schema(), entries, found, "rankings", show=[ID, "rows"], weight="rows")

    # What is known to be wrong must not hide in what else is said: a day in the future is not the last day.
    sound = charts.filter(pl.col(DATE).is_null() | pl.col(DATE).is_between(FIRST_DAY, today))
    of_countries = sound.drop_nulls(COUNTRY)
    charted = songs_frame.unique(subset=ID, keep="first", maintain_order=True).join(
        entries.filter(pl.col("of_countries") > 0).select(ID, rows="of_countries"), on=ID
    )
    profile = {"songs": len(songs_frame), **describe(charted, sound)}
    totals = _totals(charts, entries, profile, songs_frame, today, limits)
    _hold(totals, found)
    countries = of_countries.group_by(COUNTRY).agg(pl.col("rows").sum()).sort("rows")
    _check(_countries_schema(countries, limits), countries, found, "countries", show=[COUNTRY, "rows"])
    moved = None
    if reference is None:
        found.notes["shift"] = "there is no reference to compare with: no champion yet"
    else:
        moved = shift(charted, profile["country_shares"], reference)
        _check(_shift_schema(limits), moved, found, "quantities", show=["quantity", "psi", "mean_difference"])

    checks = found.checks()
    errors = [check for check in checks if check["severity"] == "error" and not check["passed"]]
    result = {
        "passed": not errors,
        "data_version": data_version,
        "checks": checks,
        "profile": profile,
        "shift": None if moved is None else {row.pop("quantity"): row for row in moved.to_dicts()},
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    unfinished = report.with_name(f"{report.name}.unfinished")
    unfinished.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    unfinished.replace(report)
    for check in checks:
        if not check["passed"] and check["severity"] == "warning":
            log.warning("%s: %s", check["name"], check["message"])
    if errors:
        raise DataInvalid(_complaint(errors))
    log.info("%d checks passed, %d warn", sum(c["passed"] for c in checks), sum(not c["passed"] for c in checks))
    return result


@dataclass(frozen=True)
class _Violation:
    rule: str
    text: str
    count: int
    examples: pl.DataFrame


@dataclass
class _Found:
    """What is wrong, what is worth a note where it passes, and the columns (``table.column``) that cannot be used."""

    violations: list[_Violation] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)

    def add(self, rule: str, text: str, count: int = 1, examples: pl.DataFrame | None = None) -> None:
        self.violations.append(_Violation(rule, text, count, pl.DataFrame() if examples is None else examples))

    def checks(self) -> list[dict[str, Any]]:
        """The checks that could be done, in the order of RULES."""
        checks = []
        for name, rule in RULES.items():
            lacking = [column in self.unusable for column in rule.needs]
            if lacking and (all(lacking) if rule.by_column else any(lacking)):
                continue
            broken = [violation for violation in self.violations if violation.rule == name]
            said = "; ".join(violation.text for violation in broken)
            rows = [row for violation in broken for row in violation.examples.head(EXAMPLES).to_dicts()]
            checks.append(
                {
                    "name": name,
                    "severity": rule.severity,
                    "passed": not broken,
                    "count": sum(violation.count for violation in broken),
                    "examples": [{key: _plain(value) for key, value in row.items()} for row in rows[:EXAMPLES]],
                    "message": f"{said}. {rule.remedy}" if broken else self.notes.get(name, rule.holds),
                }
            )
        return checks


def _read(folder: Path, table: str, schema: pa.DataFrameSchema, found: _Found) -> pl.LazyFrame:
    """The columns of the contract, each as the schema has it; one that cannot be used is null throughout."""
    try:
        frame = pl.scan_parquet(folder / "*.parquet")
        types = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        return _unreadable(folder, table, schema, found, error)
    columns = {name: column.dtype.type for name, column in schema.columns.items()}
    frame = frame.with_columns(
        _converted(name, types[name], wanted) for name, wanted in columns.items() if name in types
    )
    missing = []
    for error in _errors(schema, frame):
        column = error.failure_cases if error.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME else error.schema.name
        found.unusable.add(f"{table}.{column}")
        if error.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
            missing.append(column)
        else:
            found.add(f"{table}-types", f"{column} is {types[column]}, expected is {KINDS[columns[column]]}")
    if missing:
        found.add(f"{table}-columns", _renamed(table, missing, types), len(missing))
    return frame.select(
        pl.lit(None, wanted).alias(name) if f"{table}.{name}" in found.unusable else pl.col(name)
        for name, wanted in columns.items()
    )
