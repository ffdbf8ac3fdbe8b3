"""``jukebox run``: the compiled pipeline on this machine, through Kubeflow's local runner, and a page about it."""

import contextlib
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import typer
import yaml
from kfp import components, local
from kfp.local import executor_input_utils, subprocess_task_handler
from kfp.local.status import Status
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from pipeline import components as shells
from pipeline.checkout import head
from pipeline.core.contract import load
from pipeline.core.errors import SettingsInvalid
from pipeline.core.log import ENDED
from pipeline.core.options import GATE_MODES, parse, parse_thresholds
from pipeline.core.report import Run, Step, render_report
from pipeline.core.sources import WILDCARD, redact
from pipeline.core.store import FAILED
from pipeline.settings import PIPELINE, read_settings
from pipeline.steps.fetch_data import resolve_data_version
from scripts.compile_pipeline import pipeline_resources
from scripts.data_version import read_data
from scripts.sample import generator

# Where a step leaves the documents that the page is made of: task, output, and a file in it where it is a folder.
DOCUMENTS = {
    "tables": ("fetch-data", "report", ""),
    "validation": ("validate-data", "report", ""),
    "preprocessing": ("preprocess-data", "examples", "preprocessing.json"),
    "training": ("train-model", "report", ""),
    "evaluation": ("evaluate-model", "evaluation", ""),
    "verdict": ("evaluate-model", "verdict", ""),
    "parity": ("verify-model", "parity", ""),
    "lineage": ("publish-model", "published", ""),
}
# Lines that are shown of what a step has printed before a signal ended it, and of a defect's traceback.
LAST_WORDS, LAST_TRACEBACK = 3, 15
# What stops a run, and the exit code then: 128 + SIGINT, as a shell has it.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130
# A line of ours inside a task's output: time, level, message.
OURS = re.compile(r"[\d-]+ [\d:,]+ (?P<level>INFO|WARNING|ERROR) (?P<message>.*)")


def command(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE=URI",
            help="URI of a table (https://, s3://, file:// or a path), once for each table. Default: generated data.",
        ),
    ] = None,
    epochs: Annotated[str, typer.Option(metavar="NUMBER", help="Sets the hyperparameter of that name.")] = "",
    hyperparameters: Annotated[str, typer.Option(help="JSON.")] = "{}",
    thresholds: Annotated[str, typer.Option(help="The gate's thresholds, as JSON.")] = "{}",
    gate_mode: Annotated[str, typer.Option(help="enforce, warn or off.")] = "enforce",
    champion_version: Annotated[
        str, typer.Option(help="Number of the version to compare with, or none; default: the champion.")
    ] = "",
    prod_flag: Annotated[bool, typer.Option(help="The version may be proposed for production.")] = False,
    folder: Annotated[Path, typer.Option(help="Folder for runs, models and sample data.")] = Path("build"),
    model_store: Annotated[str, typer.Option(help="Where models are published. Default: models in the folder.")] = "",
) -> None:
    """Run the whole pipeline on this machine: train, evaluate, convert, verify and publish a model.

    Example: `jukebox run --data TABLE=file.parquet --data OTHER=s3://bucket/other/ --epochs 5`
    """
    model = load(read_settings().model_name)
    folder = folder.absolute()
    places = [*(("data", each) for each in data or ()), ("folder", str(folder)), ("model-store", model_store)]
    for option, place in places:
        _require_plain(place, option)
    tables = read_data(data or (), model)
    if tables:
        model.require_tables(tables, "--data")
    chosen = {"epochs": model.hyperparameters.epochs, **_json(hyperparameters, "hyperparameters")}
    if epochs:
        chosen["epochs"] = epochs
    limits = _json(thresholds, "thresholds")
    chosen["epochs"] = parse(model.hyperparameters, chosen).epochs
    parse_thresholds(model, limits)
    if gate_mode not in GATE_MODES:
        raise SettingsInvalid(f"--gate-mode is {gate_mode!r}; expected one of {', '.join(GATE_MODES)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(
            f"--folder is {folder}, which cannot be created: {error.strerror}; choose another"
        ) from None
    # Bound to the stream as it is now: what the local runner prints is kept away by replacing sys.stdout. What it is
    # given to print may hold any character of a path.
    console = Console(file=sys.stdout, highlight=False, emoji=False)
    if not tables:
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        generate = generator(model.name)
        console.print(f"Generating sample data up to {yesterday}")
        tables = _sample(generate, folder / "sample", yesterday)
    parameters = {
        "data_version": resolve_data_version(tables),
        "data": tables,
        "hyperparameters": chosen,
        "thresholds": limits,
        "gate_mode": gate_mode,
        "champion_version": champion_version,
        "prod_flag": prod_flag,
        "model_store": model_store or str(folder / "models"),
        "commit": head(),
    }
    for number in INTERRUPTS:
        # A shell has what it runs in the background ignore Ctrl-C.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    finished = run_pipeline(parameters, folder / "runs", console)
    report = finished.folder / "report.html"
    where = f"Report: {report}"
    try:
        report.write_text(render_report(model, finished.documents, finished.run), encoding="utf-8")
        _point(folder / "latest", finished.folder)
    except OSError as error:
        where = f"The report {report} cannot be written: {error.strerror}"
    _conclude(finished, where, console)
    if finished.interrupted:
        raise typer.Exit(INTERRUPTED)
    if finished.run.state != "succeeded":
        raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    """Interrupt the run, once: a second Ctrl-C must not cost the report, which takes a second."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _require_plain(value: str, option: str) -> None:
    """Refuse the few texts that cannot be a parameter of Kubeflow's."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SettingsInvalid(f"--{option} is {value!r}, which is not UTF-8: rename the file or the folder") from None
    if "{{$" in value:
        raise SettingsInvalid(
            f"--{option} is {value!r}, and Kubeflow reads {{{{$ as the start of a placeholder: rename "
            "the file or the folder"
        )


