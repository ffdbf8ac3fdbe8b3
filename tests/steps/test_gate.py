import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import GateRefused
from pipeline.steps.gate import gate


def verdict(folder: Path, **values: Any) -> Path:
    file = folder / "verdict.json"
    file.write_text(json.dumps({"passed": False, "mode": "enforce", "summary": "Not good enough: r2-floor.", **values}))
    return file


def test_a_verdict_that_says_no_stops_the_run_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(GateRefused, match=r"Not good enough: r2-floor\. Nothing is published\."):
        gate(verdict(tmp_path))


@pytest.mark.parametrize("values", [{"passed": True}, {"mode": "warn"}, {"mode": "off"}])
def test_anything_else_lets_it_go_on(tmp_path: Path, values: dict[str, Any]) -> None:
    gate(verdict(tmp_path, **values))


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_what_it_lets_go_on_without_having_passed_is_not_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    with caplog.at_level("WARNING", logger="jukebox"):
        gate(verdict(tmp_path, mode=mode))
    assert f"The gate's mode is {mode}: the model is kept, but not served." in caplog.text


def test_a_refused_model_is_not_even_loaded(tmp_path: Path) -> None:
    """Given a verdict that says no and nothing else, verify-model refuses, and has loaded no part of its own."""
    program = f"""
import sys
from types import SimpleNamespace
sys.modules["pipeline.steps.verify_model"] = None
from pipeline.components import verify_model
nothing = SimpleNamespace(path="nowhere")
others = dict.fromkeys(("onnx_model", "examples", "predictions", "training", "parity", "metrics"), nothing)
refused = SimpleNamespace(path={str(verdict(tmp_path))!r})
verify_model.python_func(model="jukebox", model_name="jukebox", verdict=refused, **others)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "GateRefused: Not good enough: r2-floor" in done.stdout
    assert "Traceback" not in done.stderr
