"""Which tasks an event runs, by the rules by which Tekton skips tasks, and what the last tasks report of it."""

import json
import re
from typing import Any

import pytest

from scripts.outcome import State, outcome
from tests.tekton.manifests import Resource

BUILD = {"build-image", "compile", "apply"}
TRAIN = {"start", "wait", "promote"}


def executed(resources: list[Resource], reason: str, **checkout: str) -> set[str]:
    """The tasks that run if none fails.

    A task is skipped if its `when` is false; if it needs the result of a task that was skipped; and if a task that it
    runs after, or whose result it needs, was skipped for another reason than its own `when`.
    """
    [pipeline] = [resource["spec"] for resource in resources if resource["kind"] == "Pipeline"]
    values = {"$(params.reason)": reason, "$(params.not-before)": ""}
    values |= {f"$(tasks.checkout.results.{name.replace('_', '-')})": text for name, text in checkout.items()}
    skipped: dict[str, str] = {}
    left = list(pipeline["tasks"])
    while left:
        task = left.pop(0)
        needed = set(re.findall(r"\$\(tasks\.([\w-]+)\.results", json.dumps(task)))
        parents = needed | set(task.get("runAfter", ()))
        if parents & {each["name"] for each in left}:
            left.append(task)
        elif not all(holds(each, values) for each in task.get("when", ())):
            skipped[task["name"]] = "when"
        elif any(skipped.get(parent, "when") != "when" for parent in parents) or needed & set(skipped):
            skipped[task["name"]] = "for another"
    return {task["name"] for task in pipeline["tasks"]} - set(skipped)


def holds(expression: dict[str, Any], values: dict[str, str]) -> bool:
    found = values[expression["input"]] in expression["values"]
    return found if expression["operator"] == "in" else not found


@pytest.mark.parametrize("missing", ["true", "false"], ids=["images are missing", "all images are there"])
def test_a_push_of_the_pin_alone_releases_it_and_does_nothing_else(resources: list[Resource], missing: str) -> None:
    built = dict.fromkeys(("ci_image_missing", "dependencies_missing", "images_missing"), missing)
    ran = executed(resources, "push", tested="true", pin_changed="true", **built)
    assert ran == {"checkout", "release", "wait-served"}


def test_a_push_is_released_after_its_tests_and_trained(resources: list[Resource]) -> None:
    built = dict.fromkeys(("ci_image_missing", "dependencies_missing", "images_missing"), "false")
    ran = executed(resources, "push", tested="false", pin_changed="false", **built)
    assert ran == {"checkout", "supersede", "test", "release", *BUILD, *TRAIN}
    # What nobody has tested yet comes with a pin: production waits for it all the same.
    assert executed(resources, "push", tested="false", pin_changed="true", **built) == {*ran, "wait-served"}
    [pipeline] = [resource["spec"] for resource in resources if resource["kind"] == "Pipeline"]
    [release] = [task for task in pipeline["tasks"] if task["name"] == "release"]
    assert "test" in release["runAfter"]


@pytest.mark.parametrize("reason", ["data", "alert", "schedule", "manual"])
def test_no_other_event_releases_anything(resources: list[Resource], reason: str) -> None:
    built = dict.fromkeys(("ci_image_missing", "dependencies_missing", "images_missing"), "true")
    ran = executed(resources, reason, tested="false", pin_changed="false", **built)
    assert ran == {"checkout", "build-ci-image", "build-packages", "test", "tag-images", *BUILD, *TRAIN}


@pytest.mark.parametrize(
    ("promote", "tests", "served", "expected"),
    [
        ("Succeeded", "Succeeded", "None", State.SUCCESS),
        ("Succeeded", "Succeeded", "Succeeded", State.SUCCESS),
        ("None", "None", "Succeeded", State.SUCCESS),
        # Cancelled by hand between two tasks.
        ("None", "Succeeded", "Succeeded", State.CANCELLED),
        ("None", "Succeeded", "None", State.CANCELLED),
        ("None", "None", "None", State.CANCELLED),
    ],
)
def test_a_run_has_succeeded_if_the_last_task_of_its_way_has(
    promote: str, tests: str, served: str, expected: State
) -> None:
    state, _ = outcome(State.COMPLETED, State(promote), "", State(tests), State(served))
    assert state is expected
