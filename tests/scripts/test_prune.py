"""``jukebox prune``: what goes, and what never does."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.core.errors import ClusterRefuses
from scripts.cli import app
from tests.kfp.world import World

pytest_plugins = ("tests.kfp.fixtures",)
NOW = datetime.now(UTC)


def ago(days: float) -> str:
    return (NOW - timedelta(days=days)).isoformat(timespec="seconds").replace("+00:00", "Z")


def add(world: World, name: str, begun: float, ended: float | None, **metadata: Any) -> None:
    """Add a run that began and ended so many days ago, with its claim, which an ended pod of it still holds."""
    status = {} if ended is None else {"completionTime": ago(ended)}
    labels = {"app.kubernetes.io/name": "continuous-training"}
    metadata = {"name": name, "labels": labels, "creationTimestamp": ago(begun), **metadata}
    run = world.cluster.ci.add("pipelineruns", {"metadata": metadata, "spec": {}, "status": status})
    owner = {"kind": "PipelineRun", "name": name, "uid": run["metadata"]["uid"]}
    finalizers = ["kubernetes.io/pvc-protection"]
    world.cluster.ci.add(
        "persistentvolumeclaims",
        {"metadata": {"name": f"claim-{name}", "ownerReferences": [owner], "finalizers": finalizers}},
    )


def left(world: World, plural: str) -> set[str]:
    return {each["metadata"]["name"] for each in world.cluster.ci.list(plural)}


@pytest.fixture
def runs(world: World) -> World:
    add(world, "old", 50, 49)
    add(world, "older-but-running", 60, None)
    add(world, "last-week", 7, 6)
    add(world, "an-hour-ago", 0.2, 0.04)
    add(world, "running", 0.1, None)
    add(world, "of-another-pipeline", 50, 49, labels={"app.kubernetes.io/name": "other"})
    world.cluster.ci.add("persistentvolumeclaims", {"metadata": {"name": "of-somebody-else"}})
    return world


def prune(*options: str) -> str:
    result = CliRunner().invoke(app, ["prune", *options])
    if result.exception:
        raise result.exception
    return result.output


def test_old_runs_go_and_sooner_the_claims_of_ended_ones(runs: World) -> None:
    output = prune("--keep", "2", "--days", "30")
    assert left(runs, "pipelineruns") == {
        "older-but-running",
        "last-week",
        "an-hour-ago",
        "running",
        "of-another-pipeline",
    }
    # What the old run owned the cluster collects.
    assert left(runs, "persistentvolumeclaims") - {"claim-old"} == {
        "claim-older-but-running",
        "claim-an-hour-ago",
        "claim-running",
        "claim-of-another-pipeline",
        "of-somebody-else",
    }
    assert runs.cluster.asked == [], "it has to do with the namespace of the CI alone"
    assert "PipelineRun old removed" in output
    assert "PersistentVolumeClaim claim-last-week of last-week removed" in output


def test_a_dry_run_says_the_same_and_removes_nothing(runs: World) -> None:
    before = dict(runs.cluster.ci.objects)
    dry = prune("--keep", "2", "--days", "30", "--dry-run")
    assert runs.cluster.ci.objects == before
    assert {method for method, _, _ in runs.cluster.ci.asked} == {"GET"}
    assert dry.replace("would be removed", "removed") == prune("--keep", "2", "--days", "30")


def test_the_newest_stay_however_old(runs: World) -> None:
    prune("--keep", "4", "--days", "0")
    assert "old" in left(runs, "pipelineruns")
    prune("--keep", "3", "--days", "0")
    assert "old" not in left(runs, "pipelineruns")
    assert "older-but-running" in left(runs, "pipelineruns")


def test_who_may_not_delete_is_told_so(runs: World) -> None:
    runs.cluster.ci.forbidden = {"persistentvolumeclaims"}
    with pytest.raises(ClusterRefuses, match="forbidden"):
        prune()
