"""What the job beside the model store has said of the versions: it alone can read a store on a claim.

``jukebox retain --part models --output json`` prints a line for each version, and one about itself. Others read them in
the log of the job's pod.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.core.errors import ServerUnavailable, SettingsInvalid
from scripts.clients.kubernetes_api import PODS, Cluster
from scripts.in_use import check_fresh

SELECTOR = "app.kubernetes.io/name=retention"  # the pods of the CronJob
CONTAINER = "retention"  # their container
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LINES = 10_000  # of the log


@dataclass(frozen=True)
class Kept:
    """What is known of the model versions that stay.

    Attributes:
        runs: each one's number by the id of the run that made it.
        images: likewise, by the digest of its image.
        unfit: by the number of each that must not be served why: it was withdrawn, or is damaged.
    """

    runs: Mapping[str, str]
    images: Mapping[str, str]
    unfit: Mapping[int, str]


def kept_of(versions: Iterable[tuple[str, Mapping[str, Any]]]) -> Kept:
    """Return what is known of versions, from the number of each and what the job prints of it."""
    runs, images, unfit = {}, {}, {}
    for number, about in versions:
        runs[about.get("run") or ""] = number
        for digest in DIGEST.findall(about.get("image") or ""):
            images[digest] = number
        if why := about.get("withdrawn") or about.get("damaged"):
            unfit[int(number)] = why
    return Kept(runs, images, unfit)


def read_kept(cluster: Cluster, model: str, now: datetime) -> Kept:
    """Return what the last job has said; raises SettingsInvalid if that is none of the last six hours."""
    remedy = f"Nothing is deleted. Let the CronJob run: kubectl create job --from=cronjob/{model}-retention NAME"
    lines, made = _said(cluster, model, remedy)
    check_fresh(datetime.fromisoformat(made), now, "What the last job beside the model store says", remedy)
    return kept_of((line["name"], line) for line in lines)


def read_unfit(cluster: Cluster, model: str) -> Mapping[int, str]:
    """Return which versions must not be served, and why, as the last job has said; none if there is no such job."""
    try:
        lines, _ = _said(cluster, model, "")
    except (ServerUnavailable, SettingsInvalid):
        return {}
    return kept_of((line["name"], line) for line in lines).unfit


def _said(cluster: Cluster, model: str, remedy: str) -> tuple[list[dict[str, Any]], str]:
    """The lines of the last job about versions that stay, and when it was made."""
    ended = [pod for pod in cluster.list(PODS, SELECTOR) if pod["status"].get("phase") == "Succeeded"]
    if not ended:
        raise SettingsInvalid(f"No job in {cluster.namespace} has said which models stay. {remedy}")
    name = max(ended, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))["metadata"]["name"]
    try:
        log = cluster.log(name, CONTAINER, _LINES)
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        [end] = [line for line in lines if "made" in line and line["model"] == model]
        return [line for line in lines if line.get("part") == "models" and line["stays"]], str(end["made"])
    except (ValueError, KeyError):
        raise SettingsInvalid(f"The pod {name} does not say which versions of {model} stay. {remedy}") from None
