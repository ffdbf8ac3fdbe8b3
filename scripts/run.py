"""``jukebox run``: the compiled pipeline on this machine, through Kubeflow's local runner, and a page about it."""

import contextlib
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
import yaml
from kfp import components, local
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from pipeline import components as shells
from pipeline.checkout import head
from pipeline.errors import SettingsInvalid
from pipeline.log import ENDED
from pipeline.options import Hyperparameters, Thresholds, parse
from pipeline.report import Run, Step, render_report
from pipeline.sample import generate
from pipeline.settings import read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts.compile_pipeline import pipeline_resources
from scripts.sample import ROWS

# Where a step leaves the documents that the page is made of: task, output, and a file in it where it is a folder.
DOCUMENTS = {
    "validation": ("validate-data", "report", ""),
    "preprocessing": ("preprocess-data", "examples", "preprocessing.json"),
    "training": ("train-model", "report", ""),
    "evaluation": ("evaluate-model", "evaluation", ""),
    "verdict": ("evaluate-model", "verdict", ""),
    "parity": ("verify-model", "parity", ""),
    "lineage": ("publish-model", "published", ""),
}
# What Kubeflow's local runner prints around a task, colours taken out.
BEGAN = re.compile(r"Executing task '(?P<task>[\w-]+)'")
FINISHED = re.compile(r"Task '(?P<task>[\w-]+)' finished with status (?P<status>SUCCESS|FAILURE)")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
# A line of ours inside a task's output: time, level, message.
OURS = re.compile(r"[\d-]+ [\d:,]+ (?P<level>INFO|WARNING|ERROR) (?P<message>.*)")


def command(
    songs: Annotated[str, typer.Option(help="Songs: https://, s3://, file:// or a path. Default: generated.")] = "",
    rankings: Annotated[str, typer.Option(help="Charts, likewise.")] = "",
    epochs: Annotated[int | None, typer.Option(min=1, help="Short for the hyperparameter.")] = None,
    hyperparameters: Annotated[str, typer.Option(help="JSON.")] = "{}",
    thresholds: Annotated[str, typer.Option(help="JSON: what the gate asks for.")] = "{}",
    gate_mode: Annotated[str, typer.Option(help="enforce, warn or off.")] = "enforce",
    prod_flag: Annotated[bool, typer.Option(help="The version may be proposed for production.")] = False,
    folder: Annotated[Path, typer.Option(help="Where runs, models and sample data go.")] = Path("build"),
    model_store: Annotated[str, typer.Option(help="Default: models in the folder.")] = "",
) -> None:
    """Train, judge, convert, verify and publish a model here, through the pipeline that a cluster runs.

    Example: `jukebox run --songs songs.parquet --rankings rankings.parquet --epochs 5`
    """
    if bool(songs) != bool(rankings):
        raise SettingsInvalid("songs and rankings belong together: give both, or neither for generated sample data")
    chosen = {"epochs": epochs or Hyperparameters().epochs, **_json(hyperparameters, "hyperparameters")}
    limits = _json(thresholds, "thresholds")
    parse(Hyperparameters, chosen)
    parse(Thresholds, limits)
    # Bound to the stream as it is now: what the local runner prints is captured by replacing sys.stdout.
    console = Console(file=sys.stdout, highlight=False)
    folder = folder.absolute()
    if not songs:
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        console.print(f"Generating sample data: {ROWS:,} chart rows up to {yesterday}")
        songs, rankings = map(str, generate(folder / "sample", rows=ROWS, last_day=yesterday))
    parameters = {
        "data_version": resolve_data_version(songs, rankings),
        "songs": songs,
        "rankings": rankings,
        "hyperparameters": chosen,
        "thresholds": limits,
        "gate_mode": gate_mode,
        "prod_flag": prod_flag,
        "model_store": model_store or str(folder / "models"),
        "commit": head(),
    }
    finished = run_pipeline(parameters, folder / "runs", console)
    report = finished.folder / "report.html"
    report.write_text(render_report(finished.documents, finished.run))
    latest = folder / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(finished.folder)
    _conclude(finished, report, console)
    if finished.run.state != "succeeded":
        raise typer.Exit(1)


