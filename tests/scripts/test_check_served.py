import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.core.contract import INPUT
from pipeline.core.errors import JukeboxError, ModelServerRefuses, VersionBroken
from pipeline.core.runtimes import onnxruntime_of
from scripts import check_served
from scripts.cli import app
from scripts.clients import pipeline_server
from tests.http_server import Answer, HttpServer, serve_http
from tests.serving import OUTPUT, VECTOR, Served, model, serving
from tests.versions import WEIGHTS, publish_version

ONNX = model([*WEIGHTS])
POLICY = '--model_version_policy={{"specific":{{"versions":[ {} ]}}}}'  # as production's overlay has it


def tensor(name: str, values: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}


VECTORS = np.array([VECTOR, np.zeros(len(VECTOR))], np.float32)
EXPECTED = onnxruntime_of(ONNX)(VECTORS)
GOLDEN = {
    "request": {"inputs": [tensor(INPUT, VECTORS)]},
    "response": {"model_name": "jukebox", "outputs": [tensor(OUTPUT, EXPECTED)]},
}


@pytest.fixture(autouse=True)
def _outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_server, "POD", tmp_path / "no-pod")


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A store whose version 1 has a golden request."""
    root = str(tmp_path / "models")
    publish_version(root, "a", golden=json.dumps(GOLDEN).encode())
    return root


@pytest.fixture
def served(root: str) -> Iterator[Served]:
    with serving(Path(root, "jukebox"), POLICY.format(1)) as running:
        yield running


@pytest.fixture
def http() -> Iterator[HttpServer]:
    with serve_http() as running:
        running.serve("/v2/models/jukebox", Answer(b'{"versions": ["1"]}'))
        yield running


def check(root: str, url: str, version: int = 1, minutes: float = 0) -> str:
    given = [f"--version={version}", f"--url={url}", "--model=jukebox", f"--model-store={root}", f"--minutes={minutes}"]
    result = CliRunner().invoke(app, ["check-served", *given])
    if isinstance(result.exception, JukeboxError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_server_that_answers_as_verified_passes_and_the_difference_is_told(root: str, served: Served) -> None:
    assert f"{served.url} serves version 1, and answers its golden request as verified: at most" in check(
        root, served.url
    )


def test_another_version_is_told(root: str, served: Served) -> None:
    publish_version(root, "b", golden=json.dumps(GOLDEN).encode())
    with pytest.raises(ModelServerRefuses, match="serves version 1, expected version 2"):
        check(root, served.url, 2)


def test_a_server_that_computes_otherwise_is_refused_with_both_numbers(root: str) -> None:
    other = Path(root).with_name("other")
    publish_version(str(other), "a", onnx=model([0.1, 0.2, 3.001, 1.0]))
    with (
        serving(other / "jukebox", POLICY.format(1)) as served,
        pytest.raises(
            ModelServerRefuses, match=rf"0\.7\d+ in {OUTPUT}, expected 0\.7\d+ within .*\n.*jukebox rollback"
        ),
    ):
        check(root, served.url)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"<html>", "does not answer with a valid response"),
        (b"{}", "is not a valid response"),
        (b"[]", "is not a valid response"),
        (json.dumps({"outputs": [tensor("other", EXPECTED)]}).encode(), "outputs of the shapes {'other'"),
        (json.dumps({"outputs": [tensor(OUTPUT, EXPECTED[:1])]}).encode(), r"shapes .*\[1, 4\].* expected .*\[2, 4\]"),
        (json.dumps({"outputs": [tensor(OUTPUT, EXPECTED * np.nan)]}).encode(), f"nan in {OUTPUT}, expected"),
        (json.dumps({"outputs": [tensor(OUTPUT, EXPECTED + 2e-4)]}).encode(), f"in {OUTPUT}, expected"),
    ],
)
def test_an_answer_that_differs_is_refused(root: str, http: HttpServer, response: bytes, message: str) -> None:
    http.serve("/v2/models/jukebox/versions/1/infer", Answer(response))
    with pytest.raises(ModelServerRefuses, match=message):
        check(root, http.url)


def test_the_error_of_another_processor_is_allowed(root: str, http: HttpServer) -> None:
    response = {"outputs": [tensor(OUTPUT, EXPECTED + 5e-6)]}
    http.serve("/v2/models/jukebox/versions/1/infer", Answer(json.dumps(response).encode()))
    assert "at most 5.0e-06 away" in check(root, http.url)


def test_what_is_allowed_grows_with_the_size_of_the_output() -> None:
    """A number that is not a share, as a price, has the precision of its size; 0 among great ones has theirs."""
    expected = {"price": np.array([[250_000.0], [0.0]])}
    near = {"outputs": [tensor("price", expected["price"] + [[20.0], [2.0]])]}
    assert check_served.compare(expected, near, "url", 1) == 20
    with pytest.raises(ModelServerRefuses, match=r"3 in price, expected 0 within 2\.5e"):
        check_served.compare(expected, {"outputs": [tensor("price", expected["price"] + [[20.0], [3.0]])]}, "url", 1)


def test_it_waits_until_the_version_is_served(root: str, http: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_served, "PAUSE", 0)
    versions = (Answer(b'{"versions": %s}' % each) for each in (b"[]", b'["7"]', b'["1"]'))
    http.serve("/v2/models/jukebox", Answer(status=404), *versions)
    answers = Answer(status=503), Answer(json.dumps(GOLDEN["response"]).encode())
    http.serve("/v2/models/jukebox/versions/1/infer", *answers)
    assert "as verified" in check(root, http.url, minutes=1)


def test_a_server_that_is_away_is_told(root: str) -> None:
    with pytest.raises(ModelServerRefuses, match="does not answer"):
        check(root, "http://127.0.0.1:1")


def test_a_version_of_an_older_release_is_looked_for_and_not_compared(tmp_path: Path) -> None:
    root = str(tmp_path / "older")
    publish_version(root, "a", golden=None)
    with serving(Path(root, "jukebox"), POLICY.format(1)) as served:
        assert "serves version 1; an older release published it, without golden.json" in check(root, served.url)
    with pytest.raises(ModelServerRefuses, match="does not answer"):
        check(root, served.url)


def test_a_golden_request_that_was_altered_is_not_sent(root: str, http: HttpServer) -> None:
    Path(root, "jukebox", "1", "golden.json").write_text(json.dumps(GOLDEN | {"more": 1}))
    with pytest.raises(VersionBroken, match=r"damaged: the sha256 of its golden.json"):
        check(root, http.url)
    assert http.requests == []


def test_a_golden_request_of_another_form_is_named(tmp_path: Path, http: HttpServer) -> None:
    root = str(tmp_path / "models of others")
    publish_version(root, "a", golden=b'{"request": {}}')
    with pytest.raises(VersionBroken, match=r"1/golden.json is not a request with its response"):
        check(root, http.url)
