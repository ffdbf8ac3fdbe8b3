"""``jukebox data-version``: the digest that names the data, as a run's ``data_version`` asks for it."""

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.core.contract import Model, load
from pipeline.core.errors import SettingsInvalid
from pipeline.settings import read_settings
from pipeline.steps.fetch_data import resolve_data_version


def command(
    data: Annotated[
        list[str] | None, typer.Argument(metavar="TABLE=URI", help="URI of a table; default: that of the settings.")
    ] = None,
) -> None:
    """Print the digest that names the data.

    Example: `jukebox data-version TABLE=file.parquet OTHER=s3://bucket/other/`
    """
    settings = read_settings()
    model = load(settings.model_name)
    found = {**settings.data, **read_data(data or (), model)}
    model.require_tables(found, "data")
    print(resolve_data_version(found))


def read_data(values: Sequence[str], model: Model) -> dict[str, str]:
    """Return the URI of each table from texts as ``TABLE=URI``, of which one may hold several with blanks between.

    What begins with the name of no table belongs to the URI before it: a path may hold blanks.
    Raises SettingsInvalid if a text does not begin with a table's name, or if a table is named twice.
    """
    names = [table.name for table in model.tables]
    begin = re.compile(rf"(?:^|\s+)({'|'.join(map(re.escape, names))})=")
    found: dict[str, str] = {}
    for value in values:
        before, *pairs = begin.split(value)
        named = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if before or len(named) < len(pairs) // 2 or not all(named.values()) or found.keys() & named.keys():
            raise SettingsInvalid(
                f"--data is {value!r}, expected TABLE=URI, once for each of the tables {', '.join(names)}"
            )
        found |= named
    return found
