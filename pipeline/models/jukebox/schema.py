"""The data contract: the columns of the two tables, and the 13 features in the order in which the model takes them.

``songs`` has one row a song: its audio features. ``rankings`` has one row a (day, chart, song): the daily charts of
the countries. A null ``country`` is the Global chart; it is a chart, not a missing value, and no country.

Validation, preprocessing, the sample generator and the report all read the contract from here.
"""

from dataclasses import dataclass

import polars as pl

ID = "spotify_id"
COUNTRY = "country"
DATE = "snapshot_date"
RANK = "daily_rank"

COUNTRY_CODE = "[A-Z]{2}"  # ISO 3166-1 alpha-2
# More than this is another table: since 2000, songs of the charts, and charts of 72 countries. The steps hold a row of
# each in memory, and with these they stay below 2 GiB.
MOST_SONGS = 1_000_000
MOST_CHARTS = 2_000_000

# The names of the served model's one input, float32[batch, 13], and one output, float32[batch, countries].
INPUT = "features"
OUTPUT = "probabilities"


@dataclass(frozen=True)
class Feature:
    """An audio feature of a song, as Spotify's Web API defines it.

    ``low`` and ``high`` bound what the API can deliver, in ``unit``; a value outside is an error. They are wider than
    what is usual because real songs are: loudness above 0 dB, a tempo of 0 where no beat was found, a duration of 0
    for a song that was withdrawn.

    ``usual`` bounds the median over the songs: single songs may lie anywhere in ``low`` to ``high``, but a median
    outside means another unit (seconds, 0 to 100, a lost sign). The bounds are a wide margin around the real songs of
    2023 and 2025: 181 and 187 seconds, -6.6 and -6.4 dB, 122 and 120 beats per minute, 0.06 (speechiness) to 0.69
    (danceability) where the range is 0 to 1. Instrumentalness and acousticness may well have a median of nearly 0.

    ``discrete`` features take whole numbers, few of them.
    """

    name: str
    dtype: type[pl.DataType]
    low: float
    high: float
    unit: str = ""
    usual: tuple[float, float] | None = None
    discrete: bool = False


FEATURES: tuple[Feature, ...] = (
    Feature("is_explicit", pl.Boolean, 0, 1, discrete=True),
    Feature("duration_ms", pl.Int64, 0, 6 * 3600 * 1000, "ms", usual=(60_000, 900_000)),
    Feature("danceability", pl.Float64, 0, 1, usual=(0.03, 0.97)),
    Feature("energy", pl.Float64, 0, 1, usual=(0.03, 0.97)),
    Feature("key", pl.Int64, -1, 11, "pitch class, -1: none found", discrete=True),
    Feature("loudness", pl.Float64, -60, 10, "dB", usual=(-30, -1)),
    Feature("mode", pl.Int64, 0, 1, "0 minor, 1 major", discrete=True),
    Feature("speechiness", pl.Float64, 0, 1, usual=(0.005, 0.9)),
    Feature("acousticness", pl.Float64, 0, 1),
    Feature("instrumentalness", pl.Float64, 0, 1),
    Feature("liveness", pl.Float64, 0, 1, usual=(0.005, 0.9)),
    Feature("valence", pl.Float64, 0, 1, usual=(0.03, 0.97)),
    Feature("tempo", pl.Float64, 0, 300, "beats per minute", usual=(60, 200)),
)
FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in FEATURES)

# What the pipeline reads. Other columns (popularity, movements, album, …) are welcome and ignored.
SONGS: dict[str, type[pl.DataType]] = {
    ID: pl.String,
    "name": pl.String,
    "artists": pl.String,
    **{feature.name: feature.dtype for feature in FEATURES},
}
RANKINGS: dict[str, type[pl.DataType]] = {
    ID: pl.String,
    COUNTRY: pl.String,
    DATE: pl.Datetime,
    RANK: pl.Int64,
}
