"""``jukebox start``: start a run of a PipelineVersion, once for each key."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import takewhile
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid4, uuid5

import typer
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay

from pipeline.core.documents import to_json
from pipeline.core.errors import (
    AccessDenied,
    ArtifactsGone,
    NotFinite,
    RequestRefused,
    ServerAway,
    ServerUnavailable,
    SettingsInvalid,
)
from pipeline.prod_train_save_pipeline import this_week
from pipeline.settings import Settings, read_settings, secret_in
from pipeline.steps.fetch_data import resolve_data_version
from scripts.clients.kfp_server import BACKOFF, FAILED, PATIENCE, Json, Kfp, spec_alone
from scripts.clients.kubernetes_api import ENDED, Cluster, find_cluster
from scripts.clients.pipeline_server import find_server
from scripts.results import ResultDir, write_results
from scripts.spec_policy import CLAIM, judge_spec

# An experiment's limit; beyond a run's own the server starts a workflow for a run that it then cannot store.
NAME_LIMIT = 128
WEEK = timedelta(days=7)
LATER = ("commit_time", "served_version", "prod_flag")  # parameters that older releases lack
LISTED_LATE = 15.0  # seconds until the server lists what was applied
RUN_IDS = uuid5(NAMESPACE_URL, "https://jukebox.github.io/runs")


class Reason(StrEnum):
    """The reason for a training."""

    PUSH = "push"
    DATA = "data"
    ALERT = "alert"
    SCHEDULE = "schedule"
    MANUAL = "manual"


def command(
    version: Annotated[str, typer.Argument(help="Name of the PipelineVersion.")],
    key: Annotated[
        str, typer.Option(help="Idempotency key: a second start with the same key returns the first one's run.")
    ] = "",
    parameters: Annotated[str, typer.Option(help="The run's parameters, as JSON.")] = "{}",
    data_version: Annotated[
        str, typer.Option(help="Sets the parameter of that name; default: computed from the data.")
    ] = "",
    commit: Annotated[str, typer.Option(help="Sets the parameter of that name.")] = "",
    commit_time: Annotated[str, typer.Option(help="Sets the parameter of that name.")] = "",
    served_version: Annotated[
        str, typer.Option(help="Sets the parameter of that name: the version that production serves, from the pin.")
    ] = "",
    reason: Annotated[
        Reason,
        typer.Option(
            help="Reason for the run. A push starts no run if a run of its version has succeeded. If production has a "
            "cluster, each reason but manual sets the parameter prod_flag."
        ),
    ] = Reason.MANUAL,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every step, without the cache.")] = False,
    result_dir: ResultDir = None,
) -> None:
    """Start a run of a PipelineVersion, or retry its failed run, and print the run's id.

    If the newest run of the version with these parameters failed within a week, that run is retried and keeps the steps
    that succeeded. Data, alerts and the schedule always start a new run.

    Example: `jukebox start prod-train-save-0123456789ab --key "$UID" --parameters '{"gate_mode": "warn"}'`
    """
    settings = read_settings()
    kfp = Kfp(partial(find_server, settings))
    short = _filled(data_version=data_version, commit=commit, commit_time=commit_time, served_version=served_version)
    # A run by hand may be an experiment: its model is proposed only if its parameters say so.
    proposed = {"prod_flag": True} if settings.prod_cluster and reason is not Reason.MANUAL else {}
    run, started = start(
        kfp,
        version,
        settings=settings,
        key=key or str(uuid4()),
        parameters={**proposed, **_object(parameters), **short},
        # What a push has not changed has no need of another run; new data, or a person, has.
        unless_succeeded=reason is Reason.PUSH and not no_cache,
        # An event of another kind asks for a verdict of today.
        goes_on=reason in (Reason.PUSH, Reason.MANUAL),
        cached=not no_cache,
        cluster=find_cluster(find_server(settings).namespace),
    )
    run_id, data = str(run["run_id"]), run.get("runtime_config", {}).get("parameters", {}).get("data_version", "")
    print(f"Run {run_id} {'started' if started else 'was started before'}: {kfp.host}/#/runs/details/{run_id}")
    write_results(result_dir, run_id=run_id, data_version=data, started=to_json(started))


def run_id_of(key: str) -> str:
    """The id of the run that is started with this key."""
    return str(uuid5(RUN_IDS, key))


def start(
    kfp: Kfp,
    version: str,
    *,
    settings: Settings,
    key: str,
    parameters: Mapping[str, Any],
    unless_succeeded: bool = False,
    goes_on: bool = True,
    cached: bool = True,
    cluster: Cluster | None = None,
    patience: float = PATIENCE,
) -> tuple[Json, bool]:
    """Return the run of ``key``, and whether it was started now.

    ``cluster`` finds workflows that the server has lost; it may be missing. ``data_version`` is computed from the
    version's data if ``parameters`` lack it. With ``unless_succeeded``, a successful run of the version is returned
    instead of a new one. With ``goes_on``, the newest run with the same parameters, if it failed within a week, is
    retried and returned instead. The run of ``key`` itself is retried if it has failed. Without ``cached``, the run
    uses no cached results.

    The run's id is derived from the key and looked up before each POST. The server creates the workflow before it
    stores the run, so a repeated POST would start a second workflow. Raises ServerUnavailable if the server refuses or
    does not answer for longer than ``patience`` seconds; SettingsInvalid for an unknown version, an invalid key or
    invalid parameters; SpecRefused if the version, which anybody may have applied, asks for more than ``settings``
    allow.
    """
    _check(parameters, settings)
    name = f"{version} {key}"
    if len(name) > NAME_LIMIT:
        raise SettingsInvalid(
            f"the run's name would be {name!r}, {len(name)} characters: the server allows {NAME_LIMIT}; shorten the key"
        )
    pipeline_id, found = _version(kfp, settings.pipeline, version)
    judge_spec(spec_alone(found["pipeline_spec"]), found["pipeline_spec"].get("platform_spec"), settings)
    reference = {"pipeline_id": pipeline_id, "pipeline_version_id": str(found["pipeline_version_id"])}
    run_id = run_id_of(key)
    cache = this_week() if cached else run_id
    if run := kfp.run(run_id):
        _of(run, reference, key)
        if not cached and _parameters(run).get("cache", cache) != cache:
            raise SettingsInvalid(f"the key {key!r} has started run {run_id} with the cache: use another key")
        return run, run.get("state") in FAILED and not artifacts_gone(kfp, run) and _retried(kfp, run)
    experiment_id = kfp.create_experiment(settings.model_name)
    if unless_succeeded:
        for run in kfp.runs(experiment_id, state="SUCCEEDED"):
            if run.get("pipeline_version_reference") == reference:
                return run, False
    complete = _complete(found, parameters, cache, settings)
    if not cached and "cache" not in complete:
        raise SettingsInvalid(
            f"{version} has no parameter cache, so the cache cannot be turned off: compile and apply the pipeline again"
        )
    if goes_on and cached:
        begin = f"{datetime.now(UTC) - WEEK:%Y-%m-%dT%H:%M:%SZ}"
        runs = takewhile(lambda run: run["created_at"] > begin, kfp.runs(experiment_id))
        same = (
            run for run in runs if (run.get("pipeline_version_reference"), _parameters(run)) == (reference, complete)
        )
        run = next(same, {})
        if run.get("state") in FAILED:
            if artifacts_gone(kfp, run):
                print(f"The cached results that run {run['run_id']} used are gone: the cache is not used.")
                complete |= {"cache": run_id} if "cache" in complete else {}
            elif _retried(kfp, run):
                return run, True
        elif run.get("state") == "RUNNING" and any(entry["state"] in FAILED for entry in run["state_history"]):
            return run, False  # It is already running.
    body = {
        "run_id": run_id,
        "display_name": name,
        "experiment_id": experiment_id,
        "pipeline_version_reference": reference,
        "runtime_config": {"parameters": complete},
    }
    return _post(kfp, cluster, body, reference, key, patience)


def _parameters(run: Json) -> dict[str, Any]:
    found: dict[str, Any] = run.get("runtime_config", {}).get("parameters", {})
    return found


def _retried(kfp: Kfp, run: Json) -> bool:
    """Have a failed run go on, and tell whether it does: the server may not let us, or have lost its workflow."""
    try:
        kfp.retry_run(str(run["run_id"]))
    except (RequestRefused, AccessDenied) as error:
        print(f"Run {run['run_id']} has failed and cannot be retried: {error}")
        return False
    print(f"Run {run['run_id']} had failed and is retried: the steps that succeeded are kept.")
    return True


def start_afresh(kfp: Kfp, run_id: str, *, cluster: Cluster | None = None, patience: float = PATIENCE) -> str:
    """Start a run that has failed again without the cache, if it has failed because what it read from there is gone.

    Return the id of the new run, always the same one for ``run_id``; nothing if it is not that, or cannot be started.
    """
    try:
        run = kfp.run(run_id) or {}
        parameters = _parameters(run)
        if parameters.get("cache") in (None, run_id) or not artifacts_gone(kfp, run):
            return ""
        key = f"{run_id} without the cache"
        body = {
            "run_id": run_id_of(key),
            "display_name": str(run["display_name"])[: NAME_LIMIT - 8] + ", afresh",
            "experiment_id": run["experiment_id"],
            "pipeline_version_reference": run["pipeline_version_reference"],
            "runtime_config": {"parameters": {**parameters, "cache": run_id_of(key)}},
        }
        _post(kfp, cluster, body, body["pipeline_version_reference"], key, patience)
    except ServerUnavailable as error:
        print(f"Run {run_id} cannot be started again without the cache: {error}")
        return ""
    return run_id_of(key)


def artifacts_gone(kfp: Kfp, run: Json) -> bool:
    """Tell whether a run has failed because what another step, or one in the cache, has handed on is gone."""
    for task in run.get("run_details", {}).get("task_details", ()):
        for child in task.get("child_tasks", ()) if task.get("state") == "FAILED" else ():
            try:
                if f"ERROR {ArtifactsGone.__name__}: " in kfp.log(str(run["run_id"]), str(child["pod_name"])):
                    return True
            except ServerUnavailable:
                continue
    return False


def _post(
    kfp: Kfp, cluster: Cluster | None, body: Json, reference: Json, key: str, patience: float
) -> tuple[Json, bool]:
    posted = False

    def attempt() -> tuple[Json, bool]:
        nonlocal posted
        if run := kfp.run(body["run_id"]):
            return _of(run, reference, key), posted
        _wait_for_orphans(cluster, body["run_id"])
        posted = True
        try:
            return kfp.create_run(body), True
        except RequestRefused as error:
            # Somebody with the same key was faster; its run is the one that counts.
            if "Duplicate entry" in error.reason and (run := kfp.run(body["run_id"])):
                print(
                    "Warning: the run was started twice at the same time, so two workflows have the label "
                    f"pipeline/runid={body['run_id']}: delete the younger one."
                )
                return _of(run, reference, key), False
            raise ServerUnavailable(
                f"The server refuses to start the run: it answers {error.status}, {error.reason}.\n"
                "Correct that, and start again; the start is not retried."
            ) from None

    retrying = Retrying(
        stop=stop_after_delay(patience),
        wait=BACKOFF,
        retry=retry_if_exception_type(ServerAway),
        before_sleep=_announce,
        reraise=True,
    )
    return retrying(attempt)


def _announce(state: RetryCallState) -> None:
    print(f"{state.outcome and state.outcome.exception()} Trying again in {state.upcoming_sleep:.0f} s.", flush=True)


def _wait_for_orphans(cluster: Cluster | None, run_id: str) -> None:
    """Raise ServerAway while there is a workflow of a run that the server does not know.

    The server leaves one where its database fails at the wrong moment. It ends by itself, since its steps ask the
    server for the run; but a run of the same id, started meanwhile, would have it train, too.
    """
    try:
        workflows = cluster.workflows(run_id) if cluster else []
    except ServerUnavailable:
        return  # Not ours to see: what remains is the look-up before the POST.
    for workflow in workflows:
        if workflow.get("status", {}).get("phase") not in ENDED:
            raise ServerAway(
                f"Workflow {workflow['metadata']['name']} belongs to run {run_id}, which the server failed to store."
            )


def _version(kfp: Kfp, pipeline_name: str, name: str) -> tuple[str, Json]:
    """The pipeline's id and the version; it may have been applied a moment ago."""

    def attempt() -> tuple[str, Json]:
        pipeline = kfp.pipeline(pipeline_name)
        version = pipeline and next(kfp.versions(pipeline["pipeline_id"], name), None)
        if not pipeline or not version:
            raise _Unknown(f"the server has no version {name} of {pipeline_name}; create it with `jukebox apply`")
        return str(pipeline["pipeline_id"]), version

    retrying = Retrying(
        stop=stop_after_delay(LISTED_LATE), wait=BACKOFF, retry=retry_if_exception_type(_Unknown), reraise=True
    )
    return retrying(attempt)


