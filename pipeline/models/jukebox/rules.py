"""The rules for songs and charts besides those of the columns, with their limits.

The minimum sizes are what the next steps need; the gate judges the model.
"""

from collections.abc import Iterator

import polars as pl

from pipeline.core.contract import Data
from pipeline.core.rules import Finding, Rule, at_least, each, every, few, fresh
from pipeline.models.jukebox.tables import COUNTRY, COUNTRY_CODE, DATE, FIRST_DAY, ID, RANK

_SONG, _ID, _COUNTRY, _DATE, _RANK = (
    f"songs.{ID}", f"rankings.{ID}", f"rankings.{COUNTRY}", f"rankings.{DATE}", f"rankings.{RANK}",
)  # fmt: skip


def _gaps(data: Data) -> Iterator[Finding]:
    days = data["country_charts"].select(pl.col(DATE).drop_nulls().unique().sort()).collect().to_series()
    if len(days):
        missing = (days[-1] - days[0]).days + 1 - len(days)
        yield Finding(f"{missing:,} days between {days[0]} and {days[-1]} have no chart, expected none", missing)


RULES = [
    every(
        "country-codes", "charts", f"REGEXP_LIKE({COUNTRY}, '^{COUNTRY_CODE}$')",
        "Write ISO 3166-1 alpha-2 codes, and null for the Global chart.",
        expected="two capital letters, or null for the Global chart",
        of="rankings", weight="rows", show=[COUNTRY, DATE, "rows"], needs=[_COUNTRY],
    ),
    every(
        "dates", "charts", f"{DATE} >= DATE '{FIRST_DAY}' AND {DATE} <= tomorrow",
        "Correct the days; often a unit was misread.",
        expected=f"a day from {FIRST_DAY} to {{tomorrow}}",
        of="rankings", weight="rows", show=[COUNTRY, DATE, "rows"], needs=[_DATE],
    ),
    every(
        "days-ahead", "charts", f"{DATE} <> tomorrow",
        "At UTC+14 it may be tomorrow already; elsewhere, check the clock and time zone of what writes the days.",
        expected="a day up to {today}, today in UTC",
        of="rankings", weight="rows", show=[COUNTRY, DATE, "rows"], needs=[_DATE], severity="warning",
    ),
    # The real charts repeat no song. What is repeated counts twice.
    few(
        "rankings-unique", "charts", f"CASE WHEN {DATE} IS NOT NULL THEN repeated ELSE 0 END",
        "Remove the repeated rows: often a file was written twice, or two snapshots of a day were joined.",
        said="repeat a song in the chart of a country and day", share=0.001,
        of="rankings", weight="rows", show=[COUNTRY, DATE, "rows"], needs=[_ID, _COUNTRY, _DATE],
    ),
    # More indicates two charts under one name, not ties.
    few(
        "places-unique", "charts", f"CASE WHEN {DATE} IS NOT NULL THEN doubled ELSE 0 END",
        "Check the program that writes the countries: it may have given two charts one name.",
        said="have a place that another row of the same country and day has", share=0.05,
        of="rankings", weight="rows", show=[COUNTRY, DATE, "rows"], needs=[_COUNTRY, _DATE, _RANK],
    ),
    # Such rows are lost for training. The real charts have none.
    few(
        "rankings-have-songs", "entries", f"CASE WHEN {ID} IS NOT NULL AND NOT is_song THEN rows ELSE 0 END",
        "Add the missing songs, or compare how the two tables write their ids.",
        said="have an id that songs does not have", share=0.01,
        of="rankings", weight="rows", show=[ID, "rows"], needs=[_ID, _SONG],
    ),
    # With a fifth for the test, the standard error of an accuracy is 3.5 points.
    at_least(
        "enough-rankings", "country_charts", "SUM(rows)", 1_000, "Provide more days or countries.",
        what="rankings of countries", needs=[_COUNTRY],
    ),
    # Ten to each decile of a feature.
    at_least(
        "enough-songs", "entries", "SUM(CASE WHEN is_song AND of_countries > 0 THEN 1 ELSE 0 END)", 100,
        "Provide more days or countries.", what="songs in the charts of countries", needs=[_ID, _COUNTRY, _SONG],
    ),
    # A softmax over one label decides nothing.
    at_least(
        "enough-countries", "countries", "COUNT(*)", 2, "Provide more countries.", what="countries", needs=[_COUNTRY],
    ),
    # The later ones are the test.
    at_least(
        "enough-days", "country_charts", f"COUNT(DISTINCT {DATE})", 2, "Provide more days.",
        what="days with charts of countries", needs=[_COUNTRY, _DATE],
    ),
    # 0.08 of the real charts of 2023.
    few(
        "charts-complete", "charts", f"CASE WHEN {DATE} IS NOT NULL AND rows < last_place THEN 1 ELSE 0 END",
        "Find out what dropped the rows.", said="have fewer rows than places", share=0.1,
        weight=f"CASE WHEN {DATE} IS NOT NULL THEN 1 ELSE 0 END", show=[COUNTRY, DATE, "rows", "last_place"],
        needs=[_COUNTRY, _DATE, _RANK], severity="warning",
    ),
    Rule(
        "days-consecutive", _gaps, "Fetch the missing days, if they exist.",
        needs=[_COUNTRY, _DATE], severity="warning",
    ),
    # Charts turn over within weeks.
    fresh(
        "freshness", "country_charts", DATE, 30, "Check whether the charts are still collected.",
        what="chart", needs=[_COUNTRY, _DATE],
    ),
    each(
        "countries-covered", "countries", "rows >= 0.1 * median",
        "Check what is missing from the charts of the country; the model will hardly ever predict it.",
        said=f"{{{COUNTRY}!r:.9}} has {{rows:,}} rankings, and the median of the countries is {{median:,.0f}}; "
        "expected at least a tenth of that",
        holds="no country has far fewer rankings than the others", needs=[_COUNTRY], severity="warning",
    ),
]  # fmt: skip
