"""What became of a PipelineRun, from what Tekton tells the tasks that come last, and why, from what its tasks say."""

import re
from enum import StrEnum
from typing import Annotated, NamedTuple

import typer

from pipeline.core.errors import ServerUnavailable, SettingsInvalid
from pipeline.settings import Settings
from scripts.causes import cleaned
from scripts.clients.kubernetes_api import TASK_RUNS, Resource, ci_cluster


class State(StrEnum):
    """The outcome; the second line are Tekton's names for the status of tasks."""

    PENDING, SUCCESS, FAILURE, ERROR, CANCELLED = "pending", "success", "failure", "error", "cancelled"
    SUCCEEDED, COMPLETED, FAILED, NONE = "Succeeded", "Completed", "Failed", "None"


# Completed is a success with skipped tasks; with None, Tekton does not know how the tasks ended.
WORDS = {
    State.SUCCEEDED: State.SUCCESS,
    State.COMPLETED: State.SUCCESS,
    State.FAILED: State.FAILURE,
    State.NONE: State.ERROR,
}
STALE = "ci-image-stale"  # the result of the task checkout
RESULTS = ("run-id", STALE, "served", "since")  # of any task; those of which something is told
REBUILD = "Build the stage ci of the Containerfile, push it, put its digest into ci-image, and run `jukebox bootstrap`."
PHRASES = {
    State.PENDING: "is running",
    State.SUCCESS: "succeeded",
    State.FAILURE: "failed",
    State.ERROR: "ended with an error",
}

Last = Annotated[
    State, typer.Option(help="Tekton's status of the last task; without its success the outcome is not a success.")
]
Tests = Annotated[
    State, typer.Option(help="Tekton's status of the tests; None if the run only releases a version for production.")
]
Served = Annotated[State, typer.Option(help="Tekton's status of the last task of a run that only releases a version.")]
PipelineRun = Annotated[str, typer.Option(help="The PipelineRun, to report why it failed and to find its run.")]
SupersededBy = Annotated[str, typer.Option(help="The PipelineRun of a newer push that cancelled this one.")]


def outcome(state: State, last: State, superseded_by: str, tests: State, served: State) -> tuple[State, str]:
    """Return the state, without Tekton's names, and a phrase for people.

    Tekton calls the tasks of a cancelled run Failed if it stopped one of them, else Completed. If the tests were
    skipped, the last task is another: ``served`` is its status then.
    """
    last = served if tests is State.NONE else last
    if superseded_by:
        return State.CANCELLED, f"superseded by {superseded_by}, a newer push"
    word = WORDS.get(state, state)
    if word is State.CANCELLED or (word is State.SUCCESS and WORDS.get(last, last) is not State.SUCCESS):
        return State.CANCELLED, "was cancelled"
    return word, PHRASES[word]


class Told(NamedTuple):
    """What the tasks of a PipelineRun report.

    Attributes:
        why: the first task's that has failed, in a line; empty if none has, or it is not known.
        run: the id of the pipeline server's run; empty if none was started, or it is not known.
        stale: files of the commit that are others in the CI image; empty if none is, or it is not known.
        served: the number of the version that production serves; empty if the run did not change it.
        since: the time, RFC 3339, since when it serves that version.
    """

    why: str = ""
    run: str = ""
    stale: str = ""
    served: str = ""
    since: str = ""

    @property
    def notice(self) -> str:
        """A note after any outcome: what production serves, and that the CI image is stale; empty if there is none."""
        served = f"; production serves {self.served} since {self.since}" if self.served else ""
        stale = f"; the CI image is stale: the commit has different versions of {self.stale}" if self.stale else ""
        return served + stale


def look_up(pipeline_run: str, settings: Settings) -> Told:
    """Read what the tasks of a PipelineRun report. If the cluster does not answer, print that; it is not an error."""
    if not pipeline_run:
        return Told()
    try:
        tasks = ci_cluster(settings).list(TASK_RUNS, f"tekton.dev/pipelineRun={pipeline_run}")
    except (ServerUnavailable, SettingsInvalid) as error:
        print(f"The cause of the outcome of {pipeline_run} is unknown: {error}")
        return Told()
    tasks.sort(key=lambda task: str(task.get("status", {}).get("completionTime", "")))
    found = [next(filter(None, (results(each).get(name) for each in tasks)), "") for name in RESULTS]
    return Told(next(filter(None, map(_why, tasks)), ""), *found)


def link(page: str, pipeline_run: str, told: Told) -> str:
    """Return the address of the page about a run; empty if none is configured, or what it needs is not known.

    In ``page``, {run} is replaced by the id of the pipeline server's run, {pipeline-run} by the PipelineRun's name.
    """
    if "{run}" in page and not told.run:
        return ""
    url = page.replace("{run}", told.run).replace("{pipeline-run}", pipeline_run)
    if url and not re.fullmatch(r"https?://[^\s@{}]+", url):
        print("No link: run-page in the settings is not a valid address, expected https://host/runs/{run}")
        return ""
    return url


def _why(task: Resource) -> str:
    """Why a task failed, by its own result or by Tekton's message; empty if it did not fail or was cancelled."""
    for condition in task.get("status", {}).get("conditions", ()):
        if condition.get("status") == "False" and condition.get("reason") != "TaskRunCancelled":
            name = task["metadata"].get("labels", {}).get("tekton.dev/pipelineTask", "")
            return results(task).get("why") or cleaned(f"task {name}: {' '.join(condition.get('message', '').split())}")
    return ""


def results(task: Resource) -> dict[str, str]:
    """The results of a TaskRun by their names; none if it has not ended."""
    return {each["name"]: str(each["value"]).strip() for each in task.get("status", {}).get("results", ())}
