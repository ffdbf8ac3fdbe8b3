"""``jukebox predict``: try a published model on a song."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.core.champion import Version, read_version
from pipeline.core.documents import to_json
from pipeline.core.errors import DataInvalid, DataUnavailable, SettingsInvalid, StoreBroken
from pipeline.core.texts import one_line
from pipeline.models.jukebox.tables import FEATURE_NAMES, ID
from pipeline.settings import read_settings
from scripts.clients.model_server import infer

BAR = 30  # characters
SAME = 1e-3  # more than a model server errs by that computes in bfloat16


def command(
    song: Annotated[str, typer.Argument(help="Its id, or a part of its name.")],
    songs: Annotated[Path, typer.Option(help="Parquet file or folder to look it up in.")] = Path(
        "build/latest/fetch-data/songs"
    ),
    model_store: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix.")] = "build/models",
    version: Annotated[
        int, typer.Option(min=0, help="Its number, also of one that failed; 0: the newest that passed.")
    ] = 0,
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Ask the model server, not the model store: the address that `kubectl get inferenceservice` shows, or "
            "that of a forwarded port.",
        ),
    ] = "",
    labels: Annotated[
        Path | None,
        typer.Option(
            help="With --endpoint: `labels.json` of the served version. A model server does not tell the names of the "
            "countries; without this file they come from the same version in --model-store."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many countries to show.")] = 5,
) -> None:
    """Show the countries where a song is most likely to chart.

    Example: `jukebox predict "Golden River" --top 10`

    Example: `jukebox predict "Golden River" --endpoint https://jukebox-ada.apps.example.com --labels labels.json`
    """
    if labels and not endpoint:
        raise SettingsInvalid("--labels is given without --endpoint; leave it out: the model store has its own")
    model_name = read_settings().model_name
    found, others = _look_up(song, songs)
    if endpoint:
        features = _vector(found, FEATURE_NAMES)
        number, answer = infer(endpoint, model_name, version, features)
        if labels:
            countries = _read_labels(labels, answer.shape[1])
        else:
            model = _find_served(model_store, model_name, number, features, answer)
            countries = model.labels
            if model.features != [*FEATURE_NAMES]:
                number, answer = infer(endpoint, model_name, number, _vector(found, model.features))
    else:
        in_store = read_version(model_store, model_name, version)
        if in_store is None:
            raise StoreBroken(f"{model_store} holds no version of {model_name} yet; `jukebox run` publishes one")
        number, countries = in_store.version, in_store.labels
        answer = in_store.probabilities(_vector(found, in_store.features))
    [probabilities] = answer
    title = f"{found['name']} by {found['artists']} ({found[ID]}), {model_name} version {number}"
    table = Table(box=None)
    table.add_column("Country")
    table.add_column("Probability", justify="right")
    table.add_column("")
    for place in np.argsort(-probabilities)[:top]:
        share = float(probabilities[place])
        table.add_row(
            Text(one_line(str(countries[place]))),
            f"{share:.1%}",
            "█" * max(1, round(BAR * share / probabilities.max())),
        )
    console = Console(highlight=False)
    # Names of songs hold brackets, which are no markup.
    console.print(one_line(title), markup=False, soft_wrap=True)
    console.print(table)
    if others:
        console.print(f"{others} more with such a name; give an id to choose")


def _vector(song: Mapping[str, Any], features: Sequence[str]) -> NDArray[np.float32]:
    """The features of a song in this order, float32[1, features]."""
    if missing := [name for name in features if song.get(name) is None]:
        raise DataInvalid(f"{song[ID]} has no {', '.join(missing)}; the model needs all features: take another song")
    return np.array([[float(song[name]) for name in features]], dtype=np.float32)


def _find_served(
    model_store: str, model_name: str, version: int, features: NDArray[np.float32], answer: NDArray[np.float32]
) -> Version:
    """Return the served version, from the store, if its model of that number answers the same.

    The server itself does not name them: OpenVINO Model Server keeps the properties of an ONNX file to itself. And the
    number alone does not say that it is this version: a laptop's store counts from 1, and so does a cluster's.
    """
    to_do = (
        "Name the store of what is served with --model-store; or its labels with --labels, where you cannot reach it: "
        f"kubectl exec deployment/{model_name}-predictor -- cat /mnt/models/{version}/labels.json > labels.json"
    )
    try:
        model = read_version(model_store, model_name, version)
    except StoreBroken as error:
        raise StoreBroken(f"the served version {version} needs its countries' names: {error}.\n{to_do}") from None
    if not (
        model
        and len(model.labels) == answer.shape[1]
        and len(model.features) == features.shape[1]
        and np.allclose(model.probabilities(features), answer, atol=SAME)
    ):
        raise StoreBroken(f"the served version {version} answers otherwise than the one in {model_store}.\n{to_do}")
    return model


def _read_labels(file: Path, count: int) -> list[str]:
    try:
        labels = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        labels = str(error)
    if not isinstance(labels, list) or len(labels) != count:
        found = f"a list of {len(labels)}" if isinstance(labels, list) else labels
        raise SettingsInvalid(
            f"{file} holds no list of {count} countries, which is what the model server answers with, but {found}; "
            "name the labels.json of the served version"
        )
    return [str(label) for label in labels]


def _look_up(song: str, songs: Path) -> tuple[dict[str, Any], int]:
    """Return the song with this id, else the first with this in its name; and how many more have."""
    if not songs.exists():
        raise DataUnavailable(
            f"{songs} does not exist; `jukebox run` leaves the songs there, or name others with --songs"
        )
    files = sorted(songs.glob("*.parquet")) if songs.is_dir() else [songs]
    # Not as a pattern: a path may hold what one is made of. Without files it complains as of a damaged one.
    table = pl.scan_parquet(files, glob=False)
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
            f"no song has the id or the name {song!r}; there are for instance {to_json(some, ensure_ascii=False)}"
        )
    found = matches.row(0, named=True)
    return found, 0 if found[ID] == song else len(matches) - 1
