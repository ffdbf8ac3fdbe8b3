import json
from collections import Counter
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import DataInvalid
from pipeline.core.examples import Reader
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.splits import SPLITS
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURE_NAMES, ID, RANK
from pipeline.steps.preprocess_data import preprocess_data
from tests.models.jukebox.outputs import Tables

pytest_plugins = ("tests.models.jukebox.fixtures",)

FIRST_DAY = date(2026, 1, 1)
COUNTRIES = ["AR", "DE", "JP", None]


def as_stored(features: list[float]) -> tuple[float, ...]:
    """The features of a song as examples hold them."""
    return tuple(np.array(features, dtype=np.float32).tolist())


def write(folder: Path, features: list[list[float]], charts: Sequence[tuple[int, str | None, int]]) -> Tables:
    """Write songs with these features, and a chart row for each (song, country, day)."""
    songs = pl.DataFrame(
        {
            ID: [f"song-{n}" for n in range(len(features))],
            **{name: pl.Series([row[i] for row in features], dtype=pl.Float64) for i, name in enumerate(FEATURE_NAMES)},
        }
    )
    rankings = pl.DataFrame(
        {
            ID: pl.Series([f"song-{song}" for song, _, _ in charts], dtype=pl.String),
            COUNTRY: pl.Series([country for _, country, _ in charts], dtype=pl.String),
            DATE: pl.Series([FIRST_DAY + timedelta(days=day) for _, _, day in charts], dtype=pl.Date),
            RANK: pl.Series([1] * len(charts), dtype=pl.Int64),
        }
    )
    tables = Tables(folder / "songs", folder / "rankings")
    for frame, table in ((songs, tables.songs), (rankings, tables.rankings)):
        table.mkdir(parents=True)
        frame.write_parquet(table / "part-00000.parquet")
    return tables


def vectors_by_split(folder: Path) -> dict[str, Counter[tuple[float, ...]]]:
    """How many chart rows each feature vector has in each split."""
    found = {}
    for split in SPLITS:
        examples = Reader(folder, MODEL).read(split)
        found[split] = Counter(
            {tuple(v): int(n) for v, n in zip(examples.vectors.tolist(), examples.rows, strict=True)}
        )
    return found


@st.composite
def chart_data(draw: st.DrawFn) -> tuple[list[list[float]], list[tuple[int, str | None, int]]]:
    """Some songs, several of which share a feature vector, and chart rows of them."""
    recordings = draw(st.integers(8, 25))
    features = [[float(n)] + [n / 100] * 12 for n in range(recordings)]
    features += [features[draw(st.integers(0, recordings - 1))] for _ in range(draw(st.integers(0, 5)))]
    row = st.tuples(st.integers(0, len(features) - 1), st.sampled_from(COUNTRIES), st.integers(0, 9))
    # Each song has a row on the first day, so that something is left to train on.
    charts = [(song, "AR", 0) for song in range(len(features))]
    return features, charts + draw(st.lists(row, min_size=5, max_size=80))


@given(chart_data())
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_chart_row_of_a_country_ends_in_exactly_one_split_with_its_country(
    tmp_path_factory: pytest.TempPathFactory, data: tuple[list[list[float]], list[tuple[int, str | None, int]]]
) -> None:
    features, charts = data
    folder = tmp_path_factory.mktemp("case")
    tables = write(folder, features, charts)
    try:
        description = preprocess_data(MODEL, vars(tables), folder / "out")
    except DataInvalid:
        return  # by chance every recording was held out; told apart by its own test
    labels = description["labels"]
    assert labels == sorted({country for _, country, _ in charts if country})
    expected: Counter[tuple[tuple[float, ...], str]] = Counter()
    for song, country, _ in charts:
        if country:
            expected[as_stored(features[song]), country] += 1
    found: Counter[tuple[tuple[float, ...], str]] = Counter()
    for split in SPLITS:
        examples = Reader(folder / "out", MODEL).read(split)
        for vector, counts in zip(examples.vectors.tolist(), examples.target.tolist(), strict=True):
            assert sum(counts) > 0
            for label, count in zip(labels, counts, strict=True):
                if count:
                    found[tuple(vector), label] += count
    assert found == expected

    of = vectors_by_split(folder / "out")
    held_out = of["test-unseen"].keys() | of["validation"].keys()
    assert not of["train"].keys() & held_out
    assert of["test-seen"].keys() <= of["train"].keys()
    assert not of["test-unseen"].keys() & of["validation"].keys()


def test_later_days_of_known_songs_are_tested_apart_and_new_songs_count_as_unseen(tmp_path: Path) -> None:
    features = [[float(n)] + [n / 50] * 12 for n in range(40)]
    newcomer = 39
    charts = [(song, "AR", day) for song in range(39) for day in range(10)] + [(newcomer, "DE", 9)]
    tables = write(tmp_path, features, charts)
    description = preprocess_data(MODEL, vars(tables), tmp_path / "out")
    of = vectors_by_split(tmp_path / "out")
    assert set(of["train"].values()) == {8}, "training sees the first eight of ten days"
    assert set(of["test-seen"].values()) == {2}
    assert as_stored(features[newcomer]) in of["test-unseen"]
    assert description["splits"]["train"]["last_day"] == "2026-01-08"
    assert description["splits"]["test-seen"]["first_day"] == "2026-01-09"


