"""``jukebox sample``: invented tables in the schema of the model's real ones."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pipeline.core.contract import folder_of, load
from pipeline.core.errors import SettingsInvalid
from pipeline.settings import read_settings


def command(
    folder: Annotated[Path, typer.Argument(help="Folder to write one file for each table to.")] = Path("build/sample"),
    rows: Annotated[
        int, typer.Option(min=0, help="Approximate number of rows of the largest table; 0: as many as a run needs.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same data.")] = 0,
) -> None:
    """Generate sample data up to yesterday.

    Example: `jukebox sample /tmp/sample --rows 1000000`
    """
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    chosen = {"rows": rows} if rows else {}
    for path in generator(read_settings().model_name)(folder, last_day=yesterday, seed=seed, **chosen).values():
        print(path)


def generator(name: str) -> Callable[..., Mapping[str, Path]]:
    """Return what writes a model's sample: ``generate`` in its folder's ``sample.py``, which the image does not need.

    It takes the folder, and ``last_day``, ``seed`` and ``rows`` by name, of which the latter two have defaults, and
    returns the files by the names of the tables. Raises SettingsInvalid if there is none.
    """
    load(name)
    module = f"pipeline.models.{folder_of(name)}.sample"
    if find_spec(module) is None:
        raise SettingsInvalid(
            f"the model {name} has no sample data: give its tables with --data, or write `generate` in "
            f"pipeline/models/{folder_of(name)}/sample.py"
        )
    generate: Callable[..., Mapping[str, Path]] = import_module(module).generate
    return generate
