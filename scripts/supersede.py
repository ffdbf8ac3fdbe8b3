"""``jukebox supersede``: a newer push cancels the runs of older ones that do not train yet; old events are refused."""

from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.core.errors import CommitOutdated, SettingsInvalid
from pipeline.settings import read_settings
from scripts.clients.kubernetes_api import (
    CONFIG_MAPS,
    OURS,
    PIPELINE_RUNS,
    PREFIX,
    Cluster,
    Resource,
    again_while_outrun,
    ci_cluster,
)
from scripts.git import GitSecret, fetch, git

COMMIT, SUPERSEDED_BY = f"{PREFIX}/commit", f"{PREFIX}/superseded-by"
PUSHES = f"{OURS},{PREFIX}/reason=push"
RECORD = "jukebox-commits"  # the ConfigMap whose key `newest` is the newest commit that a push has run, `run` its uid
TRAINING = "start"  # the task from which on a run is not superseded
TESTS, SERVING = "test", "wait-served"  # a run that waits for production, and has no tests, trains nothing


class Verdict(Enum):
    """What is to be done about another run."""

    LEAVE, CANCEL_IT, CANCEL_OURS = auto(), auto(), auto()


def command(
    run: Annotated[str, typer.Argument(help="Name of the PipelineRun that this task is part of.")],
    commit: Annotated[str, typer.Option(help="Full hash of its commit.")],
    git_secret: GitSecret = None,
) -> None:
    """Cancel the runs of older pushes that have not started training, or this run if a newer push has one.

    A commit is older if the other one descends from it, so a force push to another history supersedes nothing. Runs
    that a person started again are not cancelled. A cancelled run still executes its final tasks.

    It fails for a replayed event: the commit must be the head of the branch, or descend from the newest one that has
    run.

    Example: `jukebox supersede push-0a1b2c3d4e5f --commit 0a1b…`
    """
    settings = read_settings()
    cluster = ci_cluster(settings)
    ours = cluster.read(PIPELINE_RUNS, run)
    if ours is None:
        raise SettingsInvalid(
            f"There is no PipelineRun {run} in {cluster.namespace}: set it to the one that this task is part of"
        )
    metadata = ours["metadata"]
    if _by_hand(ours):
        # The dashboard's rerun bears what was noted of the first run.
        if SUPERSEDED_BY in metadata.get("annotations", {}):
            cluster.patch(PIPELINE_RUNS, run, {"metadata": {"annotations": {SUPERSEDED_BY: None}}})
        print(f"{run} was started by hand: it neither supersedes a run nor is superseded")
        return
    with TemporaryDirectory() as folder:
        history = History(Path(folder), settings.repository, settings.branch, commit, git_secret)
        others = sorted(cluster.list(PIPELINE_RUNS, PUSHES), key=lambda each: str(each["metadata"]["name"]))
        verdicts = {other["metadata"]["name"]: judge(other, commit, history) for other in others}
        for name, verdict in verdicts.items():
            if verdict is Verdict.CANCEL_OURS:
                cancel(cluster, run, name)
                print(f"{run} is superseded by {name}, which is newer")
                return
        again_while_outrun(lambda: record(cluster, commit, metadata["uid"], history))
        for name, verdict in verdicts.items():
            if verdict is Verdict.CANCEL_IT and _cancel_unless_training(cluster, name, commit, history, run):
                print(f"{name} is superseded by {run}", flush=True)


class History:
    """Which of two commits is older: the commits of the branch, without what is in them, in a repository of our own.

    Attributes:
        head: the newest commit of the branch.
    """

    def __init__(self, folder: Path, repository: str, branch: str, commit: str, secret: Path | None) -> None:
        self._folder = folder
        git(folder, "init", "--quiet", "--bare", ".")
        # A server that cannot leave them out sends trees and files as well.
        fetch(folder, repository, commit, f"refs/heads/{branch}", secret=secret, how="--filter=tree:0")
        self.head = (folder / "FETCH_HEAD").read_text().splitlines()[-1].split()[0]

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
    if ended or _is_of_use(other) or not history.is_older(theirs, commit):
        return Verdict.LEAVE
    return Verdict.CANCEL_IT


def record(cluster: Cluster, commit: str, run: str, history: History) -> None:
    """Record that the run with the uid ``run`` continues with ``commit``; raises CommitOutdated if that is old.

    What is noted outlives the runs, whose names refuse a second delivery of an event only as long as they are there.
    """
    found = cluster.read(CONFIG_MAPS, RECORD)
    if found is None:
        raise SettingsInvalid(
            f"There is no ConfigMap {RECORD} in {cluster.namespace}: run `jukebox bootstrap`, which creates it"
        )
    data = found.get("data") or {}
    newest = data.get("newest", "")
    if (newest, data.get("run")) == (commit, run):  # a second attempt
        return
    if commit != history.head and not (history.is_older(newest, commit) and history.is_older(commit, history.head)):
        raise CommitOutdated(
            f"The event is about commit {commit[:12]}, expected the branch's head {history.head[:12]}"
            + (f" or a commit between that and {newest[:12]}, the newest that was trained" if newest else "")
            + ". To train from an older commit, start it by hand: copy a PipelineRun with generateName instead of "
            "its name. To go back for good, push a revert"
        )
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    cluster.patch(CONFIG_MAPS, RECORD, {"metadata": version, "data": {"newest": commit, "run": run}})


def cancel(cluster: Cluster, run: str, newer: str, version: str = "") -> None:
    """Cancel a run, with its final tasks; only if it still has this resource version, if one is given."""
    metadata = {"annotations": {SUPERSEDED_BY: newer}} | ({"resourceVersion": version} if version else {})
    cluster.patch(PIPELINE_RUNS, run, {"metadata": metadata, "spec": {"status": "CancelledRunFinally"}})


def _cancel_unless_training(cluster: Cluster, name: str, commit: str, history: History, ours: str) -> bool:
    """Cancel a run in the state that was checked; check again if it has changed since."""

    def attempt() -> bool:
        other = cluster.read(PIPELINE_RUNS, name)
        if other is None or judge(other, commit, history) is not Verdict.CANCEL_IT:
            return False
        cancel(cluster, name, ours, other["metadata"]["resourceVersion"])
        return True

    return again_while_outrun(attempt)


def _by_hand(run: Resource) -> bool:
    """Tell whether a person has started it, the dashboard's rerun too: an event's run has a name of the event's."""
    return "generateName" in run["metadata"]


def _condition(run: Resource) -> str:
    """Whether a run has ended well: True, False, or nothing while it has not ended."""
    conditions = run.get("status", {}).get("conditions", [])
    found = next((str(one["status"]) for one in conditions if one["type"] == "Succeeded"), "")
    return "" if found == "Unknown" else found


def _is_of_use(run: Resource) -> bool:
    """Tell whether a run of an older commit trains, or waits for production to serve what was promoted."""
    tasks = {child.get("pipelineTaskName") for child in run.get("status", {}).get("childReferences", [])}
    return TRAINING in tasks or (SERVING in tasks and TESTS not in tasks)
