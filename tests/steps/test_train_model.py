import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import polars as pl
import pytest

from pipeline.core.errors import HyperparametersInvalid, NotFinite
from pipeline.core.examples import Examples, Reader, read_description, read_predictions
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.network import JukeboxHyperparameters
from pipeline.steps import train_model as module
from pipeline.steps.train_model import (
    KERAS_FILE,
    Visits,
    epoch_of,
    inputs_of,
    predict,
    scores,
    train_model,
    weights_sha256,
)
from tests.models.jukebox.outputs import Trained

pytest_plugins = ("tests.models.jukebox.fixtures",)

TESTS = ("test-seen", "test-unseen")


def train(examples: Path, folder: Path, hyperparameters: Mapping[str, Any]) -> Any:
    return train_model(
        MODEL,
        examples,
        folder / "model",
        folder / "predictions",
        folder / "training.json",
        hyperparameters=hyperparameters,
        data_version="d" * 64,
    )


def test_two_epochs_learn_more_than_the_label_frequencies(examples: Path, trained: Trained) -> None:
    frequencies = Reader(examples, MODEL).read("train").target.sum(axis=0)
    frequencies = frequencies / frequencies.sum()
    for split in TESTS:
        test = Reader(examples, MODEL).read(split)
        found = scores(MODEL.kind, np.concatenate([*read_predictions(trained.predictions, split)]), test)
        baseline = scores(MODEL.kind, np.tile(frequencies, (len(test.vectors), 1)).astype(np.float32), test)
        assert found["cross_entropy"] < baseline["cross_entropy"] - 0.5
        assert found["top1"] > 2 * baseline["top1"]


def test_predictions_are_those_of_the_model_that_was_written(examples: Path, trained: Trained) -> None:
    network = keras.saving.load_model(trained.model / KERAS_FILE)
    assert weights_sha256(network) == trained.training["weights_sha256"]
    for split in TESTS:
        expected = np.concatenate([*read_predictions(trained.predictions, split)])
        np.testing.assert_array_equal(predict(network, Reader(examples, MODEL).read(split)), expected)
        np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)


def test_the_model_takes_raw_features(examples: Path, trained: Trained) -> None:
    description = read_description(examples)
    network = keras.saving.load_model(trained.model / KERAS_FILE)
    assert network.input_shape == (None, 13)
    assert network.output_shape == (None, len(description["labels"]))
    np.testing.assert_allclose(network.get_layer("normalise").mean.numpy().ravel(), description["mean"], rtol=1e-5)


def test_the_same_again_gives_the_same_weights_and_another_seed_others(
    examples: Path, trained: Trained, tmp_path: Path
) -> None:
    # Whole numbers come as floats from Kubeflow.
    again = train(examples, tmp_path / "again", {"epochs": 2.0})
    other = train(examples, tmp_path / "other", {"epochs": 2, "seed": 1})
    assert again["weights_sha256"] == trained.training["weights_sha256"]
    assert other["weights_sha256"] != trained.training["weights_sha256"]


def test_training_that_diverges_stops_in_its_epoch_and_says_what_to_change(examples: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"the loss in epoch 1 of 2, at batch \d+ of \d+, is nan") as raised:
        train(examples, tmp_path, {"epochs": 2, "learning_rate": 1.0, "hidden_layers": [256] * 16})
    assert "lower learning_rate (it was 1; try 0.1)" in str(raised.value)
    assert "a larger batch_size (512)" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_epoch_at_its_batch(examples: Path) -> None:
    visits = Visits(Reader(examples, MODEL).read("train"), 64)
    inputs = inputs_of(MODEL, read_description(examples))
    network = MODEL.network(inputs, JukeboxHyperparameters(hidden_layers=[8]))
    network.compile(keras.optimizers.Adam(0.001))
    example, weight = visits.of_epoch(np.random.default_rng(0))
    weight[5, 0] = np.inf
    total, steps = epoch_of(network, visits, MODEL.kind, inputs)(example, weight)
    assert int(steps) == 6
    assert not np.isfinite(float(total))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("weights", "a weight in epoch 2 of 3 is inf"),
        ("validation", "the validation loss in epoch 2 of 3 is nan"),
        ("test", "a prediction of the best epoch, 3, on test-seen is nan"),
    ],
)
def test_no_weight_metric_or_prediction_that_is_not_finite_is_kept(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, message: str
) -> None:
    epochs = itertools.count(1)
    predictions = itertools.count(1)
    make = module.epoch_of

    def epoch_of_broken(network: keras.Model, *others: Any) -> Any:
        function = make(network, *others)

        def epoch(*arrays: Any) -> Any:
            found = function(*arrays)
            if next(epochs) == 2 and broken == "weights":
                network.set_weights(
                    [np.where(weight == weight.max(), np.inf, weight) for weight in network.get_weights()]
                )
            return found

        return epoch

    def predict_broken(network: keras.Model, examples: Examples) -> Any:
        bad = {"validation": 2, "test": 4}.get(broken) == next(predictions)
        return predict(network, examples) * (np.nan if bad else 1)

    monkeypatch.setattr(module, "epoch_of", epoch_of_broken)
    monkeypatch.setattr(module, "predict", predict_broken)
    with pytest.raises(NotFinite, match=message):
        train(examples, tmp_path, {"epochs": 3, "patience": 3, "hidden_layers": [8]})
    assert not list(tmp_path.iterdir())


