"""What each model must keep, whatever it is about: all of ``pipeline/models``, and the second one of the tests."""

from collections.abc import Callable, Mapping
from datetime import date
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import polars as pl
import pytest

import pipeline.models
from pipeline.core import encoders
from pipeline.core.contract import TRAIN, VALIDATION, Model, folder_of, load
from pipeline.core.data import open_data
from pipeline.core.tables import to_parquet
from pipeline.steps.preprocess_data import preprocess_data

ROWS = 5_000
DAY = date(2026, 5, 31)
MODELS = [
    *(f"pipeline.models.{found.name}" for found in iter_modules(pipeline.models.__path__)),
    "tests.models.second",
]


@pytest.fixture(params=MODELS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(name: str) -> Model:
    found: Model = import_module(name).MODEL
    return found


@pytest.fixture(scope="module")
def tables(name: str, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The sample's tables as fetch_data leaves them."""
    folder = tmp_path_factory.mktemp("sample")
    generate: Callable[..., Any] = import_module(f"{name}.sample").generate
    made = generate(folder, rows=ROWS, last_day=DAY)
    found = {}
    for table in model.tables:
        found[table.name] = folder / "tables" / table.name
        found[table.name].mkdir(parents=True)
        to_parquet([(table.name, made[table.name])], found[table.name], table.schema)
    return found


def test_its_name_is_that_of_its_folder(name: str, model: Model) -> None:
    assert folder_of(model.name) == name.rpartition(".")[2]
    if name.startswith("pipeline."):
        assert load(model.name) is model


def test_its_examples_have_their_columns_and_each_split_has_some(
    model: Model, tables: Mapping[str, Path], tmp_path: Path
) -> None:
    with model.examples(open_data(model, tables, scratch=tmp_path)) as found:
        assert {TRAIN, VALIDATION} < set(found.splits), "at least one split is a test"
        columns = {column.name for column in model.features} | {model.kind.target}
        for split, examples in found.splits.items():
            frame = examples.rows.collect()
            assert columns <= set(frame.columns), split
            assert len(frame), split


def test_its_features_are_finite_and_vary(model: Model, tables: Mapping[str, Path], tmp_path: Path) -> None:
    description = preprocess_data(model, tables, tmp_path)
    train = pl.read_parquet(tmp_path / f"{TRAIN}.parquet")
    vectors = encoders.encode(train, description["encoding"])
    assert vectors.dtype == np.float32
    assert len({*description["features"]}) == vectors.shape[1]
    still = [
        feature for feature, spread in zip(description["features"], np.ptp(vectors, axis=0), strict=True) if not spread
    ]
    assert not still, "a feature with one value teaches nothing"
    assert len(description["labels"]) == len(description["offset"]) == len(description["factor"])


def test_its_slices_have_few_values(model: Model, tables: Mapping[str, Path], tmp_path: Path) -> None:
    with model.examples(open_data(model, tables, scratch=tmp_path)) as found:
        frame = pl.concat([split.rows for split in found.splits.values()]).collect()
    for slice_, expression in model.slices.items():
        assert frame.select(pl.sql_expr(expression)).to_series().n_unique() < 200, slice_


def test_nothing_that_is_known_later_is_a_feature(model: Model) -> None:
    later = {column.name for table in model.tables for column in table.columns if column.known_later}
    derived = {column.derived for column in model.features}
    assert not [name for name in later for expression in derived if name in expression.split()]
