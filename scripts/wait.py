"""``jukebox wait``: wait for a run to end, and print the cause if it fails."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from pipeline.core.errors import (
    AccessDenied,
    ClusterAway,
    ClusterRefuses,
    JukeboxError,
    RequestRefused,
    RunFailed,
    ServerAway,
    ServerUnavailable,
    SingleUser,
)
from pipeline.core.log import ENDED as STEP_ENDED
from pipeline.settings import PIPELINE, read_settings
from scripts.causes import Cause, Fate, cause_of_node, causes_of_pod, cleaned, has_failed, has_started, step_of
from scripts.clients.kfp_server import Json, Kfp, from_cache, spec_alone
from scripts.clients.kubernetes_api import ENDED, Cluster, Resource, find_cluster
from scripts.clients.pipeline_server import Server, find_server
from scripts.results import ResultDir, write_results
from scripts.start import start_afresh

P = ParamSpec("P")
T = TypeVar("T")

FINISHED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR")
LOG_LINES = 30
LINE = 1000  # characters of each
READ_LINES = 300  # of a pod's log: its step's last lines come before what its launcher says of its end
SHORT = 400  # characters of the cause of a failure, if it must fit in a line
# Argo's name for a whole workflow: what `jukebox compile` calls the pipeline of a model, and five characters.
WORKFLOW = re.compile(rf"([a-z0-9-]+-)?{PIPELINE}-[a-z0-9]{{5}}")
# What the launcher (Go) and kfp's executor (Python) say in a step's log: a line, and the JSON object that it ends in or
# that follows it. The executor's input alone is a hundred lines.
NOT_OURS = re.compile(
    r"^([IWEF]\d{4} [\d:.]+ +\d+ \S+\.go:\d+\]|\[KFP Executor [^]]+\]:) .*\n({\n)?((?<={\n)( .*\n)*}\n)?", re.MULTILINE
)
LOGGED_ERROR = re.compile(r"[\d-]+ [\d:,]+ ERROR (.+)")
LAST_WORDS = "Component failed to execute successfully"
# What Argo says of a step that ended with an error, of those that hold it, and of a pod that is coming up: nothing.
EMPTY_WORDS = re.compile(
    r"(main: )?Error \(exit code (?!137\))\d+\)$|child '|No more retries left|PodInitializing$|ContainerCreating$|^$"
)
# Argo's node of a pod that the cluster refuses: it stays Pending, and Argo tries again and again.
NO_POD = re.compile(r"forbidden|exceeded quota|denied|webhook")


@dataclass(frozen=True)
class Pace:
    """Seconds: between two looks at the run, and how long it may be in a state that should pass.

    ``settle``: after the run's end until its steps' states are right; 4 s were seen. ``stuck``: a pod that cannot
    start, so that a registry that restarts and a node that is added are waited for. ``sure``: what no platform mends by
    itself, as a Secret that is missing, and a workflow that is gone: what is made at this moment is waited for.
    ``lost``: a run whose workflow has ended; the server follows within seconds, or has lost it. ``denied``: a server
    that let us in before.
    """

    poll: float = 5
    settle: float = 4
    stuck: float = 600
    sure: float = 30
    lost: float = 120
    denied: float = 120


def command(
    run: Annotated[str, typer.Argument(help="The run's id.")],
    timeout: Annotated[float, typer.Option(help="Minutes to wait; the run continues after that.")] = 480,
    stuck_after: Annotated[
        float, typer.Option(help="Minutes that a pod may fail to start before the run counts as stuck.")
    ] = 10,
    result_dir: ResultDir = None,
) -> None:
    """Wait for a run to end. If it fails, print the cause, the failed step and the end of its log.

    If a pod does not start, the cause is printed within seconds. The wait ends after half a minute for a missing image,
    Secret or key, after --stuck-after for an unavailable registry or a node that is too small, and after --timeout for
    a full quota or a queue. The run itself continues when the cause is fixed.

    If the cached results that it used are gone, a new run is started once, without the cache, and waited for.

    Exit codes: 0 if the run succeeded; 1 if it did not, or its state is unknown; 2 for invalid options. --result-dir
    gets a file `state` with succeeded, failed, terminated, deleted, stuck, lost, timeout or unknown, and a file `why`
    with the cause in one line.

    Example: `jukebox wait 6f1c3c2e-0d5b-5c8e-9a51-3f0f6d1f2b7a --timeout 120`
    """
    find = partial(find_server, read_settings())
    cluster, pace = _cluster_of_runs(find()), Pace(stuck=stuck_after * 60)
    try:
        try:
            Watch(Kfp(find, patience=0), cluster, pace).wait(run, timeout * 60)
        except RunFailed as error:
            fresh = start_afresh(Kfp(find), run, cluster=cluster) if error.state == "failed" else ""
            if not fresh:
                raise
            print(
                f"{error}\nThe cached results that it used are gone: run {fresh} was started without the cache",
                flush=True,
            )
            run = fresh
            Watch(Kfp(find, patience=0), cluster, pace).wait(run, timeout * 60)
    except JukeboxError as error:
        state, why = (error.state, error.why) if isinstance(error, RunFailed) else ("unknown", str(error))
        write_results(result_dir, state=state, why=_line(why), run_id=run)
        raise
    write_results(result_dir, state="succeeded", why="", run_id=run)
    print(f"Run {run} succeeded", flush=True)


def _cluster_of_runs(server: Server) -> Cluster | None:
    """The cluster, unless the pods of runs are elsewhere than in the project's namespace."""
    try:
        server.probe()
    except SingleUser as error:
        print(f"Problems of the run's pods cannot be seen. {error}", flush=True)
        return None
    except ServerUnavailable:
        pass  # the wait tells it
    return find_cluster(server.namespace)


