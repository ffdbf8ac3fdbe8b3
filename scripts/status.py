"""``jukebox status``: what there is: versions of the pipeline, runs, models."""

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
from pipeline.core.errors import StoreBroken, VersionBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.core.texts import one_line, printable
from pipeline.settings import read_settings
from scripts.clients.kfp_server import Json, Kfp, from_cache
from scripts.clients.pipeline_server import find_server
from scripts.output import Output, console
from scripts.wait import was_terminated

NOT_YET = ("1970", "0001")  # the years of what has not happened
Rows = list[dict[str, Any]]


def command(
    output: Annotated[Output, typer.Option(help="Output format.")] = Output.TABLE,
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many runs and versions to show, the newest first.")] = 10,
) -> None:
    """Show the pipeline's versions, its runs and the published models.

    Example: `jukebox status --output json`
    """
    settings = read_settings()
    kfp = Kfp(partial(find_server, settings))
    versions = find_versions(kfp, settings.pipeline, limit)
    runs = find_runs(kfp, settings.model_name, limit)
    models, note = find_models(model_store or settings.model_store, settings.model_name, limit)
    if output is Output.JSON:
        print(to_json({"versions": versions, "runs": runs, "models": models, "models_note": note}, indent=1))
        return
    names = {row["id"]: row["name"] for row in versions}
    shown = [{**row, "version": names.get(row["version"], row["version"])} for row in runs]
    screen = console()
    for title, rows in {"Versions": versions, "Runs": shown, "Models": models}.items():
        screen.print(title, style="bold")
        screen.print(_table(rows))
    if note:
        screen.print(printable(note), markup=False, soft_wrap=True)


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


def find_models(root: str, model_name: str, limit: int) -> tuple[Rows, str]:
    """The newest published versions; with a note if the store cannot be read from here."""
    if "://" not in root and not Path(root).is_dir():
        return [], f"The models are on a claim, {root}, which is not mounted here: set --model-store."
    store = open_store(root, model_name)
    try:
        found = [_model(store, number) for number in sorted(store.versions(), reverse=True)[:limit]]
    except StoreBroken as error:
        return [], str(error)
    return [row for row, _ in found], " ".join(damage for _, damage in found if damage)


def _model(store: ModelStore, number: int) -> tuple[dict[str, Any], str]:
    """The version as a row, and what is wrong with it if it is damaged."""
    row = {"number": number, "version": "damaged", "run": "", "commit": ""}
    try:
        lineage, _ = read_files(store, number)
    except VersionBroken as error:
        return row, str(error)
    model, run = (lineage.get(part) for part in ("model", "run"))
    if isinstance(model, dict) and isinstance(run, dict):
        row |= {"version": model.get("version", ""), "run": run.get("id", ""), "commit": run.get("commit", "")}
    return row, ""


def _table(rows: Rows) -> Table:
    table = Table(box=None, show_header=bool(rows))
    for column in rows[0] if rows else ("",):
        table.add_column(column.capitalize(), overflow="fold")
    for row in rows:
        # As text: what is published may hold brackets, which are markup to a table.
        table.add_row(*(Text(one_line(_cell(key, value))) for key, value in row.items()))
    if not rows:
        table.add_row("none")
    return table


def _cell(key: str, value: Any) -> str:
    if key in ("created", "finished") and value:
        return f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(value)
    return str(value)[:12] if key == "commit" else str(value)
