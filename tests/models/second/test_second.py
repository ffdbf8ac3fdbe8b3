"""A second model goes all the way through the steps, which know nothing of flats."""

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.tables import to_parquet
from pipeline.steps.evaluate_model import evaluate_model
from pipeline.steps.preprocess_data import preprocess_data
from pipeline.steps.train_model import train_model
from tests.models.second import DISTRICTS, FLATS, MODEL
from tests.models.second.sample import generate
from tests.parity import convert_and_verify


@dataclass(frozen=True)
class Trained:
    """What the steps left."""

    folder: Path
    description: dict[str, Any]
    training: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("second")
    file = generate(folder, rows=3_000, last_day=date(2026, 5, 31))["flats"]
    table = folder / "flats"
    table.mkdir()
    to_parquet([("flats.csv", file)], table, FLATS.schema)
    description = preprocess_data(MODEL, {"flats": table}, folder / "examples")
    training = train_model(
        MODEL,
        folder / "examples",
        folder / "model",
        folder / "predictions",
        folder / "training.json",
        hyperparameters={},
        data_version="d" * 64,
    )
    return Trained(folder, description, training)


def test_categories_missing_values_and_days_become_numbers(trained: Trained) -> None:
    features = trained.description["features"]
    assert [f"district: {name}" for name in DISTRICTS] == features[: len(DISTRICTS)]
    assert {"built", "built: missing", "size_of_a_room", "advertised: years"} < set(features)
    assert "viewings" not in features
    [built] = [entry for entry in trained.description["encoding"] if entry["column"] == "built"]
    assert 1890 < built["parameters"]["missing"] < 2024


def test_flats_without_a_rent_are_not_learnt_from(trained: Trained) -> None:
    sizes = trained.description["splits"]
    assert 2_850 < sum(size["rows"] for size in sizes.values()) < 3_000
    assert sizes["train"]["first_day"] < sizes["train"]["last_day"] <= "2026-05-31"


def test_it_is_better_than_the_mean_and_judged_by_district(trained: Trained) -> None:
    folder = trained.folder
    _, verdict = evaluate_model(
        MODEL, folder / "examples", folder / "predictions", folder / "evaluation.json", folder / "verdict.json"
    )
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["model"]["all"]["mae"] < evaluation["baseline"]["all"]["mae"] / 4
    assert evaluation["baseline"]["all"]["r2"] == pytest.approx(0, abs=0.05)
    assert [entry["value"] for entry in evaluation["slices"]["district"]] == list(DISTRICTS)
    rows = sum(entry["rows"] for entry in evaluation["slices"]["district"])
    assert rows == evaluation["model"]["all"]["rows"]
    checks = {check["name"]: check for check in verdict["checks"]}
    worst = max(evaluation["slices"]["district"], key=lambda entry: entry["mae"])
    assert checks["worst-district"]["value"] == pytest.approx(worst["mae"])
    assert checks["worst-district"]["where"] == f"district {worst['value']}"
    assert verdict["passed"]


def test_a_model_that_fails_one_district_is_refused(trained: Trained, tmp_path: Path) -> None:
    folder = trained.folder
    _, verdict = evaluate_model(
        MODEL,
        folder / "examples",
        folder / "predictions",
        tmp_path / "evaluation.json",
        tmp_path / "verdict.json",
        thresholds={"worst-district": 1},
    )
    assert not verdict["passed"]
    assert "worst-district is" in verdict["summary"]
    assert "on district" in verdict["summary"]


def test_the_served_model_does_what_keras_does_in_the_unit_of_the_rent(trained: Trained, tmp_path: Path) -> None:
    parity = convert_and_verify(MODEL, trained.folder, tmp_path)
    assert parity == json.loads((tmp_path / "parity.json").read_text())
    assert parity["passed"]
    [answer] = parity["golden"]["response"]["outputs"]
    assert answer["name"] == "prediction"
    assert all(50 < rent < 10_000 for rent in answer["data"])
