"""A stand-in for OpenVINO Model Server, which no package brings: its arguments, its folder, its REST protocol.

It serves ``<model_path>/<n>/model.onnx``: by default the highest number, or what ``--model_version_policy`` names. Each
second (``--file_system_poll_wait_seconds``) it looks for other numbers, never into one that it serves already, and
changes over between two requests. It is a program of its own, which needs NumPy and ONNX Runtime alone:

    python3 model_server.py --model_name=jukebox --model_path=/mnt/models --rest_port=8888
"""

import argparse
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# ONNX Runtime's names of the element types that a model of ours may have: the protocol's, and NumPy's.
TYPES = {
    "tensor(float)": ("FP32", np.float32),
    "tensor(double)": ("FP64", np.float64),
    "tensor(int64)": ("INT64", np.int64),
}
# How long a connection may say nothing, in seconds; it bounds how long the end of the server takes.
IDLE = 5


class Refused(Exception):
    """What the server answers instead of a result."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Model:
    """The versions of one model that are served now."""

    def __init__(self, name: str, path: Path, policy: Mapping[str, Any]) -> None:
        self.name, self.path = name, path
        [(self.kind, self.options)] = policy.items()
        # Replaced whole, never changed: a request keeps what it began with.
        self.versions: dict[int, onnxruntime.InferenceSession] = {}

    def wanted(self, numbers: set[int]) -> set[int]:
        """Those of the numbers that the policy asks for."""
        if self.kind == "specific":
            return numbers & set(self.options["versions"])
        if self.kind == "latest":
            return set(sorted(numbers)[-self.options.get("num_versions", 1) :])
        return numbers

    def look(self) -> None:
        """Load what is new in the folder, and only then let go of what is no longer wanted."""
        numbers = {int(folder.name) for folder in self.path.glob("[1-9]*") if folder.name.isdecimal()}
        loaded = dict(self.versions)
        while new := self.wanted(numbers) - loaded.keys():
            number = max(new)
            try:
                file = self.path / str(number) / "model.onnx"
                loaded[number] = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
                print(f"{self.name}: serving version {number}", flush=True)
            except Exception as error:  # what a broken file raises is ONNX Runtime's own
                print(f"{self.name}: version {number} cannot be loaded: {error}", flush=True)
                numbers.remove(number)
        self.versions = {number: loaded[number] for number in self.wanted(numbers)}

    def session(self, version: str) -> tuple[int, onnxruntime.InferenceSession]:
        """The version that a request asks for, by default the highest; refused with 404 where it is not served."""
        versions = self.versions
        number = int(version) if version.isdecimal() else max(versions, default=0)
        if number not in versions:
            raise Refused(404, "Model with requested version is not found")
        return number, versions[number]

    def describe(self, version: str) -> dict[str, Any]:
        _, session = self.session(version)

        def tensors(nodes: list[Any]) -> list[dict[str, Any]]:
            return [
                {
                    "name": node.name,
                    "datatype": TYPES[node.type][0],
                    "shape": [size if isinstance(size, int) else -1 for size in node.shape],
                }
                for node in nodes
            ]

        return {
            "name": self.name,
            "versions": [str(number) for number in sorted(self.versions)],
            "platform": "OpenVINO",
            "inputs": tensors(session.get_inputs()),
            "outputs": tensors(session.get_outputs()),
        }

    def infer(self, version: str, body: bytes) -> dict[str, Any]:
        number, session = self.session(version)
        [node] = session.get_inputs()
        datatype, dtype = TYPES[node.type]
        try:
            request = json.loads(body)
            tensor = {tensor["name"]: tensor for tensor in request["inputs"]}.get(node.name)
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(400, f"Invalid JSON structure: {error}") from None
        if tensor is None:
            raise Refused(400, f"Missing input with specific name - {node.name}")
        if tensor["datatype"] != datatype:
            raise Refused(400, f"Invalid input precision - Expected: {datatype}; Actual: {tensor['datatype']}")
        try:
            outputs = session.run(None, {node.name: np.array(tensor["data"], dtype).reshape(tensor["shape"])})
        except Exception as error:  # NumPy's or ONNX Runtime's own
            raise Refused(400, f"Invalid input: {error}") from None
        answer = {
            "model_name": self.name,
            "model_version": str(number),
            "outputs": [
                {
                    "name": node.name,
                    "shape": list(output.shape),
                    "datatype": TYPES[node.type][0],
                    "data": output.ravel().tolist(),
                }
                for node, output in zip(session.get_outputs(), outputs, strict=True)
            ],
        }
        return {**answer, "id": request["id"]} if "id" in request else answer


class Server(ThreadingHTTPServer):
    """The REST interface of one model. Its end waits for the answers that are under way."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, port: int, model: Model, metrics: bool) -> None:
        super().__init__(("", port), Handler)
        self.model = model
        self.metrics = metrics
        self.ending = False
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def answer(self, method: str, path: str, body: bytes) -> bytes:
        """Answer a request, and count it if it is of the model; raises ``Refused``."""
        match path.strip("/").split("/"):
            case ["v2", "health", "live" | "ready"]:
                return b""
            case ["metrics"] if self.metrics:
                return "".join(f"{name} {value:g}\n" for name, value in sorted(self.counts.items())).encode()
            case ["v2", "models", name, *rest]:
                version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else ""
                return self.ask(method, name, version, rest[2:] if version else rest, body)
        raise Refused(404, "Invalid request URL")

    def ask(self, method: str, name: str, version: str, what: list[str], body: bytes) -> bytes:
        if name != self.model.name:
            raise Refused(404, "Model with requested name is not found")
        labels = f'interface="REST",name="{name}"'
        try:
            match method, what:
                case "GET", ["ready"]:
                    self.model.session(version)
                    return b""
                case "GET", []:
                    return json.dumps(self.model.describe(version)).encode()
                case "POST", ["infer"]:
                    labels = f'{labels},method="ModelInfer"'
                    began = time.perf_counter()
                    answer = self.model.infer(version, body)
                    labels = f'{labels},version="{answer["model_version"]}"'
                    microseconds = 1e6 * (time.perf_counter() - began)
                    self.count(f'ovms_requests_success{{api="KServe",{labels}}}')
                    self.count(f"ovms_request_time_us_sum{{{labels}}}", microseconds)
                    self.count(f"ovms_request_time_us_count{{{labels}}}")
                    return json.dumps(answer).encode()
        except Refused:
            self.count(f'ovms_requests_fail{{api="KServe",{labels}}}')
            raise
        raise Refused(404, "Invalid request URL")

    def count(self, name: str, value: float = 1) -> None:
        with self.lock:
            self.counts[name] += value  # type: ignore[assignment]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, answer = 200, self.server.answer(self.command, self.path, body)
        except Refused as refused:
            status, answer = refused.status, json.dumps({"error": str(refused)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if self.path == "/metrics" else "application/json")
        self.send_header("Content-Length", str(len(answer)))
        if self.server.ending:  # a client that keeps its connection shall not come back on this one
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 its name in the base class
        pass


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--model_path", required=True, type=Path)
    parser.add_argument("--model_version_policy", type=json.loads, default={"latest": {"num_versions": 1}})
    parser.add_argument("--rest_port", required=True, type=int)
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1)
    parser.add_argument("--metrics_enable", action="store_true")
    for name in ("--port", "--plugin_config", "--nireq", "--log_level"):
        parser.add_argument(name, help="Taken, and of no effect here.")
    given = parser.parse_args()

    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in every thread; `sigwait` takes them
    model = Model(given.model_name, given.model_path, given.model_version_policy)
    model.look()
    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(given.file_system_poll_wait_seconds):
            model.look()

    server = Server(given.rest_port, model, given.metrics_enable)
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})]
    if given.file_system_poll_wait_seconds:
        threads.append(threading.Thread(target=poll))
    for thread in threads:
        thread.start()
    signal.sigwait(ends)
    server.ending = True
    ended.set()
    server.shutdown()
    server.server_close()


if __name__ == "__main__":
    main()
