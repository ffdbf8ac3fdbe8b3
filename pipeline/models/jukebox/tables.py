"""The tables, and the 13 features in the order in which the model takes them.

``songs`` has one row a song: its audio features. ``rankings`` has one row a (day, chart, song): the daily charts of
the countries. A null ``country`` is the Global chart; it is a chart, not a missing value, and not a country.

The features are those of Spotify's Web API. ``low`` and ``high`` bound what it can deliver. They are wider than what is
usual because real songs are: loudness above 0 dB, a tempo of 0 if no beat was found, a duration of 0 for a song that
was withdrawn. ``usual`` is a wide margin around the medians of the real songs of 2023 and 2025: 181 and 187 seconds,
-6.6 and -6.4 dB, 122 and 120 beats per minute, 0.06 (speechiness) to 0.69 (danceability) if the range is 0 to 1.
Instrumentalness and acousticness may well have a median of nearly 0.
"""

from datetime import date

import polars as pl

from pipeline.core.contract import Column, Table
from pipeline.core.encoders import Number

ID = "spotify_id"
COUNTRY = "country"
DATE = "snapshot_date"
RANK = "daily_rank"

FIRST_DAY = date(2000, 1, 1)  # before there were streaming charts; 1970 is what a missing or misread time becomes
CHART_PLACES = 200  # the longest chart that Spotify publishes; the daily charts of this contract have 50
COUNTRY_CODE = "[A-Z]{2}"  # ISO 3166-1 alpha-2
# More than this is not this table: songs of the charts, and charts of 72 countries, since 2000. The steps hold a row of
# each in memory, and with these they stay below 2 GiB.
MOST_SONGS = 1_000_000
MOST_CHARTS = 2_000_000

FEATURES = (
    Column("is_explicit", pl.Boolean, Number(), low=0, high=1, discrete=True),
    Column("duration_ms", pl.Int64, Number(), low=0, high=6 * 3600 * 1000, unit="ms", usual=(60_000, 900_000)),
    Column("danceability", pl.Float64, Number(), low=0, high=1, usual=(0.03, 0.97)),
    Column("energy", pl.Float64, Number(), low=0, high=1, usual=(0.03, 0.97)),
    Column("key", pl.Int64, Number(), low=-1, high=11, unit="pitch class, -1: none found", discrete=True),
    Column("loudness", pl.Float64, Number(), low=-60, high=10, unit="dB", usual=(-30, -1)),
    Column("mode", pl.Int64, Number(), low=0, high=1, unit="0 minor, 1 major", discrete=True),
    Column("speechiness", pl.Float64, Number(), low=0, high=1, usual=(0.005, 0.9)),
    Column("acousticness", pl.Float64, Number(), low=0, high=1),
    Column("instrumentalness", pl.Float64, Number(), low=0, high=1),
    Column("liveness", pl.Float64, Number(), low=0, high=1, usual=(0.005, 0.9)),
    Column("valence", pl.Float64, Number(), low=0, high=1, usual=(0.03, 0.97)),
    Column("tempo", pl.Float64, Number(), low=0, high=300, unit="beats per minute", usual=(60, 200)),
)
FEATURE_NAMES = tuple(column.name for column in FEATURES)

# The columns that the pipeline reads. Other columns (popularity, movements, album, …) are ignored.
SONGS = Table(
    "songs",
    (
        Column(ID, pl.String, unique=True),
        Column("name", pl.String, missing=1.0),
        Column("artists", pl.String, missing=1.0),
        *FEATURES,
    ),
    most_rows=MOST_SONGS,
)
RANKINGS = Table(
    "rankings",
    (
        Column(ID, pl.String),
        Column(COUNTRY, pl.String, missing=1.0),
        Column(DATE, pl.Datetime),
        Column(RANK, pl.Int64, low=1, high=CHART_PLACES, discrete=True),
    ),
    most_rows=None,
)
