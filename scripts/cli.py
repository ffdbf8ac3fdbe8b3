"""``jukebox``: the command line that people and Tekton use. One file a command, thin over the libraries."""

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from pipeline.errors import JukeboxError

# Each command's module, in the order of the help.
MODULES = {
    "run": "run",
    "predict": "predict",
    "compile": "compile_pipeline",
    "data-version": "data_version",
    "sample": "sample",
    "apply": "apply",
    "start": "start",
    "wait": "wait",
    "status": "status",
    "promote": "promote",
    "checkout": "checkout",
    "supersede": "supersede",
    "settle": "settle",
    "find-images": "find_images",
    "fetch-image": "fetch_image",
    "pack-image": "pack_image",
    "push-image": "push_image",
    "tag-images": "tag_images",
    "commit-status": "commit_status",
    "notify": "notify",
    "replay": "replay",
    "prune": "prune",
    "bootstrap": "bootstrap",
    "teardown": "teardown",
    "secrets": "secrets",
    "render": "render",
    "doctor": "doctor",
}


class Commands(Mapping[str, Any]):
    """The commands by name; each is imported when it is asked for, since all of them take two seconds."""

    def __getitem__(self, name: str) -> Any:
        module = import_module(f"scripts.{MODULES[name]}")
        alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        alone.command(name)(module.command)
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


class Group(TyperGroup):
    """The group of these commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = Commands()  # type: ignore[assignment] # to which nothing is added


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def jukebox() -> None:
    """Train, judge and serve the jukebox model."""


def main() -> None:
    """Run a command; what the user can mend is printed without a traceback, and ends with 1."""
    try:
        app()
    except JukeboxError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