@dataclass(frozen=True)
class Ended:
    """A pod that has failed: when it was made, its step, and the end of its log; None while the cluster gives none."""

    made: str
    step: str
    log: str | None


@dataclass
class Watch:
    """The view of one run. Without ``cluster``, a stuck run looks like a slow one."""

    kfp: Kfp
    cluster: Cluster | None
    pace: Pace = Pace()
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    _steps: frozenset[str] = frozenset()
    _said: dict[str, str] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    # What hinders the pods, by pod and key, with the time when it was first seen.
    _causes: dict[tuple[str, str], tuple[Cause, float]] = field(default_factory=dict)
    # The pods that have failed, by name: each may be gone when the run ends.
    _ended: dict[str, Ended] = field(default_factory=dict)

    def wait(self, run_id: str, timeout: float) -> None:
        """Return when the run has succeeded; raise RunFailed if it has not within ``timeout`` seconds.

        A server that is away is waited for. Raises ServerUnavailable if it knows no such run or keeps us out.
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
                    f"Run {run_id} has not ended after {timeout / 60:g} minutes; its state is {state}. It continues: "
                    f"wait again with a longer --timeout, or terminate it in the dashboard.{self._troubles(run_id)}",
                    "timeout",
                )
            time.sleep(max(0.0, min(self.pace.poll, deadline - time.monotonic())))

    def _look(self, run_id: str) -> Json | None:
        """The run, or None if the server does not answer now."""
        try:
            run = self.kfp.run(run_id)
        except ServerAway as error:
            self._once("server", f"{error} Waiting for it.")
            return None
        except AccessDenied as error:
            # A proxy in front of the server also answers this while it cannot check a token.
            if "run" not in self._since or self._lasts("denied") > self.pace.denied:
                raise
            self._once("server", f"{error} Trying again.")
            return None
        if run is None:
            if "run" in self._since:
                raise RunFailed(f"Run {run_id} was deleted during the wait. Start another.", "deleted")
            raise ServerUnavailable(f"The server has no run {run_id}.\nList the runs with `jukebox status`.")
        self._since.setdefault("run", time.monotonic())
        self._since.pop("denied", None)
        if self._said.pop("server", None):
            self.say("The server answers again.")
        return run

    def _show(self, run: Json) -> None:
        """Print what has changed since the last poll."""
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
        self._see(run_id)
        failed: dict[str, str] = {}
        for name, log in self._failed(run):  # of a step with attempts, each
            failed[name] = failed.get(name) or log or self._kept_log(name)
        steps = ", ".join(failed) or "no step"
        troubles = self._troubles(run_id, {*failed})
        logs = "".join(f"\n\n{name}:\n{log}" for name, log in failed.items() if log)
        said = next((f"{name}: {_said(log)}" for name, log in failed.items() if log), f"failed: {steps}")
        whole = f"Run {run_id} ended as {state}; failed: {steps}.{troubles}{logs}"
        raise RunFailed(whole, "failed", troubles.strip().partition("\n")[0] or said)

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
        """The end of the log of a task, whose pod is its child; empty if the server has none."""
        for child in task.get("child_tasks", ()):
            try:
                return tail(self.kfp.log(str(run["run_id"]), str(child["pod_name"])))
            except RequestRefused:
                continue
            except ServerUnavailable as error:
                return self._kept_log(str(task["display_name"])) or f"(its log cannot be read: {error})"
        return ""

    def _kept_log(self, step: str) -> str:
        """The end of the log of a step's last pod that has failed, as the cluster gave it: it may be gone by now."""
        last = self._last(step)
        return tail(self._ended[last].log or "") if last else ""

    def _last(self, step: str) -> str:
        """The last of a step's pods that have failed; empty if none has."""
        found = (name for name, pod in self._ended.items() if pod.step == step)
        return max(found, key=lambda name: self._ended[name].made, default="")

    def _check_cluster(self, run_id: str) -> None:
        """Raise RunFailed if the run will never end, though the server has it running."""
        for cause in self._see(run_id):
            _, since = self._causes[cause.pod, cause.key]
            patience = {Fate.STAYS: self.pace.sure, Fate.LASTS: self.pace.stuck}.get(cause.fate)
            if patience is not None and time.monotonic() - since > patience:
                raise RunFailed(
                    f"Run {run_id} is stuck: {cause}\n"
                    f"The wait was {_minutes(patience)}. Fix the cause and the run continues, or terminate the run.",
                    "stuck",
                    str(cause),
                )
        workflows = self._of_cluster(Cluster.workflows, run_id)
        phases = {workflow.get("status", {}).get("phase") for workflow in workflows or ()}
        if workflows != []:
            self._since.pop("gone", None)
        elif self._lasts("gone") > self.pace.sure:
            raise RunFailed(
                f"Run {run_id} has lost its workflow: somebody has deleted it, and the server will show the run as "
                "running for ever. Terminate it in the dashboard, and start another.",
                "deleted",
            )
        if not workflows or not phases <= set(ENDED):
            self._since.pop("lost", None)
        elif self._lasts("lost") > self.pace.lost:
            raise RunFailed(
                f"Run {run_id} has ended (its workflow: {', '.join(sorted(map(str, phases)))}), but the server shows "
                "it as running: it was restarted at the wrong moment. Restart its persistence agent, and wait "
                f"again.{self._troubles(run_id)}",
                "lost",
            )

    def _see(self, run_id: str) -> list[Cause]:
        """What blocks the run now; each cause is printed once, and forgotten when its pod starts."""
        found: list[Cause] = []
        waiting: set[str] = set()
        pods = self._of_cluster(Cluster.pods, run_id)
        for pod in pods or ():
            found += causes_of_pod(pod, self._events(pod), self._failed_log(pod))
            # Between two attempts to pull an image there may be no reason: that is no start.
            waiting |= set() if has_started(pod) else {str(pod["metadata"]["name"])}
        for node in self._nodes(run_id):
            if node["phase"] == "Pending" and NO_POD.search(node["message"]):
                found.append(cause_of_node(node))
                waiting.add(found[-1].pod)
        if pods is not None:
            self._causes = {
                key: (cause, since)
                for key, (cause, since) in self._causes.items()
                if cause.pod in waiting or cause.fate is Fate.FAILED
            }
        for cause in found:
            known, since = self._causes.get((cause.pod, cause.key), (None, time.monotonic()))
            if known is None:
                self.say(f"  {cause}")
            # The kubelet says in full why it cannot pull an image, and then only that it does not try for a while.
            if known is None or cause.key != "image" or known.fate is not Fate.STAYS:
                self._causes[cause.pod, cause.key] = cause, since
        return [self._causes[cause.pod, cause.key][0] for cause in found]

    def _events(self, pod: Resource) -> list[Resource]:
        """The events of a pod that has not started, and of the claims that it waits for."""
        if has_started(pod):
            return []
        claims = (volume.get("persistentVolumeClaim", {}) for volume in pod.get("spec", {}).get("volumes", ()))
        names = [pod["metadata"]["name"], *(claim["claimName"] for claim in claims if claim)]
        found = (self._of_cluster(Cluster.events, name) for name in names)
        return [event for events in found for event in events or ()]

    def _failed_log(self, pod: Resource) -> str:
        """The end of the log of a pod that has failed, read once, while the pod is there."""
        if not has_failed(pod):
            return ""
        name, known = str(pod["metadata"]["name"]), self._ended.get(pod["metadata"]["name"])
        if known is None or known.log is None:
            log = self._of_cluster(Cluster.log, name, "main", READ_LINES)
            known = self._ended[name] = Ended(pod["metadata"].get("creationTimestamp", ""), step_of(pod), log)
        return known.log or ""

    def _nodes(self, run_id: str) -> Iterator[Json]:
        """Each node of the run's workflows that says something."""
        for workflow in self._of_cluster(Cluster.workflows, run_id) or ():
            for node in (workflow.get("status", {}).get("nodes") or {}).values():
                if not EMPTY_WORDS.match(node.get("message", "")):
                    yield {"name": "", "phase": "", "message": "", **node}

    def _troubles(self, run_id: str, steps: set[str] | None = None) -> str:
        """What the cluster says of the run, or of these steps of it, for the end of a message: each cause once."""
        # An attempt that was followed by another is no trouble.
        every = (cause for cause, _ in self._causes.values())
        found = [cause for cause in every if cause.fate is not Fate.FAILED or cause.pod == self._last(cause.step)]
        told = {cause.step for cause in found}
        nodes = (cause_of_node(node) for node in self._nodes(run_id) if node["phase"] in ("Failed", "Error", "Pending"))
        found += {cause.step: cause for cause in nodes if cause.step not in told}.values()
        texts: dict[str, list[str]] = {}
        for cause in found:
            if not steps or cause.step in steps:
                texts.setdefault(cause.sentence, []).append(cause.step)
        return "".join(f"\n{', '.join(dict.fromkeys(names))}{text}" for text, names in texts.items())

    def _of_cluster(self, ask: Callable[Concatenate[Cluster, P], T], *asked: P.args, **more: P.kwargs) -> T | None:
        """What the cluster answers; None if none is known, or it does not."""
        if not self.cluster:
            return None
        try:
            return ask(self.cluster, *asked, **more)
        except ClusterRefuses as error:
            if error.status == 404:  # a pod that has just gone
                return None
            problem: ServerUnavailable = error
        except ServerUnavailable as error:
            problem = error
        kind = type(problem).__name__
        if kind not in self._said:
            until = " until the cluster answers" if isinstance(problem, ClusterAway) else ""
            self._once(kind, f"Problems of the run's pods cannot be seen{until}: {problem}")
        return None

    def _lasts(self, what: str) -> float:
        """Seconds since this was first seen."""
        return time.monotonic() - self._since.setdefault(what, time.monotonic())

    def _once(self, key: str, text: str) -> None:
        """Print a text unless it was the last one for this key."""
        if text and self._said.get(key) != text:
            self._said[key] = text
            self.say(text)