@dataclass(frozen=True)
class Finished:
    """A run that has ended: what it was, what its steps wrote, and the folder of its artifacts."""

    run: Run
    documents: Mapping[str, Any]
    folder: Path


def run_pipeline(parameters: Mapping[str, Any], runs: Path, console: Console) -> Finished:
    """Run the compiled pipeline with ``parameters`` below the folder ``runs``, and tell on ``console`` how it goes."""
    # The cluster's proxy is not the way out of this machine.
    _, version = pipeline_resources(replace(read_settings(), https_proxy=""))
    spec = version["spec"]
    graph = _graph(spec["pipelineSpec"])
    # The local runner takes one step at a time, in any order that the graph allows, and stops at the first that fails.
    # Broken data should be what the validation says of it, not what a step behind it makes of it.
    for before, step in pairwise(graph):
        spec["pipelineSpec"]["root"]["dag"]["tasks"][step].setdefault("dependentTasks", []).append(before)
    pipeline = components.load_component_from_text(yaml.safe_dump_all([spec["pipelineSpec"], spec["platformSpec"]]))
    runs.mkdir(parents=True, exist_ok=True)
    earlier = set(runs.iterdir())
    started = datetime.now(UTC).astimezone()
    view = View(graph, console)
    with (runs / f"{started:%Y-%m-%d-%H-%M-%S-%f}.log").open("w") as log, view.shown(), _captured(view, log):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(runs), raise_on_error=False)
        pipeline(**parameters)
    (folder,) = (path for path in runs.iterdir() if path.is_dir() and path not in earlier)
    Path(log.name).rename(folder / "run.log")
    return Finished(view.run(folder.name, started, parameters), _documents(folder), folder)


