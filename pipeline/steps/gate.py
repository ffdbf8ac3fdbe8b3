"""Gate: nothing that is not good enough goes on from here. It is the first thing that verify-model does."""

import json
from pathlib import Path

from pipeline.errors import GateRefused
from pipeline.log import log


def gate(verdict: Path) -> None:
    """Raise GateRefused with the reasons when the verdict says no and its mode is ``enforce``."""
    decision = json.loads(verdict.read_text())
    if decision["passed"]:
        log.info("%s", decision["summary"])
    elif decision["mode"] == "enforce":
        raise GateRefused(
            f"{decision['summary']} Nothing is published. Train longer or on more data, or change what is asked for "
            "(parameter thresholds); gate_mode 'warn' publishes all the same"
        )
    else:
        log.warning("%s Published all the same: the gate's mode is %s.", decision["summary"], decision["mode"])
