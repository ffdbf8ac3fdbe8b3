"""``jukebox prune``: remove old PipelineRuns, and sooner the volumes of runs that have ended."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from pipeline.core.errors import ClusterRefuses
from pipeline.settings import read_settings
from scripts.clients.kubernetes_api import CLAIMS, OURS, PIPELINE_RUNS, Cluster, Resource, ci_cluster

CLAIM_AGE = timedelta(days=1)  # since the end of its run: who looks into a failure may want to see the files
PROTECTION = "kubernetes.io/pvc-protection"


def command(
    keep: Annotated[int, typer.Option(min=0, help="Number of the newest runs to keep, whatever their age.")] = 20,
    days: Annotated[float, typer.Option(min=0, help="Minimum age of a run, counted from its end.")] = 30,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be deleted, and delete nothing.")
    ] = False,
) -> None:
    """Delete old PipelineRuns, and the volumes of those that ended over a day ago.

    It never deletes active runs, PipelineVersions or models. Old runs are kept for long because their names reject the
    redelivery of an event.

    Example: `jukebox prune --keep 20 --days 30 --dry-run`
    """
    cluster = ci_cluster(read_settings())
    runs = cluster.list(PIPELINE_RUNS, OURS)
    now = datetime.now(UTC)
    said = "would be removed" if dry_run else "removed"
    old = old_runs(runs, keep, now - timedelta(days=days))
    for name in old:
        if not dry_run:
            cluster.delete(PIPELINE_RUNS, name)
        print(f"PipelineRun {name} {said}", flush=True)
    # What an old run owns goes with it.
    ended = {run["metadata"]["uid"] for run in runs if (_end(run) or now) < now - CLAIM_AGE}
    for claim in cluster.list(CLAIMS):
        owners = [owner for owner in claim["metadata"].get("ownerReferences", []) if owner["kind"] == "PipelineRun"]
        if any(owner["uid"] in ended and owner["name"] not in old for owner in owners):
            if not dry_run:
                remove_claim(cluster, claim)
            print(f"PersistentVolumeClaim {claim['metadata']['name']} of {owners[0]['name']} {said}", flush=True)


def old_runs(runs: list[Resource], keep: int, before: datetime) -> list[str]:
    """The names of the runs that ended before a time, without the ``keep`` newest of all."""
    newest_first = sorted(runs, key=lambda run: str(run["metadata"]["creationTimestamp"]), reverse=True)
    return [run["metadata"]["name"] for run in newest_first[keep:] if (_end(run) or before) < before]


def remove_claim(cluster: Cluster, claim: Resource) -> None:
    """Delete the claim of a run that has ended, though its pods are there: they have let go of it, and keep their logs.

    Kubernetes keeps a claim for as long as there is a pod that names it, ended or not.
    """
    name = claim["metadata"]["name"]
    cluster.delete(CLAIMS, name)
    others = [each for each in claim["metadata"].get("finalizers", []) if each != PROTECTION]
    try:
        cluster.patch(CLAIMS, name, {"metadata": {"finalizers": others}})
    except ClusterRefuses as error:
        if error.status != 404:  # gone already
            raise


def _end(run: Resource) -> datetime | None:
    """When a run has ended, or nothing where it has not."""
    time = run.get("status", {}).get("completionTime")
    return datetime.fromisoformat(time) if time else None