def test_training_stops_when_validation_no_longer_gains_and_keeps_the_best_epoch(
    examples: Path, tmp_path: Path
) -> None:
    report = train(
        examples,
        tmp_path,
        {"epochs": 60, "patience": 2, "learning_rate": 0.02, "batch_size": 64, "hidden_layers": [64]},
    )
    losses = [epoch["validation_loss"] for epoch in report["history"]]
    assert report["stopped_early"]
    assert len(losses) < 60
    assert len(losses) - report["best_epoch"] == 2
    assert report["best_epoch"] == 1 + int(np.argmin(losses))
    network = keras.saving.load_model(tmp_path / "model" / KERAS_FILE)
    validation = Reader(examples, MODEL).read("validation")
    assert scores(MODEL.kind, predict(network, validation), validation)["cross_entropy"] == pytest.approx(
        min(losses), abs=1e-5
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 2}, "epoch: found 2, which is not a known key .known: epochs, batch_size"),
        ({"epochs": 0}, "epochs: found 0"),
        ({"epochs": 1.5, "momentum": 0.9}, "epochs: found 1.5.*momentum: found 0.9"),
        ({"hidden_layers": [64, 0]}, r"hidden_layers.1: found 0"),
    ],
)
def test_wrong_hyperparameters_are_refused_by_name_before_anything_is_written(
    examples: Path, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(HyperparametersInvalid, match=message):
        train(examples, tmp_path, wrong)
    assert not list(tmp_path.iterdir())


def test_hidden_layers_and_dropout_shape_the_network(examples: Path, tmp_path: Path) -> None:
    report = train(examples, tmp_path, {"epochs": 1, "hidden_layers": [7, 5], "dropout": 0.5})
    network = keras.saving.load_model(tmp_path / "model" / KERAS_FILE)
    assert [layer.units for layer in network.layers if hasattr(layer, "units")] == [7, 5, network.output_shape[1]]
    assert report["parameters"] == network.count_params()


def test_each_epoch_has_an_order_of_its_own(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    of_epoch = Visits.of_epoch

    def note(visits: Visits, rng: np.random.Generator) -> Any:
        found = of_epoch(visits, rng)
        orders.append(found[0].ravel())
        return found

    monkeypatch.setattr(Visits, "of_epoch", note)
    train(examples, tmp_path, {"epochs": 2, "hidden_layers": [8]})
    assert (orders[0] != orders[1]).mean() > 0.9


@pytest.mark.parametrize("budget", [10, 1_000, 10_000_000])
def test_an_epoch_is_one_pass_over_the_mass_of_the_rows(
    examples: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(module, "VISITS", budget)
    train_examples = Reader(examples, MODEL).read("train")
    visits = Visits(train_examples, 64)
    example, weight = visits.of_epoch(np.random.default_rng(0))
    assert example.shape == weight.shape == (visits.steps, visits.batch)
    mass = weight.ravel() * (visits.rows / len(visits.example))
    np.testing.assert_allclose(np.bincount(example.ravel(), mass), train_examples.rows, rtol=1e-4)
    of_label = mass @ visits.target[example.ravel()]
    np.testing.assert_allclose(of_label, train_examples.target.sum(axis=0), rtol=1e-3)


@pytest.mark.parametrize(
    ("times", "batch_size", "batch"),
    [
        (1, 512, 512),  # a visit is a row
        (1, 10, 10),  # what is asked for, although it is little
        (1_000, 512, 60),  # of 512 rows each, a batch would hold a visit or two
        (1_000, 10, 10),
        (1_000, 1_000_000, 0),  # one batch in proportion
    ],
)
def test_a_batch_keeps_enough_visits_however_many_rows_there_are(
    examples: Path, times: int, batch_size: int, batch: int
) -> None:
    train_examples = Reader(examples, MODEL).read("train")
    more = replace(train_examples, target=train_examples.target * np.uint32(times), rows=train_examples.rows * times)
    visits = Visits(more, batch_size)
    proportional = round(len(visits.example) * batch_size / visits.rows)
    assert visits.batch == (batch or proportional)
    if times == 1:
        assert visits.rows / visits.steps == pytest.approx(batch_size, rel=0.05), "so many rows lie behind a step"


def test_the_loss_over_examples_is_the_loss_over_rows() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, (20, 4)).astype(np.uint32) + 1
    probabilities = rng.dirichlet(np.ones(4), 20).astype(np.float32)
    example, label = np.nonzero(counts)
    rows = np.repeat(np.stack([example, label], 1), counts[example, label], axis=0)
    over_rows = -np.log(probabilities[rows[:, 0], rows[:, 1]]).mean()
    examples = Examples(pl.DataFrame(), np.zeros((20, 13), np.float32), counts, counts.sum(axis=1))
    assert scores(MODEL.kind, probabilities, examples)["cross_entropy"] == pytest.approx(over_rows, rel=1e-5)


def test_the_report_tells_what_was_used(trained: Trained) -> None:
    report = json.loads(trained.report.read_text())
    assert report["hyperparameters"]["epochs"] == 2
    assert report["hyperparameters"]["seed"] == 0
    assert [entry["epoch"] for entry in report["history"]] == [1, 2]
