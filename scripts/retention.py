"""What may be deleted of an installation, and why all else stays.

Each function reads everything before it returns, and deletes nothing. If something cannot be read, it raises: what is
not known to be useless stays.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.core.champion import find_champion, read_lineage
from pipeline.core.documents import to_json
from pipeline.core.errors import ClusterRefuses, RegistryRefuses, StoreBroken, VersionBroken
from pipeline.core.store import ModelStore
from pipeline.settings import Settings
from scripts.apply import VERSIONS
from scripts.clients.kfp_server import Kfp, spec_alone
from scripts.clients.kubernetes_api import CLAIMS, OURS, PIPELINE_RUNS, Cluster, Resource
from scripts.clients.registry import Registry, repository_of
from scripts.delete_version import needed_by_store
from scripts.image_records import record_times
from scripts.in_use import ENDED, InUse
from scripts.kept import DIGEST, Kept, kept_of
from scripts.pins import Pin
from scripts.promote import refused_by
from scripts.promotion_body import text
from scripts.proposals import Found, Kind, proposals, run_in
from scripts.verify import find_damage

PROTECTION = "kubernetes.io/pvc-protection"
CLAIM_AGE = timedelta(days=1)  # since the end of its run: who looks into a failure may want to see the files
# Tags that name what an image is made of, and those that name the run that has built it.
_CONTENT = re.compile(r"(deps-|ci-|)[0-9a-f]{64}")
_RUN = re.compile(r"((?:push|data|alert|schedule)-.+?)(?:-deps|-ci)?")


@dataclass(frozen=True)
class Limits:
    """How much stays though nothing needs it.

    Attributes:
        keep: how many of the newest of each kind.
        age: what is younger, since its end, stays.
        claims: how many claims of the runs that ended last.
    """

    keep: int
    age: timedelta
    claims: int


@dataclass(frozen=True)
class Item:
    """Something that is there: why it stays, or, if there is no reason, how it is deleted."""

    part: str
    name: str
    because: tuple[str, ...]
    remove: Callable[[], None] = field(repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)


def plan_models(store: ModelStore, root: str, settings: Settings, in_use: InUse) -> list[Item]:
    """Return the versions in the model store, in the order of their numbers.

    Raises StoreBroken if the store cannot be read, or is not the one that Git means.
    """
    passed, failed = store.versions(), store.failed()
    if missing := [str(number) for number in in_use.pinned if number not in passed]:
        raise StoreBroken(
            f"{store.uri(int(missing[0]))} does not exist, but Git pins version {' and '.join(missing)}. Nothing is "
            "deleted: check that this is the right store, or restore it from a backup"
        )
    reasons: dict[int, list[str]] = defaultdict(list)
    for number, texts in in_use.reasons.items():
        reasons[number] += texts
    for number, what_for in needed_by_store(store, root, settings.model_name):
        reasons[number].append(what_for)
    keep = int(settings.keep_versions)
    for number in passed[-keep:]:
        reasons[number].append(f"one of the {keep} newest that passed")
    for number in failed[-keep:]:
        reasons[number].append(f"one of the {keep} newest that failed")
    # If what a version was compared with is gone, that version becomes the champion: see champion.py.
    champion = find_champion(root, settings.model_name)
    for number in passed:
        if champion and number > champion.version and reasons[number]:
            other = _compared_with(store, number)
            if other and not reasons[other]:
                reasons[other].append(f"version {number} was compared with it")
    return [
        Item(
            "models",
            str(number),
            tuple(dict.fromkeys(reasons[number])),
            lambda number=number: store.delete(number),  # type: ignore[misc]
            {
                "state": "passed" if number in passed else "failed",
                **_made_by(store, number),
                **(_unfit(store, number) if number in passed and reasons[number] else {}),
            },
        )
        for number in sorted({*passed, *failed})
    ]


def _unfit(store: ModelStore, number: int) -> dict[str, str]:
    """Why a version must not be served: ``withdrawn``, or else ``damaged``; empty if it may be."""
    if (why := store.withdrawn(number)) is not None:
        return {"withdrawn": why}
    damage = find_damage(store, number)
    return {"damaged": damage} if damage else {}


def _lineage(store: ModelStore, number: int) -> dict[str, Any]:
    try:
        return read_lineage(store, number)
    except VersionBroken:
        return {}  # whatever it is kept for, nothing can be learnt from it


def _compared_with(store: ModelStore, number: int) -> int | None:
    lineage = _lineage(store, number)
    return (lineage.get("verdict", {}).get("champion") or {}).get("version") or lineage.get("champion")


def _made_by(store: ModelStore, number: int) -> dict[str, str]:
    run = _lineage(store, number).get("run")
    return (
        {key: str(run.get(name) or "") for key, name in (("run", "id"), ("image", "image"))}
        if isinstance(run, dict)
        else {}
    )


def kept_models(items: Iterable[Item]) -> Kept:
    """Return what is known of the versions that stay."""
    return kept_of((item.name, item.about) for item in items if item.because)


def plan_runs(kfp: Kfp, settings: Settings, kept: Kept, limits: Limits, now: datetime) -> list[Item]:
    """Return the pipeline server's runs, the newest first, with the id of each one's PipelineVersion."""
    experiment, items, ours = kfp.experiment(settings.model_name), list[Item](), 0
    for run in kfp.all_runs():
        run_id, because = str(run["run_id"]), []
        if run["experiment_id"] != experiment:
            because.append("of another experiment")
        else:
            ours += 1
        if run.get("state") not in ENDED:
            because.append("it is running")
        if number := kept.runs.get(run_id):
            because.append(f"version {number} is of it")
        if ours <= limits.keep:
            because.append(f"one of the {limits.keep} newest")
        if now - max(_time(run.get("finished_at")), _time(run["created_at"])) < limits.age:
            because.append(f"it ended less than {limits.age.days} days ago")
        version = run.get("pipeline_version_reference", {}).get("pipeline_version_id", "")
        remove = lambda run_id=run_id: kfp.delete_run(run_id)  # noqa: E731
        items.append(Item("runs", run_id, tuple(because), remove, {"version": version}))
    return items


def plan_pipeline_versions(
    kfp: Kfp, cluster: Cluster, settings: Settings, runs: Iterable[Item], limits: Limits, now: datetime
) -> list[Item]:
    """Return the PipelineVersions, the newest first, with the digests of their images; ``runs`` are those that stay."""
    pipeline = kfp.pipeline(settings.pipeline)
    used = {run.about["version"]: f"run {run.name} uses it" for run in runs}
    for each in kfp.recurring_runs():
        reference = each.get("pipeline_version_reference", {})
        used[reference.get("pipeline_version_id", "")] = f"the recurring run {each['recurring_run_id']} uses it"
    items = []
    for position, version in enumerate(kfp.versions(pipeline["pipeline_id"]) if pipeline else ()):
        name, because = str(version["name"]), []
        if reason := used.get(version["pipeline_version_id"]):
            because.append(reason)
        if position < limits.keep:
            because.append(f"one of the {limits.keep} newest")
        if now - _time(version["created_at"]) < limits.age:
            because.append(f"it was created less than {limits.age.days} days ago")
        remove = lambda name=name: cluster.delete(VERSIONS, name)  # noqa: E731
        digests = sorted(set(DIGEST.findall(to_json(version.get("pipeline_spec")))))
        items.append(Item("pipeline-versions", name, tuple(because), remove, {"images": digests}))
    return items


def plan_proposals(settings: Settings, secret: Path | None, kfp: Kfp, kept: Kept) -> list[Item]:
    """Return the open proposals; those go whose version must not be served, or does not meet the thresholds of today.

    The thresholds are those of the newest PipelineVersion, but for those that the version's run was given. A rollback
    is not judged by them. ``secret`` is a folder of the Secret jukebox-git-host.
    """
    items = []
    with proposals(settings, secret) as proposed:
        for kind in Kind:
            found = proposed.find(kind)
            if not found.open or not found.pin or not found.pin.version:
                continue
            number, why = found.pin.version, ""
            if number in kept.unfit:
                why = f"Version {number} must not be served: {text(kept.unfit[number])}"
            elif kind is Kind.PROMOTION and (refused := refused_by(_thresholds(kfp, settings, found), found.facts)):
                why = f"Version {number} does not meet the thresholds any more: {text(refused)}"
            because = () if why else (f"version {number} may be served",)
            remove = lambda kind=kind, pin=found.pin, why=why: _close(settings, secret, kind, pin, why)  # noqa: E731
            items.append(Item("proposals", found.open.url, because, remove, {"state": why}))
    return items


def _close(settings: Settings, secret: Path | None, kind: Kind, pin: Pin, why: str) -> None:
    """Close the open proposal of a kind, unless it proposes another version by now."""
    with proposals(settings, secret) as proposed:
        found = proposed.find(kind)
        if found.open and found.pin == pin:
            proposed.close(found.open, why)


def _thresholds(kfp: Kfp, settings: Settings, found: Found) -> Mapping[str, float]:
    """The thresholds of today for what is proposed, by the names of the checks; none if they cannot be told."""
    pipeline = kfp.pipeline(settings.pipeline)
    newest = next(kfp.versions(pipeline["pipeline_id"]), None) if pipeline else None
    run = kfp.run(run_in(found.open.body)) if found.open else None
    if not newest or not newest.get("pipeline_spec") or run is None:
        return {}
    spec = spec_alone(newest["pipeline_spec"])
    for name in ("root", "inputDefinitions", "parameters", "thresholds", "defaultValue"):
        spec = spec.get(name, {})
    given = run.get("runtime_config", {}).get("parameters", {}).get("thresholds") or {}
    return {name: value for name, value in {**spec, **given}.items() if isinstance(value, int | float)}


def plan_tasks(cluster: Cluster, limits: Limits, now: datetime) -> list[Item]:
    """Return the PipelineRuns, the newest first, and the claims of those that stay.

    PipelineRuns stay for long because their names reject the redelivery of an event. A namespace has a quota of claims,
    so those of ended runs go after a day, or sooner if more runs have ended than ``limits.claims``.
    """
    runs = sorted(
        cluster.list(PIPELINE_RUNS, OURS), key=lambda run: str(run["metadata"]["creationTimestamp"]), reverse=True
    )
    items, owners = [], {}
    for position, run in enumerate(runs):
        name, end, because = run["metadata"]["name"], _end(run), []
        if end is None:
            because.append("it is running")
        elif now - end < limits.age:
            because.append(f"it ended less than {limits.age.days} days ago, and its name rejects a redelivery")
        if position < limits.keep:
            because.append(f"one of the {limits.keep} newest")
        remove = lambda name=name: cluster.delete(PIPELINE_RUNS, name)  # noqa: E731
        items.append(Item("tasks", f"PipelineRun {name}", tuple(because), remove))
        if because:  # what else is deleted takes its claim along
            owners[run["metadata"]["uid"]] = run
    last = sorted((end for run in owners.values() if (end := _end(run))), reverse=True)[: limits.claims]
    for claim in cluster.list(CLAIMS):
        owner = next(
            (owners[each["uid"]] for each in claim["metadata"].get("ownerReferences", []) if each["uid"] in owners),
            None,
        )
        if owner is None:
            continue
        end, because = _end(owner), []
        if end is None:
            because.append("its run is running")
        elif now - end < CLAIM_AGE and end in last:
            because.append(f"its run ended less than a day ago, and is one of the {limits.claims} that ended last")
        name = f"PersistentVolumeClaim {claim['metadata']['name']} of {owner['metadata']['name']}"
        remove = lambda claim=claim: _remove_claim(cluster, claim)  # noqa: E731
        items.append(Item("tasks", name, tuple(because), remove))
    return items


def _remove_claim(cluster: Cluster, claim: Resource) -> None:
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


def plan_images(
    registry: Registry,
    cluster: Cluster,
    settings: Settings,
    kept: Kept,
    versions: Iterable[Item],
    limits: Limits,
    now: datetime,
) -> list[Item]:
    """Return the images that have tags in the repositories of the settings.

    ``versions`` are the PipelineVersions that stay. While a PipelineRun is running, every image stays: it may have been
    told to use any of them.
    """
    needed = {digest: f"version {number} was trained with it" for digest, number in kept.images.items()}
    needed |= {digest: f"{version.name} uses it" for version in versions for digest in version.about["images"]}
    needed[settings.ci_image.partition("@")[2]] = "it is the settings' ci-image"
    runs = {run["metadata"]["name"]: _end(run) is None for run in cluster.list(PIPELINE_RUNS, OURS)}
    times = record_times(cluster)
    # The newest of each kind, by the prefix of its tag: builds begin with them.
    newest = set[str]()
    for kind in ("deps-", "ci-", ""):
        tags = [tag for tag in times if (found := _CONTENT.fullmatch(tag)) and found[1] == kind]
        newest |= set(sorted(tags, key=lambda tag: times[tag])[-limits.keep :])
    items = []
    for repository in dict.fromkeys((settings.image, repository_of(settings.ci_image))):
        tagged: dict[str, list[str]] = defaultdict(list)
        for tag in registry.tags(repository):
            tagged[registry.digest(f"{repository}:{tag}")].append(tag)
        tagged.pop("", None)  # deleted meanwhile
        for digest, tags in tagged.items():
            because = [needed[digest]] if digest in needed else []
            because += [f"PipelineRun {name} is running" for name, active in runs.items() if active][:1]
            for tag in tags:
                run = _RUN.fullmatch(tag)
                if not run and not _CONTENT.fullmatch(tag):
                    because.append(f"{tag} is not a tag of this product")
                elif run and run[1] in runs:
                    because.append(f"PipelineRun {run[1]} has built it")
                elif tag in newest:
                    because.append(f"one of the {limits.keep} newest")
                elif tag in times and now - times[tag] < limits.age:
                    because.append(f"it was built less than {limits.age.days} days ago")
            image = f"{repository}@{digest}"
            remove = lambda image=image: _remove_image(registry, image)  # noqa: E731
            items.append(Item("images", f"{repository}:{min(tags, key=len)}", tuple(dict.fromkeys(because)), remove))
    return items


class NotSupported(RegistryRefuses):
    """The registry deletes nothing."""


def _remove_image(registry: Registry, image: str) -> None:
    if not registry.delete(image):
        raise NotSupported(f"The registry of {image.partition('@')[0]} does not allow the deletion of images")


def _end(run: Resource) -> datetime | None:
    """When a PipelineRun has ended, or nothing if it has not."""
    time = run.get("status", {}).get("completionTime")
    return datetime.fromisoformat(time) if time else None


def _time(text: str | None) -> datetime:
    """A time of the pipeline server; a long time ago if there is none."""
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)
