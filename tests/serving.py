"""A small model, and the stand-in of the model server that serves it, as a process of its own."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import requests
from onnx import TensorProto, helper, numpy_helper
from tenacity import retry, stop_after_delay, wait_fixed

from pipeline.core.contract import INPUT
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import FEATURE_NAMES
from tests.cluster import model_server
from tests.s3_server import free_ports

OUTPUT = MODEL.kind.output
VECTOR = [1.0] * len(FEATURE_NAMES)
until = retry(stop=stop_after_delay(30), wait=wait_fixed(0.02), reraise=True)


def model(weights: list[float], features: Sequence[str] = FEATURE_NAMES) -> bytes:
    """An ONNX model that sees the energy alone, among ``features``."""
    return model_of({"energy": weights}, features)


def model_of(weights: Mapping[str, list[float]], features: Sequence[str] = FEATURE_NAMES) -> bytes:
    """An ONNX model: what 1 of each of these features adds to the labels' scores; it takes ``features``."""
    matrix = np.zeros((len(features), len(next(iter(weights.values())))), dtype=np.float32)
    for name, row in weights.items():
        matrix[features.index(name)] = row
    nodes = [
        helper.make_node("MatMul", [INPUT, "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], [OUTPUT]),
    ]
    return _built(nodes, OUTPUT, matrix, features)


def number_of(weights: list[float], features: Sequence[str]) -> bytes:
    """An ONNX model of one number: the sum of what 1 of each of ``features`` adds."""
    node = helper.make_node("MatMul", [INPUT, "weights"], ["prediction"])
    return _built([node], "prediction", np.array(weights, dtype=np.float32)[:, None], features)


def _built(nodes: list[onnx.NodeProto], output: str, matrix: np.ndarray, features: Sequence[str]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "energy",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", len(features)])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "weights")],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(built, {"features": json.dumps(features)})
    onnx.checker.check_model(built)
    content: bytes = built.SerializeToString()
    return content


@dataclass
class Served:
    """A running server, the folder that it serves, and a client that keeps its connection."""

    folder: Path
    url: str
    process: subprocess.Popen[str]
    http: requests.Session = field(default_factory=requests.Session)

    def get(self, path: str) -> requests.Response:
        return self.http.get(f"{self.url}{path}", timeout=10)

    def infer(self, path: str = "/v2/models/jukebox/infer", **tensor: Any) -> requests.Response:
        """Ask about two rows, or about what ``tensor`` makes of them."""
        whole = {"name": INPUT, "shape": [2, len(VECTOR)], "datatype": "FP32", "data": VECTOR * 2, **tensor}
        return self.http.post(f"{self.url}{path}", json={"id": "7", "inputs": [whole]}, timeout=10)

    def publish(self, number: int, *weights: float) -> None:
        """Publish a version as the model store does: whole, by a rename."""
        staged = self.folder / f".{number}.staged"
        staged.mkdir(parents=True)
        (staged / "model.onnx").write_bytes(model(list(weights) or [float(number), 0.0]))
        staged.rename(self.folder / str(number))

    @until
    def reaches(self, version: int) -> None:
        assert self.infer().json().get("model_version") == str(version)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Served]:
    """Run a server on a folder with versions, with more arguments; it polls fast."""
    [port] = free_ports(1)
    given = ("--model_name=jukebox", f"--model_path={folder}", f"--rest_port={port}", "--port=8001")
    command = [sys.executable, model_server.__file__, *given, "--file_system_poll_wait_seconds=0.02", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            served = Served(folder, f"http://127.0.0.1:{port}", process)
            until(served.get)("/v2/health/ready")
            yield served
        finally:
            process.kill()