def _sample(generate: Callable[..., Mapping[str, Path]], folder: Path, last_day: date) -> dict[str, str]:
    """Generate the sample data in ``folder``; a run that reads what was there goes on reading it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as unfinished:
        made = generate(Path(unfinished), last_day=last_day)
        return {table: str(path.replace(folder / path.name)) for table, path in made.items()}


def _point(link: Path, folder: Path) -> None:
    """Have ``link`` name ``folder``, of which it is at every moment either this or the one before."""
    new = link.with_name(f".{link.name}-{folder.name}")
    new.symlink_to(folder)
    new.replace(link)


@dataclass(frozen=True)
class Finished:
    """A run that has ended: what it was, what its steps wrote, and the folder of its artifacts."""

    run: Run
    documents: Mapping[str, Any]
    folder: Path
    interrupted: bool


def run_pipeline(parameters: Mapping[str, Any], runs: Path, console: Console) -> Finished:
    """Run the compiled pipeline with ``parameters`` in a folder of its own below ``runs``; tell ``console`` about it.

    A run that fails, or is interrupted, is a run that has ended, too.
    """
    # The cluster's proxy is not the way out of this machine.
    _, version = pipeline_resources(replace(read_settings(), https_proxy=""))
    spec = version["spec"]
    graph = _graph(spec["pipelineSpec"])
    tasks = spec["pipelineSpec"]["root"]["dag"]["tasks"]
    # The local runner takes one step at a time, in any order that the graph allows, and stops at the first that fails.
    # Broken data should be what the validation says of it, not what a step behind it makes of it.
    for before, step in pairwise(graph):
        tasks[step].setdefault("dependentTasks", []).append(before)
    # Here no node is lost, and what fails, fails again.
    for task in tasks.values():
        task.pop("retryPolicy", None)
    pipeline = components.load_component_from_text(yaml.safe_dump_all([spec["pipelineSpec"], spec["platformSpec"]]))
    folder, started = _new_folder(runs)
    view = View(graph, console)
    interrupted = False
    try:
        with (folder / "run.log").open("w", encoding="utf-8") as log, view.shown(), _local_runner(folder, view, log):
            try:
                pipeline(**parameters)
            except Exception:
                traceback.print_exc(file=log)
                raise
    except KeyboardInterrupt:
        interrupted = True
        view.failed("The run was interrupted. Start it again with the same command; it begins from the start.")
    except OSError as error:
        view.failed(f"The run cannot continue in {folder}: {error.strerror or error}")
    except Exception as error:  # a defect must not take the report with it
        view.failed(f"Kubeflow's local runner has failed: {type(error).__name__}: {error}; see {log.name}")
    return Finished(view.run(folder.name, started, parameters), _documents(folder), folder, interrupted)


def _new_folder(runs: Path) -> tuple[Path, datetime]:
    """Make the folder of a run that begins now; its name is that of no other run."""
    while True:
        started = datetime.now(UTC).astimezone()
        folder = runs / f"{PIPELINE}-{started:%Y-%m-%d-%H-%M-%S-%f}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder, started


@contextlib.contextmanager
def _local_runner(folder: Path, view: "View", log: IO[str]) -> Iterator[None]:
    """Have Kubeflow's local runner put its artifacts into ``folder``, and run its steps as ``_Process``."""
    name_of_run, process_of_step = (
        executor_input_utils.get_local_pipeline_resource_name,
        subprocess_task_handler.SubprocessTaskHandler,
    )
    executor_input_utils.get_local_pipeline_resource_name = lambda _: folder.name
    subprocess_task_handler.SubprocessTaskHandler = partial(_Process, view, log)
    try:
        # What it prints around a step the view knows from the process.
        with (
            _no_glob(folder.parent) as root,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=False)
            # That images, claims and resources mean nothing here is known.
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        executor_input_utils.get_local_pipeline_resource_name = name_of_run
        subprocess_task_handler.SubprocessTaskHandler = process_of_step


