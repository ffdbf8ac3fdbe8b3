"""``make bench``: what the pipeline costs as the data grows, and whether its way of training loses anything.

    python -m tests.models.jukebox.bench [ROWS ...]

Every size is generated, run through the compiled pipeline, and, up to ``ROW_BY_ROW`` rows, trained a second time the
ordinary way, row by row: the same network, hyperparameters and test rows. Figures of one table come from one run on one
machine; trust their ratios, not their seconds. Peaks are the steps' own processes' resident memory; a step reads its
files and maps none, so no page cache is among it.
"""

import json
import math
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.core.contract import TRAIN
from pipeline.core.examples import Reader
from pipeline.core.log import peak_mib
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.sample import CHART_LENGTH, COUNTRIES, generate
from pipeline.models.jukebox.tables import CHART_PLACES, FIRST_DAY
from pipeline.steps.fetch_data import resolve_data_version
from scripts.run import run_pipeline

SIZES = (100_000, 1_130_000, 10_000_000)
ROW_BY_ROW = 10_000_000  # more takes hours
FOLDER = Path("build/bench").absolute()
LAST_DAY = date(2026, 5, 31)


def measure(rows: int, console: Console) -> dict[str, Any]:
    """Run the pipeline and the ordinary training on about ``rows`` generated chart rows."""
    folder = FOLDER / str(rows)
    shutil.rmtree(folder, ignore_errors=True)
    # Charts of 50 places would have to begin before there were any.
    possible = (LAST_DAY - FIRST_DAY).days * (len(COUNTRIES) + 1) * CHART_LENGTH
    places = CHART_LENGTH if rows <= possible else CHART_PLACES
    console.print(f"Generating {rows:,} chart rows, {places} a country and day")
    made = generate(folder, rows=rows, last_day=LAST_DAY, countries=len(COUNTRIES), places=places)
    data = {table: str(path) for table, path in made.items()}
    parameters = {
        "data_version": resolve_data_version(data),
        "data": data,
        "model_store": str(folder / "models"),
    }
    began = time.perf_counter()
    finished = run_pipeline(parameters, folder / "runs", console)
    seconds = time.perf_counter() - began
    if finished.run.state != "succeeded":
        sys.exit(f"the run of {rows} rows failed: {[step.error for step in finished.run.steps if step.error]}")
    profile = finished.documents["validation"]["profile"]
    ours = finished.documents["evaluation"]["model"]["all"]
    ordinary = None
    if rows <= ROW_BY_ROW:
        examples = str(finished.folder / "preprocess-data" / "examples")
        program = [sys.executable, "-m", "tests.models.jukebox.bench", "--row-by-row", examples]
        ended = subprocess.run(program, check=True, capture_output=True, text=True)
        ordinary = json.loads(ended.stdout.splitlines()[-1])
    training = next(step for step in finished.run.steps if step.name == "train-model")
    shutil.rmtree(folder)
    return {
        "rows": profile["rows"]["rankings"],
        "songs": profile["rows"]["songs"],
        "seconds": seconds,
        "peak_mib": max(step.peak_memory_mib or 0 for step in finished.run.steps),
        "steps": {
            step.name: {"seconds": step.seconds, "peak_mib": step.peak_memory_mib} for step in finished.run.steps
        },
        "cross_entropy": ours["cross_entropy"],
        "cross_entropy_interval": ours["cross_entropy_interval"],
        "top1": ours["top1"],
        "training_seconds": training.seconds,
        "row_by_row": ordinary,
    }


def row_by_row(examples: Path) -> dict[str, Any]:
    """Train as textbooks do: every chart row is a sample of its own, with its country as the label."""
    began = time.perf_counter()
    import keras
    import numpy as np

    from pipeline.steps.train_model import inputs_of, predict, scores

    options = MODEL.hyperparameters
    keras.utils.set_random_seed(options.seed)
    reader = Reader(examples, MODEL)
    train = reader.read(TRAIN)
    example, country = np.nonzero(train.target)
    times = train.target[example, country]
    example, country = np.repeat(example, times), np.repeat(country, times).astype(np.int32)
    network = MODEL.network(inputs_of(MODEL, reader.description), options)
    steps = -(-len(example) // options.batch_size) * options.epochs
    network.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)),
        loss="sparse_categorical_crossentropy",
        steps_per_execution=32,
    )
    network.fit(train.vectors[example], country, batch_size=options.batch_size, epochs=options.epochs, verbose=0)
    tests = [reader.read(split) for split in reader.tests]
    each = [(scores(MODEL.kind, predict(network, test), test), test.rows.sum()) for test in tests]
    total = sum(rows for _, rows in each)
    return {
        "seconds": time.perf_counter() - began,
        "peak_mib": peak_mib(),
        **{name: float(sum(found[name] * rows for found, rows in each) / total) for name in ("cross_entropy", "top1")},
    }


