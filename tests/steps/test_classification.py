"""A model that tells classes apart, two or more, goes through the steps; its figures are those of its kind."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from pipeline.core.contract import INPUT, Column, Hyperparameters, Inputs, Model, Table
from pipeline.core.encoders import Number, OneHot
from pipeline.core.examples import Reader, read_predictions
from pipeline.core.kinds import Check, Classification
from pipeline.core.report import evaluation_html
from pipeline.core.splits import by_time, one_table
from pipeline.steps.evaluate_model import evaluate_model
from pipeline.steps.preprocess_data import preprocess_data
from pipeline.steps.train_model import train_model
from tests.parity import convert_and_verify

if TYPE_CHECKING:
    import keras

BIRDS = Table(
    "birds",
    (
        Column("ring", pl.Int64, unique=True),
        Column("bill", pl.Float64, Number(missing="median"), low=10, high=80, missing=0.2, unit="mm"),
        Column("island", pl.String, OneHot(), missing=0.2),
        Column("species", pl.String, missing=0.1),
    ),
)
SPECIES = ["adelie", "chinstrap", "gentoo"]
BILLS = [30.0, 42.0, 54.0]


def network(inputs: Inputs, options: Hyperparameters) -> "keras.Model":
    import keras

    features = keras.Input((len(inputs.features),), name=INPUT)
    x = keras.layers.Normalization(mean=inputs.mean, variance=inputs.variance)(features)
    x = keras.layers.Dense(16, activation="relu")(x)
    return keras.Model(
        features, keras.layers.Dense(len(inputs.labels), activation=inputs.activation, name=inputs.output)(x)
    )


MODEL = Model(
    name="birds",
    title="From a bird's bill and its island to its species",
    tables=[BIRDS],
    kind=Classification("species"),
    examples=one_table("birds", "species", by_time("ring")),
    network=network,
    hyperparameters=Hyperparameters(epochs=30, batch_size=32, learning_rate=0.02, patience=30),
    slices={"island": "island"},
    checks=[Check("worst-species", "top1", at_least=0.6, slice="label", min_rows=20)],
)


def birds(folder: Path, classes: int) -> Path:
    """Birds of so many species, which differ by their bills; one of the last ones is of a species never met before."""
    rng = np.random.default_rng(0)
    rows = 1_200
    species = rng.integers(classes, size=rows)
    table = pl.DataFrame(
        {
            "ring": np.arange(rows),
            "bill": (np.array(BILLS)[species] + rng.normal(0, 3, rows)).round(1),
            "island": np.array(["biscoe", "dream", None], dtype=object)[rng.integers(3, size=rows)].tolist(),
            "species": [*np.array(SPECIES)[species[:-1]], "emperor"],
        }
    ).with_columns(
        bill=pl.when(pl.Series(rng.random(rows) < 0.05)).then(None).otherwise(pl.col("bill")),
        species=pl.when(pl.col("ring") % 50 == 7).then(None).otherwise(pl.col("species")),
    )
    found = folder / "birds"
    found.mkdir(parents=True)
    table.write_parquet(found / "part-00000.parquet")
    return found


@pytest.fixture(params=[2, 3], scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder with what the steps left, and how many species training has met."""
    classes: int = request.param
    folder = tmp_path_factory.mktemp("birds")
    preprocess_data(MODEL, {"birds": birds(folder, classes)}, folder / "examples")
    train_model(
        MODEL,
        folder / "examples",
        folder / "model",
        folder / "predictions",
        folder / "training.json",
        hyperparameters={},
        data_version="d" * 64,
    )
    evaluate_model(
        MODEL, folder / "examples", folder / "predictions", folder / "evaluation.json", folder / "verdict.json"
    )
    return folder, classes


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_its_classes_are_those_of_training_and_its_answers_are_probabilities(made: tuple[Path, int]) -> None:
    folder, classes = made
    reader = Reader(folder / "examples", MODEL)
    assert list(reader.labels) == SPECIES[:classes]
    predictions = np.concatenate(list(read_predictions(folder / "predictions", "test")))
    assert predictions.shape == (len(reader.read("test").rows), classes)
    assert predictions.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert MODEL.kind.answer(predictions[0], reader.labels)[0][0] in SPECIES


def test_it_beats_how_often_each_class_occurs_and_each_class_is_judged(made: tuple[Path, int]) -> None:
    folder, classes = made
    evaluation, verdict = read(folder, "evaluation"), read(folder, "verdict")
    scores = evaluation["model"]["all"]
    assert scores["top1"] > 0.9
    assert evaluation["baseline"]["all"]["cross_entropy"] == pytest.approx(np.log(classes), abs=0.05)
    assert [entry["value"] for entry in evaluation["slices"]["label"]] == SPECIES[:classes]
    # Where the island is not known is a place of its own, beside those that have a name.
    assert len(evaluation["slices"]["island"]) == 3
    assert verdict["passed"]
    worst = min(entry["top1"] for entry in evaluation["slices"]["label"])
    [check] = [check for check in verdict["checks"] if check["name"] == "worst-species"]
    assert check["value"] == pytest.approx(worst)


def test_a_bird_of_a_species_never_met_counts_for_nothing(made: tuple[Path, int]) -> None:
    folder, _ = made
    examples = Reader(folder / "examples", MODEL).read("test")
    assert examples.rows.tolist().count(0) == 1
    assert read(folder, "evaluation")["model"]["all"]["rows"] == len(examples.rows) - 1


def test_the_report_shows_the_confusion_of_the_classes(made: tuple[Path, int]) -> None:
    folder, classes = made
    page = evaluation_html(MODEL, read(folder, "evaluation"), read(folder, "verdict"))  # type: ignore[arg-type]
    assert all(name in page for name in SPECIES[:classes])
    assert "emperor" not in page


def test_the_served_model_answers_as_keras_does(made: tuple[Path, int], tmp_path: Path) -> None:
    folder, classes = made
    parity = convert_and_verify(MODEL, folder, tmp_path)
    assert parity["passed"]
    [answer] = parity["golden"]["response"]["outputs"]
    assert answer["name"] == "probabilities"
    assert answer["shape"][1] == classes
