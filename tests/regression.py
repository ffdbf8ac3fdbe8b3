"""A small model of another kind than the jukebox's: the price of a used car, from one generated table."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline.core.contract import Column, Data, Hyperparameters, Inputs, Model, Split, Splits, Table
from pipeline.core.encoders import Elapsed, Number, OneHot
from pipeline.core.examples import Reader, write_predictions
from pipeline.core.kinds import Regression
from pipeline.steps.evaluate_model import evaluate_model
from pipeline.steps.preprocess_data import preprocess_data
from tests import report_fixture

CARS = Table(
    "cars",
    [
        Column("mileage", pl.Float64, Number(missing="median"), low=0, high=500_000, missing=0.2, unit="km"),
        Column("fuel", pl.String, OneHot(), values=["diesel", "electric", "petrol"], missing=0.1),
        Column("sold", pl.Datetime, Elapsed(), low=date(2020, 1, 1)),
        Column("price", pl.Float64, low=0, unit="k€"),
    ],
)


@contextmanager
def examples(data: Data) -> Iterator[Splits]:
    """By the time of the sale: the last fifth is the test."""
    cars = data["cars"].sort("sold").with_row_index("n").with_columns(place=pl.col("n") / pl.len())
    bounds = {"train": (0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1)}
    columns = [column.name for column in CARS.columns]
    yield Splits(
        {
            name: Split(cars.filter(pl.col("place").is_between(*ends, closed="left")).select(columns))
            for name, ends in bounds.items()
        }
    )


def network(inputs: Inputs, hyperparameters: Any) -> Any:
    """A linear one."""
    import keras

    features = keras.Input((len(inputs.features),), name="features")
    plain = keras.layers.Normalization(mean=inputs.mean, variance=inputs.variance)(features)
    guess = keras.layers.Dense(1)(plain)
    return keras.Model(features, keras.layers.Rescaling(inputs.factor[0], inputs.offset[0], name=inputs.output)(guess))


MODEL = Model(
    name="used-cars",
    title="From what an advertisement says of a car to its price",
    tables=[CARS],
    kind=Regression("price"),
    examples=examples,
    network=network,
    hyperparameters=Hyperparameters(epochs=12, batch_size=32, learning_rate=0.05),
    slices={"fuel": "fuel", "mileage": "CASE WHEN mileage < 100000 THEN 'below 100,000 km' ELSE 'more' END"},
    limits=["It knows nothing of damage."],
)


def generate(folder: Path, rows: int = 1500) -> dict[str, Path]:
    """Write the table as fetch_data leaves it; return its folder by its name."""
    rng = np.random.default_rng(0)
    mileage, days = rng.uniform(0, 250_000, rows).round(), rng.integers(0, 1500, rows)
    fuel = rng.choice(CARS["fuel"].values, rows)
    price = 40 - mileage / 8000 + 6 * (fuel == "electric") - days / 300 + rng.normal(0, 2, rows)
    table = pl.DataFrame(
        {
            "mileage": mileage,
            "fuel": fuel,
            "sold": [date(2021, 1, 1) + timedelta(days=int(day)) for day in days],
            "price": price.clip(0.5),
        }
    ).with_columns(
        pl.when(pl.Series(rng.random(rows) > 0.1)).then("mileage"),
        pl.when(pl.Series(rng.random(rows) > 0.05)).then("fuel"),
    )
    cars = folder / "cars"
    cars.mkdir(parents=True)
    table.write_parquet(cars / "part-00000.parquet")
    return {"cars": cars}


def documents(folder: Path) -> dict[str, Any]:
    """The documents of a run whose predictions are off by a tenth; it is made in ``folder``."""
    preprocessing = preprocess_data(MODEL, generate(folder), folder / "examples")
    reader = Reader(folder / "examples", MODEL)
    for split in reader.tests:
        target = reader.read(split).target
        write_predictions(folder / "predictions", split, (target * 1.1 - 1).astype(np.float32))
    evaluation, verdict = evaluate_model(
        MODEL, folder / "examples", folder / "predictions", folder / "evaluation.json", folder / "verdict.json"
    )
    found = report_fixture.documents(labels=3)
    mileage = {
        "mean": 125_000.0, "std": 70_000.0, "min": 0.0, "max": 250_000.0,
        "edges": [25_000.0 * n for n in range(11)], "shares": [0.1] * 10,
    }  # fmt: skip
    found["validation"] |= {
        "profile": {
            "rows": {"cars": 1500},
            "examples": {"train": 900, "validation": 300, "test": 300},
            "rows_of_examples": 1500,
            "features": {"mileage": mileage},
            "categories": {"fuel": {"diesel": 0.6, "petrol": 0.4}},
            "target": mileage,
            "first_day": None,
            "last_day": None,
        },
        "shift": None,
        "shift_from_served": None,
    }
    for entry in found["training"]["history"]:
        entry["validation_mae"] = entry.pop("validation_top1") * 20
    first = reader.read("test").vectors[0]
    golden = found["parity"]["golden"]
    golden["request"]["inputs"][0] |= {"shape": [1, len(first)], "data": first.tolist()}
    golden["response"]["outputs"][0] |= {"name": MODEL.kind.output, "shape": [1, 1], "data": [21.5]}
    tables = {
        "cars": {**found["tables"][report_fixture.FIRST], "source": "s3://cars/*.csv", "rows": 1500, "records": 1500}
    }
    return found | {
        "preprocessing": preprocessing,
        "evaluation": evaluation,
        "verdict": verdict,
        "tables": tables,
        "lineage": {
            **found["lineage"],
            "model": {**found["lineage"]["model"], "name": MODEL.name},
            "data": {"version": "7e" * 32, **tables, "profile": found["validation"]["profile"]},
            "encoding": preprocessing["encoding"],
            "shift": {"champion": None, "served": None},
            "metrics": evaluation["model"],
            "beside": {who: evaluation[who] for who in ("baseline", "champion", "served")},
            "verdict": verdict,
            "champion": None,
        },
    }
