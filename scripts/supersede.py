"""``jukebox supersede``: a newer push to the branch cancels the runs of older ones that have not started training."""

from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random

from pipeline.errors import ClusterRefuses, SettingsInvalid
from pipeline.settings import read_settings
from scripts.git import TokenFile, fetch, git
from scripts.kubernetes_api import OURS, PIPELINE_RUNS, PREFIX, Cluster, Resource, ci_cluster

COMMIT, SUPERSEDED_BY = f"{PREFIX}/commit", f"{PREFIX}/superseded-by"
PUSHES = f"{OURS},{PREFIX}/reason=push"
TRAINING = "start"  # the task from which on a run is not superseded


class Verdict(Enum):
    """What is to be done about another run."""

    LEAVE, CANCEL_IT, CANCEL_OURS = auto(), auto(), auto()


def command(
    run: Annotated[str, typer.Argument(help="Name of our own PipelineRun.")],
    repository: Annotated[str, typer.Option(help="Address that git clones from.")],
    branch: Annotated[str, typer.Option(help="The branch that was pushed to.")] = "main",
    token_file: TokenFile = None,
) -> None:
    """Cancel the runs of older pushes that have not started training; where a newer push has a run, our own.

    Older is the commit that the other one descends from, so a branch that was forced elsewhere supersedes nothing. What
    a person has started again is left alone. A cancelled run still does what it does at the end.

    Example: `jukebox supersede push-0a1b2c3d4e5f --repository https://github.com/you/jukebox`
    """
    cluster = ci_cluster(read_settings())
    ours = cluster.read(PIPELINE_RUNS, run)
    if ours is None:
        raise SettingsInvalid(
            f"There is no PipelineRun {run} in {cluster.namespace}: name the one that this is part of"
        )
    metadata = ours["metadata"]
    commit = metadata.get("labels", {}).get(COMMIT)
    if not commit or _by_hand(ours):
        # The dashboard's rerun bears what was noted of the first run.
        if SUPERSEDED_BY in metadata.get("annotations", {}):
            cluster.patch(PIPELINE_RUNS, run, {"metadata": {"annotations": {SUPERSEDED_BY: None}}})
        print(f"{run} was started by hand: it is superseded by nothing, and supersedes nothing")
        return
    with TemporaryDirectory() as folder:
        history = History(Path(folder), repository, branch, commit, token_file)
        for other in sorted(cluster.list(PIPELINE_RUNS, PUSHES), key=lambda each: str(each["metadata"]["name"])):
            name = other["metadata"]["name"]
            verdict = judge(other, commit, history)
            if verdict is Verdict.CANCEL_OURS:
                cancel(cluster, run, name)
                print(f"{run} is superseded by {name}, which is newer")
                return
            if verdict is Verdict.CANCEL_IT and _cancel_unless_training(cluster, name, commit, history, run):
                print(f"{name} is superseded by {run}", flush=True)


class History:
    """Which of two commits is older: the commits of the branch, without what is in them, in a repository of our own.

    Not in the checkout: there pushed code may have said what git shall run.
    """

    def __init__(self, folder: Path, repository: str, branch: str, commit: str, token_file: Path | None) -> None:
        self._folder = folder
        git(folder, "init", "--quiet", "--bare", ".")
        # A server that cannot leave them out sends trees and files as well.
        fetch(folder, repository, commit, f"refs/heads/{branch}", token_file=token_file, how="--filter=tree:0")

    def is_older(self, first: str, second: str) -> bool:
        """Tell whether ``second`` descends from ``first``; of a commit that the branch has not, nothing does."""
        if first == second:
            return False
        try:
            git(self._folder, "merge-base", "--is-ancestor", first, second)
        except SettingsInvalid:
            return False
        return True


def judge(other: Resource, commit: str, history: History) -> Verdict:
    """Say what is to be done about the run ``other`` by a run of ``commit``."""
    theirs = other["metadata"]["labels"].get(COMMIT, "")
    ended = _condition(other)
    if _by_hand(other) or other["spec"].get("status") or ended == "False":
        return Verdict.LEAVE  # meant, or cancelled, or failed, so that it brings nothing newer about
    if history.is_older(commit, theirs):
        return Verdict.CANCEL_OURS
    if ended or _trains(other) or not history.is_older(theirs, commit):
        return Verdict.LEAVE
    return Verdict.CANCEL_IT


def cancel(cluster: Cluster, run: str, newer: str, version: str = "") -> None:
    """Have a run end with its last tasks; only where it is still of this resource version, if one is named."""
    metadata = {"annotations": {SUPERSEDED_BY: newer}} | ({"resourceVersion": version} if version else {})
    cluster.patch(PIPELINE_RUNS, run, {"metadata": metadata, "spec": {"status": "CancelledRunFinally"}})


def _cancel_unless_training(cluster: Cluster, name: str, commit: str, history: History, ours: str) -> bool:
    """Cancel a run as it was judged, and judge it anew where it has moved on meanwhile."""

    def attempt() -> bool:
        other = cluster.read(PIPELINE_RUNS, name)
        if other is None or judge(other, commit, history) is not Verdict.CANCEL_IT:
            return False
        cancel(cluster, name, ours, other["metadata"]["resourceVersion"])
        return True

    retrying = Retrying(
        stop=stop_after_attempt(10),
        wait=wait_random(0, 1),
        retry=retry_if_exception(lambda error: isinstance(error, ClusterRefuses) and error.status == 409),
        reraise=True,
    )
    return bool(retrying(attempt))


def _by_hand(run: Resource) -> bool:
    """Tell whether a person has started it, the dashboard's rerun too: an event's run has a name of the event's."""
    return "generateName" in run["metadata"]


def _condition(run: Resource) -> str:
    """Whether a run has ended well: True, False, or nothing while it has not ended."""
    conditions = run.get("status", {}).get("conditions", [])
    found = next((str(one["status"]) for one in conditions if one["type"] == "Succeeded"), "")
    return "" if found == "Unknown" else found


def _trains(run: Resource) -> bool:
    children = run.get("status", {}).get("childReferences", [])
    return any(child.get("pipelineTaskName") == TRAINING for child in children)
