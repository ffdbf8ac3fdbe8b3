"""The health checks of Argo CD, run by a real Lua (5.1, as Argo CD's own is)."""

from typing import Any

import pytest
from lupa import lua51

from scripts.bootstrap import HEALTH
from tests.tekton.manifests import Resource

DSPA = "datasciencepipelinesapplications.opendatahub.io_DataSciencePipelinesApplication"
LISTENER = "triggers.tekton.dev_EventListener"


def conditions(*found: tuple[str, str, str, str]) -> dict[str, Any]:
    keys = ("type", "status", "reason", "message")
    return {"status": {"conditions": [dict(zip(keys, one, strict=True)) for one in found]}}


CASES = [
    (DSPA, {}, "Progressing", "the operator has not looked at it yet"),
    (DSPA, {"status": {}}, "Progressing", "the operator has not looked at it yet"),
    (DSPA, conditions(("DatabaseAvailable", "True", "", "")), "Progressing", "the operator has not looked at it yet"),
    (DSPA, conditions(("Ready", "False", "MinimumReplicasAvailable", "waits")), "Progressing", "waits"),
    (DSPA, conditions(("Ready", "False", "FailingToDeploy", "no image")), "Degraded", "no image"),
    (DSPA, conditions(("Ready", "Unknown", "", "it starts")), "Progressing", "it starts"),
    (DSPA, conditions(("APIServerReady", "False", "", ""), ("Ready", "True", "", "")), "Healthy", "is ready"),
    (LISTENER, {}, "Progressing", "Triggers has not looked"),
    (LISTENER, conditions(("Ready", "False", "", "Deployment: False")), "Progressing", "Deployment: False"),
    (LISTENER, conditions(("Ready", "Unknown", "", "a pod starts")), "Progressing", "a pod starts"),
    (LISTENER, conditions(("Service", "True", "", ""), ("Ready", "True", "", "")), "Healthy", "listens"),
]


@pytest.fixture
def checks(built: dict[str, list[Resource]]) -> dict[str, str]:
    [settings] = built["argocd/health-checks"]
    return {key.removeprefix(HEALTH): text for key, text in settings["data"].items()}


@pytest.mark.parametrize(("kind", "document", "health", "message"), CASES)
def test_health(checks: dict[str, str], kind: str, document: dict[str, Any], health: str, message: str) -> None:
    lua = lua51.LuaRuntime()
    resource = {"metadata": {"name": "it"}, **document}
    lua.globals()["obj"] = lua.table_from(resource, recursive=True)
    found = lua.execute(checks[kind])
    assert found["status"] == health
    assert message in found["message"]


def test_every_check_has_its_cases(checks: dict[str, str]) -> None:
    assert {kind for kind, _, _, _ in CASES} == set(checks)
