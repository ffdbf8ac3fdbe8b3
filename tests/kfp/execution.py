"""How a workflow of the stand-in is executed, and what is seen of it from outside."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

LOCAL_RUN = Path(__file__).with_name("local_run.py")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
BEGAN = re.compile(r"Executing task '(?P<task>[\w-]+)'")
CACHED = re.compile(r"Task '(?P<task>[\w-]+)' cache hit")
ENDED = re.compile(r"Task '(?P<task>[\w-]+)' finished with status (?P<status>SUCCESS|FAILURE)")


@dataclass(frozen=True)
class Job:
    """What is executed: a workflow of a run, its compiled spec and the parameters; ``account`` where it has one."""

    workflow: str
    run_id: str
    spec: dict[str, Any]
    platform: dict[str, Any]
    parameters: dict[str, Any]
    account: str = ""

    @property
    def first_step(self) -> str:
        """A step that waits for no other."""
        components = self.spec.get("components", {})
        for dag in (self.spec["root"], *components.values()):
            for name, task in dag.get("dag", {}).get("tasks", {}).items():
                if "dependentTasks" not in task and "executorLabel" in components.get(task["componentRef"]["name"], {}):
                    return str(name)
        return "none"


@dataclass(frozen=True)
class Look:
    """What is seen of a job: whether its process could start, what it printed, how it ended."""

    started: bool
    output: str = ""
    code: int | None = None


class Executor(Protocol):
    """Executes jobs. It is asked about any job at any time, also by a server that was restarted."""

    def start(self, job: Job) -> None: ...

    def look(self, workflow: str) -> Look: ...

    def terminate(self, workflow: str) -> None: ...

    def retry(self, workflow: str) -> None:
        """Execute again what has not succeeded; raise NotImplementedError if nothing is kept of what has."""
        ...


@dataclass
class Task:
    """A step as the local runner's output tells of it."""

    name: str
    state: str = "RUNNING"
    cached: bool = False
    lines: list[str] = field(default_factory=list)


def tasks_in(output: str) -> list[Task]:
    """The steps that have begun, in their order."""
    tasks: dict[str, Task] = {}
    current: Task | None = None
    for line in COLOUR.sub("", output).splitlines():
        if began := BEGAN.search(line):
            current = tasks[began["task"]] = Task(began["task"])
        elif cached := CACHED.search(line):
            tasks[cached["task"]] = Task(cached["task"], "SUCCEEDED", cached=True)
        elif ended := ENDED.search(line):
            tasks[ended["task"]].state = "SUCCEEDED" if ended["status"] == "SUCCESS" else "FAILED"
            current = None
        elif current:
            current.lines.append(line.removeprefix("    "))
    return list(tasks.values())


class SubprocessExecutor:
    """Executes jobs in processes on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arguments: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: Job) -> None:
        folder = self._folder / job.workflow
        folder.mkdir(parents=True)
        spec, parameters = folder / "spec.json", folder / "parameters.json"
        spec.write_text(json.dumps(job.spec))
        parameters.write_text(json.dumps(job.parameters))
        files = str(spec), str(parameters), str(folder / "root")
        self._arguments[job.workflow] = [*files, job.run_id, job.workflow, str(self._folder / "cache")]
        self.retry(job.workflow)

    def retry(self, workflow: str) -> None:
        with (self._folder / workflow / "output").open("ab") as output:
            self._processes[workflow] = subprocess.Popen(
                [sys.executable, str(LOCAL_RUN), *self._arguments[workflow]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def look(self, workflow: str) -> Look:
        # The code first: what is printed before the end is then all there.
        code = self._processes[workflow].poll()
        return Look(True, (self._folder / workflow / "output").read_text(errors="replace"), code)

    def terminate(self, workflow: str) -> None:
        process = self._processes[workflow]
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


class ScriptedExecutor:
    """Executes nothing: the looks are what a test says."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.looks: dict[str, Look] = {}
        self.first = Look(True)

    def start(self, job: Job) -> None:
        self.jobs[job.workflow] = job
        self.looks[job.workflow] = self.first

    def look(self, workflow: str) -> Look:
        return self.looks[workflow]

    def terminate(self, workflow: str) -> None:
        self.looks[workflow] = Look(True, self.looks[workflow].output, 137)

    def retry(self, workflow: str) -> None:
        self.looks[workflow] = Look(True, self.looks[workflow].output)


def printed(*tasks: tuple[str, str, str]) -> str:
    """What the local runner prints of (step, state, its output)."""
    return "\n".join(line for task in tasks for line in _printed(*task))


def _printed(name: str, state: str, output: str) -> Iterator[str]:
    yield f"10:00:00.000 - INFO - Executing task '{name}'"
    yield from (f"    {line}" for line in output.splitlines())
    if word := {"SUCCEEDED": "SUCCESS", "FAILED": "FAILURE"}.get(state):
        yield f"10:00:01.000 - INFO - Task '{name}' finished with status {word}"
