"""The two programs that run an ONNX model: ONNX Runtime, and OpenVINO as the model server runs it."""

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32[examples, labels] for float32[examples, features].
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def onnxruntime_of(model: bytes) -> Answer:
    """Load the model into ONNX Runtime, and return what answers."""
    session = _session(model)
    name = session.get_inputs()[0].name
    return lambda vectors: session.run(None, {name: vectors})[0]


def onnx_properties(model: bytes) -> dict[str, str]:
    """The metadata properties of the ONNX model; see ``convert_model``."""
    properties: dict[str, str] = _session(model).get_modelmeta().custom_metadata_map
    return properties


def _session(model: bytes) -> Any:
    # Else it tells its maker of each session. It looks when it is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what a file lacks is said by who reads it
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_of(model: bytes) -> Answer:
    """Load it into OpenVINO, at f32; on CPUs that have bfloat16 it would compute in that, and err by up to 8e-4."""
    # Else it tells its maker when it is loaded; this is Python's way to say that a module is not there.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda vectors: compiled([vectors])[0]
