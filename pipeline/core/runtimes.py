"""The two programs that run an ONNX model: ONNX Runtime, and OpenVINO as the model server runs it.

A model may come from a store to which others publish, so only a plain network is loaded: see ``require_plain``.
"""

import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

# What a network is made of. None of these loops, reads a file, runs other code, or makes values larger than their
# shapes say. A network of another kind needs its operators here.
OPERATORS = frozenset(
    "Abs Add BatchNormalization Cast Clip Concat Constant Div Elu Erf Exp Flatten Gelu Gemm HardSigmoid HardSwish "
    "Identity LayerNormalization LeakyRelu Log LogSoftmax MatMul Max Min Mul Neg PRelu Pow Reciprocal ReduceMax "
    "ReduceMean ReduceSum Relu Reshape Selu Sigmoid Slice Softmax Softplus Softsign Sqrt Squeeze Sub Tanh Transpose "
    "Unsqueeze".split()
)
MOST_NODES = 1000
WIDEST = 8192  # numbers of an example between two layers: as many units as a hidden layer may have
LARGEST_CONSTANT = 1 << 25  # numbers that the network works out by itself, 128 MiB of float32
_SMALL = 1024  # numbers; a constant of so few may say a shape

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


def require_plain(content: bytes) -> None:
    """Refuse an ONNX model that is not a plain network: one that could run for ever, read files or take the memory.

    It has one input, [batch, features], one output, [batch, labels], no operator but ``OPERATORS``, all of its numbers
    in itself, and values whose shapes are known and small. Raises ValueError, which says what it has instead.
    """
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    if model.functions or graph.sparse_initializer:
        raise ValueError("it defines operators or sparse numbers of its own")
    if len(graph.node) > MOST_NODES:
        raise ValueError(f"it has {len(graph.node)} operators, at most {MOST_NODES} are expected")
    tensors = [*graph.initializer]
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise ValueError(f"it has the operator {node.domain}:{node.op_type}, which is not one of a plain network")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"its operator {node.op_type} holds another graph, or sparse numbers")
            tensors += [attribute.t] if attribute.HasField("t") else []
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"its numbers {tensor.name!r} lie in another file")
        # One of four bits is the smallest.
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 2 * len(content):
            raise ValueError(f"its numbers {tensor.name!r} are said to be {list(tensor.dims)}, and are not in the file")
    _require_small(_inferred(model))


def _inferred(model: "onnx.ModelProto") -> "onnx.GraphProto":
    """The graph with the shapes of all values, as ONNX infers them; what the file says of them is not used."""
    import onnx

    graph = model.graph
    del graph.value_info[:]
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    shapes = [[*value.type.tensor_type.shape.dim] for value in (*inputs, *graph.output)]
    if len(inputs) != 1 or len(graph.output) != 1 or [len(shape) for shape in shapes] != [2, 2]:
        raise ValueError("it does not have one input, [batch, features], and one output, [batch, labels]")
    del graph.input[:]
    graph.input.extend(inputs)
    for shape in shapes:
        shape[0].dim_param = "batch"
    # Their shapes are enough, without their bytes.
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _SMALL]
    graph.input.extend(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in large)
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _SMALL]
    del graph.initializer[:]
    graph.initializer.extend(small)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"the shapes of its values do not fit: {str(error).splitlines()[0][:200]}") from None


def _require_small(graph: "onnx.GraphProto") -> None:
    known = {value.name: value.type.tensor_type.shape for value in (*graph.value_info, *graph.output)}
    constant = 0
    for name in (name for node in graph.node for name in node.output if name):
        if name not in known:
            raise ValueError(f"the shape of its value {name!r} is not known")
        dims = known[name].dim
        of_examples = bool(dims) and dims[0].dim_param == "batch"
        sizes = [dim.dim_value for dim in (dims[1:] if of_examples else dims)]
        if min(sizes, default=1) < 1 or (of_examples and math.prod(sizes) > WIDEST):
            raise ValueError(f"its value {name!r} has an unknown size, or more than {WIDEST} numbers an example")
        constant += 0 if of_examples else math.prod(sizes)
    if constant > LARGEST_CONSTANT:
        raise ValueError(f"it works out {constant} numbers by itself, at most {LARGEST_CONSTANT} are expected")


def _session(model: bytes) -> Any:
    require_plain(model)
    # Else it tells its maker of each session. It looks when it is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what a file lacks is said by who reads it
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_of(model: bytes) -> Answer:
    """Load it into OpenVINO, at f32; on CPUs that have bfloat16 it would compute in that, and err by up to 8e-4."""
    require_plain(model)
    # Else it tells its maker when it is loaded; this is Python's way to say that a module is not there.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda vectors: compiled([vectors])[0]
