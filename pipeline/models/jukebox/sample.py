"""Sample data in the schema of the real charts: invented songs and charts, seeded, with something to learn in them.

Every song has a home country. Countries have tastes: points in a space of six latent dimensions, in regional groups.
A song is near its home's taste, and its audio features are a squashed linear map of that point, so the features
indicate the country. Charts are drawn day by day: a song scores by how near a country's taste it is, by its reach
(few songs have much), by being at home, and it fades with age. The quirks of real charts are there too: songs
without a name, tempo 0, loudness above 0 dB, ids that share one recording, the Global chart with a null country,
newest day first.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, ID, RANK

# The 72 countries that have a daily chart.
COUNTRIES = (
    "AE AR AT AU BE BG BO BR BY CA CH CL CO CR CZ DE DK DO EC EE EG ES FI FR GB GR GT HK HN HU ID IE IL IN IS IT JP "
    "KR KZ LT LU LV MA MX MY NG NI NL NO NZ PA PE PH PK PL PT PY RO SA SE SG SK SV TH TR TW UA US UY VE VN ZA"
).split()
DEFAULT_COUNTRIES = 40
DEFAULT_ROWS = 120_000
CHART_LENGTH = 50
LATENT = 6
REGIONS = 9

ADJECTIVES = (
    "Blue Broken Distant Electric Falling Golden Hidden Last Lonely Midnight Neon Quiet Silver Slow Wild".split()
)
NOUNS = "Avenue Boulevard Dance Echo Fever Garden Heart Highway Island Letter Mirror Moon Ocean River Summer".split()
ARTISTS = (
    "Ada Bo Caro Dima Edda Femi Gil Hana Ines Jun Kofi Lena Mika Noor Olu Pia Ravi Sol Tariq Uma Vera Yuki Zoe".split()
)


def generate(
    folder: Path,
    *,
    last_day: date,
    rows: int = DEFAULT_ROWS,
    countries: int = DEFAULT_COUNTRIES,
    places: int = CHART_LENGTH,
    seed: int = 0,
) -> dict[str, Path]:
    """Write ``songs.parquet`` and ``rankings.parquet`` with about ``rows`` chart rows; return the paths by table.

    The same arguments give the same bytes. ``countries`` is 2 to 72; each country and the Global chart has ``places``
    a day, so ``rows`` decides how many days there are (at least two). Memory grows with the songs, not with the rows.
    """
    rng = np.random.default_rng(seed)
    days = max(2, round(rows / ((countries + 1) * places)))
    songs_count = 40 * countries + 40 * days
    tastes = _tastes(rng, countries)
    home = rng.integers(countries, size=songs_count)
    place = tastes[home] + rng.normal(0, 0.55, (songs_count, LATENT))
    reach = rng.exponential(0.9, songs_count)
    # Songs that are on the market on day one came out over the weeks before.
    debut = rng.integers(-45, days, size=songs_count)
    debut[: 20 * countries] = rng.integers(-45, 0, size=20 * countries)

    ids = _ids(rng, songs_count)
    names = [
        f"{ADJECTIVES[a]} {NOUNS[n]}" for a, n in rng.integers((len(ADJECTIVES), len(NOUNS)), size=(songs_count, 2))
    ]
    artists = [f"{ARTISTS[a]} & {ARTISTS[b]}" for a, b in rng.integers(len(ARTISTS), size=(songs_count, 2))]
    features = _features(rng, place)
    _quirks(rng, features)
    songs = pl.DataFrame({ID: ids, "name": names, "artists": artists, **features})
    nameless = pl.int_range(pl.len()) < 3
    songs = songs.with_columns(
        pl.when(nameless).then(None).otherwise(pl.col("name", "artists")).name.keep(),
        pl.when(nameless).then(0).otherwise(pl.col("duration_ms")).alias("duration_ms"),
        pl.lit(4).alias("time_signature"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    songs_path, rankings_path = folder / "songs.parquet", folder / "rankings.parquet"
    songs.write_parquet(songs_path)

    affinity = np.empty((countries + 1, songs_count))
    for country, taste in enumerate(tastes):
        affinity[country] = -1.6 * ((place - taste) ** 2).sum(axis=1) + 1.5 * reach
    affinity[home, np.arange(songs_count)] += 4
    # The Global chart adds up the affinities of all countries.
    affinity[-1] = np.logaddexp.reduce(affinity[:-1], axis=0)
    index = pl.Series(ids, dtype=pl.String)
    codes = pl.Series([*COUNTRIES[:countries], None], dtype=pl.String)

    def charts(*_: Any) -> Iterator[pl.DataFrame]:
        """The charts of a day, the newest first."""
        for day in range(days - 1, -1, -1):
            age = day - debut
            market = np.flatnonzero((age >= 0) & (age < 90))
            score = affinity[:, market] - 0.06 * age[market] + rng.gumbel(0, 0.7, (countries + 1, len(market)))
            best = np.argpartition(-score, places, axis=1)[:, :places]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(score, best, axis=1), axis=1), axis=1)
            yield pl.DataFrame(
                {
                    ID: index.gather(market[best].ravel()),
                    COUNTRY: codes.gather(np.repeat(np.arange(countries + 1), places)),
                    DATE: pl.repeat(last_day - timedelta(days=days - 1 - day), best.size, eager=True).cast(
                        pl.Datetime("ns")
                    ),
                    RANK: np.tile(np.arange(1, places + 1), countries + 1),
                }
            )

    types: list[pl.DataType] = [pl.String(), pl.String(), pl.Datetime("ns"), pl.Int64()]
    schema = pl.Schema(zip((ID, COUNTRY, DATE, RANK), types, strict=True))
    register_io_source(charts, schema=schema).sink_parquet(rankings_path, maintain_order=True)
    return {"songs": songs_path, "rankings": rankings_path}


def _tastes(rng: np.random.Generator, countries: int) -> np.ndarray:
    """The countries' places, float64[countries, LATENT]: around the centres of their regions."""
    regions = rng.normal(0, 1.3, (REGIONS, LATENT))
    return regions[np.arange(countries) % REGIONS] + rng.normal(0, 0.5, (countries, LATENT))


