"""Gate: nothing that is not good enough goes on from here. It is the first thing that verify-model does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import GateRefused
from pipeline.core.log import log


def gate(verdict: Path) -> None:
    """Let a verdict decide; see ``decide``."""
    decide(json.loads(verdict.read_text()))


def decide(decision: Mapping[str, Any]) -> None:
    """Raise GateRefused with the reasons when the verdict says no and its mode is ``enforce``."""
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
