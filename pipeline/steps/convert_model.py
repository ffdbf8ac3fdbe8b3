"""Convert the model from Keras to ONNX, the format that is served."""

import json
from pathlib import Path
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx

from pipeline.core.contract import INPUT
from pipeline.core.documents import to_json
from pipeline.core.errors import ParityBroken
from pipeline.core.examples import read_description
from pipeline.core.log import log
from pipeline.core.runtimes import require_plain
from pipeline.steps.train_model import KERAS_FILE, weights_sha256

# The newest that both tf2onnx and OpenVINO Model Server support without a warning.
OPSET = 17


def convert_model(
    model: Path,
    examples: Path,
    training: Path,
    onnx_file: Path,
    *,
    model_name: str,
    version: str,
    data_version: str,
) -> dict[str, str]:
    """Write the ONNX model to ``onnx_file`` and return its metadata properties.

    ``model`` and ``training`` are the outputs of train_model, ``examples`` the folder of preprocess_data. The model has
    one input, float32[batch, features] raw features in the order of the property ``features``, and one output,
    float32[batch, labels], in the order of the property ``labels``. The same weights give the same bytes: nothing of
    the run (time, id) is in them; that is in lineage.json beside the published model.

    Raises ParityBroken if the Keras file contains code, if the graph does not have exactly this input and output, or if
    it is not a plain network.
    """
    # Only the output of this run's train-model is loaded. A Keras file may contain code, such as a Lambda layer, which
    # runs when the file is loaded, but not in safe_mode, whatever is set for the process.
    try:
        network = keras.saving.load_model(model / KERAS_FILE, safe_mode=True)
    except (ValueError, TypeError) as error:
        raise ParityBroken(
            f"{KERAS_FILE} is not a model that train-model wrote: {' '.join(str(error).split())}"
        ) from None
    description = read_description(examples)
    trained = json.loads(training.read_text())
    # With tf2onnx the signature is explicit; `model.export("onnx")` would turn Normalization's constants into inputs.
    signature = [tf.TensorSpec((None, len(description["features"])), tf.float32, name=INPUT)]
    converted, _ = tf2onnx.convert.from_keras(network, signature, opset=OPSET)
    _check_signature(converted.graph)
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    properties = {
        "name": model_name,
        "version": version,
        "features": to_json(description["features"]),
        "labels": to_json(description["labels"]),
        "data_version": data_version,
        "hyperparameters": to_json(trained["hyperparameters"], sort_keys=True),
        "weights_sha256": weights_sha256(network),
    }
    onnx.helper.set_model_props(converted, properties)
    onnx.checker.check_model(converted, full_check=True)
    content = converted.SerializeToString(deterministic=True)
    try:
        require_plain(content)
    except ValueError as error:
        raise ParityBroken(
            f"the ONNX model cannot be loaded: {error}. Check what the model's network.py builds, "
            "and what pipeline/core/runtimes.py supports"
        ) from None
    onnx_file.write_bytes(content)
    log.info("%d bytes of ONNX, opset %d, %d labels", onnx_file.stat().st_size, OPSET, len(description["labels"]))
    return properties


def _check_signature(graph: Any) -> None:
    inputs, outputs = [i.name for i in graph.input], [o.name for o in graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ParityBroken(
            f"the ONNX graph has inputs {inputs} and outputs {outputs}; expected one of each. "
            "A layer's constants have become inputs: check what the model's network.py builds"
        )
