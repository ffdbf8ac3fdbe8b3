"""``make bench-cluster``: what a push costs on the node, task by task.

Three pushes one after the other, on a project that has trained before: one changes a line of a step, one the lock, one
nothing of the pipeline. Times are Kubernetes', whole seconds after the push; the machine should be idle otherwise.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.cluster import cluster, project
from tests.cluster.build import say
from tests.cluster.project import FORK, Project
from tests.cluster.runs import Run, pushed, replace

OPTIONS = FORK / "pipeline" / "options.py"


def train(made: Project) -> None:
    replace(OPTIONS, "learning_rate: float = Field(0.003", "learning_rate: float = Field(0.004")


def code(made: Project) -> None:
    replace(OPTIONS, "learning_rate: float = Field(0.004", "learning_rate: float = Field(0.005")


def lock(made: Project) -> None:
    with (FORK / "requirements.lock").open("a") as file:
        file.write("# changed\n")


def nothing(made: Project) -> None:
    with (FORK / project.TESTS).open("a") as file:
        file.write("\n\n# changed\n")


PUSHES: dict[str, Callable[[Project], None]] = {
    "the first of a fork": train,
    "one line of a step": code,
    "nothing of the pipeline": nothing,
    "the lock": lock,
}


def measure() -> None:
    """Push, wait for what comes of it, and print when each task began and how long it took."""
    made = project.up(cluster.up())
    if not made.argocd("get", "application", project.APPLICATION, "--ignore-not-found"):
        project.bootstrap(made)
    console = Console(width=100)
    for name, change in PUSHES.items():
        say(f"pushing a commit that changes {name}")
        change(made)
        run = pushed(made, f"Change {name}")
        console.print(table(name, run))


def table(name: str, run: Run) -> Table:
    """The tasks of a run, in the order of their begin."""
    selector = f"--selector=tekton.dev/pipelineRun={run.name}"
    begun = moment(run.resource["metadata"]["creationTimestamp"])
    made = Table(title=f"A push that changes {name}: {run.reason}", caption=milestones(run, begun))
    for column in ("Task", "Begins after", "Takes", "of it, before its first step"):
        made.add_column(column, justify="left" if column == "Task" else "right")
    taskruns = run.project.ci.get("taskruns", selector)["items"]
    for taskrun in sorted(taskruns, key=lambda each: str(each["status"]["startTime"])):
        status = taskrun["status"]
        start, end = moment(status["startTime"]), moment(status["completionTime"])
        steps = [step["terminated"] for step in status.get("steps", ()) if "terminated" in step]
        waited = f"{seconds(start, moment(steps[0]['startedAt']))} s" if steps else ""
        task = taskrun["metadata"]["labels"]["tekton.dev/pipelineTask"]
        made.add_row(task, f"{seconds(begun, start)} s", f"{seconds(start, end)} s", waited)
    return made


def milestones(run: Run, begun: datetime) -> str:
    """When the run of the pipeline was started, and when its model was published, which `wait` has seen."""
    ends = {}
    for taskrun in run.project.ci.get("taskruns", f"--selector=tekton.dev/pipelineRun={run.name}")["items"]:
        task = taskrun["metadata"]["labels"]["tekton.dev/pipelineTask"]
        ends[task] = f"{seconds(begun, moment(taskrun['status']['completionTime']))} s"
    if run.results.get("run-started") != "true":
        return f"no training; all done after {max(ends.values(), key=lambda text: int(text.split()[0]))}"
    return f"run started after {ends.get('start', '-')}, model published after {ends.get('wait', '-')}"


def moment(text: Any) -> datetime:
    return datetime.fromisoformat(str(text))


def seconds(start: datetime, end: datetime) -> int:
    return round((end - start).total_seconds())
