"""``jukebox predict``: try a published model on a row of its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Shown
from rich.text import Text

from pipeline.core.champion import Version, read_version
from pipeline.core.contract import Model, Table, load
from pipeline.core.data import lazy
from pipeline.core.documents import to_json
from pipeline.core.encoders import encode
from pipeline.core.errors import DataUnavailable, SettingsInvalid, StoreBroken
from pipeline.core.parts import Parts, Unusable
from pipeline.core.runtimes import onnxruntime_of
from pipeline.core.texts import one_line
from pipeline.settings import read_settings
from scripts.clients.model_server import find_served, infer

BAR = 30  # characters
SAME = 1e-3  # more than a model server errs by that computes in bfloat16
FETCHED = Path("build/latest/fetch-data/tables")


def command(
    row: Annotated[str, typer.Argument(help="Value of a unique column, or part of a text.")],
    table: Annotated[
        Path | None,
        typer.Option(help="Parquet file or folder to look it up in; default: the table that the last run fetched."),
    ] = None,
    model_store: Annotated[str, typer.Option(help="A folder or s3://bucket/prefix.")] = "build/models",
    version: Annotated[
        int,
        typer.Option(
            min=0, help="The version's number, also of one that failed; 0: the newest that passed, or the served one."
        ),
    ] = 0,
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Ask the model server at this address, as `kubectl get inferenceservice` shows it, or at a forwarded "
            "port. The labels still come from the same version in --model-store.",
        ),
    ] = "",
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
) -> None:
    """Print a model's prediction for a row of its table.

    Example: `jukebox predict "part of a name" --top 10`

    Example: `jukebox predict ID --endpoint https://jukebox-ada.apps.example.com`
    """
    settings = read_settings()
    model, model_name = load(settings.model_name), settings.model_name
    found, others = _look_up(row, table, model)
    if endpoint:
        number = find_served(endpoint, model_name, version)
        published = _read_served(model_store, model_name, number)
        vectors = encode(found, published.encoding)
        answer = infer(endpoint, model_name, number, vectors, model.kind)
        _require_same(published, vectors, answer, model_store, model_name)
    else:
        in_store = read_version(model_store, model_name, version)
        if in_store is None:
            raise StoreBroken(f"{model_store} has no version of {model_name} yet; publish one with `jukebox run`")
        published = in_store
        answer = onnxruntime_of(published.onnx)(encode(found, published.encoding))
    console = Console(highlight=False)
    title = f"{', '.join(_names(found, model))}: {model_name} version {published.version}"
    # What a table holds may have brackets, which are no markup.
    console.print(one_line(title), markup=False, soft_wrap=True)
    console.print(_shown(model, answer[0], [*map(str, published.labels)], top))
    if others:
        matches = "row matches" if others == 1 else "rows match"
        console.print(f"{others} more {matches}; give a unique value to choose one")


def _shown(model: Model, prediction: NDArray[np.float32], labels: Sequence[str], top: int) -> Shown:
    """The answer as a table: labels with their probabilities, or a number with its unit."""
    answer = model.kind.answer(prediction.astype(np.float64), labels)[:top]
    shares = model.kind.activation == "softmax"
    unit = next((each.unit for table in model.tables for each in table.columns if each.name == model.kind.target), "")
    shown = Shown(box=None)
    shown.add_column("Label" if shares else "")
    shown.add_column("Probability" if shares else "Value", justify="right")
    shown.add_column("")
    for label, value in answer:
        bar = "█" * max(1, round(BAR * value / answer[0][1])) if shares else unit
        shown.add_row(Text(one_line(label)), f"{value:.1%}" if shares else f"{value:.6g}", Text(bar))
    return shown


def _read_served(model_store: str, model_name: str, number: int) -> Version:
    """Return the version of this number from the store."""
    try:
        found = read_version(model_store, model_name, number)
    except StoreBroken as error:
        raise StoreBroken(
            f"The store must hold the served version {number}, which describes its inputs and outputs: {error}.\n"
            f"{_to_do(model_name, number)}"
        ) from None
    assert found  # noqa: S101 a version is named
    return found


def _require_same(
    version: Version, vectors: NDArray[np.float32], answer: NDArray[np.float32], model_store: str, model_name: str
) -> None:
    """Raise StoreBroken unless the version in the store answers the same.

    The number alone does not say that it is the served one: a laptop's store counts from 1, and so does a cluster's.
    """
    expected = onnxruntime_of(version.onnx)(vectors)
    if expected.shape != answer.shape or not np.allclose(expected, answer, rtol=SAME, atol=SAME):
        raise StoreBroken(
            f"The served version {version.version} gives other predictions than the one in {model_store}.\n"
            f"{_to_do(model_name, version.version)}"
        )


def _to_do(model_name: str, number: int) -> str:
    here, there = f"served/{model_name}/{number}", f"/mnt/models/{number}"
    return (
        "Set --model-store to the store of the served model. If you cannot reach it, copy the version and set "
        f"--model-store served: mkdir -p {here}; "
        "for file in lineage.json labels.json golden.json model.onnx model-card.html; do "
        f"kubectl exec deployment/{model_name}-predictor -- cat {there}/$file > {here}/$file; done"
    )


def _table_of(model: Model) -> Table:
    """The table whose rows the model takes."""
    return next(table for table in model.tables if any(column.feature for column in table.columns))


def _names(found: pl.DataFrame, model: Model) -> list[str]:
    """What a row is called: its texts, then what no other row has."""
    columns = sorted(_looked_at(_table_of(model)), key=lambda name: _table_of(model)[name].unique)
    return [str(value) for value in found.select(columns).row(0) if value is not None]


def _looked_at(table: Table) -> list[str]:
    """The columns by which a row is found."""
    return [each.name for each in table.columns if each.unique or (each.dtype == pl.String and not each.derived)]


def _look_up(row: str, place: Path | None, model: Model) -> tuple[pl.DataFrame, int]:
    """Return the row that has this in a unique column, else the first with this in a text; and how many more have."""
    table = _table_of(model)
    place = place or FETCHED / table.name
    columns = _looked_at(table)
    if not columns:
        raise SettingsInvalid(f"the table {table.name} has no unique column and no text column to find a row by")
    if not place.exists():
        raise DataUnavailable(
            f"{place} does not exist: `jukebox run` writes the table {table.name} there; or set --table to another"
        )
    try:
        parts = Parts(place, table.schema)
        if parts.faults:
            raise next(iter(parts.faults.values()))
        rows = lazy(table, parts)
        unique = [pl.col(name) for name in columns if table[name].unique]
        texts = [pl.col(name) for name in columns if not table[name].unique]
        exact = pl.any_horizontal(pl.lit(value=False), *(_is(each, row) for each in unique)).fill_null(value=False)
        like = pl.any_horizontal(
            pl.lit(value=False),
            *(each.str.to_lowercase().str.contains(row.lower(), literal=True) for each in texts),
        ).fill_null(value=False)
        matches = rows.filter(exact | like).collect().sort(exact, descending=True, maintain_order=True)
        some = rows.select((texts or unique)[0].alias("some")).drop_nulls().head(3).collect()["some"].to_list()
    except (Unusable, pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataUnavailable(
            f"{place} is not a Parquet table {table.name}: {reason}; set --table to another"
        ) from None
    if matches.is_empty():
        raise DataUnavailable(
            f"no row of {table.name} has {row!r} in {', '.join(columns)}; for example, there are "
            f"{to_json([*map(str, some)], ensure_ascii=False)}"
        )
    return matches.head(1), 0 if matches.select(exact).row(0)[0] else len(matches) - 1


def _is(column: pl.Expr, row: str) -> pl.Expr:
    """Whether a column holds this; whole numbers are read as floats."""
    return column.cast(pl.String).is_in([row, f"{row}.0"])
