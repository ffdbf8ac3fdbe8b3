"""The stand-in of the model server does what the tests on a cluster take for the real one's behaviour."""

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.core.contract import INPUT
from tests.serving import OUTPUT, VECTOR, Served, model, serving

Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server on a folder with versions, with more arguments."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str, versions: tuple[int, ...] = (1, 2, 3)) -> Served:
            for number in versions:
                Served(tmp_path, "", None).publish(number)  # type: ignore[arg-type]
            return stack.enter_context(serving(tmp_path, *arguments))

        yield start


def test_it_answers_as_the_protocol_says(serve: Serve) -> None:
    served = serve("--metrics_enable")
    assert served.get("/v2/health/live").status_code == 200
    assert served.get("/v2/models/jukebox/ready").status_code == 200
    described = served.get("/v2/models/jukebox").json()
    assert described["inputs"] == [{"name": INPUT, "datatype": "FP32", "shape": [-1, len(VECTOR)]}]
    assert described["versions"] == ["3"]
    answer = served.infer().json()
    [output] = answer["outputs"]
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "jukebox", "3")
    assert (output["name"], output["datatype"], output["shape"]) == (OUTPUT, "FP32", [2, 2])
    assert output["data"] == pytest.approx([0.9526, 0.0474] * 2, abs=1e-4)
    assert served.infer(data=[VECTOR, VECTOR]).json()["outputs"] == [output]
    success = 'ovms_requests_success{api="KServe",interface="REST",name="jukebox",method="ModelInfer",version="3"} 2\n'
    assert success in served.get("/metrics").text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, f"Missing input with specific name - {INPUT}"),
        ({"datatype": "INT64"}, "Invalid input precision - Expected: FP32; Actual: INT64"),
        ({"shape": [2, 12]}, "Invalid input: cannot reshape"),
        ({"shape": [1, 26]}, "Invalid input:"),
        ({"data": ["a"] * 26}, "Invalid input: could not convert"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(serve: Serve, change: dict[str, Any], message: str) -> None:
    answer = serve().infer(**change)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(message)


def test_other_models_versions_and_paths_are_not_found(serve: Serve) -> None:
    served = serve()
    for path in ("/v2/models/other", "/v2/models/jukebox/versions/2/ready", "/v1/models/jukebox", "/metrics"):
        assert served.get(path).status_code == 404, path
    assert served.infer("/v2/models/jukebox/versions/9/infer").json() == {
        "error": "Model with requested version is not found"
    }


def test_a_version_that_the_policy_names_is_served_and_a_newer_one_is_not(serve: Serve) -> None:
    served = serve("--model_version_policy", json.dumps({"specific": {"versions": [2, 5]}}))
    served.publish(4)
    served.publish(5)
    served.reaches(5)
    assert served.get("/v2/models/jukebox").json()["versions"] == ["2", "5"]
    assert served.infer("/v2/models/jukebox/versions/2/infer").json()["model_version"] == "2"


def test_without_a_version_it_lives_and_its_model_is_not_ready(serve: Serve) -> None:
    served = serve(versions=())
    assert served.get("/v2/health/ready").status_code == 200
    assert served.get("/v2/models/jukebox/ready").status_code == 404
    served.publish(1)
    served.reaches(1)


def test_a_broken_version_leaves_the_one_before_in_place(serve: Serve) -> None:
    served = serve()
    (served.folder / "4").mkdir()
    (served.folder / "4" / "model.onnx").write_bytes(b"broken")
    served.publish(5)
    served.reaches(5)
    shutil.rmtree(served.folder / "5")
    served.reaches(3)


def test_a_change_inside_a_version_is_not_seen(serve: Serve) -> None:
    served = serve("--model_version_policy", '{"latest": {"num_versions": 2}}')
    before = served.infer().json()["outputs"]
    (served.folder / "3" / "model.onnx").write_bytes(model([9.0, 0.0]))
    served.publish(4)
    served.reaches(4)
    assert served.infer("/v2/models/jukebox/versions/3/infer").json()["outputs"] == before


def test_new_versions_and_the_end_drop_no_request(serve: Serve) -> None:
    served = serve(versions=(1,))
    failed: list[object] = []
    seen: set[str] = set()
    answered = threading.Event()

    def ask() -> None:
        """Ask until the server says that it ends."""
        with requests.Session() as http:
            client = replace(served, http=http)
            ending = False
            while not (ending or failed):
                try:
                    answer = client.infer()
                    answer.raise_for_status()
                except requests.RequestException as error:
                    failed.append(error)
                else:
                    seen.add(answer.json()["model_version"])
                    answered.set()
                    ending = answer.headers.get("Connection") == "close"

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    assert answered.wait(60), failed
    for number in range(2, 12):
        served.publish(number)
        served.reaches(number)
    served.http.close()
    assert served.end() == 0
    for client in clients:
        client.join()
    assert failed == []
    assert seen >= {"1", "11"}
