"""A trained model on its way to the model server: converted, and verified against Keras."""

from pathlib import Path
from typing import Any

from pipeline.core.contract import Model
from pipeline.steps.convert_model import convert_model
from pipeline.steps.verify_model import verify_model


def convert_and_verify(model: Model, trained: Path, folder: Path) -> dict[str, Any]:
    """Convert and verify what the steps before have left in ``trained``; write to ``folder``, and return the parity."""
    examples, training = trained / "examples", trained / "training.json"
    convert_model(
        trained / "model",
        examples,
        training,
        folder / "model.onnx",
        model_name=model.name,
        version="0.0.2",
        data_version="d" * 64,
    )
    return verify_model(
        model,
        folder / "model.onnx",
        examples,
        trained / "predictions",
        training,
        folder / "parity.json",
        model_name=model.name,
    )
