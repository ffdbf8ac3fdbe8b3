import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import GateRefused
from pipeline.steps.gate import gate


def verdict(folder: Path, **values: Any) -> Path:
    file = folder / "verdict.json"
    file.write_text(
        json.dumps({"passed": False, "mode": "enforce", "summary": "Not good enough: top5-floor.", **values})
    )
    return file


def test_a_verdict_that_says_no_stops_the_run_with_its_reasons(tmp_path: Path) -> None:
    with pytest.raises(GateRefused, match=r"Not good enough: top5-floor\. Nothing is published\."):
        gate(verdict(tmp_path))


@pytest.mark.parametrize("values", [{"passed": True}, {"mode": "warn"}, {"mode": "off", "passed": True}])
def test_anything_else_lets_it_go_on(tmp_path: Path, values: dict[str, Any]) -> None:
    gate(verdict(tmp_path, **values))
