"""The rules of the data contract, which validate_data applies: limits, pandera schemas, and how a report names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import pandera.polars as pa
import polars as pl

from pipeline.core.contract import Column
from pipeline.models.jukebox.tables import (
    COUNTRY,
    COUNTRY_CODE,
    DATE,
    FEATURE_NAMES,
    FEATURES,
    ID,
    MOST_CHARTS,
    MOST_SONGS,
    RANK,
)

PRESENT = "neither null nor NaN"
FIRST_DAY = date(2000, 1, 1)  # before there were streaming charts; 1970 is what a missing or misread time becomes
CHART_PLACES = 200  # the longest chart that Spotify publishes; the daily charts of this contract have 50


@dataclass(frozen=True)
class Limits:
    """What the data must reach. The least sizes are what the next steps can work with; the gate judges the model."""

    rankings: int = 1_000
    """Rankings of countries, at least: with a fifth for the test, the standard error of an accuracy is 3.5 points."""
    songs: int = 100
    """Songs in the charts of countries, at least: ten to each decile of a feature."""
    countries: int = 2
    """Countries, at least: a softmax over one has nothing to decide."""
    days: int = 2
    """Days, at least: the later ones are the test."""
    most_songs: int = MOST_SONGS
    """Songs, and ids in the rankings, at most."""
    most_charts: int = MOST_CHARTS
    """Charts, pairs of a country and a day, at most."""
    orphans: float = 0.01
    """Share of the rankings whose id has no song, at most: they are lost for training. The real charts have none."""
    duplicates: float = 0.001
    """Share of the rankings that repeat a song in a chart, at most: they count twice. The real charts have none."""
    doubled_places: float = 0.05
    """Share of the rankings whose place in a chart is taken, at most: more are two charts under one name, not ties."""
    most_common: float = 0.99
    """Share of the songs that have one value of a feature, at most; 0.74 of the real songs are not explicit."""
    incomplete_charts: float = 0.1
    """Share of the charts with fewer rows than places, at most: 0.08 of the real charts of 2023. A warning."""
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


LIMITS = Limits()


@dataclass(frozen=True)
class Rule:
    """A check as the report shows it.

    ``remedy`` says what to do where the check fails, ``holds`` what is so where it passes; a total says that itself.
    The check is left out where a column that it ``needs`` cannot be used; one ``by_column`` only where none can.
    """

    remedy: str
    holds: str = ""
    needs: Sequence[str] = ()
    by_column: bool = False
    severity: Literal["error", "warning"] = "error"


_SONG_ID, _ID = f"songs.{ID}", f"rankings.{ID}"
_COUNTRY, _DATE, _RANK = f"rankings.{COUNTRY}", f"rankings.{DATE}", f"rankings.{RANK}"
_FEATURES = tuple(f"songs.{name}" for name in FEATURE_NAMES)

_OTHER_TABLE = (
    "Check that this is the right table. pipeline/models/jukebox/schema.py has the limits, "
    "which keep a step in its memory."
)
_TO_LEARN_FROM = "Give more days and more songs that differ; pipeline/models/jukebox/splits.py says which are held out."

RULES: dict[str, Rule] = {
    "songs-readable": Rule("Write or fetch the files anew.", "the files can be read"),
    "rankings-readable": Rule("Write or fetch the files anew.", "the files can be read"),
    "songs-size": Rule(_OTHER_TABLE, "the steps can hold the songs in memory"),
    "rankings-size": Rule(_OTHER_TABLE, "the steps can hold the charts and their songs in memory"),
    "songs-columns": Rule("Name the columns as the contract does.", "all columns are there"),
    "rankings-columns": Rule("Name the columns as the contract does.", "all columns are there"),
    "songs-types": Rule("Convert the columns where they are written.", "all columns have their types"),
    "rankings-types": Rule("Convert the columns where they are written.", "all columns have their types"),
    "songs-complete": Rule(
        "Fill in what is missing, or leave such songs out.",
        "each song has an id and all features",
        needs=(_SONG_ID, *_FEATURES),
        by_column=True,
    ),
    "song-ids-unique": Rule("Keep one row an id.", "no two songs have one id", needs=(_SONG_ID,)),
    "features-in-range": Rule(
        "Correct the values, or leave such songs out.",
        "all features lie in their ranges",
        needs=_FEATURES,
        by_column=True,
    ),
    "features-usual": Rule(
        "Convert the feature to the unit of the contract, see pipeline/models/jukebox/schema.py.",
        "the features' medians are those of music, in the units of the contract",
        needs=_FEATURES,
        by_column=True,
    ),
    "features-vary": Rule(
        "Look where the feature is written: a default may have taken the place of its values, which teaches nothing.",
        "no feature is nearly constant",
        needs=_FEATURES,
        by_column=True,
    ),
    "rankings-complete": Rule(
        "Fill in what is missing, or leave such rows out.",
        "each ranking has an id, a day and a rank",
        needs=(_ID, _DATE, _RANK),
        by_column=True,
    ),
    "country-codes": Rule(
        "Write ISO 3166-1 alpha-2 codes, and null for the Global chart.",
        "countries are two capital letters, or null for the Global chart",
        needs=(_COUNTRY,),
    ),
    "dates": Rule(
        "Correct the days; often a unit was misread.",
        "no day is after tomorrow or before 2000",
        needs=(_DATE,),
    ),
    "days-ahead": Rule(
        "At UTC+14 it may be tomorrow already; elsewhere, look at the clock and the time zone of what writes the days.",
        "no day is ahead of UTC",
        needs=(_DATE,),
        severity="warning",
    ),
    "ranks": Rule(
        "Correct the ranks, or leave such rows out.",
        f"ranks are whole numbers from 1 to {CHART_PLACES}",
        needs=(_RANK,),
    ),
    "rankings-unique": Rule(
        "Leave the repeated rows out: often a file was written twice, or two snapshots of a day were joined.",
        needs=(_ID, _COUNTRY, _DATE),
    ),
    "places-unique": Rule(
        "Look where the countries are written: two charts may have come under one name.",
        needs=(_COUNTRY, _DATE, _RANK),
    ),
    "rankings-have-songs": Rule(
        "Add the missing songs, or compare how the two tables write their ids.",
        needs=(_ID, _SONG_ID),
    ),
    "enough-rankings": Rule("Give more days or countries.", needs=(_COUNTRY,)),
    "enough-songs": Rule("Give more days or countries.", needs=(_ID, _COUNTRY, _SONG_ID)),
    "enough-countries": Rule("Give more countries.", needs=(_COUNTRY,)),
    "enough-days": Rule("Give more days.", needs=(_COUNTRY, _DATE)),
    "enough-to-train": Rule(_TO_LEARN_FROM, needs=(_ID, _COUNTRY, _DATE, _SONG_ID, *_FEATURES)),
    "enough-to-validate": Rule(_TO_LEARN_FROM, needs=(_ID, _COUNTRY, _DATE, _SONG_ID, *_FEATURES)),
    "charts-complete": Rule("Look what dropped the rows.", needs=(_COUNTRY, _DATE, _RANK), severity="warning"),
    "days-consecutive": Rule("Fetch the missing days, if there are any.", needs=(_COUNTRY, _DATE), severity="warning"),
    "freshness": Rule("Look whether the charts are still collected.", needs=(_COUNTRY, _DATE), severity="warning"),
    "countries-covered": Rule(
        "Look what the charts of the country lack; the model will hardly ever name it.",
        "no country has far fewer rankings than the others",
        needs=(_COUNTRY,),
        severity="warning",
    ),
    "shift": Rule(
        "Train anew, and compare the new model with the champion on this data.",
        "the data is like that of the champion",
        needs=(_ID, _COUNTRY, _SONG_ID),
        severity="warning",
    ),
}

# Columns of the charts that count rankings which break a rule.
COUNTS = ("ranks_missing", "ranks_outside")


def _feature(feature: Column) -> pa.Column:
    if feature.discrete:
        values = [float(value) for value in range(int(feature.low), int(feature.high) + 1)]
        expected = f"a whole number from {feature.low:g} to {feature.high:g}"
        return pa.Column(pl.Float64, pa.Check.isin(values, name="features-in-range", description=expected))
    expected = f"{feature.low:,} to {feature.high:,} {feature.unit}".strip()
    check = pa.Check.in_range(feature.low, feature.high, name="features-in-range", description=expected)
    return pa.Column(pl.Float64, check)


SONG_ROWS = pa.DataFrameSchema(
    {
        ID: pa.Column(
            pl.String,
            pa.Check(
                lambda data: data.lazyframe.select(pl.col(ID).is_unique() | pl.col(ID).is_null()),
                name="song-ids-unique",
                description="an id that no other song has",
            ),
        ),
        **{feature.name: _feature(feature) for feature in FEATURES},
    }
)
ENTRY_ROWS = pa.DataFrameSchema({ID: pa.Column(pl.String)})
TOTAL_ROWS = pa.DataFrameSchema(
    {
        "value": pa.Column(
            pl.Int64,
            pa.Check(
                lambda data: data.lazyframe.select(
                    pl.col("value").ge(pl.col("at_least")).fill_null(True)
                    & pl.col("value").le(pl.col("at_most")).fill_null(True)
                )
            ),
        )
    }
)


def chart_rows(today: date) -> pa.DataFrameSchema:
    """A row a country and day, with what its rankings have; ``today`` is that of UTC."""
    code = pa.Check.str_matches(
        f"^{COUNTRY_CODE}$", name="country-codes", description="two capital letters, or null for the Global chart"
    )
    tomorrow = today + timedelta(days=1)
    day = pa.Check.in_range(FIRST_DAY, tomorrow, name="dates", description=f"a day from {FIRST_DAY} to {tomorrow}")
    ahead = pa.Check.ne(tomorrow, name="days-ahead", description=f"a day up to {today}, which it is now in UTC")
    present = pa.Check.eq(0, name="rankings-complete", description=PRESENT)
    inside = pa.Check.eq(0, name="ranks", description=f"a whole number from 1 to {CHART_PLACES}")
    return pa.DataFrameSchema(
        {
            COUNTRY: pa.Column(pl.String, code, nullable=True),
            DATE: pa.Column(pl.Date, [day, ahead]),
            "ranks_missing": pa.Column(pl.UInt32, present, title=RANK),
            "ranks_outside": pa.Column(pl.UInt32, inside, title=RANK),
        }
    )


def feature_rows(limits: Limits) -> pa.DataFrameSchema:
    """A row a feature, with its statistics over the songs. Here and below, a row fills in the check's description."""
    usual = pa.Check(
        lambda data: data.lazyframe.select(pl.col("median").is_between("low", "high")),
        name="features-usual",
        description="the median of {feature} is {median:,.6g}, expected is {low:,.6g} to {high:,.6g} {unit}",
    )
    vary = pa.Check.le(
        limits.most_common,
        name="features-vary",
        description="{most_common:.2%} of the songs have one {feature}, "
        f"expected are at most {limits.most_common:.0%}",
    )
    return pa.DataFrameSchema(
        {
            "median": pa.Column(pl.Float64, usual, nullable=True),
            "most_common": pa.Column(pl.Float64, vary, nullable=True),
        }
    )


