"""``jukebox``: the command line that people and Tekton use. One file a command, thin over the libraries."""

import sys

import typer

from pipeline.errors import JukeboxError
from scripts import (
    apply,
    bootstrap,
    build_image,
    checkout,
    commit_status,
    compile_pipeline,
    data_version,
    doctor,
    notify,
    predict,
    promote,
    prune,
    render,
    replay,
    run,
    sample,
    secrets,
    settle,
    start,
    status,
    supersede,
    teardown,
    wait,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, judge and serve the jukebox model.",
)
for name, module in {
    "run": run,
    "predict": predict,
    "compile": compile_pipeline,
    "data-version": data_version,
    "sample": sample,
    "apply": apply,
    "start": start,
    "wait": wait,
    "status": status,
    "promote": promote,
    "checkout": checkout,
    "supersede": supersede,
    "settle": settle,
    "build-image": build_image,
    "commit-status": commit_status,
    "notify": notify,
    "replay": replay,
    "prune": prune,
    "bootstrap": bootstrap,
    "teardown": teardown,
    "secrets": secrets,
    "render": render,
    "doctor": doctor,
}.items():
    app.command(name)(module.command)


def main() -> None:
    """Run a command; what the user can mend is printed without a traceback, and ends with 1."""
    try:
        app()
    except JukeboxError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
