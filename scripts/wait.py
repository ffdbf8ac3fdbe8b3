"""``jukebox wait``: follow a run until it has really ended, and say why where it failed."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import typer

from pipeline.errors import AccessDenied, RequestRefused, RunFailed, ServerAway, ServerUnavailable
from pipeline.kfp_server import Json, Kfp, from_cache
from pipeline.prod_train_save_pipeline import PIPELINE
from pipeline.server import find_server
from pipeline.settings import read_settings
from scripts.kubernetes_api import ENDED, Cluster, Resource, find_cluster
from scripts.results import ResultDir, write_results
from scripts.start import start_afresh

FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")
LOG_LINES = 30
# A container that waits for one of these does not come up by itself; the others pass (ContainerCreating).
STUCK = re.compile(
    r"ImagePull|ErrImage|InvalidImageName|ConfigError|CreateContainer.*Error|RunContainerError|CrashLoop"
)
# Argo's name for a whole workflow: what `jukebox compile` calls the pipeline, and five characters.
WORKFLOW = re.compile(rf"{PIPELINE}-[a-z0-9]{{5}}")
# What the launcher (Go) and kfp's executor (Python) say in a step's log: a line, and the JSON object that it ends in or
# that follows it. The executor's input alone is a hundred lines.
NOT_OURS = re.compile(
    r"^([IWEF]\d{4} [\d:.]+ +\d+ \S+\.go:\d+\]|\[KFP Executor [^]]+\]:) .*\n({\n)?((?<={\n)( .*\n)*}\n)?", re.MULTILINE
)
LAST_WORDS = "Component failed to execute successfully"
# What Argo says of a step that ended with an error, and of those that hold it: nothing.
EMPTY_WORDS = re.compile(r"(main: )?Error \(exit code \d+\)$|child '|^$")


@dataclass(frozen=True)
class Pace:
    """Seconds: between two looks at the run, and how long it may be in a state that should pass.

    ``settle``: after the run's end until its steps' states are right; 4 s were seen. ``stuck``: a pod that cannot
    start, so that a registry that restarts and a node that is added are waited for. ``lost``: a run whose workflow has
    ended; the server follows within seconds, or has lost it. ``denied``: a server that let us in before.
    """

    poll: float = 5
    settle: float = 4
    stuck: float = 600
    lost: float = 120
    denied: float = 120


def command(
    run: Annotated[str, typer.Argument(help="The run's id.")],
    timeout: Annotated[float, typer.Option(help="Minutes until the wait gives up; the run goes on.")] = 480,
    stuck_after: Annotated[float, typer.Option(help="Minutes that a pod may be unable to start.")] = 10,
    result_dir: ResultDir = None,
) -> None:
    """Follow a run; end with 0 only where it has succeeded, else with the failed step and the end of its log.

    If what it took from the cache is gone, the run is started once more without the cache, and that one is followed.

    Example: `jukebox wait 6f1c3c2e-… --timeout 120`
    """
    find = partial(find_server, read_settings())
    kfp, cluster, pace = Kfp(find), find_cluster(find().namespace), Pace(stuck=stuck_after * 60)
    try:
        try:
            Watch(Kfp(find, patience=0), cluster, pace).wait(run, timeout * 60)
        except RunFailed as error:
            fresh = start_afresh(kfp, kfp.run(run) or {}, cluster=cluster) if error.state == "failed" else None
            if not fresh:
                raise
            run = str(fresh["run_id"])
            print(f"{error}\nWhat it took from the cache is gone: run {run} was started without the cache", flush=True)
            Watch(Kfp(find, patience=0), cluster, pace).wait(run, timeout * 60)
    except RunFailed as error:
        write_results(result_dir, state=error.state, run_id=run)
        raise
    write_results(result_dir, state="succeeded", run_id=run)
    print(f"Run {run} succeeded", flush=True)


@dataclass(frozen=True)
class Stuck:
    """A pod that cannot start: ``reason`` is one word, ``why`` the whole text with its changing part."""

    pod: str
    step: str
    reason: str
    why: str

    def __str__(self) -> str:
        return f"{self.step} cannot start: {self.why}"


@dataclass
class Watch:
    """What is seen of one run. ``cluster`` may be missing; then a stuck run is not told from a slow one."""

    kfp: Kfp
    cluster: Cluster | None
    pace: Pace = Pace()
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    _steps: frozenset[str] = frozenset()
    _said: dict[str, str] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    # Why a pod cannot start, each reason with the time when it was first seen.
    _reasons: dict[str, dict[str, float]] = field(default_factory=dict)

    def wait(self, run_id: str, timeout: float) -> None:
        """Return when the run has succeeded; raise RunFailed where it has not within ``timeout`` seconds.

        A server that is away is waited for. Raises ServerUnavailable where it knows no such run or keeps us out.
        """
        deadline = time.monotonic() + timeout
        state = "unknown"
        while True:
            run = self._look(run_id)
            if run:
                state = str(run.get("state", state))
                self._show(run)
                if state in FINISHED:
                    run = self._settled(run_id, run)
                    # Somebody may have had it tried again meanwhile.
                    if run.get("state") in FINISHED:
                        return self._conclude(run)
                self._check_cluster(run_id)
            if time.monotonic() >= deadline:
                raise RunFailed(
                    f"Run {run_id} has not ended after {timeout / 60:g} minutes; its state is {state}. It goes on: "
                    f"wait again with a longer --timeout, or terminate it in the dashboard.{self._troubles(run_id)}",
                    "timeout",
                )
            time.sleep(max(0.0, min(self.pace.poll, deadline - time.monotonic())))

    def _look(self, run_id: str) -> Json | None:
        """The run, or None where the server is away just now."""
        try:
            run = self.kfp.run(run_id)
        except ServerAway as error:
            self._once("server", f"{error} Waiting for it.")
            return None
        except AccessDenied as error:
            # What stands in front of the server answers so, too, while it cannot check a token.
            if "run" not in self._since or self._lasts("denied") > self.pace.denied:
                raise
            self._once("server", f"{error} Trying again.")
            return None
        if run is None:
            raise ServerUnavailable(f"The server knows no run {run_id}.\n`jukebox status` lists the runs.")
        self._since.setdefault("run", time.monotonic())
        self._since.pop("denied", None)
        if self._said.pop("server", None):
            self.say("The server is back.")
        return run

    def _show(self, run: Json) -> None:
        """Say what has changed since the last look."""
        if not self._steps:
            self._steps = frozenset(_step_names(self._spec(run)))
        self._once("run", f"Run {run['run_id']} is {run.get('state', 'new').lower()}")
        cached = from_cache(run)
        for task in self._tasks(run):
            name, state = task["display_name"], task.get("state", "").lower()
            how = ", from the cache" * (name in cached)
            self._once(str(task["task_id"]), f"  {name}: {state}{how}" if state else "")

    def _spec(self, run: Json) -> Json:
        reference = run.get("pipeline_version_reference", {})
        try:
            version = self.kfp.version(reference["pipeline_id"], reference["pipeline_version_id"]) if reference else run
        except ServerUnavailable:
            version = None
        found: Json = (version or {}).get("pipeline_spec", {})
        return found

    def _tasks(self, run: Json) -> list[Json]:
        """The entries of the pipeline's own steps, in the order of their begin.

        The server lists the nodes of Argo's workflow, in no order: drivers, executors, groups and cache records are
        among them.
        """
        tasks = run.get("run_details", {}).get("task_details", ())
        found = [task for task in tasks if task.get("display_name") in self._steps]
        # Times are of whole seconds: what has ended came before what has not.
        return sorted(found, key=lambda task: (str(task.get("start_time", "")), task.get("state") not in FINISHED))

    def _settled(self, run_id: str, run: Json) -> Json:
        """The run with the last states of its steps: they come a moment after the run's own."""
        deadline = time.monotonic() + self.pace.settle
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self.pace.settle))
            run = self._look(run_id) or run
        self._show(run)
        return run

    def _conclude(self, run: Json) -> None:
        run_id, state = str(run["run_id"]), str(run["state"])
        if state == "SUCCEEDED":
            return
        if state == "CANCELED" or was_terminated(run):
            raise RunFailed(f"Run {run_id} was terminated.", "terminated")
        failed = list(self._failed(run))
        steps = ", ".join(name for name, _ in failed) or "no step"
        logs = "".join(f"\n\n{name}:\n{log}" for name, log in failed if log)
        raise RunFailed(f"Run {run_id} ended as {state}; failed: {steps}.{logs}{self._troubles(run_id)}", "failed")

    def _failed(self, run: Json) -> Iterator[tuple[str, str]]:
        """The steps that failed, with the ends of their logs; else the drivers, which prepare the steps."""
        tasks = run.get("run_details", {}).get("task_details", ())
        failed = [task for task in self._tasks(run) if task.get("state") == "FAILED"]
        for task in failed:
            yield task["display_name"], self._log(run, task)
        if failed:
            return
        for task in tasks:
            name = task.get("display_name", "")
            if task.get("state") == "FAILED" and name.endswith("-driver"):
                # A driver's node is a child of what comes before it: of the root driver's that is the workflow itself.
                whole = (each for each in tasks if WORKFLOW.fullmatch(each.get("display_name", "")))
                yield name, next((self._log(run, each) for each in whole), "") if name == "root-driver" else ""

    def _log(self, run: Json, task: Json) -> str:
        """The end of the log of a task, whose pod is its child; empty where there is none."""
        for child in task.get("child_tasks", ()):
            try:
                return _tail(self.kfp.log(str(run["run_id"]), str(child["pod_name"])))
            except RequestRefused:
                continue
            except ServerUnavailable as error:
                return f"(its log cannot be read: {error})"
        return ""

    def _check_cluster(self, run_id: str) -> None:
        """Raise RunFailed where the run will never end, though the server has it running."""
        for stuck in self._stuck(run_id):
            reasons = self._reasons.setdefault(stuck.pod, {})
            if stuck.reason not in reasons:
                reasons[stuck.reason] = time.monotonic()
                self.say(f"  {stuck}")
            if time.monotonic() - reasons[stuck.reason] > self.pace.stuck:
                raise RunFailed(
                    f"Run {run_id} is stuck: {stuck}.\n"
                    f"It was given {self.pace.stuck / 60:g} minutes. Mend that and it goes on, or terminate the run.",
                    "stuck",
                )
        workflows = self._workflows(run_id)
        phases = {workflow.get("status", {}).get("phase") for workflow in workflows}
        if not workflows or not phases <= set(ENDED):
            self._since.pop("lost", None)
        elif self._lasts("lost") > self.pace.lost:
            raise RunFailed(
                f"Run {run_id} has ended ({', '.join(sorted(map(str, phases)))} says its workflow), and the server has "
                "it running: it was restarted at the wrong moment. Have its persistence agent restarted, and wait "
                f"again.{self._troubles(run_id)}",
                "lost",
            )

    def _stuck(self, run_id: str) -> Iterator[Stuck]:
        """The pods that cannot start, once for each reason; what was known of one that has started is forgotten."""
        for pod in self._of_cluster(lambda cluster: cluster.pods(run_id)):
            found = list(_reasons_of(pod))
            yield from found
            # Between two attempts to pull an image there may be no reason: that is no start.
            if not found and pod.get("status", {}).get("phase", "Pending") != "Pending":
                self._reasons.pop(pod["metadata"]["name"], None)
        for step, node in self._nodes(run_id):
            # A pod that the cluster refuses never is; Argo tries again and again, and the numbers in a message change.
            if node["phase"] == "Pending" and re.search(r"forbidden|exceeded quota|denied", node["message"]):
                yield Stuck(node["name"], step, "refused", node["message"])

    def _nodes(self, run_id: str) -> Iterator[tuple[str, Json]]:
        """Each node of the run's workflows that says something, with its step."""
        for workflow in self._workflows(run_id):
            for node in (workflow.get("status", {}).get("nodes") or {}).values():
                node = {"name": "", "phase": "", "message": "", **node}
                if not EMPTY_WORDS.match(node["message"]):
                    yield _step_of(node["name"]) or node.get("displayName", ""), node

    def _troubles(self, run_id: str) -> str:
        """What the cluster says of the run, for the end of a message."""
        said = {stuck.step: stuck.why for stuck in self._stuck(run_id)}
        for step, node in self._nodes(run_id):
            if node["phase"] in ("Failed", "Error", "Pending"):
                said[step] = node["message"]
        return "".join(f"\n{name}: {text}" for name, text in said.items())

    def _workflows(self, run_id: str) -> list[Resource]:
        return self._of_cluster(lambda cluster: cluster.workflows(run_id))

    def _of_cluster(self, ask: Callable[[Cluster], list[Resource]]) -> list[Resource]:
        try:
            return ask(self.cluster) if self.cluster else []
        except ServerUnavailable as error:
            if "cluster" not in self._said:
                self._once("cluster", f"A pod that cannot start will not be seen: {error}")
            return []

    def _lasts(self, what: str) -> float:
        """Seconds since this was first seen."""
        return time.monotonic() - self._since.setdefault(what, time.monotonic())

    def _once(self, key: str, text: str) -> None:
        """Say something unless it was said of the same thing last."""
        if text and self._said.get(key) != text:
            self._said[key] = text
            self.say(text)