def _graph(spec: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Each step of the compiled pipeline with those it waits for, in the order of pipeline/components.py."""
    tasks = spec["root"]["dag"]["tasks"]
    order = [name.replace("_", "-") for name in vars(shells)]
    return {name: tuple(tasks[name].get("dependentTasks", ())) for name in sorted(tasks, key=order.index)}


def _documents(folder: Path) -> dict[str, Any]:
    """What the steps wrote, as far as they came."""
    found = {}
    for name, (task, output, file) in DOCUMENTS.items():
        path = folder / task / output / file if file else folder / task / output
        if path.is_file():
            found[name] = json.loads(path.read_text())
    return found


@dataclass
class _StepView:
    state: Literal["waiting", "running", "succeeded", "failed"] = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    mib: int | None = None
    says: str = ""
    output: list[str] = field(default_factory=list)

    def error(self) -> str:
        """What a failed step said: its message from ERROR on, or the end of its output with the traceback."""
        for number, line in enumerate(self.output):
            ours = OURS.match(line)
            if ours and ours["level"] == "ERROR":
                rest = [
                    line for line in self.output[number + 1 :] if not OURS.match(line) and "KFP Executor" not in line
                ]
                return "\n".join([ours["message"], *rest]).strip()
        return "\n".join(self.output[-15:]).strip()


class View:
    """How a run goes: a table that lives on a terminal, plain lines in a log."""

    def __init__(self, graph: Mapping[str, tuple[str, ...]], console: Console) -> None:
        self._graph = graph
        self._console = console
        self._steps = {name: _StepView() for name in graph}
        self._current = ""
        self._ok = True

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the body runs, where the console is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self._console, refresh_per_second=8, redirect_stdout=False):
            yield

    def feed(self, line: str) -> None:
        """Take a line that the local runner printed."""
        line = COLOUR.sub("", line).rstrip().removeprefix("    ")
        if began := BEGAN.search(line):
            self._current = began["task"]
            self._steps[self._current] = _StepView("running", time.perf_counter())
            self._plain(f"{self._current}: started")
        elif finished := FINISHED.search(line):
            step = self._steps[finished["task"]]
            step.seconds = time.perf_counter() - step.began
            step.state = "succeeded" if finished["status"] == "SUCCESS" else "failed"
            self._ok &= step.state == "succeeded"
            memory = f", {step.mib} MiB" if step.mib else ""
            self._plain(f"{finished['task']}: {step.state} after {step.seconds:.1f} s{memory}")
            self._current = ""
        elif self._current:
            step = self._steps[self._current]
            step.output.append(line)
            if ended := ENDED.search(line):
                step.mib = int(ended["mib"])
            elif (ours := OURS.match(line)) and not ours["message"].endswith(" started"):
                step.says = ours["message"]
                self._plain(f"{self._current}: {step.says}")

    def _plain(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{datetime.now(UTC).astimezone():%H:%M:%S} {text}", markup=False, soft_wrap=True)

    def table(self) -> Table:
        """The steps with their states, times, memory and last words."""
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        table.add_column("", width=1)
        table.add_column("Step", width=max(map(len, self._steps)))
        table.add_column("Time", justify="right", width=7)
        table.add_column("Memory", justify="right", width=9)
        table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
        signs = {"waiting": "[dim]·", "succeeded": "[green]✓", "failed": "[red]✗"}
        for name, step in self._steps.items():
            running = step.state == "running"
            seconds = time.perf_counter() - step.began if running else step.seconds
            table.add_row(
                Spinner("dots") if running else signs[step.state],
                name if step.began else f"[dim]{name}",
                f"{seconds:.1f} s" if step.began else "",
                f"{step.mib} MiB" if step.mib else "",
                f"[dim]{escape(step.says.splitlines()[0] if step.says else '')}",
            )
        return table

    def run(self, name: str, started: datetime, parameters: Mapping[str, Any]) -> Run:
        """The run as the page takes it; what had to wait for a failed step was skipped."""
        return Run(
            name=name,
            id="",
            started=started,
            state="succeeded" if self._ok else "failed",
            steps=tuple(
                Step(
                    task,
                    "skipped" if step.state == "waiting" else step.state,
                    step.seconds,
                    step.mib,
                    self._graph[task],
                    step.error() if step.state == "failed" else "",
                )
                for task, step in self._steps.items()
            ),
            parameters=parameters,
            store=str(parameters["model_store"]),
        )


class _Lines:
    """A text stream that hands on whole lines."""

    encoding = "utf-8"

    def __init__(self, view: View, log: IO[str]) -> None:
        self._view = view
        self._log = log
        self._rest = ""

    def write(self, text: str) -> int:
        self._log.write(COLOUR.sub("", text))
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._view.feed(line)
        return len(text)

    def flush(self) -> None:
        self._log.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _captured(view: View, log: IO[str]) -> Iterator[None]:
    """Hand all that the local runner prints to ``view`` and ``log``."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(_Lines(view, log)):
        # That images, claims and resources mean nothing here is known.
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


def _conclude(finished: Finished, report: Path, console: Console) -> None:
    """Print the table, what was decided and where to look."""
    run, documents = finished.run, finished.documents
    if verdict := documents.get("verdict"):
        table = Table(title="Verdict", title_justify="left", title_style="bold")
        for column, justify in (("Check", "left"), ("Found", "right"), ("Asked for", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for check in verdict["checks"]:
            table.add_row(
                check["name"],
                f"{check['value']:.4f}",
                f"{check['comparison']} {check['threshold']:g}",
                "[green]passed" if check["passed"] else "[red]failed",
            )
        console.print(table)
        console.print(verdict["summary"], markup=False)
    for step in run.steps:
        if step.state == "failed":
            console.print(f"[bold red]{step.name} failed:[/] {escape(step.error)}", soft_wrap=True)
    if lineage := documents.get("lineage"):
        model = lineage["model"]
        console.print(f"Published {model['name']} {model['version']} as version {model['number']} in {run.store}")
    else:
        console.print("Nothing was published.")
    console.print(f"Report: {report}", soft_wrap=True)


def _json(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsInvalid(f"--{option} is {text!r}, which is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsInvalid(f'--{option} is {text!r}; expected a JSON object as {{"epochs": 2}}')
    return value
