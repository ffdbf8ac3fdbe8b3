"""``jukebox predict``: try a published model on a song."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from pipeline.champion import find_champion
from pipeline.errors import DataInvalid, DataUnavailable, StoreBroken
from pipeline.runtimes import onnx_probabilities
from pipeline.schema import FEATURE_NAMES, ID
from pipeline.settings import read_settings

BAR = 30  # characters


def command(
    song: Annotated[str, typer.Argument(help="Its id, or a part of its name.")],
    songs: Annotated[Path, typer.Option(help="Parquet file or folder to look it up in.")] = Path(
        "build/latest/fetch-data/songs"
    ),
    model_store: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix.")] = "build/models",
    version: Annotated[int, typer.Option(min=0, help="Number in the store; 0: the newest.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="How many countries to show.")] = 5,
) -> None:
    """Show the countries where a song is most likely to chart.

    Example: `jukebox predict "Golden River" --top 10`
    """
    model_name = read_settings().model_name
    model = find_champion(model_store, model_name, version)
    if model is None:
        raise StoreBroken(f"{model_store} holds no version of {model_name} yet; `jukebox run` publishes one")
    found, others = _look_up(song, songs)
    if missing := [name for name in FEATURE_NAMES if found[name] is None]:
        raise DataInvalid(f"{found[ID]} has no {', '.join(missing)}; the model needs all features: take another song")
    features = np.array([[float(found[name]) for name in FEATURE_NAMES]], dtype=np.float32)
    probabilities = onnx_probabilities(model.onnx, features)[0]
    title = f"{found['name']} by {found['artists']} ({found[ID]}), {model_name} version {model.version}"
    table = Table(box=None)
    table.add_column("Country")
    table.add_column("Probability", justify="right")
    table.add_column("")
    for place in np.argsort(-probabilities)[:top]:
        share = float(probabilities[place])
        table.add_row(model.labels[place], f"{share:.1%}", "█" * max(1, round(BAR * share / probabilities.max())))
    console = Console(highlight=False)
    # Names of songs hold brackets, which are no markup.
    console.print(title, markup=False, soft_wrap=True)
    console.print(table)
    if others:
        console.print(f"{others} more with such a name; give an id to choose")


def _look_up(song: str, songs: Path) -> tuple[dict[str, Any], int]:
    """Return the song with this id, else the first with this in its name; and how many more have."""
    if not songs.exists():
        raise DataUnavailable(
            f"{songs} does not exist; `jukebox run` leaves the songs there, or name others with --songs"
        )
    table = pl.scan_parquet(songs / "*.parquet" if songs.is_dir() else songs)
    by_id = pl.col(ID) == song
    by_name = pl.col("name").str.to_lowercase().str.contains(song.lower(), literal=True).fill_null(value=False)
    try:
        table = table.select(ID, "name", "artists", *FEATURE_NAMES)
        matches = table.filter(by_id | by_name).sort(by_id, descending=True, maintain_order=True).collect()
        some = table.drop_nulls("name").head(3).collect()["name"].to_list()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataUnavailable(f"{songs} holds no songs as Parquet: {str(error).splitlines()[0]}; name others") from None
    if matches.is_empty():
        raise DataUnavailable(
            f"no song has the id or the name {song!r}; there are for instance {json.dumps(some, ensure_ascii=False)}"
        )
    found = matches.row(0, named=True)
    return found, 0 if found[ID] == song else len(matches) - 1