class _Unknown(SettingsInvalid):
    """The server does not list the version."""


def _check(parameters: Mapping[str, Any], settings: Settings) -> None:
    """Raise SettingsInvalid if a run may not have one of the parameters."""
    for name, value in _texts(parameters):
        if secret := secret_in(value):
            raise SettingsInvalid(
                f"the parameter {name} {secret}, and everybody who sees the run sees its parameters: name it without; "
                "the Secret that data-secret in the settings names holds the keys for s3://"
            )
    if "{{" in to_json(parameters):
        raise SettingsInvalid("a parameter contains {{, which the run's workflow would expand: use a value without it")
    if (claim := parameters.get(CLAIM, settings.model_storage_pvc)) != settings.model_storage_pvc:
        raise SettingsInvalid(
            f"the parameter {CLAIM} is {claim!r}, expected {settings.model_storage_pvc}: a run may mount only that "
            "of the settings"
        )


def _texts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """The texts in parameters, with their names."""
    if isinstance(value, Mapping | list):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str):
        yield name, value


def _complete(version: Json, parameters: Mapping[str, Any], cache: str, settings: Settings) -> dict[str, Any]:
    """The parameters with what the cache is asked for, and the version of the data that they, or the defaults, name."""
    inputs = spec_alone(version["pipeline_spec"])["root"].get("inputDefinitions", {}).get("parameters", {})
    if "cache" in inputs:
        parameters = {"cache": cache, **parameters}
    # A version of a release before there was such a parameter.
    parameters = {name: value for name, value in parameters.items() if name in inputs or name not in LATER}
    if "data_version" not in inputs or parameters.get("data_version"):
        return dict(parameters)
    default = inputs.get("data", {}).get("defaultValue", {})
    data = parameters.get("data", default)
    if not default or not isinstance(data, dict) or data.keys() != default.keys():
        raise SettingsInvalid(
            f"the parameter data is {to_json(data)}, expected a URI for each of the version's tables, "
            f"{', '.join(default) or 'of which it has none: compile and apply the pipeline again'}"
        )
    for table, uri in data.items():
        if not str(uri).startswith(("https://", "http://", "s3://")) and uri != settings.data.get(table):
            raise SettingsInvalid(
                f"the parameter data.{table} is {uri!r}, expected https://… or s3://…: it would be read here, and "
                "not where the step runs; set data_version, too, as `jukebox data-version` prints it"
            )
    return {**parameters, "data_version": resolve_data_version(data)}


def _of(run: Json, reference: Json, key: str) -> Json:
    if run.get("pipeline_version_reference") != reference:
        raise SettingsInvalid(
            f"the key {key!r} has started run {run['run_id']} of another version: use another key for this version"
        )
    return run


def _filled(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
        to_json(value)  # Python reads NaN and 1e999
    except (ValueError, NotFinite) as error:
        raise SettingsInvalid(f"--parameters is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsInvalid('--parameters is not a JSON object like {"gate_mode": "warn"}')
    return value
