"""What the jukebox's steps make of one sample, byte for byte as it was recorded in golden.json.

A change that only moves code leaves all of it as it is. After a change that means to change it, record anew with
`GOLDEN=1 pytest tests/models/jukebox/test_golden.py`, and look at the difference.

Trained weights differ between kinds of processors, which add in another order. The record says on which one it was made
(``probe``); on another one the figures are compared within what such orders change, and the ONNX file without weights.
"""

import hashlib
import json
import os
from datetime import date
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import polars as pl
import pytest

from pipeline.core.documents import write_json
from pipeline.models.jukebox import MODEL
from pipeline.steps.convert_model import convert_model
from pipeline.steps.evaluate_model import evaluate_model
from pipeline.steps.preprocess_data import preprocess_data
from pipeline.steps.train_model import train_model
from pipeline.steps.validate_data import validate_data
from pipeline.steps.verify_model import verify_model
from tests.models.jukebox.outputs import Tables

pytest_plugins = ("tests.models.jukebox.fixtures",)

GOLDEN = Path(__file__).with_name("golden.json")
VERSION = "d" * 64
# Two orders of adding up differ by 1e-7 a sum; two epochs of training make no more of it than this.
RELATIVE, ABSOLUTE = 1e-2, 1e-3


def probe() -> str:
    """What this processor makes of a little training."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((13,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(40, "softmax")])
    network.compile("adam", "categorical_crossentropy")
    rng = np.random.default_rng(0)
    asked = rng.random((512, 13), np.float32), np.eye(40, dtype=np.float32)[rng.integers(40, size=512)]
    for _ in range(20):
        network.train_on_batch(*asked)
    return sha256(b"".join(weights.tobytes() for weights in network.get_weights()))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def values(file: Path) -> str:
    """The digest of a table's values: the bytes of a Parquet file are its writer's."""
    return sha256(
        pl.read_parquet(file, glob=False).write_ipc_stream(None, compat_level=pl.CompatLevel.oldest()).getvalue()
    )


def without_weights(content: bytes) -> str:
    """The digest of an ONNX file but for what its weights are."""
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    for entry in model.metadata_props:
        if entry.key == "weights_sha256":
            entry.value = ""
    return sha256(model.SerializeToString(deterministic=True))


def timeless(found: Any) -> Any:
    """A document without what the clock has put there."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def found(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("golden")
    examples, model, predictions = folder / "examples", folder / "model", folder / "predictions"
    keras.utils.clear_session()  # its counter of layers would be in the names of the ONNX graph
    training, onnx_file, parity = folder / "training.json", folder / "model.onnx", folder / "parity.json"
    validate_data(
        MODEL,
        vars(tables),
        folder / "validation.json",
        data_version=VERSION,
        today=date(2026, 6, 1),
        reference=None,
    )
    preprocess_data(MODEL, vars(tables), examples)
    train_model(MODEL, examples, model, predictions, training, hyperparameters={"epochs": 2}, data_version=VERSION)
    evaluate_model(MODEL, examples, predictions, folder / "evaluation.json", folder / "verdict.json")
    convert_model(model, examples, training, onnx_file, model_name="jukebox", version="0.0.2", data_version=VERSION)
    verify_model(MODEL, onnx_file, examples, predictions, training, parity, model_name="jukebox")
    documents = {
        name: timeless(json.loads((folder / f"{name}.json").read_text()))
        for name in ("validation", "training", "evaluation", "verdict")
    }
    golden = json.loads(parity.read_text())["golden"]
    return {
        "probe": probe(),
        "sample": {name: values(folder / "part-00000.parquet") for name, folder in vars(tables).items()},
        "examples": {file.stem: values(file) for file in sorted(examples.glob("*.parquet"))},
        "preprocessing": json.loads((examples / "preprocessing.json").read_text()),
        **documents,
        "golden": golden,
        "onnx": {"without_weights": without_weights(onnx_file.read_bytes()), "sha256": sha256(onnx_file.read_bytes())},
    }


def test_the_steps_make_what_was_recorded(found: dict[str, Any]) -> None:
    if os.environ.get("GOLDEN"):
        write_json(GOLDEN, found)
    recorded = json.loads(GOLDEN.read_text())
    if found["probe"] == recorded["probe"]:
        assert found == recorded
        return
    for record in (found, recorded):
        record.pop("probe")
        record["onnx"].pop("sha256")
        record["training"].pop("weights_sha256")
        # Which country comes out first is the decision of a few last digits.
        for name in ("figures", "slices"):
            record["evaluation"].pop(name)
        record["verdict"].pop("summary")
    assert not [*differences(found, recorded)]


def differences(found: Any, recorded: Any, path: str = "") -> list[str]:
    """Where two documents differ, figures by more than ``RELATIVE`` and ``ABSOLUTE``."""
    if isinstance(found, dict) and isinstance(recorded, dict) and found.keys() == recorded.keys():
        return [where for key in found for where in differences(found[key], recorded[key], f"{path}.{key}")]
    if isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        pairs = zip(found, recorded, strict=True)
        return [where for i, pair in enumerate(pairs) for where in differences(*pair, f"{path}[{i}]")]
    if isinstance(found, float) and isinstance(recorded, float):
        return [] if found == pytest.approx(recorded, rel=RELATIVE, abs=ABSOLUTE) else [f"{path}: {found}, {recorded}"]
    return [] if found == recorded else [f"{path}: {found!r}, {recorded!r}"]
