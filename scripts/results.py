"""What a command hands to the next: Tekton takes a step's results from files, so no step needs a shell."""

from pathlib import Path
from typing import Annotated

import typer

ResultDir = Annotated[
    Path | None, typer.Option(help="Folder to write the results to, one file for each; /tekton/results in Tekton.")
]


def write_results(folder: Path | None, **values: str) -> None:
    """Write each value, without a line break, to a file that is named as it is, with dashes; no folder: nothing."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (folder / name.replace("_", "-")).write_text(value)
