import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.errors import HyperparametersInvalid
from pipeline.examples import TEST_SPLITS, Examples, read_description, read_predictions, read_split
from pipeline.steps import train_model as module
from pipeline.steps.train_model import KERAS_FILE, Visits, predict, scores, train_model, weights_sha256
from tests.steps.conftest import Trained


def train(examples: Path, folder: Path, hyperparameters: Mapping[str, Any], checkpoint: Path | None = None) -> Any:
    return train_model(
        examples,
        folder / "model",
        folder / "predictions",
        folder / "training.json",
        hyperparameters=hyperparameters,
        data_version="d" * 64,
        checkpoint=checkpoint,
    )


def test_two_epochs_learn_more_than_the_country_frequencies(examples: Path, trained: Trained) -> None:
    frequencies = read_split(examples, "train").counts.sum(axis=0)
    frequencies = frequencies / frequencies.sum()
    for split in TEST_SPLITS.values():
        test = read_split(examples, split)
        loss, top1 = scores(read_predictions(trained.predictions, split), test)
        baseline, chance = scores(np.tile(frequencies, (len(test.vectors), 1)).astype(np.float32), test)
        assert loss < baseline - 0.5
        assert top1 > 2 * chance


def test_predictions_are_those_of_the_model_that_was_written(examples: Path, trained: Trained) -> None:
    network = keras.saving.load_model(trained.model / KERAS_FILE)
    assert weights_sha256(network) == trained.training["weights_sha256"]
    for split in TEST_SPLITS.values():
        expected = read_predictions(trained.predictions, split)
        np.testing.assert_array_equal(predict(network, read_split(examples, split)), expected)
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


def test_training_that_was_interrupted_goes_on_to_the_same_weights(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"epochs": 4, "dropout": 0.0}
    whole = train(examples, tmp_path / "whole", wanted)
    checkpoint = tmp_path / "checkpoint"
    add = module._Progress.add

    def die_after_two(progress: Any, *values: Any) -> None:
        add(progress, *values)
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module._Progress, "add", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            train(examples, tmp_path / "first", wanted, checkpoint)
    assert not (tmp_path / "first" / "model").exists()

    epochs = []

    def note(progress: Any, *values: Any) -> None:
        add(progress, *values)
        epochs.append(progress.epoch)

    with monkeypatch.context() as patched:
        patched.setattr(module._Progress, "add", note)
        resumed = train(examples, tmp_path / "second", wanted, checkpoint)
    assert epochs == [3, 4]
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert [e["validation_loss"] for e in resumed["history"]] == [e["validation_loss"] for e in whole["history"]]


def test_a_checkpoint_of_another_training_is_not_used(examples: Path, tmp_path: Path) -> None:
    train(examples, tmp_path / "one", {"epochs": 1, "seed": 5}, tmp_path / "checkpoint")
    fresh = train(examples, tmp_path / "fresh", {"epochs": 1, "seed": 6})
    after = train(examples, tmp_path / "two", {"epochs": 1, "seed": 6}, tmp_path / "checkpoint")
    assert after["weights_sha256"] == fresh["weights_sha256"]


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
    validation = read_split(examples, "validation")
    assert scores(predict(network, validation), validation)[0] == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 2}, "epoch: found 2, which is no known key .known: epochs, batch_size"),
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
    train_examples = read_split(examples, "train")
    visits = Visits(train_examples, 64)
    example, weight = visits.of_epoch(np.random.default_rng(0))
    assert example.shape == weight.shape == (visits.steps, visits.batch)
    mass = weight.ravel() * (visits.rows / len(visits.example))
    np.testing.assert_allclose(np.bincount(example.ravel(), mass), train_examples.rows, rtol=1e-4)
    of_country = mass @ visits.frequencies[example.ravel()]
    np.testing.assert_allclose(of_country, train_examples.counts.sum(axis=0), rtol=1e-3)
    assert abs(visits.rows / visits.steps - 64) < 64, "about so many rows lie behind a step"


def test_the_loss_over_examples_is_the_loss_over_rows() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 9, (20, 4)).astype(np.uint32) + 1
    probabilities = rng.dirichlet(np.ones(4), 20).astype(np.float32)
    example, country = np.nonzero(counts)
    rows = np.repeat(np.stack([example, country], 1), counts[example, country], axis=0)
    over_rows = -np.log(probabilities[rows[:, 0], rows[:, 1]]).mean()
    assert scores(probabilities, Examples(np.zeros((20, 13), np.float32), counts))[0] == pytest.approx(
        over_rows, rel=1e-5
    )


def test_the_report_tells_what_was_used(trained: Trained) -> None:
    report = json.loads(trained.report.read_text())
    assert report["hyperparameters"]["epochs"] == 2
    assert report["hyperparameters"]["seed"] == 0
    assert [entry["epoch"] for entry in report["history"]] == [1, 2]
