"""What became of a PipelineRun, from what Tekton tells the tasks that come last."""

from enum import StrEnum
from typing import Annotated

import typer


class State(StrEnum):
    """What became of it; the second line are Tekton's words for the status of tasks."""

    PENDING, SUCCESS, FAILURE, ERROR, CANCELLED = "pending", "success", "failure", "error", "cancelled"
    SUCCEEDED, COMPLETED, FAILED, NONE = "Succeeded", "Completed", "Failed", "None"


# Completed is a success with skipped tasks; with None the tasks ended in no way that Tekton could tell.
WORDS = {
    State.SUCCEEDED: State.SUCCESS,
    State.COMPLETED: State.SUCCESS,
    State.FAILED: State.FAILURE,
    State.NONE: State.ERROR,
}
PHRASES = {State.PENDING: "goes on", State.SUCCESS: "succeeded", State.FAILURE: "failed", State.ERROR: "broke off"}

Last = Annotated[State, typer.Option(help="Tekton's word for the last task, without which nothing is a success.")]
SupersededBy = Annotated[str, typer.Option(help="The run of a newer push, for which this one was cancelled.")]


def outcome(state: State, last: State, superseded_by: str) -> tuple[State, str]:
    """Return the state, in none of Tekton's words, and a phrase for people.

    Tekton calls the tasks of a cancelled run Failed where it stopped one in the middle, else Completed.
    """
    if superseded_by:
        return State.CANCELLED, f"superseded by {superseded_by}, a newer push"
    word = WORDS.get(state, state)
    if word is State.CANCELLED or (word is State.SUCCESS and WORDS.get(last, last) is not State.SUCCESS):
        return State.CANCELLED, "was cancelled"
    return word, PHRASES[word]
