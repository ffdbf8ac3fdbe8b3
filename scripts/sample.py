"""``jukebox sample``: invented songs and charts in the schema of the real ones."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from pipeline.models.jukebox.sample import COUNTRIES, DEFAULT_COUNTRIES, generate

ROWS = 120_000


def command(
    folder: Annotated[Path, typer.Argument(help="Where songs.parquet and rankings.parquet go.")] = Path("build/sample"),
    rows: Annotated[int, typer.Option(min=1, help="Chart rows, about.")] = ROWS,
    countries: Annotated[
        int, typer.Option(min=2, max=len(COUNTRIES), help="Countries, besides the Global chart.")
    ] = DEFAULT_COUNTRIES,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same data.")] = 0,
) -> None:
    """Generate sample data up to yesterday.

    Example: `jukebox sample /tmp/charts --rows 1000000 --countries 72`
    """
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    for path in generate(folder, rows=rows, last_day=yesterday, countries=countries, seed=seed):
        print(path)