def country_rows(limits: Limits, median: float) -> pa.DataFrameSchema:
    """A row a country, with its rankings."""
    fewest = limits.small_country * median
    covered = pa.Check.ge(
        fewest,
        name="countries-covered",
        description=f"{{{COUNTRY}!r:.9}} has {{rows:,}} rankings, expected are {fewest:,.0f}, "
        f"{limits.small_country:.0%} of the median country's",
    )
    return pa.DataFrameSchema({"rows": pa.Column(pl.Int64, covered)})


def shift_rows(limits: Limits) -> pa.DataFrameSchema:
    """A row a quantity, as ``pipeline.core.data_profile.shift`` returns it."""
    stable = pa.Check.lt(
        limits.psi,
        name="shift",
        description=f"{{quantity}}: stability index {{psi:.2f}}, expected is less than {limits.psi}",
    )
    still = pa.Check(
        lambda data: data.lazyframe.select(pl.col("mean_difference").abs() < limits.mean_difference),
        name="shift",
        description="{quantity}: mean {mean_difference:+.2f} standard deviations away, "
        f"expected is less than {limits.mean_difference}",
    )
    return pa.DataFrameSchema(
        {"psi": pa.Column(pl.Float64, stable), "mean_difference": pa.Column(pl.Float64, still, nullable=True)}
    )
