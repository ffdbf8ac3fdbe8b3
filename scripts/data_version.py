"""``jukebox data-version``: the digest that names the data, as a run's ``data_version`` asks for it."""

from typing import Annotated

import typer

from pipeline.settings import read_settings
from pipeline.steps.fetch_data import resolve_data_version


def command(
    songs: Annotated[str, typer.Argument(help="Where the songs are; else the settings say.")] = "",
    rankings: Annotated[str, typer.Argument(help="Where the charts are; else the settings say.")] = "",
) -> None:
    """Print the digest that names the data.

    Example: `jukebox data-version songs.parquet s3://bucket/rankings/`
    """
    if not (songs and rankings):
        settings = read_settings()
        songs, rankings = songs or settings.songs, rankings or settings.rankings
    print(resolve_data_version(songs, rankings))