@contextlib.contextmanager
def _no_glob(folder: Path) -> Iterator[Path]:
    """The folder, if need be under another name: Polars takes some characters in a folder's for a pattern."""
    if not WILDCARD.search(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as elsewhere:
        alias = Path(elsewhere) / folder.name
        alias.symlink_to(folder)
        yield alias


class _Process:
    """A step as a process, in the place of Kubeflow's own handler.

    Kubeflow's puts the interpreter's path into each argument that has ``python3`` in it, also into the path of a file,
    and unquoted; and it forgets how a process has ended.
    """

    def __init__(
        self, view: "View", log: IO[str], *, full_command: list[str], env_vars: Mapping[str, str], **_: Any
    ) -> None:
        self.view, self.log = view, log
        shell, options, script, *self.arguments = full_command
        self.shell = [shell, options, script.replace("python3", shlex.quote(sys.executable))]
        self.environment = {**os.environ, **env_vars}
        self.step = self.arguments[-1].replace("_", "-")  # after --function_to_execute

    def run(self) -> Status:
        self.view.began(self.step)
        self.log.write(f"{self.step}:\n")
        with (
            tempfile.TemporaryDirectory() as scratch,
            subprocess.Popen(
                [*self.shell, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env={**self.environment, "TMPDIR": scratch},
                # A Ctrl-C comes here alone, and what began the step ends all of it.
                process_group=0,
            ) as process,
        ):
            try:
                for line in process.stdout or ():
                    # Kubeflow's executor prints all that a step is given, also a URL with its signature.
                    shown = redact(line.removesuffix("\n"))
                    self.log.write(f"{shown}\n")
                    self.view.said(shown)
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
        self.view.ended(process.returncode, usage)
        return Status.SUCCESS if process.returncode == 0 else Status.FAILURE


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
            found[name] = json.loads(path.read_bytes())
    return found


@dataclass
class _StepView:
    state: Literal["waiting", "running", "succeeded", "failed"] = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    mib: int | None = None
    says: str = ""
    output: list[str] = field(default_factory=list)
    cause: str = ""

    def error(self) -> str:
        """What ended a failed step, or what it said: its message from ERROR on, or the end of its output."""
        if self.cause:
            return self.cause
        for number, line in enumerate(self.output):
            ours = OURS.match(line)
            if ours and ours["level"] == "ERROR":
                rest = [
                    line for line in self.output[number + 1 :] if not OURS.match(line) and "KFP Executor" not in line
                ]
                return "\n".join([ours["message"], *rest]).strip()
        return "\n".join(self.output[-LAST_TRACEBACK:]).strip()


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

    def began(self, step: str) -> None:
        """A step begins."""
        self._current = step
        self._steps[step] = _StepView("running", time.perf_counter())
        self._plain(f"{step}: started")

    def said(self, line: str) -> None:
        """The step that runs has printed a line."""
        step = self._steps[self._current]
        step.output.append(line)
        if ended := ENDED.search(line):
            step.mib = int(ended["mib"])
        elif (ours := OURS.match(line)) and not ours["message"].endswith(" started"):
            step.says = ours["message"]
            self._plain(f"{self._current}: {step.says}")

    def ended(self, code: int, usage: resource.struct_rusage) -> None:
        """The step's process has ended, with an exit code or, if negative, by a signal."""
        step = self._steps[self._current]
        if step.mib is None:
            # Without a last line of its own. Linux counts for a child what its parent had, some 200 MiB here.
            step.mib = usage.ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024)
        self._end("failed" if code else "succeeded")
        if code < 0 or code > 128:
            killed = _how_killed(-code if code < 0 else code - 128, step.mib)
            step.cause = "\n".join([killed, *list(filter(None, step.output))[-LAST_WORDS:]])

    def failed(self, error: str) -> None:
        """The run has ended while, or before, a step ran."""
        self._current = self._current or next(iter(self._steps))
        step = self._steps[self._current]
        step.began, step.cause = step.began or time.perf_counter(), error
        if step.state != "failed":
            self._end("failed")

    def _end(self, state: Literal["succeeded", "failed"]) -> None:
        step = self._steps[self._current]
        step.state, step.seconds = state, time.perf_counter() - step.began
        self._ok &= state == "succeeded"
        memory = f", {step.mib} MiB" if step.mib else ""
        self._plain(f"{self._current}: {state} after {step.seconds:.1f} s{memory}")

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


def _how_killed(number: int, mib: int) -> str:
    """What is said of a step that a signal has ended, and what its peak memory was until then."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return (
            f"It was killed ({name}, exit {128 + number}), most likely because the machine ran out of memory; its own "
            f"peak was {mib} MiB. Close other programs, take fewer rows or a machine with more memory, and run again."
        )
    return f"It was ended by {name} (exit {128 + number}); its peak memory was {mib} MiB."


def _conclude(finished: Finished, where: str, console: Console) -> None:
    """Print the table, what was decided and where to look."""
    run, documents = finished.run, finished.documents
    lineage = documents.get("lineage")
    if verdict := lineage["verdict"] if lineage else documents.get("verdict"):
        table = Table(title="Verdict", title_justify="left", title_style="bold")
        for column, justify in (("Check", "left"), ("Found", "right"), ("Asked for", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for check in verdict["checks"]:
            table.add_row(
                f"{check['name']} ({check['where']})" if check["where"] else check["name"],
                "not defined" if check["value"] is None else f"{check['value']:.4f}",
                f"{check['comparison']} {check['threshold']:g}",
                "[green]passed" if check["passed"] else "[red]failed",
            )
        console.print(table)
        console.print(verdict["summary"], markup=False)
    for step in run.steps:
        if step.state == "failed":
            console.print(f"[bold red]{step.name} failed:[/] {escape(step.error)}", soft_wrap=True)
    if lineage:
        model = lineage["model"]
        what = f"{model['name']} {model['version']} as version {model['number']}"
        if lineage["verdict"]["passed"]:
            console.print(f"Published {what} in {run.store}", markup=False, soft_wrap=True)
        else:
            kept = f"{run.store}/{model['name']}/{FAILED}/{model['number']}"
            console.print(f"Kept {what} in {kept}, which is not served", markup=False, soft_wrap=True)
            named = f"--version {model['number']} --model-store {run.store}"
            console.print(f"Try it with: jukebox predict ROW {named}", markup=False, soft_wrap=True)
    else:
        console.print("Nothing was published.")
    console.print(where, markup=False, soft_wrap=True)


def _json(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsInvalid(f"--{option} is {text!r}, which is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsInvalid(f'--{option} is {text!r}; expected a JSON object like {{"epochs": 2}}')
    return value
