"""From a flat's size, place, floor and the day of its advertisement to its rent: a model as a team would write it."""

from typing import TYPE_CHECKING

import polars as pl

from pipeline.core.contract import INPUT, Column, Hyperparameters, Inputs, Model, Table
from pipeline.core.encoders import Elapsed, Number, OneHot, Season
from pipeline.core.kinds import Check, Regression
from pipeline.core.splits import by_hash, one_table

if TYPE_CHECKING:
    import keras

DISTRICTS = ("centre", "harbour", "hill", "north", "south")

FLATS = Table(
    "flats",
    (
        Column("id", pl.String, unique=True),
        Column("district", pl.String, OneHot(), values=DISTRICTS),
        Column("size", pl.Float64, Number(), low=8, high=400, usual=(30, 150), unit="m²"),
        Column("rooms", pl.Int64, Number(), low=1, high=12, discrete=True),
        Column("built", pl.Int64, Number(missing="median"), low=1800, high=2030, missing=0.3, unit="year"),
        Column("energy", pl.String, OneHot(), missing=0.5),
        Column("size_of_a_room", pl.Float64, Number(), derived="size / rooms", unit="m²"),
        Column("advertised", pl.Datetime, Elapsed()),
        Column("season", pl.Datetime, Season(), derived="advertised"),
        Column("viewings", pl.Int64, known_later=True, low=0),
        Column("rent", pl.Float64, low=50, high=20_000, missing=0.05, unit="€ a month"),
    ),
)


class SecondHyperparameters(Hyperparameters):
    """Those of training, and the width of this network."""

    units: int = 32


def network(inputs: Inputs, options: SecondHyperparameters) -> "keras.Model":
    """A line beside a hidden layer; their sum is scaled to the unit of the target."""
    import keras

    features = keras.Input((len(inputs.features),), name=INPUT)
    x = keras.layers.Normalization(mean=inputs.mean, variance=inputs.variance, name="normalise")(features)
    hidden = keras.layers.Dense(options.units, activation="relu", name="hidden")(x)
    both = keras.layers.add([keras.layers.Dense(1, name="line")(x), keras.layers.Dense(1, name="curve")(hidden)])
    return keras.Model(features, keras.layers.Rescaling(inputs.factor, inputs.offset, name=inputs.output)(both))


MODEL = Model(
    name="second",
    title="From a flat's size, place and age to its rent",
    tables=[FLATS],
    kind=Regression("rent"),
    examples=one_table("flats", "rent", by_hash("id"), day="advertised"),
    network=network,
    hyperparameters=SecondHyperparameters(epochs=60, batch_size=64, learning_rate=0.01, patience=10),
    slices={"district": "district"},
    checks=[
        Check("r2-floor", "r2", at_least=0.6, description="share of the rents' variance that is explained"),
        Check("worst-district", "mae", at_most=250, slice="district", min_rows=20, description="€ a month, on average"),
    ],
)
