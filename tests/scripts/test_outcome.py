"""What the last tasks of a run tell of production, from what its tasks report."""

from typing import Any

from pipeline.settings import read_settings
from scripts.outcome import look_up
from tests.kfp.world import World

pytest_plugins = ("tests.kfp.fixtures",)
RUN = "push-0a1b2c3d4e5f"


def report(world: World, task: str, *, failed: bool = False, **results: Any) -> None:
    """Add the TaskRun of a task that has ended with these results."""
    labels = {"tekton.dev/pipelineRun": RUN, "tekton.dev/pipelineTask": task}
    condition = {"type": "Succeeded", "status": str(not failed), "reason": "Failed", "message": "exit code 1"}
    status = {"conditions": [condition], "results": [{"name": name, "value": text} for name, text in results.items()]}
    world.cluster.ci.add("taskruns", {"metadata": {"name": f"{RUN}-{task}", "labels": labels}, "status": status})


def test_what_production_serves_since_when_is_told(world: World) -> None:
    stale: dict[str, Any] = {"ci-image-stale": "requirements.lock"}
    report(world, "checkout", **stale)
    report(world, "wait-served", served="7", since="2026-11-28T09:40:00Z", why="")
    told = look_up(RUN, read_settings())
    assert told.why == ""
    assert told.notice == (
        "; production serves 7 since 2026-11-28T09:40:00Z"
        "; the CI image is stale: the commit has different versions of requirements.lock"
    )


def test_why_production_does_not_serve_the_version_is_told(world: World) -> None:
    why = "Version 7 is not served, since its verification failed: VersionBroken: other bytes"
    report(world, "wait-served", failed=True, served="", since="", why=why)
    told = look_up(RUN, read_settings())
    assert told.why == why
    assert told.notice == ""


def test_a_run_that_changes_nothing_in_production_tells_nothing_of_it(world: World) -> None:
    report(world, "wait", state="succeeded")
    assert look_up(RUN, read_settings()).notice == ""
