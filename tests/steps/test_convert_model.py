import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest

from pipeline.core.errors import ParityBroken
from pipeline.core.examples import Reader, read_description
from pipeline.core.runtimes import onnxruntime_of
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import FEATURE_NAMES
from pipeline.steps.convert_model import _check_signature, convert_model
from tests.models.jukebox.outputs import Trained

pytest_plugins = ("tests.models.jukebox.fixtures",)


def test_there_is_one_input_of_raw_features_and_one_output(onnx_file: Path, examples: Path) -> None:
    model = onnx.load(onnx_file)
    (given,), (answer,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim] for value in (given, answer)]
    assert (given.name, answer.name) == ("features", "probabilities")
    assert shapes == [["batch", 13], ["batch", len(read_description(examples)["labels"])]]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 17)]


def test_normalisation_is_inside(onnx_file: Path, examples: Path, trained: Trained) -> None:
    vectors = Reader(examples, MODEL).read("test-unseen").vectors
    assert vectors.max() > 100_000, "durations in milliseconds go in as they are"
    network = keras.saving.load_model(trained.model / "model.keras")
    np.testing.assert_allclose(
        onnxruntime_of(onnx_file.read_bytes())(vectors), network.predict(vectors, verbose=0), atol=1e-5
    )


def test_the_properties_say_what_a_client_needs_to_know(onnx_file: Path, examples: Path, trained: Trained) -> None:
    properties = {p.key: p.value for p in onnx.load(onnx_file).metadata_props}
    assert json.loads(properties["features"]) == list(FEATURE_NAMES)
    assert json.loads(properties["labels"]) == read_description(examples)["labels"]
    assert (properties["name"], properties["version"], properties["data_version"]) == ("jukebox", "0.0.2", "d" * 64)
    assert properties["weights_sha256"] == trained.training["weights_sha256"]
    assert json.loads(properties["hyperparameters"]) == trained.training["hyperparameters"]


def test_another_process_makes_the_same_bytes(
    onnx_file: Path, examples: Path, trained: Trained, tmp_path: Path
) -> None:
    other = tmp_path / "model.onnx"
    program = (
        "import sys; from pathlib import Path; from pipeline.steps.convert_model import convert_model; "
        "convert_model(*map(Path, sys.argv[1:]), model_name='jukebox', version='0.0.2', data_version='d' * 64)"
    )
    subprocess.run([sys.executable, "-c", program, trained.model, examples, trained.report, other], check=True)
    assert other.read_bytes() == onnx_file.read_bytes()


def test_a_second_input_is_refused(onnx_file: Path) -> None:
    graph = onnx.load(onnx_file).graph
    graph.input.append(onnx.helper.make_tensor_value_info("leaked_mean", onnx.TensorProto.FLOAT, [13]))
    with pytest.raises(ParityBroken, match=r"inputs \['features', 'leaked_mean'\]"):
        _check_signature(graph)


def test_code_in_the_file_of_keras_is_not_run(examples: Path, trained: Trained, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = f"lambda x: [open({str(ran)!r}, 'w').close(), x][1]"
    given = keras.Input((13,), name="features")
    network = keras.Model(given, keras.layers.Lambda(eval(source), output_shape=(13,))(given))
    network.save(tmp_path / "model.keras")
    ran.unlink(missing_ok=True)
    with pytest.raises(ParityBroken, match=r"is not a model that train-model wrote: .*[Ll]ambda"):
        convert_model(
            tmp_path,
            examples,
            trained.report,
            tmp_path / "model.onnx",
            model_name="jukebox",
            version="0.0.2",
            data_version="d" * 64,
        )
    assert not ran.exists()
    assert not (tmp_path / "model.onnx").exists()