def show(results: list[dict[str, Any]], console: Console) -> None:
    """Print what each size costs, what its steps cost, and how the cost grows from one size to the next."""
    table = Table(title="Whole pipeline", title_justify="left")
    for column in (
        "Rows",
        "Songs",
        "Time",
        "Peak",
        "Rows/s",
        "Cross entropy",
        "Top-1",
        "Rows, ×",
        "Time, ×",
        "Time ~ rows^",
    ):
        table.add_column(column, justify="right")
    for before, result in zip([None, *results], results, strict=False):
        table.add_row(
            f"{result['rows']:,}",
            f"{result['songs']:,}",
            f"{result['seconds']:.1f} s",
            f"{result['peak_mib']:,} MiB",
            f"{result['rows'] / result['seconds']:,.0f}",
            f"{result['cross_entropy']:.4f}",
            f"{result['top1']:.4f}",
            *growth(before, result),
        )
    console.print(table)
    table = Table(title="Each step: time and peak memory, × the fewest rows", title_justify="left")
    table.add_column("Step")
    for result in results:
        table.add_column(f"{result['rows']:,} rows", justify="right")
    for step, fewest in results[0]["steps"].items():
        cells = [result["steps"][step] for result in results]
        table.add_row(step, cost(cells[0]), *(cost(cell, fewest) for cell in cells[1:]))
    console.print(table)
    table = Table(title="Training: ours beside row by row, same network and epochs", title_justify="left")
    for column in ("Rows", "Time, ours : theirs", "Cross entropy, ours", "theirs", "Top-1, ours", "theirs"):
        table.add_column(column, justify="right")
    for result in results:
        theirs = result["row_by_row"]
        if theirs is None:
            continue
        table.add_row(
            f"{result['rows']:,}",
            f"{result['training_seconds']:.1f} s : {theirs['seconds']:.1f} s = "
            f"{result['training_seconds'] / theirs['seconds']:.2f}",
            f"{result['cross_entropy']:.4f}",
            f"{theirs['cross_entropy']:.4f}",
            f"{result['top1']:.4f}",
            f"{theirs['top1']:.4f}",
        )
    if table.rows:
        console.print(table)
    if len(table.rows) < len(results):
        console.print(f"Row by row is left out above {ROW_BY_ROW:,} rows.")


def cost(cell: dict[str, Any], fewest: dict[str, Any] | None = None) -> str:
    """Time and memory of a step, and how many times those of ``fewest`` they are."""
    texts = [f"{cell['seconds']:.1f} s", f"{cell['peak_mib']:,} MiB"]
    if fewest:
        texts = [
            f"{text} × {cell[figure] / fewest[figure]:.2f}"
            for text, figure in zip(texts, ("seconds", "peak_mib"), strict=True)
        ]
    return "  ".join(texts)


def growth(before: dict[str, Any] | None, result: dict[str, Any]) -> tuple[str, ...]:
    """How many times the rows and the time are those before, and the exponent: 1 is in proportion, 0 no growth."""
    if before is None:
        return ()
    more = result["rows"] / before["rows"]
    longer = result["seconds"] / before["seconds"]
    return f"{more:.1f}", f"{longer:.2f}", f"{math.log(longer) / math.log(more):.2f}"


def main() -> None:
    """Measure the sizes given, or ``SIZES``; print tables and write build/bench.json."""
    if sys.argv[1:2] == ["--row-by-row"]:
        print(json.dumps(row_by_row(Path(sys.argv[2]))))
        return
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    results = [measure(int(rows), console) for rows in sys.argv[1:] or SIZES]
    file = FOLDER.with_suffix(".json")
    file.write_text(json.dumps(results, indent=1))
    show(results, console)
    console.print(f"Written to {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
