"""``jukebox``: the command line that people and Tekton use. One file a command, thin over the libraries."""

import ast
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.core.errors import JukeboxError
from pipeline.core.trusted_ca import trust

# Who uses a command most.
LAPTOP, CLUSTER, TEKTON = "On a laptop", "On a cluster", "By the Tekton tasks"

# Each command's group and module, in the order of the help.
COMMANDS = {
    "run": (LAPTOP, "run"),
    "predict": (LAPTOP, "predict"),
    "sample": (LAPTOP, "sample"),
    "data-version": (LAPTOP, "data_version"),
    "compile": (LAPTOP, "compile_pipeline"),
    "bootstrap": (CLUSTER, "bootstrap"),
    "teardown": (CLUSTER, "teardown"),
    "secrets": (CLUSTER, "secrets"),
    "render": (CLUSTER, "render"),
    "doctor": (CLUSTER, "doctor"),
    "status": (CLUSTER, "status"),
    "delete-version": (CLUSTER, "delete_version"),
    "rollback": (CLUSTER, "rollback"),
    "withdraw": (CLUSTER, "withdraw"),
    "verify": (CLUSTER, "verify"),
    "check-served": (CLUSTER, "check_served"),
    "backup": (CLUSTER, "backup"),
    "restore": (CLUSTER, "restore"),
    "replay": (CLUSTER, "replay"),
    "settle": (TEKTON, "settle"),
    "supersede": (TEKTON, "supersede"),
    "checkout": (TEKTON, "checkout"),
    "find-images": (TEKTON, "find_images"),
    "read-lock": (TEKTON, "read_lock"),
    "fetch-image": (TEKTON, "fetch_image"),
    "pack-image": (TEKTON, "pack_image"),
    "push-image": (TEKTON, "push_image"),
    "tag-images": (TEKTON, "tag_images"),
    "release": (TEKTON, "release"),
    "apply": (TEKTON, "apply"),
    "start": (TEKTON, "start"),
    "wait": (TEKTON, "wait"),
    "promote": (TEKTON, "promote"),
    "wait-served": (TEKTON, "wait_served"),
    "commit-status": (TEKTON, "commit_status"),
    "notify": (TEKTON, "notify"),
    "in-use": (TEKTON, "in_use"),
    "retain": (TEKTON, "retain"),
}


class Command(TyperCommand):
    """A command whose help is read from its source: it is imported when it is called, for all take two seconds."""

    def __init__(self, name: str) -> None:
        group, self.module = COMMANDS[name]
        source = ast.parse((Path(__file__).parent / f"{self.module}.py").read_bytes())
        [function] = (node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == "command")
        super().__init__(name, help=ast.get_docstring(function), rich_help_panel=group)

    def load(self) -> Any:
        """Import the command itself, with its options."""
        alone = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        alone.command(self.name)(import_module(f"scripts.{self.module}").command)
        return typer.main.get_command(alone)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Let the command itself read its arguments; the context names it as what is to run."""
        return self.load().make_context(*arguments, **options)


class Commands(Mapping[str, Command]):
    """The commands by name; each is looked up when it is asked for."""

    def __getitem__(self, name: str) -> Command:
        return Command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


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
    """Run a command; an error that the user can fix is printed without a traceback and exits with 1."""
    trust()
    try:
        app()
    except JukeboxError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
