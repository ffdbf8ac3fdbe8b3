from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.models.jukebox.sample import CHART_LENGTH, COUNTRIES, generate
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, FEATURES, ID, RANK, RANKINGS, SONGS

LAST_DAY = date(2026, 3, 1)
SIZE = 11 * CHART_LENGTH  # rows a day of ten countries and the Global chart
DAYS = 12


def sample(folder: Path, *, seed: int = 0, rows: int = DAYS * SIZE, countries: int = 10) -> tuple[Path, Path]:
    made = generate(folder, rows=rows, last_day=LAST_DAY, countries=countries, seed=seed)
    return made["songs"], made["rankings"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame]:
    songs, rankings = sample(tmp_path_factory.mktemp("sample"))
    return pl.read_parquet(songs), pl.read_parquet(rankings)


@pytest.fixture
def songs(tables: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    return tables[0]


@pytest.fixture
def rankings(tables: tuple[pl.DataFrame, pl.DataFrame]) -> pl.DataFrame:
    return tables[1]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (sample(tmp_path / name, seed=7) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_another_seed_gives_other_songs_and_charts(tmp_path: Path) -> None:
    one, other = (sample(tmp_path / str(seed), seed=seed) for seed in (7, 8))
    for ours, theirs in zip(one, other, strict=True):
        assert ours.read_bytes() != theirs.read_bytes()


def test_the_tables_have_the_columns_of_the_contract(songs: pl.DataFrame, rankings: pl.DataFrame) -> None:
    for table, contract in ((songs, SONGS.schema), (rankings, RANKINGS.schema)):
        for column, dtype in contract.items():
            assert table.schema[column] == dtype, column


def test_each_chart_has_fifty_places_on_each_day(rankings: pl.DataFrame) -> None:
    charts = rankings.group_by(DATE, COUNTRY).agg(
        pl.col(RANK).sort(), pl.col(ID).n_unique().alias("songs"), pl.len().alias("rows")
    )
    assert len(charts) == DAYS * 11
    assert charts["rows"].unique().to_list() == [CHART_LENGTH]
    assert charts["songs"].unique().to_list() == [CHART_LENGTH]
    assert charts[RANK].to_list() == [list(range(1, CHART_LENGTH + 1))] * len(charts)


def test_charts_may_be_longer(tmp_path: Path) -> None:
    path = generate(tmp_path, rows=4_000, last_day=LAST_DAY, countries=9, places=200)["rankings"]
    charts = pl.read_parquet(path).group_by(DATE, COUNTRY).agg(pl.col(RANK).sort(), pl.col(ID).n_unique())
    assert charts[RANK].to_list() == [list(range(1, 201))] * 20
    assert charts[ID].unique().to_list() == [200]


def test_the_days_end_with_the_last_and_the_newest_stand_first(rankings: pl.DataFrame) -> None:
    days = rankings[DATE].dt.date()
    assert days.is_sorted(descending=True)
    assert days.unique().sort().to_list() == [LAST_DAY - timedelta(days=DAYS - 1 - day) for day in range(DAYS)]


def test_the_global_chart_has_no_country(rankings: pl.DataFrame) -> None:
    assert rankings[COUNTRY].unique().sort().to_list() == [None, *COUNTRIES[:10]]


def test_every_song_of_a_chart_is_known(songs: pl.DataFrame, rankings: pl.DataFrame) -> None:
    assert rankings.join(songs, on=ID, how="anti").is_empty()
    assert songs[ID].is_unique().all()


def test_the_features_are_in_their_ranges(songs: pl.DataFrame) -> None:
    for feature in FEATURES:
        values = songs[feature.name].cast(pl.Float64)
        assert values.is_between(feature.low, feature.high).all(), feature.name
        if feature.usual:
            low, high = feature.usual
            median = values.median()
            assert isinstance(median, float)
            assert low <= median <= high, feature.name


def test_the_quirks_of_real_songs_are_there(songs: pl.DataFrame) -> None:
    nameless = songs.filter(pl.col("name").is_null())
    assert len(nameless) == 3
    assert nameless["artists"].is_null().all()
    assert (nameless["duration_ms"] == 0).all()
    assert len(songs.filter(tempo=0)) >= 2
    assert len(songs.filter(pl.col("loudness") > 0)) >= 3
    assert len(songs.filter(pl.all_horizontal(pl.col(*FEATURE_NAMES).cast(pl.Float64) == 0))) == 1


def test_some_songs_are_one_recording_under_two_ids(songs: pl.DataFrame) -> None:
    twins = songs.filter(songs.select(FEATURE_NAMES).is_duplicated())
    assert len(songs) * 0.02 < len(twins) < len(songs) * 0.1


def test_songs_come_and_go(rankings: pl.DataFrame) -> None:
    first, last = (set(rankings.filter(pl.col(DATE).dt.date() == day)[ID]) for day in (LAST_DAY, rankings[DATE].min()))
    assert first & last
    assert first - last
    assert last - first


def test_the_features_tell_about_the_country(songs: pl.DataFrame, rankings: pl.DataFrame) -> None:
    # Who guesses the country whose songs are nearest on the even days is right on odd days far more than by chance.
    vectors = songs.select(pl.col(ID), *(pl.col(name).cast(pl.Float64) for name in FEATURE_NAMES))
    rows = rankings.drop_nulls(COUNTRY).unique([ID, COUNTRY], maintain_order=True).join(vectors, on=ID)
    values = rows.select(FEATURE_NAMES).to_numpy()
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    learn = rows[ID].hash(0).to_numpy() % 2 == 0  # by song, so that none is in both halves
    codes = np.array([COUNTRIES.index(country) for country in rows[COUNTRY]])
    centres = np.array([values[learn & (codes == code)].mean(axis=0) for code in range(10)])
    guesses = ((values[~learn][:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (guesses == codes[~learn]).mean() > 2 / 10


@settings(deadline=None, derandomize=True, max_examples=10)
@given(countries=st.integers(2, len(COUNTRIES)), rows=st.integers(1, 20_000), seed=st.integers(0, 2**31))
def test_any_size_gives_whole_charts_and_at_least_two_days(
    tmp_path_factory: pytest.TempPathFactory, countries: int, rows: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    _, path = sample(folder, countries=countries, rows=rows, seed=seed)
    rankings = pl.read_parquet(path)
    a_day = (countries + 1) * CHART_LENGTH
    assert rankings[DATE].n_unique() == max(2, round(rows / a_day))
    assert len(rankings) == rankings[DATE].n_unique() * a_day
    assert rankings[COUNTRY].n_unique() == countries + 1
