"""Verify that the ONNX model gives the Keras model's predictions on the test data."""

import json
from collections.abc import Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.core.contract import INPUT, Model
from pipeline.core.documents import write_json
from pipeline.core.errors import ParityBroken
from pipeline.core.examples import Reader, Test
from pipeline.core.log import log
from pipeline.core.runtimes import Answer, onnxruntime_of, openvino_of

ABSOLUTE = 1e-5
RELATIVE = 1e-4
REASON = (
    "float32 keeps 7 digits; summing a layer in another order costs one of them, the softmax's exponential another. "
    "Over 223,000 rows 9.5e-7 absolute and 9.2e-6 relative were measured: ten times that leaves room for other "
    "processors, and still finds bfloat16, which errs by 8e-4"
)
RUNTIMES = {"onnxruntime": onnxruntime_of, "openvino": openvino_of}
GOLDEN_EXAMPLES = 2


def verify_model(
    model: Model, onnx_file: Path, examples: Path, predictions: Path, training: Path, parity: Path, *, model_name: str
) -> dict[str, Any]:
    """Compare ONNX Runtime and OpenVINO with Keras' predictions on all test examples; write and return parity.json.

    An answer may differ by ``ABSOLUTE`` times its output's factor, which is 1 for a probability, or by ``RELATIVE``
    times its value, whichever is more. A decision counts as changed if another label is the most probable, unless the
    two were nearer to each other than that.

    Raises ParityBroken if a runtime differs by more, or if the predictions are of other weights.
    """
    content = onnx_file.read_bytes()
    properties = {p.key: p.value for p in onnx.load_model_from_string(content).metadata_props}
    trained = json.loads(training.read_text())["weights_sha256"]
    if properties["weights_sha256"] != trained:
        raise ParityBroken(
            f"the ONNX model has the weights {properties['weights_sha256'][:12]}, but the predictions are of "
            f"{trained[:12]}: they come from different trainings; start a new run"
        )
    reader = Reader(examples, model)
    tests = partial(reader.answered, predictions)
    absolute = ABSOLUTE * np.array(reader.description["factor"], np.float32)
    runtimes = []
    for runtime, load in RUNTIMES.items():
        runtimes.append({"runtime": runtime, "version": version(runtime), **_compare(tests(), load(content), absolute)})
        log.info(
            "%(runtime)s %(version)s: at most %(max_absolute).1e away, relative %(max_relative).1e; "
            "%(decisions_changed)d decisions changed",
            runtimes[-1],
        )
    result = {
        "passed": all(r["passed"] for r in runtimes),
        "examples": sum(len(expected) for _, _, expected in tests()),
        "runtimes": runtimes,
        "tolerances": {"absolute": ABSOLUTE, "relative": RELATIVE, "reason": REASON},
        "golden": _golden(tests(), model.kind.output, model_name),
    }
    write_json(parity, result)
    if not result["passed"]:
        raise ParityBroken(
            f"the ONNX model and the Keras model differ: {runtimes}; expected at most {ABSOLUTE} absolute or "
            f"{RELATIVE} relative. Check the versions of tf2onnx and of the runtime"
        )
    return result


def _compare(tests: Iterable[Test], answer: Answer, absolute: NDArray[np.float32]) -> dict[str, Any]:
    """How far the answers are from the predictions, in the worst slice, and how many decisions differ in all.

    ``absolute``, float32[labels], is the smallest difference that is always allowed.
    """
    figures = []
    for _, test, expected in tests:
        found = answer(test.vectors)
        difference = np.abs(found - expected)
        allowed = np.maximum(absolute, RELATIVE * np.abs(expected))
        index = np.arange(len(expected))
        ours, theirs = expected.argmax(axis=1), found.argmax(axis=1)
        margin = expected[index, ours] - expected[index, theirs]
        figures.append(
            (
                difference.max(initial=0),
                (difference / np.maximum(np.abs(expected), absolute)).max(initial=0),
                (margin > 2 * allowed[index, ours]).sum(),
                (difference <= allowed).all(),
            )
        )
    worst, relative, changed, within = map(np.array, zip(*figures, strict=True))
    return {
        "max_absolute": float(worst.max()),
        "max_relative": float(relative.max()),
        "decisions_changed": int(changed.sum()),
        "passed": bool(within.all()) and not changed.any(),
    }


def _golden(tests: Iterable[Test], output: str, model_name: str) -> dict[str, Any]:
    """A request and its answer in the Open Inference Protocol (v2), to test a server with the model."""
    # Copied, because a view would keep its whole slice in memory.
    some = ((test.vectors[:GOLDEN_EXAMPLES].copy(), expected[:GOLDEN_EXAMPLES].copy()) for _, test, expected in tests)
    vectors, predictions = (np.concatenate(parts)[:GOLDEN_EXAMPLES] for parts in zip(*some, strict=True))
    return {
        "request": {"inputs": [_tensor(INPUT, vectors)]},
        "response": {"model_name": model_name, "outputs": [_tensor(output, predictions)]},
    }


def _tensor(name: str, values: NDArray[np.float32]) -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