def _reasons_of(pod: Resource) -> Iterator[Stuck]:
    """Why a pod cannot start, as its status says it."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    step = _step_of(pod["metadata"].get("annotations", {}).get("workflows.argoproj.io/node-name", "")) or name
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        if STUCK.search(reason):
            yield Stuck(name, step, reason, f"{reason}: {waiting.get('message', container.get('image', ''))}")
    for condition in status.get("conditions", ()):
        if condition.get("reason") == "Unschedulable" and condition.get("status") == "False":
            yield Stuck(name, step, "Unschedulable", f"Unschedulable: {condition.get('message', '')}")


def was_terminated(run: Json) -> bool:
    """Tell whether the run was told to stop: a terminated run ends as FAILED, too.

    Only its history since it last began to run counts: a terminated run may be retried, and fail by itself.
    """
    for entry in reversed(run.get("state_history", [])):
        if entry.get("state") in ("CANCELING", "PENDING", "RUNNING"):
            return bool(entry["state"] == "CANCELING")
    return False


def _step_names(spec: Any) -> Iterator[str]:
    """The names of the tasks, at any depth, that run a container."""
    spec = spec.get("pipeline_spec", spec)
    components = spec.get("components", {})
    for dag in (spec.get("root", {}), *components.values()):
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in components.get(task["componentRef"]["name"], {}):
                yield name


def _step_of(node: str) -> str:
    """The step in an Argo node's name: ``prod-train-save-x2v9k.root.train-model.executor(0)``."""
    parts = [re.sub(r"\(.*\)$", "", part) for part in node.split(".")[1:]]
    if parts and parts[-1] == "executor":
        parts.pop()
    return parts[-1] if parts else ""


def _tail(log: str) -> str:
    """The last lines of a step's own output, without what its launcher and kfp say around it."""
    text, _, _ = log.partition(LAST_WORDS)
    text = NOT_OURS.sub("", f"{text}\n")
    lines = [line for line in text.splitlines() if line.strip()]
    # Nothing but the launcher spoke: a driver, or a step that was killed.
    lines = lines or log.splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
