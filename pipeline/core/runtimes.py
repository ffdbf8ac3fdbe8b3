"""The two programs that run an ONNX model: ONNX Runtime, and OpenVINO as the model server runs it.

A model may come from a store that others can write to, so only a plain network is loaded: see ``require_plain``.
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

# The operators of a network. None of them loops, reads a file, runs other code, or makes values larger than their
# shapes say. Another kind of network needs its operators added here.
OPERATORS = frozenset(
    "Abs Add BatchNormalization Cast Clip Concat Constant Div Elu Erf Exp Flatten Gelu Gemm HardSigmoid HardSwish "
    "Identity LayerNormalization LeakyRelu Log LogSoftmax MatMul Max Min Mul Neg PRelu Pow Reciprocal ReduceMax "
    "ReduceMean ReduceSum Relu Reshape Selu Sigmoid Slice Softmax Softplus Softsign Sqrt Squeeze Sub Tanh Transpose "
    "Unsqueeze".split()
)
MOST_NODES = 1000
WIDEST = 8192  # numbers of an example between two layers: as many units as a hidden layer may have
LARGEST_CONSTANT = 1 << 25  # numbers that the network computes without an input, 128 MiB of float32
_SMALL = 1024  # numbers; such a small constant may be a shape

# float32[examples, labels] for float32[examples, features].
Answer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def onnxruntime_of(model: bytes) -> Answer:
    """Load the model into ONNX Runtime, and return its function."""
    session = _session(model)
    name = session.get_inputs()[0].name
    return lambda vectors: session.run(None, {name: vectors})[0]


def onnx_properties(model: bytes) -> dict[str, str]:
    """The metadata properties of the ONNX model; see ``convert_model``."""
    properties: dict[str, str] = _session(model).get_modelmeta().custom_metadata_map
    return properties


def require_plain(content: bytes) -> None:
    """Refuse an ONNX model that is not a plain network: it could run for ever, read files or exhaust the memory.

    A plain network has one input, [batch, features], one output, [batch, labels], only operators of ``OPERATORS``, all
    its tensors in the file, and values whose shapes are known and small. Raises ValueError with what was found instead.
    """
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    if model.functions or graph.sparse_initializer:
        raise ValueError("it defines its own operators, or has sparse tensors")
    if len(graph.node) > MOST_NODES:
        raise ValueError(f"it has {len(graph.node)} operators, expected at most {MOST_NODES}")
    tensors = [*graph.initializer]
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise ValueError(f"it has the operator {node.domain}:{node.op_type}, which is not supported")
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise ValueError(f"its operator {node.op_type} contains another graph, or sparse tensors")
            tensors += [attribute.t] if attribute.HasField("t") else []
    for tensor in tensors:
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"its tensor {tensor.name!r} is stored in another file")
        # The smallest number has four bits.
        if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 2 * len(content):
            raise ValueError(
                f"its tensor {tensor.name!r} has the shape {list(tensor.dims)}, but its values are not in the file"
            )
    _require_small(_inferred(model))


def _inferred(model: "onnx.ModelProto") -> "onnx.GraphProto":
    """The graph with the shapes of all values, as ONNX infers them; the shapes in the file are not trusted."""
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
    # Inference needs the shapes of large tensors, not their bytes.
    large = [tensor for tensor in graph.initializer if math.prod(tensor.dims) > _SMALL]
    graph.input.extend(onnx.helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in large)
    small = [tensor for tensor in graph.initializer if math.prod(tensor.dims) <= _SMALL]
    del graph.initializer[:]
    graph.initializer.extend(small)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"the shapes of its values are inconsistent: {str(error).splitlines()[0][:200]}") from None


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
        raise ValueError(f"it computes {constant} constant numbers, expected at most {LARGEST_CONSTANT}")


def _session(model: bytes) -> Any:
    require_plain(model)
    # Otherwise it reports each session to its vendor. It reads this when it is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the callers report a file's errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def openvino_of(model: bytes) -> Answer:
    """Load the model into OpenVINO with f32; on CPUs with bfloat16 it would use that, with errors of up to 8e-4."""
    require_plain(model)
    # Otherwise it reports to its vendor when it is loaded. For Python, None means that the module does not exist.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda vectors: compiled([vectors])[0]
