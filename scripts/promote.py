"""``jukebox promote``: propose a published model for production."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from pipeline.core.candidate import Candidate, parse
from pipeline.core.champion import CHAMPION, SERVED
from pipeline.core.errors import HostRefuses, RequestRefused, ServerUnavailable, SettingsInvalid, StoreBroken
from pipeline.core.store import open_store
from pipeline.settings import Settings, read_settings
from scripts.causes import step_of
from scripts.clients.git_hosts import State
from scripts.clients.kfp_server import Json, Kfp
from scripts.clients.kubernetes_api import Cluster, find_cluster
from scripts.clients.pipeline_server import find_server
from scripts.git import GitSecret
from scripts.kept import read_unfit
from scripts.pins import Pin, rollbacks
from scripts.promotion_body import body_of, source_in
from scripts.proposals import (
    ATTEMPTS,
    Base,
    Found,
    Kind,
    Proposal,
    Proposals,
    has_token,
    proposals,
    proposed_in,
    without_hold,
)
from scripts.start import Reason

PUBLISH = "publish-model"  # the step
LOG_LINES = 1000  # of a pod's log; the line is among the last


def command(
    run: Annotated[str, typer.Argument(help="Id of the run that published the model.")],
    git_secret: GitSecret = None,
    reason: Annotated[
        Reason | None, typer.Option(help="Why the run was started, for the reviewer: it may have no commit of its own.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Propose a version whose proposal was closed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the proposal, and change nothing.")] = False,
) -> None:
    """Propose the model that a run published for production, as a pull request that pins its version.

    Merging it serves the version, and nothing else does. There is one pull request a model: a better version replaces
    what it proposes, and a second call changes nothing. It proposes nothing, and says why, if the model has not passed
    or is not for production, if the pin has a hold, or if production has this version or a newer one.

    Example: `jukebox promote 6f1c3c2e-0d5b-5c8e-9a51-3f0f6d1f2b7a --git-secret secret`
    """
    settings = read_settings()
    server = find_server(settings)
    cluster = find_cluster(server.namespace)
    candidate = find_candidate(Kfp(partial(find_server, settings)), cluster, run)
    if candidate is None:
        print(f"Nothing is proposed: run {run} published no version.")
        return
    name = f"{candidate.model} {candidate.number}"
    if why := unfit(candidate, settings):
        print(f"{name} is not proposed: {why}.")
    elif not has_token(settings, git_secret):
        print(f"{name} is not proposed: {git_secret} contains no token for the Git host.")
    else:
        with proposals(settings, git_secret) as proposed:
            told = read_unfit(cluster, settings.model_name) if cluster else {}
            print(promote(proposed, candidate, reason=reason, again=again, dry_run=dry_run, told=told))


def find_candidate(kfp: Kfp, cluster: Cluster | None, run_id: str) -> Candidate | None:
    """Return what a run published, from the log of its last step; None if it published nothing.

    Raises ServerUnavailable if neither the pipeline server nor the cluster has the log.
    """
    run = kfp.run(run_id)
    if run is None:
        raise ServerUnavailable(f"The server has no run {run_id}.\nList the runs with `jukebox status`.")
    logs = [*_logs(kfp, cluster, run)]
    for log in logs:
        if found := parse(log):
            return found
    if not logs and any(task.get("display_name") == PUBLISH for task in _tasks(run)):
        raise ServerUnavailable(
            f"The log of {PUBLISH} of run {run_id} does not exist any more, so it is not known what it published.\n"
            "Start the run again, or pin the version by hand in a pull request."
        )
    return None


def unfit(candidate: Candidate, settings: Settings) -> str:
    """Why a model may not be proposed, whatever is in Git; empty if it may."""
    if candidate.model != settings.model_name:
        raise SettingsInvalid(
            f"the run published the model {candidate.model}, expected {settings.model_name}, the model of the settings"
        )
    if not settings.prod_cluster:
        return "there is no production; set prod-cluster in the settings"
    if not candidate.passed:
        return f"it has not passed: {candidate.summary}"
    if not candidate.prod_flag:
        return "it is not for production, because its run had prod_flag false"
    return ""


def promote(
    proposed: Proposals,
    candidate: Candidate,
    *,
    reason: Reason | None = None,
    again: bool = False,
    dry_run: bool = False,
    told: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """Propose a model that is fit; return in a sentence what was done, or why nothing is proposed.

    ``told`` says of versions that must not be served why, if the model store cannot be read. Raises HostRefuses.
    """
    name = f"{candidate.model} {candidate.number}"
    for _ in range(ATTEMPTS):
        base, found = proposed.base(), proposed.find(Kind.PROMOTION)
        if why := _superfluous(proposed, candidate, base, found, told, again=again):
            return f"{name} is not proposed: {why}."
        other = found.pin if found.open and found.pin and found.pin.version != candidate.number else None
        better, words = compare(facts(candidate), found.facts) if other else (True, "")
        if other and not better:
            return f"{name} is not proposed: {found.open and found.open.url} proposes {other.version}, and {words}."
        proposal = _proposal(proposed, candidate, base.pin, found, reason)
        if dry_run:
            return f"{proposal.title}\n\n{proposal.marked}"
        comment = f"Version {candidate.number} replaces version {other.version}: {words}." if other else ""
        if pull := proposed.propose(base, found, proposal, comment):
            return f"{name} is proposed: {pull.url}. {proposed.merge(pull, Kind.PROMOTION)}"
    raise HostRefuses(f"{name} is not proposed: others change the proposal all the time. Run this again")


def _proposal(proposed: Proposals, candidate: Candidate, before: Pin, found: Found, reason: Reason | None) -> Proposal:
    """What is proposed for a model, if ``before`` is what is pinned."""
    merged = (pull.body for pull in found.pulls if pull.state is State.MERGED)
    source = next((source_in(body) for body in merged if proposed_in(body) == without_hold(before)), "")
    pin = Pin(candidate.model, candidate.number, candidate.sha256)
    return Proposal(
        pin,
        f"Promote {candidate.model} {candidate.number} to production",
        body_of(candidate, before, proposed.settings, proposed.host, reason=reason, source=source),
        candidate.summary,
        candidate.run["id"],
        facts(candidate),
    )


def facts(candidate: Candidate) -> dict[str, Any]:
    """What decides between this model and another one, and whether other thresholds would refuse it.

    ``worse`` holds, by the number of each version that it was compared with, how much worse it is: the difference of
    the primary metric, which is a loss, and the ends of its paired interval (95 %). ``checks`` holds what the gate
    found, and how that is compared with the threshold, by the names of the checks that compare with no other version.
    """
    found = [each for each in candidate.difference.values() if each and each["value"] is not None and each["interval"]]
    worse = {str(each["version"]): [each["value"], *each["interval"]] for each in found}
    checks = {
        check["name"]: [check["value"], check["comparison"]]
        for check in candidate.checks
        if check["value"] is not None and check["against"] not in (CHAMPION, SERVED)
    }
    return {"version": candidate.number, "worse": worse, "checks": checks}


def refused_by(thresholds: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """Which of these thresholds a model with such ``facts`` does not meet, in words; empty if it meets all.

    What the champion or the served version was compared with may be another one by now, so that is not judged again.
    """
    refused = [
        f"{name} is {value:.4g}, must be {comparison} {thresholds[name]:g}"
        for name, (value, comparison) in facts.get("checks", {}).items()
        if name in thresholds and (value > thresholds[name] if comparison == "<=" else value < thresholds[name])
    ]
    return "; ".join(refused)


def compare(new: dict[str, Any], old: dict[str, Any]) -> tuple[bool, str]:
    """Tell whether one model is better than another, with the reason in words.

    Two models are compared directly if one was judged against the other, else by what both were judged against. Only a
    significant difference counts: a model that is about as good leaves the open proposal, and its reviews, alone.
    """
    for sign, one, other in ((1, new, old), (-1, old, new)):
        if found := one.get("worse", {}).get(str(other.get("version"))):
            value, low, high = (sign * each for each in found)
            low, high = sorted((low, high))
            return _judged(value, low, high, "on the same rows")
    for version, found in new.get("worse", {}).items():
        if beside := old.get("worse", {}).get(version):
            low, high = found[1] - beside[2], found[2] - beside[1]
            return _judged(found[0] - beside[0], low, high, f"each beside version {version}")
    return False, "the two were not compared with each other, nor with the same version"


def _judged(value: float, low: float, high: float, how: str) -> tuple[bool, str]:
    words = f"{how} (difference {value:+.4g}, 95 % interval {low:+.4g} to {high:+.4g})"
    if high < 0:
        return True, f"it is better, {words}"
    return False, f"it is {'worse' if low > 0 else 'not significantly better'}, {words}"


def _superfluous(
    proposed: Proposals, candidate: Candidate, base: Base, found: Found, told: Mapping[int, str], *, again: bool
) -> str:
    """Why a fit model is not proposed now; empty if it is to be."""
    pin, number, settings = base.pin, candidate.number, proposed.settings
    if pin.hold:
        return (
            f"{settings.branch} holds promotions ({pin.hold}); to allow them, empty `hold` in the pin file, "
            "in a pull request"
        )
    if pin.version == number and pin.sha256 == candidate.sha256:
        return "production's pin has this version"
    if pin.sha256 == candidate.sha256:
        return f"it has the same bytes as version {pin.version}, which is pinned"
    if pin.version and pin.version >= number:
        return (
            f"version {pin.version} is pinned, and is not older; to go back, use `jukebox rollback`. If the store "
            "was emptied, restore it: `jukebox restore`"
        )
    if why := _withdrawn(settings, number) or told.get(number):
        return f"it was withdrawn: {why}"
    if (back := proposed.find(Kind.ROLLBACK).open) is not None:
        return f"{back.url} proposes a rollback"
    wanted = Pin(candidate.model, number, candidate.sha256)
    proposed_now = found.open is not None and found.pin == wanted
    if again or proposed_now:
        return ""
    if closed := found.closed(wanted):
        return f"{closed.url} proposed it and was closed without a merge; --again proposes it again"
    if had := rollbacks(proposed.pins()).get(wanted.sha256):
        twin = "" if had == number else ", which has the same bytes"
        return f"production was rolled back from version {had}{twin}; --again proposes it again"
    return ""


def _withdrawn(settings: Settings, number: int) -> str:
    """Why the version was withdrawn; empty if it was not, or if the store cannot be read from here."""
    if settings.on_claim and not Path(settings.model_store).is_dir():
        return ""  # the sync asks the store again
    try:
        return open_store(settings.model_store, settings.model_name).withdrawn(number) or ""
    except StoreBroken:
        return ""  # no keys for it here


def _tasks(run: Json) -> list[Json]:
    found: list[Json] = run.get("run_details", {}).get("task_details", [])
    return found


def _logs(kfp: Kfp, cluster: Cluster | None, run: Json) -> Iterator[str]:
    """The logs of the step that publishes: those that the server has, then those of its pods."""
    for task in _tasks(run):
        for child in task.get("child_tasks", ()) if task.get("display_name") == PUBLISH else ():
            try:
                yield kfp.log(str(run["run_id"]), str(child["pod_name"]))
            except RequestRefused:
                continue
    if cluster:
        pods = [pod for pod in cluster.pods(str(run["run_id"])) if step_of(pod) == PUBLISH]
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True):
            try:
                yield cluster.log(str(pod["metadata"]["name"]), "main", LOG_LINES)
            except ServerUnavailable:
                continue
