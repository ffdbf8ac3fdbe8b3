"""Models that somebody else has made are refused before a runtime loads them; each of these would do harm there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.champion import find_champion, read_version
from pipeline.core.contract import INPUT
from pipeline.core.errors import VersionBroken
from pipeline.core.runtimes import LARGEST_CONSTANT, MOST_NODES, WIDEST, onnxruntime_of, openvino_of, require_plain
from pipeline.models.jukebox.tables import FEATURE_NAMES
from tests.serving import OUTPUT, model
from tests.versions import publish_version

FEATURES = len(FEATURE_NAMES)
REPOSITORY = Path(__file__).parents[2]


def constant(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def graph_of(nodes: Sequence[Any], initializers: Sequence[TensorProto] = (), **more: Any) -> Any:
    given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", FEATURES])
    answer = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 4])
    weights = constant("weights", FEATURES, 4)
    last = [
        helper.make_node("MatMul", [INPUT, "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], [OUTPUT]),
    ]
    graph = helper.make_graph([*nodes, *last], "hostile", [given], [answer], [weights, *initializers], **more)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebodys", 1)]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(built, {"features": json.dumps(FEATURE_NAMES)})
    return built


def endless() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes_on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    times = numpy_helper.from_array(np.array(2**62), "times")
    yes = numpy_helper.from_array(np.array(True), "yes")
    return graph_of([helper.make_node("Loop", ["times", "yes", INPUT], ["looped"], body=body)], [times, yes])


def of_another_file(path: str) -> Any:
    built = graph_of([])
    tensor = built.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)
    return built


def huge_without_bytes() -> Any:
    built = graph_of([])
    built.graph.initializer[0].ClearField("raw_data")
    built.graph.initializer[0].dims[:] = [FEATURES, 2**40]
    return built


def outer_product() -> Any:
    """Twice 40 KB give 400 MB."""
    return graph_of(
        [helper.make_node("Mul", ["row", "column"], ["table"])],
        [constant("row", 1, 10_000), constant("column", 10_000, 1)],
    )


def hidden_shape() -> Any:
    """A shape that is only known when it runs."""
    nodes = [
        helper.make_node("ReduceSum", [INPUT], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["whole", "zero"], ["shape"]),
        helper.make_node("Reshape", [INPUT, "shape"], ["reshaped"]),
    ]
    return graph_of(nodes, [numpy_helper.from_array(np.array([0]), "zero")])


def wide() -> Any:
    return graph_of([helper.make_node("MatMul", [INPUT, "wide"], ["hidden"])], [constant("wide", FEATURES, WIDEST + 1)])


def lying() -> Any:
    """The file says that the large value is small."""
    built = outer_product()
    built.graph.value_info.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, [1, 1]))
    return built


def sparse() -> Any:
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64)),
    )
    return graph_of([], sparse_initializer=[helper.make_sparse_tensor(values, indices, [2**20, 2**20])])


def own_operator() -> Any:
    built = graph_of([helper.make_node("Mine", [INPUT], ["mine"], domain="somebodys")])
    node = helper.make_node("Relu", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 17)]
    built.functions.append(helper.make_function("somebodys", "Mine", ["a"], ["b"], [node], opsets))
    return built


def two_inputs() -> Any:
    built = graph_of([])
    built.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["batch", 1]))
    return built


def fixed_batch() -> Any:
    built = graph_of([])
    built.graph.input[0].type.tensor_type.shape.ClearField("dim")
    return built


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "loops for ever": (endless, "the operator :Loop"),
    "reads a file": (lambda: of_another_file("../../../../../../etc/passwd"), "is stored in another file"),
    "reads a device": (lambda: of_another_file("/dev/zero"), "is stored in another file"),
    "says it has more than it has": (huge_without_bytes, "are not in the file"),
    "an outer product": (outer_product, f"computes 100000000 constant numbers, expected at most {LARGEST_CONSTANT}"),
    "lies about its shapes": (lying, "computes 100000000 constant numbers"),
    "a shape that is not known": (hidden_shape, "not known|an unknown size"),
    "a layer that is too wide": (wide, f"more than {WIDEST} numbers an example"),
    "sparse numbers": (sparse, "sparse tensors"),
    "operators of its own": (own_operator, "operators"),
    "an operator of somebody": (
        lambda: graph_of([helper.make_node("Mine", [INPUT], ["mine"], domain="somebodys")]),
        "the operator somebodys:Mine",
    ),
    "fills memory": (
        lambda: graph_of([helper.make_node("ConstantOfShape", ["size"], ["filled"])], [constant("size", 1)]),
        "the operator :ConstantOfShape",
    ),
    "another graph in an attribute": (
        lambda: graph_of([helper.make_node("Relu", [INPUT], ["a"], hidden=endless().graph)]),
        "contains another graph",
    ),
    "too many operators": (
        lambda: graph_of([helper.make_node("Relu", [INPUT], [f"v{number}"]) for number in range(MOST_NODES)]),
        f"at most {MOST_NODES}",
    ),
    "two inputs": (two_inputs, "does not have one input"),
    "an input without a shape": (fixed_batch, "does not have one input"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_model_in_the_store_is_a_damaged_version(case: str, tmp_path: Path) -> None:
    build, message = HOSTILE[case]
    publish_version(str(tmp_path), "good")
    publish_version(str(tmp_path), "hostile", onnx=build().SerializeToString(), worse_by=-0.1, than=1)
    with pytest.raises(VersionBroken, match=rf"Version 2 .* is damaged: its model cannot be used: .*({message})"):
        read_version(str(tmp_path), "jukebox", 2)
    assert find_champion(str(tmp_path), "jukebox").version == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("load", [onnxruntime_of, openvino_of])
def test_no_runtime_loads_one(load: Callable[[bytes], Any]) -> None:
    with pytest.raises(ValueError, match="is stored in another file"):
        load(of_another_file("/etc/passwd").SerializeToString())


def test_a_network_of_other_layers_is_plain(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sigmoid", [INPUT], ["a"]),
        helper.make_node("Concat", ["a", INPUT], ["b"], axis=1),
        helper.make_node("ReduceMean", ["b"], ["mean"], axes=[1]),
        helper.make_node("Sub", ["b", "mean"], ["c"]),
        helper.make_node("Slice", ["c", "zero", "ten", "one"], ["d"]),
        helper.make_node("Gemm", ["d", "w"], ["e"]),
    ]
    numbers = {"zero": 0, "ten": 10, "one": 1}
    given = [numpy_helper.from_array(np.array([number]), name) for name, number in numbers.items()]
    require_plain(graph_of(nodes, [*given, constant("w", 10, 3)]).SerializeToString())
    require_plain(model([1.0, 2.0]))


PEAK = """
import sys
from pathlib import Path
from pipeline.core.champion import read_version
from pipeline.core.errors import StoreBroken
from pipeline.core.log import peak_mib
try:
    read_version(sys.argv[1], "jukebox", 1)
except StoreBroken as error:
    print(error)
print(peak_mib())
"""


@pytest.mark.parametrize("what", ["the largest model", "the largest lineage", "the largest labels"])
def test_the_largest_that_is_read_fits_a_step(what: str, tmp_path: Path) -> None:
    publish_version(str(tmp_path), "a")
    folder = tmp_path / "jukebox" / "1"
    if what == "the largest model":
        wide = [constant(f"c{number}", 1, 1 << 20) for number in range(31)]
        (folder / "model.onnx").write_bytes(graph_of([], wide).SerializeToString())
    else:
        name = f"{what.split()[-1]}.json"
        (folder / name).write_bytes(b"[" + b"[]," * 5_500_000 + b"[]]")
    lineage = json.loads((folder / "lineage.json").read_text()) if what != "the largest lineage" else None
    if lineage:
        from hashlib import sha256

        lineage["sha256"] |= {
            name: sha256((folder / name).read_bytes()).hexdigest() for name in ("model.onnx", "labels.json")
        }
        (folder / "lineage.json").write_text(json.dumps(lineage))
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    found = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=True)
    assert int(found.stdout.splitlines()[-1]) < 1500, found.stdout
