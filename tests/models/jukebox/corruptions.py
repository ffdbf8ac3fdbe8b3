"""Kinds of corrupt data, each with the check that must refuse it.

``apply`` takes good songs and rankings (as the model's ``sample.generate`` writes them) and returns them corrupted;
``damage`` spoils the files themselves. ``write`` does both and leaves what fetch_data would hand to the next steps.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipeline.models.jukebox.splits import TEST_SONGS, hashes
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, ID, RANK

Tables = tuple[pl.DataFrame, pl.DataFrame]


def _unchanged(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    return songs, rankings


def _undamaged(songs: Path, rankings: Path) -> None:
    pass


@dataclass(frozen=True)
class Corruption:
    """``check`` is what must fail, ``named`` what its message must name: a column, a value, a file."""

    name: str
    check: str
    named: str
    apply: Callable[[pl.DataFrame, pl.DataFrame], Tables] = _unchanged
    damage: Callable[[Path, Path], None] = _undamaged


def write(folder: Path, songs: pl.DataFrame, rankings: pl.DataFrame, corruption: Corruption) -> tuple[Path, Path]:
    """Write the corrupted tables as folders of one part; return the two folders."""
    folders = folder / "songs", folder / "rankings"
    for table, frame in zip(folders, corruption.apply(songs, rankings), strict=True):
        table.mkdir(parents=True)
        frame.write_parquet(table / "part-00000.parquet")
    corruption.damage(*folders)
    return folders


def _songs(*columns: pl.Expr, **named: pl.Expr) -> Callable[[pl.DataFrame, pl.DataFrame], Tables]:
    return lambda songs, rankings: (songs.with_columns(*columns, **named), rankings)


def _rankings(*columns: pl.Expr, **named: pl.Expr) -> Callable[[pl.DataFrame, pl.DataFrame], Tables]:
    return lambda songs, rankings: (songs, rankings.with_columns(*columns, **named))


def _renamed(column: str, name: str) -> Callable[[pl.DataFrame, pl.DataFrame], Tables]:
    """Rename the column, in rankings where both have it."""

    def apply(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
        if column in rankings.columns:
            return songs, rankings.rename({column: name})
        return songs.rename({column: name}), rankings

    return apply


def _some(column: str, value: Any, every: int = 50, otherwise: pl.Expr | None = None) -> pl.Expr:
    """The column with ``value`` in every fiftieth row."""
    rest = pl.col(column) if otherwise is None else otherwise
    return pl.when(pl.int_range(pl.len()) % every == 0).then(value).otherwise(rest).alias(column)


def _few(column: str, otherwise: Any) -> pl.Expr:
    """The column in the first five rows, then ``otherwise``."""
    return pl.when(pl.int_range(pl.len()) < 5).then(column).otherwise(otherwise).alias(column)


def _keep(
    songs: pl.Expr | None = None, rankings: pl.Expr | None = None
) -> Callable[[pl.DataFrame, pl.DataFrame], Tables]:
    everything = pl.lit(True)
    return lambda s, r: (
        s.filter(everything if songs is None else songs),
        r.filter(everything if rankings is None else rankings),
    )


def _again(share: float, shift: timedelta = timedelta(0)) -> Callable[[pl.DataFrame, pl.DataFrame], Tables]:
    """A share of the rankings once more, later by ``shift``."""

    def apply(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
        copies = rankings.head(round(share * len(rankings))).with_columns(
            (pl.col(DATE) + shift).cast(rankings[DATE].dtype)
        )
        return songs, pl.concat([rankings, copies])

    return apply


def _two_songs_one_id(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    return pl.concat([songs, songs.head(3).with_columns(pl.col("tempo") + 1)]), rankings


def _standardised(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    names = [name for name in FEATURE_NAMES if songs[name].dtype == pl.Float64]
    return songs.with_columns((pl.col(names) - pl.col(names).mean()) / pl.col(names).std()), rankings


def _tempo_for_danceability(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    return songs.rename({"danceability": "tempo", "tempo": "danceability"}), rankings


def _all_out_when_training_is_over(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    """Until the last days nothing but the Global chart and one song, which is held out."""
    vectors = songs.select(pl.col(FEATURE_NAMES).cast(pl.Float32)).to_numpy()
    (held_out,) = np.flatnonzero(hashes(vectors) < TEST_SONGS * 2.0**64)[:1]
    last_days = pl.col(DATE).dt.date() > pl.col(DATE).dt.date().max() - pl.duration(days=3)
    early = rankings.filter(~last_days, pl.col(COUNTRY).is_not_null())
    early = early.with_columns(pl.lit(songs[int(held_out), ID]).alias(ID)).unique([COUNTRY, DATE], maintain_order=True)
    return songs, pl.concat([early, rankings.filter(last_days)])


def _held_out(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    """Two recordings under the ids of all songs, none of them to train on."""
    vectors = songs.select(pl.col(FEATURE_NAMES).cast(pl.Float32)).to_numpy()
    held_out = songs[np.flatnonzero(hashes(vectors) < TEST_SONGS * 2.0**64)[:2].tolist()].select(FEATURE_NAMES)
    return pl.concat([songs.drop(FEATURE_NAMES), held_out[np.arange(len(songs)) % 2]], how="horizontal"), rankings


def _few_charted_songs(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    return songs, rankings.filter(pl.col(ID).is_in(songs[ID].head(60).implode()))


def _no_files(songs: Path, rankings: Path) -> None:
    (songs / "part-00000.parquet").unlink()


def _no_folder(songs: Path, rankings: Path) -> None:
    shutil.rmtree(rankings)


def _not_parquet(songs: Path, rankings: Path) -> None:
    (rankings / "part-00000.parquet").write_text("<html>Sign in</html>")


def _empty_file(songs: Path, rankings: Path) -> None:
    (songs / "part-00000.parquet").write_bytes(b"")


def _dangling_link(songs: Path, rankings: Path) -> None:
    (songs / "part-00001.parquet").symlink_to("gone.parquet")


def _cut_off(songs: Path, rankings: Path) -> None:
    part = rankings / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-2000])


def _overwritten(songs: Path, rankings: Path) -> None:
    """Spoil the pages and leave the footer, so that only reading the values can tell."""
    part = rankings / "part-00000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:100] + b"\xff" * (len(whole) // 2) + whole[100 + len(whole) // 2 :])


def _parts_that_differ(songs: Path, rankings: Path) -> None:
    frame = pl.read_parquet(rankings / "part-00000.parquet")
    frame.with_columns(pl.col(RANK).cast(pl.String)).write_parquet(rankings / "part-00001.parquet")


def _a_part_without_ranks(songs: Path, rankings: Path) -> None:
    frame = pl.read_parquet(rankings / "part-00000.parquet")
    frame.drop(RANK).write_parquet(rankings / "part-00001.parquet")


def _a_part_of_days_as_numbers(songs: Path, rankings: Path) -> None:
    frame = pl.read_parquet(rankings / "part-00000.parquet")
    frame.with_columns(pl.col(DATE).dt.epoch("d")).write_parquet(rankings / "part-00001.parquet")


def _a_folder_named_like_a_part(songs: Path, rankings: Path) -> None:
    (rankings / "part-00001.parquet").mkdir()


def _a_column_twice(songs: Path, rankings: Path) -> None:
    table = pq.read_table(songs / "part-00000.parquet")
    pq.write_table(table.append_column("tempo", table["tempo"]), songs / "part-00000.parquet")


def _swapped(songs: pl.DataFrame, rankings: pl.DataFrame) -> Tables:
    # As the real rankings, which carry the songs' names.
    return rankings.join(songs.select(ID, "name", "artists"), on=ID), songs


LATE = datetime(2200, 1, 1)
LAST_DAY = date(2026, 9, 30)  # of the good data
TODAY = LAST_DAY + timedelta(days=1)
AFTER_TOMORROW = datetime.combine(TODAY, time()) + timedelta(days=2)

CORRUPTIONS: tuple[Corruption, ...] = (
    # files
    Corruption("songs without a file", "songs-readable", "no *.parquet", damage=_no_files),
    Corruption("rankings without a folder", "rankings-readable", "no *.parquet", damage=_no_folder),
    Corruption("a web page instead of rankings", "rankings-readable", "rankings cannot be read", damage=_not_parquet),
    Corruption("an empty file", "songs-readable", "songs cannot be read", damage=_empty_file),
    Corruption("a link to no file", "songs-readable", "songs cannot be read", damage=_dangling_link),
    Corruption("a file that was cut off", "rankings-readable", "rankings cannot be read", damage=_cut_off),
    Corruption("a file with spoilt pages", "rankings-readable", "rankings cannot be read", damage=_overwritten),
    Corruption("parts of different types", "rankings-types", "in part-00001.parquet", damage=_parts_that_differ),
    Corruption("a folder named like a part", "rankings-readable", "part-00001", damage=_a_folder_named_like_a_part),
    Corruption("a column twice", "songs-readable", "tempo", damage=_a_column_twice),
    Corruption("a part of days as numbers", "rankings-types", "in part-00001", damage=_a_part_of_days_as_numbers),
    Corruption("a part without ranks", "rankings-columns", "part-00001.parquet has no", damage=_a_part_without_ranks),
    Corruption("songs and rankings swapped (songs)", "songs-columns", "swapped", _swapped),
    Corruption("songs and rankings swapped (rankings)", "rankings-columns", "swapped", _swapped),
    # columns
    Corruption("no tempo", "songs-columns", "'tempo'", lambda s, r: (s.drop("tempo"), r)),
    Corruption("no features", "songs-columns", "'valence'", lambda s, r: (s.drop(FEATURE_NAMES), r)),
    Corruption("no names", "songs-columns", "'artists'", lambda s, r: (s.drop("name", "artists"), r)),
    Corruption("a misspelt feature", "songs-columns", "is it 'dancability'", _renamed("danceability", "dancability")),
    Corruption("a feature with a capital", "songs-columns", "is it 'Loudness'", _renamed("loudness", "Loudness")),
    Corruption("a feature with its unit", "songs-columns", "is it 'tempo_bpm'", _renamed("tempo", "tempo_bpm")),
    Corruption("songs with another id", "songs-columns", "'uri'", lambda s, r: (s.rename({ID: "uri"}), r)),
    Corruption("no country", "rankings-columns", "'country'", lambda s, r: (s, r.drop(COUNTRY))),
    Corruption("country under another name", "rankings-columns", "'nation'", _renamed(COUNTRY, "nation")),
    Corruption("day under another name", "rankings-columns", "is it 'date'", _renamed(DATE, "date")),
    Corruption("rank under another name", "rankings-columns", "'position'", _renamed(RANK, "position")),
    Corruption("rankings with another id", "rankings-columns", "is it 'id'", _renamed(ID, "id")),
    # types
    Corruption("tempo as text", "songs-types", "tempo is String", _songs(pl.col("tempo").cast(pl.String))),
    Corruption(
        "decimal commas",
        "songs-types",
        "energy is String",
        _songs(energy=pl.col("energy").cast(pl.String).str.replace(".", ",", literal=True)),
    ),
    Corruption("truth as text", "songs-types", "is_explicit", _songs(pl.col("is_explicit").cast(pl.String))),
    Corruption("keys as letters", "songs-types", "key is String", _songs(pl.lit("C#").alias("key"))),
    Corruption(
        "a list instead of a number", "songs-types", "valence is List", _songs(valence=pl.concat_list("valence")),
    ),
    Corruption("songs' ids as numbers", "songs-types", f"{ID} is", _songs(pl.int_range(pl.len()).alias(ID))),
    Corruption("days as text", "rankings-types", f"{DATE} is String", _rankings(pl.col(DATE).dt.to_string("%d.%m.%Y"))),
    Corruption("American days", "rankings-types", "such as '0", _rankings(pl.col(DATE).dt.to_string("%m/%d/%Y"))),
    Corruption(
        "one day as people write it",
        "rankings-types",
        f"{DATE} is String such as 'yesterday', expected a Date, a Datetime or a text such as '2026-11-20'",
        _rankings(_some(DATE, pl.lit("yesterday"), 10**6, pl.col(DATE).dt.to_string("%F"))),
    ),
    Corruption("no such day", "rankings-types", "'2026-02-30'", _rankings(pl.lit("2026-02-30").alias(DATE))),
    Corruption("days as months", "rankings-types", "'2026-09'", _rankings(pl.col(DATE).dt.to_string("%Y-%m"))),
    Corruption("days as times", "rankings-types", f"{DATE} is Time", _rankings(pl.col(DATE).dt.time())),
    Corruption("days as durations", "rankings-types", "Duration", _rankings(pl.col(DATE) - pl.col(DATE).min())),
    Corruption("ids of bytes", "songs-types", "such as b'\\xff", _songs(pl.lit(b"\xff\xfe").alias(ID))),
    Corruption("names as records", "songs-types", "name is Struct", _songs(name=pl.struct("artists"))),
    Corruption("a country as a list", "rankings-types", "country is List", _rankings(pl.concat_list(COUNTRY))),
    Corruption("days as seconds", "rankings-types", f"{DATE} is Int64", _rankings(pl.col(DATE).dt.epoch("s"))),
    Corruption("ranks as text", "rankings-types", f"{RANK} is String", _rankings(pl.format("#{}", RANK).alias(RANK))),
    Corruption("countries as numbers", "rankings-types", COUNTRY, _rankings(pl.lit(49).alias(COUNTRY))),
    # missing values
    Corruption("songs without an id", "songs-complete", ID, _songs(_some(ID, None))),
    Corruption("no id at all", "songs-complete", ID, _songs(pl.lit(None).alias(ID))),
    Corruption("no ranking's id at all", "rankings-complete", ID, _rankings(pl.lit(None).alias(ID))),
    Corruption("no day at all", "rankings-complete", DATE, _rankings(pl.lit(None).alias(DATE))),
    Corruption("empty texts as days", "rankings-complete", DATE, _rankings(pl.lit("").alias(DATE))),
    Corruption("songs with an empty id", "songs-complete", ID, _songs(_some(ID, pl.lit("")))),
    Corruption("songs without a tempo", "songs-complete", "tempo", _songs(_some("tempo", None))),
    Corruption("one song without a key", "songs-complete", "key: 1 of", _songs(_some("key", None, 10**6))),
    Corruption("almost all energies missing", "songs-complete", "energy", _songs(_few("energy", None))),
    Corruption("no valence at all", "songs-complete", "valence", _songs(pl.lit(None, pl.Float64).alias("valence"))),
    Corruption("loudness not a number", "songs-complete", "loudness", _songs(_some("loudness", float("nan")))),
    Corruption("rankings without an id", "rankings-complete", ID, _rankings(_some(ID, None))),
    Corruption("rankings with an empty id", "rankings-complete", ID, _rankings(_some(ID, pl.lit("")))),
    Corruption("rankings without a day", "rankings-complete", DATE, _rankings(_some(DATE, None))),
    Corruption("rankings without a rank", "rankings-complete", RANK, _rankings(_some(RANK, None))),
    Corruption("ranks not a number", "rankings-complete", RANK, _rankings(_some(RANK, float("nan")).cast(pl.Float64))),
    # values of songs
    Corruption("songs twice", "songs-unique", ID, lambda s, r: (pl.concat([s, s]), r)),
    Corruption("two songs with one id", "songs-unique", f"{ID}: 6 of", _two_songs_one_id),
    Corruption("danceability in percent", "songs-in-range", "danceability", _songs(pl.col("danceability") * 100)),
    Corruption("negative energy", "songs-in-range", "energy", _songs(_some("energy", -0.1))),
    Corruption("infinite loudness", "songs-in-range", "loudness", _songs(_some("loudness", float("inf")))),
    Corruption("silence of minus infinity", "songs-in-range", "loudness", _songs(_some("loudness", float("-inf")))),
    Corruption("loudness of digital silence", "songs-in-range", "loudness", _songs(_some("loudness", -96.0))),
    Corruption("more than float32 holds", "songs-in-range", "tempo", _songs(_some("tempo", 1e300))),
    Corruption("huge whole numbers", "songs-in-range", "duration_ms", _songs(duration_ms=pl.lit(2**63 - 1))),
    Corruption("wider whole numbers", "songs-in-range", "duration_ms", _songs(duration_ms=pl.lit(2**100))),
    Corruption("negative durations", "songs-in-range", "duration_ms", _songs(_some("duration_ms", -1))),
    Corruption("durations in microseconds", "songs-in-range", "duration_ms", _songs(pl.col("duration_ms") * 1000)),
    Corruption("tempo -1 for none", "songs-in-range", "tempo", _songs(_some("tempo", -1.0))),
    Corruption("a key above 11", "songs-in-range", "key", _songs(_some("key", 12))),
    Corruption("a key between two", "songs-in-range", "key", _songs(_some("key", 4.5))),
    Corruption("a third mode", "songs-in-range", "mode", _songs(_some("mode", 2))),
    Corruption("standardised features", "songs-in-range", "liveness", _standardised),
    Corruption("two features swapped", "songs-in-range", "danceability", _tempo_for_danceability),
    Corruption("durations in seconds", "songs-usual", "duration_ms", _songs(pl.col("duration_ms") / 1000)),
    Corruption("durations in minutes", "songs-usual", "duration_ms", _songs(pl.col("duration_ms") / 60_000)),
    Corruption("loudness without its sign", "songs-usual", "loudness", _songs(pl.col("loudness").abs())),
    Corruption("loudness from 0 to 1", "songs-usual", "loudness", _songs((pl.col("loudness") + 60) / 70)),
    Corruption("tempo in hertz", "songs-usual", "tempo", _songs(pl.col("tempo") / 60)),
    Corruption("energy as a hundredth", "songs-usual", "energy", _songs(pl.col("energy") / 100)),
    Corruption("constant energy", "songs-vary", "energy", _songs(pl.lit(0.5).alias("energy"))),
    Corruption("mode always 0", "songs-vary", "mode", _songs(pl.lit(0).alias("mode"))),
    Corruption("a default for almost all songs", "songs-vary", "valence", _songs(_few("valence", 0.5))),
    # values of rankings
    Corruption("countries in small letters", "country-codes", COUNTRY, _rankings(pl.col(COUNTRY).str.to_lowercase())),
    Corruption("countries of three letters", "country-codes", COUNTRY, _rankings(pl.col(COUNTRY) + "X")),
    Corruption("a country of a megabyte", "country-codes", COUNTRY, _rankings(_some(COUNTRY, pl.lit("X" * 2**20)))),
    Corruption("countries with a blank", "country-codes", COUNTRY, _rankings(_some(COUNTRY, pl.lit("FR ")))),
    Corruption("a country written out", "country-codes", COUNTRY, _rankings(_some(COUNTRY, pl.lit("France")))),
    Corruption("Global written out", "country-codes", COUNTRY, _rankings(pl.col(COUNTRY).fill_null("Global"))),
    Corruption("Global as an empty text", "country-codes", COUNTRY, _rankings(pl.col(COUNTRY).fill_null(""))),
    Corruption("days in the future", "dates", DATE, _rankings(pl.col(DATE) + timedelta(days=400))),
    Corruption("one day in the far future", "dates", f"{DATE}: 1 of", _rankings(_some(DATE, LATE, 10**6))),
    Corruption("the day after tomorrow", "dates", DATE, _rankings(_some(DATE, AFTER_TOMORROW, 10**6))),
    Corruption("days of the year 1", "dates", DATE, _rankings(_some(DATE, datetime(1, 1, 1)))),
    Corruption("days before any calendar", "dates", DATE, _rankings(pl.lit(-(2**31)).cast(pl.Date).alias(DATE))),
    Corruption("days of the year 9999", "dates", DATE, _rankings(_some(DATE, datetime(9999, 12, 31)))),
    Corruption("days of 1970", "dates", DATE, _rankings(_some(DATE, datetime(1970, 1, 1)))),
    Corruption(
        "nanoseconds read as microseconds",
        "dates",
        DATE,
        _rankings(pl.col(DATE).to_physical().cast(pl.Datetime("us"))),
    ),
    Corruption("a rank of 0", "rankings-in-range", RANK, _rankings(pl.col(RANK) - 1)),
    Corruption("negative ranks", "rankings-in-range", RANK, _rankings(-pl.col(RANK))),
    Corruption("ranks beyond any chart", "rankings-in-range", RANK, _rankings(_some(RANK, 9999))),
    Corruption("infinite ranks", "rankings-in-range", RANK, _rankings(_some(RANK, float("inf")))),
    Corruption("a rank between two", "rankings-in-range", RANK, _rankings(_some(RANK, 1.5))),
    Corruption("a file twice", "rankings-unique", "repeat a song", _again(1)),
    Corruption("one percent of rows twice", "rankings-unique", "repeat a song", _again(0.01)),
    Corruption("two snapshots a day", "rankings-unique", "repeat a song", _again(1, timedelta(hours=12))),
    Corruption("countries lost for a third", "places-unique", "place", _rankings(_some(COUNTRY, None, 3))),
    Corruption("two charts under one name", "places-unique", "place", _rankings(pl.col(COUNTRY).replace({"AR": "AE"}))),
    Corruption("every song on place 1", "places-unique", "place", _rankings(pl.lit(1).alias(RANK))),
    Corruption("ids as links", "rankings-have-songs", "id", _rankings(("spotify:track:" + pl.col(ID)).alias(ID))),
    Corruption("ids in small letters", "rankings-have-songs", "id", _rankings(pl.col(ID).str.to_lowercase())),
    Corruption("ids with a blank", "rankings-have-songs", "id", _songs(pl.col(ID) + " ")),
    Corruption("half of the songs", "rankings-have-songs", "id", _keep(songs=pl.int_range(pl.len()) % 2 == 0)),
    Corruption("two percent of unknown ids", "rankings-have-songs", "id", _rankings(_some(ID, pl.lit("unknown")))),
    # sizes
    Corruption("no songs", "enough-songs", "0 songs", _keep(songs=pl.lit(False))),
    Corruption("no rankings", "enough-rankings", "0 rankings", _keep(rankings=pl.lit(False))),
    Corruption("few rankings", "enough-rankings", "rankings of", _keep(rankings=pl.int_range(pl.len()) % 20 == 0)),
    Corruption("few songs", "enough-songs", "songs in the charts", _few_charted_songs),
    Corruption("one country", "enough-countries", "1 countries", _keep(rankings=pl.col(COUNTRY) == "AE")),
    Corruption("only the Global chart", "enough-countries", "0 countries", _rankings(pl.lit(None).alias(COUNTRY))),
    Corruption("tables without columns", "songs-columns", ID, lambda s, r: (s.select([]), r.select([]))),
    Corruption("one song", "enough-songs", "1 songs", lambda s, r: (s.head(1), r)),
    Corruption("all songs out too late", "enough-to-train", "0 examples", _all_out_when_training_is_over),
    Corruption("no song to train on", "enough-to-train", "0 examples", _held_out),
    Corruption("no song to validate with", "enough-to-validate", "0 examples", _held_out),
    Corruption("one day", "enough-days", "1 days", _keep(rankings=pl.col(DATE) == pl.col(DATE).max())),
)  # fmt: skip