def test_about_a_tenth_of_the_recordings_is_never_seen_and_another_validates(tmp_path: Path) -> None:
    tables = write(
        tmp_path, [[float(n)] + [n / 500] * 12 for n in range(400)], [(song, "AR", 0) for song in range(400)]
    )
    preprocess_data(MODEL, vars(tables), tmp_path / "out")
    sizes = {split: len(songs) for split, songs in vectors_by_split(tmp_path / "out").items()}
    assert 20 < sizes["test-unseen"] < 60
    assert 20 < sizes["validation"] < 60
    assert sizes["train"] == 400 - sizes["test-unseen"] - sizes["validation"]


def test_a_song_keeps_its_split_when_the_data_grows(tables: Tables, tmp_path: Path) -> None:
    preprocess_data(MODEL, vars(tables), tmp_path / "whole")
    half = tmp_path / "half"
    half.mkdir()
    frame = pl.read_parquet(tables.rankings / "part-00000.parquet")
    days = frame[DATE].unique().sort()
    frame.filter(pl.col(DATE) <= days[len(days) // 2]).write_parquet(half / "part-00000.parquet")
    preprocess_data(MODEL, {"songs": tables.songs, "rankings": half}, tmp_path / "partial")
    before, after = vectors_by_split(tmp_path / "partial"), vectors_by_split(tmp_path / "whole")
    assert len(before["test-unseen"]) > 20
    assert before["validation"].keys() <= after["validation"].keys()
    assert not before["test-unseen"].keys() & after["validation"].keys()
    assert not before["train"].keys() & after["validation"].keys()


def test_normalisation_is_learnt_from_the_training_rows_alone(examples: Path) -> None:
    description = json.loads((examples / "preprocessing.json").read_text())
    train = Reader(examples, MODEL).read("train")
    rows = np.repeat(train.vectors.astype(np.float64), train.rows, axis=0)
    np.testing.assert_allclose(description["mean"], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(description["variance"], rows.var(axis=0), rtol=1e-4)


def test_a_constant_feature_stays_zero_instead_of_becoming_infinite(tmp_path: Path) -> None:
    features = [[1.0, float(n), *[0.5] * 11] for n in range(20)]
    tables = write(tmp_path, features, [(song, "AR", 0) for song in range(20)])
    description = preprocess_data(MODEL, vars(tables), tmp_path / "out")
    assert description["variance"][0] == 1.0
    assert description["mean"][0] == 1.0


def test_the_global_chart_is_no_country(tables: Tables, examples: Path) -> None:
    rankings = pl.read_parquet(tables.rankings / "part-00000.parquet")
    description = json.loads((examples / "preprocessing.json").read_text())
    assert rankings[COUNTRY].null_count() > 0
    assert sum(split["rows"] for split in description["splits"].values()) == rankings[COUNTRY].count()
    assert description["labels"] == sorted(rankings[COUNTRY].drop_nulls().unique())


def test_all_is_numeric_and_finite(examples: Path) -> None:
    for split in SPLITS:
        found = Reader(examples, MODEL).read(split)
        assert found.vectors.dtype == np.float32
        assert found.target.dtype == np.uint32
        assert np.isfinite(found.vectors).all()


def test_the_order_and_the_number_of_files_change_nothing(tables: Tables, examples: Path, tmp_path: Path) -> None:
    shuffled = Tables(tmp_path / "songs", tmp_path / "rankings")
    for source, target in ((tables.songs, shuffled.songs), (tables.rankings, shuffled.rankings)):
        frame = pl.read_parquet(source / "part-00000.parquet").sample(fraction=1, shuffle=True, seed=3)
        target.mkdir()
        frame[:777].write_parquet(target / "part-00000.parquet")
        frame[777:].write_parquet(target / "part-00001.parquet")
    preprocess_data(MODEL, vars(shuffled), tmp_path / "out")
    for split in SPLITS:
        ours, theirs = Reader(tmp_path / "out", MODEL).read(split), Reader(examples, MODEL).read(split)
        np.testing.assert_array_equal(ours.vectors, theirs.vectors)
        np.testing.assert_array_equal(ours.target, theirs.target)


def test_one_day_leaves_no_later_days_but_trains(tmp_path: Path) -> None:
    tables = write(tmp_path, [[float(n)] + [n / 50] * 12 for n in range(40)], [(song, "AR", 0) for song in range(40)])
    sizes = preprocess_data(MODEL, vars(tables), tmp_path / "out")["splits"]
    assert sizes["test-seen"] == {"examples": 0, "rows": 0, "first_day": None, "last_day": None}
    assert sizes["train"]["rows"] > 20


def drop(table: str, column: str) -> Any:
    def change(tables: Tables) -> None:
        file = getattr(tables, table) / "part-00000.parquet"
        pl.read_parquet(file).rename({column: "surprise"}).write_parquet(file)

    return change


@pytest.mark.parametrize(
    ("table", "column"), [("rankings", COUNTRY), ("rankings", DATE), ("songs", "tempo"), ("songs", ID)]
)
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    tables = write(tmp_path, [[0.0] * 13], [(0, "AR", 0)])
    drop(table, column)(tables)
    with pytest.raises(DataInvalid, match=f"{table} cannot be used .no column '{column}'.: see the report of validate"):
        preprocess_data(MODEL, vars(tables), tmp_path / "out")


def test_ids_that_do_not_meet_leave_nothing_to_train_on(tmp_path: Path) -> None:
    tables = write(tmp_path, [[0.0] * 13], [(0, "AR", 0)])
    file = tables.songs / "part-00000.parquet"
    pl.read_parquet(file).with_columns(pl.lit("another").alias(ID)).write_parquet(file)
    with pytest.raises(DataInvalid, match="no train example is left, because"):
        preprocess_data(MODEL, vars(tables), tmp_path / "out")