def was_terminated(run: Json) -> bool:
    """Tell whether the run was terminated: such a run also ends as FAILED.

    Only its history since it last began to run counts: a terminated run may be retried, and fail by itself.
    """
    for entry in reversed(run.get("state_history", [])):
        if entry.get("state") in ("CANCELING", "PENDING", "RUNNING"):
            return bool(entry["state"] == "CANCELING")
    return False


def _step_names(spec: Any) -> Iterator[str]:
    """The names of the tasks, at any depth, that run a container."""
    spec = spec_alone(spec)
    components = spec.get("components", {})
    for dag in (spec.get("root", {}), *components.values()):
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in components.get(task["componentRef"]["name"], {}):
                yield name


def tail(log: str) -> str:
    """Return the last lines of a step's own output, without what its launcher and kfp say around it."""
    text, _, _ = log.partition(LAST_WORDS)
    text = NOT_OURS.sub("", f"{text}\n")
    lines = [line for line in text.splitlines() if line.strip()]
    # Nothing but the launcher spoke: a driver, or a step that was killed.
    lines = lines or log.splitlines()
    return cleaned("\n".join(f"  {line[:LINE]}" for line in lines[-LOG_LINES:]))


def _said(log: str) -> str:
    """The line of a failed step's log that says why: what it logs as an error, else its last."""
    lines = [line.strip() for line in log.splitlines() if not STEP_ENDED.search(line)]
    errors = [found[1] for line in lines if (found := LOGGED_ERROR.match(line))]
    return (errors or lines or [""])[-1]


def _line(text: str) -> str:
    """A text as one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"
