"""What a model's functions read of the fetched tables."""

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipeline.core.contract import Column, Table
from pipeline.core.data import lazy
from pipeline.core.parts import Parts

CARS = Table(
    "cars",
    (Column("name", pl.String), Column("weight", pl.Int64), Column("tons", pl.Float64, derived="weight / 1000")),
)


@pytest.fixture
def cars(tmp_path: Path) -> pl.LazyFrame:
    """Five cars in two parts."""
    table = pl.DataFrame({"name": [*"abcde"], "weight": [1000, 1500, 2000, 2500, 3000], "built": date(2026, 1, 1)})
    table[:3].write_parquet(tmp_path / "part-00000.parquet")
    table[3:].write_parquet(tmp_path / "part-00001.parquet")
    return lazy(CARS, Parts(tmp_path, CARS.schema))


def test_a_table_has_its_columns_and_the_derived_ones(cars: pl.LazyFrame) -> None:
    assert cars.collect().to_dict(as_series=False) == {
        "name": [*"abcde"],
        "weight": [1000.0, 1500.0, 2000.0, 2500.0, 3000.0],
        "tons": [1.0, 1.5, 2.0, 2.5, 3.0],
    }


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_a_part_of_a_table_is_that_part(cars: pl.LazyFrame, engine: str) -> None:
    def names(some: pl.LazyFrame) -> list[str]:
        return some.collect(engine=engine)["name"].to_list()  # type: ignore[call-overload, no-any-return]

    heavy = pl.col("weight") > 1500
    assert names(cars.filter(heavy)) == [*"cde"]
    assert names(cars.filter(heavy).select("name")) == [*"cde"]
    assert names(cars.filter(pl.col("tons") > 2)) == [*"de"]
    assert names(cars.filter(heavy).head(2)) == [*"cd"]
    assert names(cars.head(4).filter(heavy)) == [*"cd"]
    assert names(cars.head(2)) == [*"ab"]
    assert names(cars.slice(2, 2)) == [*"cd"]
    assert names(cars.tail(1)) == ["e"]
