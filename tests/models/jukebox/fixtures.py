"""A small run of the steps, made once; a test module that looks at it names this file in ``pytest_plugins``."""

from datetime import date
from pathlib import Path

import pytest

from pipeline.models.jukebox import MODEL
from pipeline.steps.preprocess_data import preprocess_data
from tests.models.jukebox.outputs import Tables, Trained
from tests.models.jukebox.small import generate


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Sample data of 12 countries as fetch_data leaves it."""
    folder = tmp_path_factory.mktemp("tables")
    made = generate(folder, rows=20_000, last_day=date(2026, 5, 31))
    found = Tables(folder / "songs", folder / "rankings")
    for path, table in zip(made.values(), (found.songs, found.rankings), strict=True):
        table.mkdir()
        path.rename(table / "part-00000.parquet")
    return found


@pytest.fixture(scope="session")
def examples(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of ``tables``."""
    folder = tmp_path_factory.mktemp("examples")
    preprocess_data(MODEL, vars(tables), folder)
    return folder


@pytest.fixture(scope="session")
def trained(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model trained for two epochs."""
    from pipeline.steps.train_model import train_model

    folder = tmp_path_factory.mktemp("trained")
    found = Trained(folder / "model", folder / "predictions", folder / "training.json")
    train_model(
        MODEL,
        examples,
        found.model,
        found.predictions,
        found.report,
        hyperparameters={"epochs": 2},
        data_version="d" * 64,
    )
    return found


@pytest.fixture(scope="session")
def onnx_file(examples: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model as ONNX."""
    from pipeline.steps.convert_model import convert_model

    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    convert_model(
        trained.model,
        examples,
        trained.report,
        file,
        model_name="jukebox",
        version="0.0.2",
        data_version="d" * 64,
    )
    return file