def _ids(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct ids of 22 letters and digits, as the real ones are."""
    alphabet = np.array(list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"))
    return ["".join(row) for row in alphabet[rng.integers(len(alphabet), size=(count, 22))]]


def _features(rng: np.random.Generator, place: np.ndarray) -> dict[str, np.ndarray]:
    """The 13 features of songs at ``place`` (float64[songs, LATENT]), in their real units and ranges."""
    count = len(place)
    z = place @ rng.normal(0, 0.5, (LATENT, len(FEATURE_NAMES)))
    z += rng.normal(0, 0.25, z.shape)
    unit = 1 / (1 + np.exp(-z))
    column = dict(zip(FEATURE_NAMES, unit.T, strict=True))
    return {
        "is_explicit": rng.random(count) < 0.6 * column["is_explicit"],
        "duration_ms": (110_000 + 200_000 * column["duration_ms"]).astype(np.int64),
        "danceability": column["danceability"].round(3),
        "energy": column["energy"].round(3),
        "key": rng.integers(12, size=count),
        "loudness": (-14 + 13 * column["loudness"]).round(3),
        "mode": (rng.random(count) < column["mode"]).astype(np.int64),
        "speechiness": (0.6 * column["speechiness"] ** 2).round(4),
        "acousticness": column["acousticness"].round(3),
        "instrumentalness": np.where(rng.random(count) < 0.6, 0.0, column["instrumentalness"] ** 4).round(5),
        "liveness": (0.05 + 0.5 * column["liveness"] ** 2).round(4),
        "valence": column["valence"].round(3),
        "tempo": (70 + 110 * column["tempo"]).round(3),
    }


def _quirks(rng: np.random.Generator, features: dict[str, np.ndarray]) -> None:
    """Add the quirks of real songs that a naive check would refuse."""
    count = len(features["tempo"])
    twins = rng.choice(np.arange(10, count), size=(2, count // 40), replace=False)
    for values in features.values():
        values[twins[0]] = values[twins[1]]  # one recording under two ids
        values[4] = 0  # a song of zeros
    features["tempo"][5] = 0.0
    features["loudness"][6:9] = 0.6
