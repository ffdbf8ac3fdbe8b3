import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core import documents
from pipeline.core.documents import log_metrics, to_json, write_json
from pipeline.core.errors import NotFinite

SOURCES = [*Path("pipeline").rglob("*.py"), *Path("scripts").rglob("*.py")]


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"history": [{"loss": 1.0}, {"loss": float("nan")}]}, "history.1.loss is nan"),
        (
            {"model": {"all": None, "unseen": {"top1_interval": (0.5, float("inf"))}}},
            "model.unseen.top1_interval.1 is inf",
        ),
        ([[0.1], [-float("inf")]], "1.0 is -inf"),
        (float("nan"), "the value is nan"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(NotFinite, match=place):
        to_json(value)


def test_a_document_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "report"
    write_json(file, {"loss": 1.5, "name": "Señorita"})
    before = file.read_bytes()
    assert json.loads(before) == {"loss": 1.5, "name": "Señorita"}
    assert before.isascii(), "whatever encoding a reader takes"
    with pytest.raises(NotFinite, match=r"^report: loss is nan"):
        write_json(file, {"loss": float("nan")})
    with pytest.raises(TypeError):
        write_json(file, {"loss": object()})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["report"]


def test_no_metric_that_is_not_finite_reaches_kubeflow() -> None:
    logged: dict[str, float] = {}
    artifact = SimpleNamespace(log_metric=logged.__setitem__)
    log_metrics(artifact, {"loss": 1.5, "epoch": 2})
    assert logged == {"loss": 1.5, "epoch": 2}
    with pytest.raises(NotFinite, match="top1 is nan"):
        log_metrics(artifact, {"r2": 0.9, "top1": float("nan")})
    assert "r2" not in logged


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_all_json_and_all_metrics_go_through_these_functions(source: Path) -> None:
    if source == Path(documents.__file__).relative_to(Path.cwd()):
        return
    calls = [node.func for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    names = {ast.unparse(function) for function in calls}
    assert not names & {"json.dump", "json.dumps"}
    assert not [name for name in names if name.endswith((".log_metric", ".write_json"))]
