"""``jukebox retain``: delete what nothing needs any more, and say why all else stays."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pipeline.core.documents import to_json
from pipeline.core.errors import StoreBroken, VersionBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.core.texts import one_line
from pipeline.settings import Settings, read_settings
from scripts import promotion_record
from scripts.clients.kfp_server import Kfp
from scripts.clients.kubernetes_api import ci_cluster, project_cluster
from scripts.clients.pipeline_server import find_server
from scripts.clients.registry import AuthFile, Registry
from scripts.git import GitSecret
from scripts.in_use import find_in_use, read_in_use
from scripts.kept import read_kept
from scripts.output import Output, console
from scripts.proposals import has_token
from scripts.retention import (
    Item,
    Limits,
    NotSupported,
    kept_models,
    plan_images,
    plan_models,
    plan_pipeline_versions,
    plan_proposals,
    plan_runs,
    plan_tasks,
)


class Part(StrEnum):
    """What is deleted; proposals are closed."""

    MODELS = "models"
    RUNS = "runs"
    PIPELINE_VERSIONS = "pipeline-versions"
    IMAGES = "images"
    TASKS = "tasks"
    PROPOSALS = "proposals"


def command(
    part: Annotated[list[Part] | None, typer.Option(help="Only this part; may be given more than once.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what stays, why, and what would go; delete nothing.")
    ] = False,
    in_use: Annotated[
        Path | None,
        typer.Option(help="A file that `jukebox in-use` has written; default: ask Git and the pipeline server."),
    ] = None,
    promotions: Annotated[
        Path | None,
        typer.Option(help=f"A folder with the ConfigMap {promotion_record.CONFIG_MAP}; default: ask the cluster."),
    ] = None,
    git_secret: GitSecret = None,
    auth_file: AuthFile = None,
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
    keep: Annotated[
        int, typer.Option(min=1, help="Number of the newest runs, PipelineVersions and images that stay, of each kind.")
    ] = 20,
    days: Annotated[int, typer.Option(min=0, help="Days that these stay for, counted from their end.")] = 30,
    claims: Annotated[
        int, typer.Option(min=0, help="Number of ended PipelineRuns that keep their volume, for a day at most.")
    ] = 20,
    output: Annotated[Output, typer.Option(help="Output format; JSON is printed as one object a line.")] = Output.TABLE,
) -> None:
    """Delete models, runs, PipelineVersions, images and PipelineRuns with their volumes that nothing needs any more.

    Of models it keeps what Git pins or has pinned lately, what is proposed, the newest and the champion, and what a
    running run is compared with. Beside each version that stays it writes the records of its promotions. If anything
    cannot be read, nothing is deleted. A damaged version that stays is marked as withdrawn. An open proposal of a
    version that is withdrawn, or does not meet the thresholds of the newest PipelineVersion, is closed.

    Example: `jukebox retain --dry-run --part models --model-store s3://models/prod`
    """
    settings, now = read_settings(), datetime.now(UTC)
    parts, root = part or [*Part], model_store or settings.model_store
    items = _plan(settings, parts, Limits(keep, timedelta(days=days), claims), now, in_use, git_secret, auth_file, root)
    # Read before anything is deleted, as all else; a dry run writes none.
    wanted = Part.MODELS in parts and not dry_run
    records = promotion_record.texts(promotions or project_cluster(settings)) if wanted else {}
    if output is Output.JSON:
        for item in items:
            print(to_json({"part": item.part, "name": item.name, "stays": item.because, **item.about}))
        print(to_json({"model": settings.model_name, "made": f"{now:%Y-%m-%dT%H:%M:%SZ}", "dry_run": dry_run}))
    else:
        _show(items if dry_run else [item for item in items if not item.because], dry_run)
    unsupported = ""
    for item in () if dry_run else items:
        if item.because or (unsupported and item.part == Part.IMAGES):
            continue
        try:
            item.remove()
        except NotSupported as error:
            unsupported = str(error)
            typer.echo(f"{error}: they stay. Let the registry's own rules expire them", err=True)
    if Part.MODELS in parts:
        store = open_store(root, settings.model_name)
        for item in items:
            if damage := item.about.get("damaged"):
                _withdraw(store, int(item.name), damage, dry_run)
        for sentence in promotion_record.keep(store, settings.model_name, records):
            typer.echo(sentence, err=True)
    if any(item.part == Part.RUNS and not item.because for item in items):
        typer.echo("The bucket keeps what these runs have stored until its own rule expires it", err=True)


def _plan(
    settings: Settings,
    parts: Sequence[Part],
    limits: Limits,
    now: datetime,
    in_use: Path | None,
    git_secret: Path | None,
    auth_file: Path | None,
    root: str,
) -> list[Item]:
    """Return all that there is of the parts; nothing is deleted before all is read."""
    items: list[Item] = []
    if Part.MODELS in parts:
        if "://" not in root and not Path(root).is_dir():
            raise StoreBroken(f"{root} is not here: the models are on a claim. Mount it, or name it with --model-store")
        needed = read_in_use(in_use, settings.model_name, now) if in_use else find_in_use(settings, git_secret)
        items += plan_models(open_store(root, settings.model_name), root, settings, needed)
    if {Part.RUNS, Part.PIPELINE_VERSIONS, Part.IMAGES, Part.PROPOSALS} & {*parts}:
        cluster, kfp = project_cluster(settings), Kfp(partial(find_server, settings))
        kept = kept_models(items) if Part.MODELS in parts else read_kept(cluster, settings.model_name, now)

        if Part.PROPOSALS in parts and has_token(settings, git_secret):
            items += plan_proposals(settings, git_secret, kfp, kept)

        def staying(part: Part, found: list[Item]) -> list[Item]:
            """Add what was found of a part, if it was asked for, and return what stays of it."""
            if part not in parts:
                return found
            items.extend(found)
            return [item for item in found if item.because]

        runs = staying(Part.RUNS, plan_runs(kfp, settings, kept, limits, now))
        versions = plan_pipeline_versions(kfp, cluster, settings, runs, limits, now)
        versions = staying(Part.PIPELINE_VERSIONS, versions)
        if Part.IMAGES in parts:
            items += plan_images(Registry(auth_file), ci_cluster(settings), settings, kept, versions, limits, now)
    if Part.TASKS in parts:
        items += plan_tasks(ci_cluster(settings), limits, now)
    return items


def _withdraw(store: ModelStore, number: int, damage: str, dry_run: bool) -> None:
    """Mark a damaged version, or say who may, and print that."""
    if dry_run:
        done = f"To have it neither proposed nor served, run `jukebox withdraw {number} --reason damaged`"
    else:
        reason = f"damaged, as jukebox retain has found: {damage}"
        try:
            store.withdraw(number, reason)
        except VersionBroken:
            return  # deleted meanwhile
        done = f"It is withdrawn. To undo this, restore its files, then delete the file {number}.withdrawn"
    typer.echo(one_line(f"Version {number} is damaged: {damage}. {done}"), err=True)


def _show(items: Sequence[Item], dry_run: bool) -> None:
    screen = console()
    for part in dict.fromkeys(item.part for item in items):
        table = Table(title=part.capitalize(), title_justify="left", box=None, pad_edge=False, show_header=dry_run)
        for column in ("Name", "State", "Stays because"):
            table.add_column(column, overflow="fold")
        for item in items:
            if item.part == part:
                state = str(item.about.get("state", ""))
                table.add_row(*(Text(one_line(each)) for each in (item.name, state, "; ".join(item.because) or "goes")))
        screen.print(table)
    if not items:
        screen.print("Nothing goes.")
