"""Gate: a model that is not good enough stops here. verify-model applies it first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import GateRefused
from pipeline.core.log import log


def gate(verdict: Path) -> None:
    """Apply a verdict; see ``decide``."""
    decide(json.loads(verdict.read_text()))


def decide(decision: Mapping[str, Any]) -> None:
    """Raise GateRefused with the reasons if the model did not pass and the mode is ``enforce``."""
    if decision["passed"]:
        log.info("%s", decision["summary"])
    elif decision["mode"] == "enforce":
        raise GateRefused(
            f"{decision['summary']} Nothing is published. Train longer or on more data, or change the thresholds "
            "(parameter thresholds); gate_mode 'warn' keeps the model, but it is not served"
        )
    else:
        log.warning(
            "%s The gate's mode is %s: the model is kept, but not served.",
            decision["summary"],
            decision["mode"],
        )
