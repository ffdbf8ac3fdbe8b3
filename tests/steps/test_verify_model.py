import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper

from pipeline.core.errors import ParityBroken
from pipeline.core.examples import DESCRIPTION, SLICE, Reader, read_predictions, write_predictions
from pipeline.core.runtimes import onnxruntime_of
from pipeline.models.jukebox import MODEL
from pipeline.steps.verify_model import ABSOLUTE, verify_model
from tests.models.jukebox.outputs import Trained

pytest_plugins = ("tests.models.jukebox.fixtures",)

TESTS = ("test-seen", "test-unseen")
verify = partial(verify_model, MODEL, model_name="jukebox")


def test_both_runtimes_do_what_keras_does(onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path) -> None:
    parity = verify(onnx_file, examples, trained.predictions, trained.report, tmp_path / "parity.json")
    assert parity == json.loads((tmp_path / "parity.json").read_text())
    assert parity["passed"]
    assert [r["runtime"] for r in parity["runtimes"]] == ["onnxruntime", "openvino"]
    assert parity["examples"] == sum(len(Reader(examples, MODEL).read(s).vectors) for s in TESTS)
    for runtime in parity["runtimes"]:
        assert 0 < runtime["max_absolute"] <= ABSOLUTE
        assert runtime["decisions_changed"] == 0


def test_the_golden_request_gets_the_golden_response(
    onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path
) -> None:
    golden = verify(onnx_file, examples, trained.predictions, trained.report, tmp_path / "parity.json")["golden"]
    (given,), (answer,) = golden["request"]["inputs"], golden["response"]["outputs"]
    vectors = np.array(given["data"], np.float32).reshape(given["shape"])
    expected = np.array(answer["data"], np.float32).reshape(answer["shape"])
    assert (given["name"], given["datatype"], answer["name"]) == ("features", "FP32", "probabilities")
    np.testing.assert_allclose(onnxruntime_of(onnx_file.read_bytes())(vectors), expected, atol=ABSOLUTE)


def test_a_weight_that_differs_is_found(onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    kernel = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    # What bfloat16 would do to it.
    rounded = (numpy_helper.to_array(kernel).view(np.uint32) & 0xFFFF0000).view(np.float32)
    kernel.CopyFrom(numpy_helper.from_array(rounded, kernel.name))
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    with pytest.raises(ParityBroken, match="the ONNX model and the Keras model differ"):
        verify(changed, examples, trained.predictions, trained.report, tmp_path / "parity.json")
    assert not json.loads((tmp_path / "parity.json").read_text())["passed"]


def test_a_decision_that_changes_is_counted(onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    shutil.copytree(trained.predictions, predictions)
    swapped = np.concatenate([*read_predictions(predictions, "test-unseen")])
    best, worst = swapped[0].argmax(), swapped[0].argmin()
    swapped[0, [best, worst]] = swapped[0, [worst, best]]
    write_predictions(predictions, "test-unseen", swapped)
    with pytest.raises(ParityBroken):
        verify(onnx_file, examples, predictions, trained.report, tmp_path / "parity.json")
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert [runtime["decisions_changed"] for runtime in parity["runtimes"]] == [1, 1]


def test_the_slices_in_which_the_examples_are_read_decide_nothing(
    onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = tmp_path / "predictions"
    for split in TESTS:
        # What errs in each split, at the one end and at the other, must add up.
        [answers] = read_predictions(trained.predictions, split)
        write_predictions(predictions, split, np.vstack([answers[0, ::-1], answers[1:-1], answers[-1, ::-1]]))
    found = []
    for size in (SLICE, 7):
        monkeypatch.setattr("pipeline.core.examples.SLICE", size)
        file = tmp_path / f"{size}.json"
        with pytest.raises(ParityBroken):
            verify(onnx_file, examples, predictions, trained.report, file)
        found.append(json.loads(file.read_text()))
    whole, slices = found
    assert [runtime["decisions_changed"] for runtime in whole["runtimes"]] == [4, 4]
    for ours, theirs in zip(slices["runtimes"], whole["runtimes"], strict=True):
        for name in ("max_absolute", "max_relative"):
            # A runtime may sum in another order if it is asked about fewer at once.
            assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-4)
    assert slices == whole


@pytest.mark.parametrize(("seen", "unseen"), [(0, 5), (1, 5), (5, 0), (0, 0)])
def test_a_split_may_hold_few_examples_or_none(
    onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path, seen: int, unseen: int
) -> None:
    for split, rows in zip(TESTS, (seen, unseen), strict=True):
        pl.read_parquet(examples / f"{split}.parquet").head(rows).write_parquet(tmp_path / f"{split}.parquet")
        [answers] = read_predictions(trained.predictions, split)
        write_predictions(tmp_path / "predictions", split, answers[:rows])
    shutil.copy(examples / DESCRIPTION, tmp_path)
    parity = verify(onnx_file, tmp_path, tmp_path / "predictions", trained.report, tmp_path / "parity.json")
    assert parity["passed"]
    assert parity["examples"] == seen + unseen
    (given,), (answer,) = parity["golden"]["request"]["inputs"], parity["golden"]["response"]["outputs"]
    assert given["shape"][0] == answer["shape"][0] == min(2, seen + unseen)


def test_predictions_of_another_training_are_refused(
    onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path
) -> None:
    report = tmp_path / "training.json"
    report.write_text(json.dumps({**trained.training, "weights_sha256": "0" * 64}))
    with pytest.raises(ParityBroken, match="different trainings"):
        verify(onnx_file, examples, trained.predictions, report, tmp_path / "parity.json")


def test_what_runs_models_tells_nobody_of_it(onnx_file: Path) -> None:
    script = f"""
import os
import numpy as np
from pathlib import Path
from pipeline.core.runtimes import onnxruntime_of, openvino_of
for load in (onnxruntime_of, openvino_of):
    load(Path("{onnx_file}").read_bytes())(np.ones((1, 13), np.float32))
from openvino.tools.ovc.telemetry_utils import tm
print(os.environ["ORT_DISABLE_TELEMETRY"], tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1 openvino.tools.ovc.telemetry_stub\n"
