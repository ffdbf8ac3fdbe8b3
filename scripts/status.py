"""``jukebox status``: what there is: versions of the pipeline, runs, models, and what production serves."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from pipeline.core.champion import read_files
from pipeline.core.documents import to_json
from pipeline.core.errors import ServerUnavailable, SettingsInvalid, StoreBroken, VersionBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.core.texts import one_line, printable
from pipeline.settings import Settings, read_settings
from scripts import promotion_record
from scripts.clients.kfp_server import Json, Kfp, from_cache
from scripts.clients.kubernetes_api import CONFIG_MAPS, project_cluster
from scripts.clients.pipeline_server import find_server
from scripts.git import GitSecret
from scripts.output import Output, console
from scripts.proposals import Kind, has_token, proposals
from scripts.wait import was_terminated

NOT_YET = ("1970", "0001")  # the years of what has not happened
PIN = "jukebox-pin"  # the ConfigMap with what Git pins
RECORD = ("version", "from", "kind", "served_since", "merged_by", "approved_by", "merged_at", "why", "url")
Rows = list[dict[str, Any]]


def command(
    output: Annotated[Output, typer.Option(help="Output format.")] = Output.TABLE,
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many runs and versions to show, the newest first.")] = 10,
    git_secret: GitSecret = None,
) -> None:
    """Show the pipeline's versions, its runs, the published models, and what production serves and has served.

    With --git-secret, it also shows the open proposals. A hold says why none is made.

    Example: `jukebox status --output json`
    """
    settings = read_settings()
    kfp = Kfp(partial(find_server, settings))
    versions = find_versions(kfp, settings.pipeline, limit)
    runs = find_runs(kfp, settings.model_name, limit)
    production, records, why = find_production(settings)
    models, note = find_models(model_store or settings.model_store, settings.model_name, limit, records)
    promotions = [{name: record.get(name, "") for name in RECORD} for record in records[:limit]]
    proposed = find_proposals(settings, git_secret)
    if output is Output.JSON:
        found = {
            "versions": versions,
            "runs": runs,
            "models": models,
            "models_note": note,
            "production": production,
            "production_note": why,
            "proposals": proposed,
            "promotions": promotions,
        }
        print(to_json(found, indent=1))
        return
    names = {row["id"]: row["name"] for row in versions}
    shown = [{**row, "version": names.get(row["version"], row["version"])} for row in runs]
    tables = {"Versions": versions, "Runs": shown, "Models": models, "Production": production}
    tables |= {"Proposals": proposed} if has_token(settings, git_secret) else {}
    screen = console()
    for title, rows in {**tables, "Promotions": promotions}.items():
        screen.print(title, style="bold")
        screen.print(_table(rows))
    for text in filter(None, (note, why)):
        screen.print(printable(text), markup=False, soft_wrap=True)


def find_versions(kfp: Kfp, name: str, limit: int) -> Rows:
    """The newest versions of the pipeline; none if it was never applied."""
    pipeline = kfp.pipeline(name)
    found = kfp.versions(pipeline["pipeline_id"]) if pipeline else iter(())
    return [
        {"name": version["name"], "created": version["created_at"], "id": version["pipeline_version_id"]}
        for version in islice(found, limit)
    ]


def find_runs(kfp: Kfp, experiment: str, limit: int) -> Rows:
    """The newest runs; a terminated one, which the server calls failed, is called so."""
    experiment_id = kfp.experiment(experiment)
    found = kfp.runs(experiment_id) if experiment_id else iter(())
    return [_run(run) for run in islice(found, limit)]


def _run(run: Json) -> dict[str, Any]:
    state, finished = str(run.get("state", "")).lower(), str(run.get("finished_at", ""))
    return {
        "id": run["run_id"],
        "state": "terminated" if state == "failed" and was_terminated(run) else state,
        "created": run["created_at"],
        "finished": "" if finished.startswith(NOT_YET) else finished,
        "version": run.get("pipeline_version_reference", {}).get("pipeline_version_id", ""),
        "commit": run.get("runtime_config", {}).get("parameters", {}).get("commit", ""),
        "cached": from_cache(run),
    }


def find_production(settings: Settings) -> tuple[Rows, list[promotion_record.Record], str]:
    """What Git pins for production, and the records of what it has served; with a note if they are unknown."""
    try:
        cluster = project_cluster(settings)
        pin = (cluster.read(CONFIG_MAPS, PIN) or {}).get("data") or {}
        records = promotion_record.read(cluster)
    except (ServerUnavailable, SettingsInvalid) as error:
        return [], [], f"What production serves is unknown: {error}"
    if not pin.get("version"):
        return [], records, "Production serves nothing: no version is pinned." if pin else ""
    # The check of what is pinned may not have passed yet.
    last = next(iter(records), {})
    same = (str(last.get("version")), last.get("sha256")) == (pin["version"], pin.get("sha256"))
    since = last.get("served_since", "") if same else ""
    row = {
        "pinned": pin["version"],
        "served_since": since,
        "hold": pin.get("hold", ""),
        "sha256": pin.get("sha256", ""),
    }
    return [row], records, ""


def find_proposals(settings: Settings, secret: Path | None) -> Rows:
    """The open proposals; none without a token for the Git host."""
    if not has_token(settings, secret):
        return []
    with proposals(settings, secret) as proposed:
        found = [proposed.find(kind).open for kind in Kind]
    return [{"title": pull.title, "url": pull.url} for pull in found if pull]


def find_models(
    root: str, model_name: str, limit: int, records: Sequence[promotion_record.Record] = ()
) -> tuple[Rows, str]:
    """The newest published versions; with a note if the store cannot be read from here.

    ``records`` are those of the cluster, the last one that was served first.
    """
    if "://" not in root and not Path(root).is_dir():
        return [], f"The models are on a claim, {root}, which is not mounted here: set --model-store."
    store = open_store(root, model_name)
    try:
        found = [_model(store, number, records) for number in sorted(store.versions(), reverse=True)[:limit]]
    except StoreBroken as error:
        return [], str(error)
    return [row for row, _ in found], " ".join(damage for _, damage in found if damage)


def _model(store: ModelStore, number: int, records: Sequence[promotion_record.Record]) -> tuple[dict[str, Any], str]:
    """The version as a row, and what is wrong with it if it is damaged."""
    row = {"number": number, "version": "damaged", "run": "", "commit": ""}
    damage = []
    try:
        lineage, _ = read_files(store, number)
        model, run = (lineage.get(part) for part in ("model", "run"))
        if isinstance(model, dict) and isinstance(run, dict):
            row |= {"version": model.get("version", ""), "run": run.get("id", ""), "commit": run.get("commit", "")}
    except VersionBroken as error:
        damage.append(str(error))
    kept: Sequence[promotion_record.Record] = ()
    try:
        kept = store.promotions(number)
    except VersionBroken as error:
        damage.append(str(error))
    return row | {"production": _served(number, records, kept)}, " ".join(damage)


def _served(number: int, records: Sequence[promotion_record.Record], kept: Sequence[promotion_record.Record]) -> str:
    """When production came to serve the version, and who merged that; empty if it has no record.

    ``records`` are those of the cluster, ``kept`` those beside the version.
    """
    record = next((each for each in [*records, *kept] if each.get("version") == number), None)
    if record is None:
        return ""
    # Only the last record of all is of the version that is served now.
    word = "since" if records and record is records[0] else "from"
    merged = record.get("merged_by")
    return f"served {word} {record.get('served_since') or 'an unknown time'}" + (
        f", merged by {merged}" if merged else ""
    )


def _table(rows: Rows) -> Table:
    table = Table(box=None, show_header=bool(rows))
    for column in rows[0] if rows else ("",):
        table.add_column(column.replace("_", " ").capitalize(), overflow="fold")
    for row in rows:
        # As text: what is published may hold brackets, which are markup to a table.
        table.add_row(*(Text(one_line(_cell(key, value))) for key, value in row.items()))
    if not rows:
        table.add_row("none")
    return table


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("created", "finished") and value:
        return f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(value)
    return str(value)[:12] if key == "commit" else str(value)
