"""Runs of `continuous-training` on the node: how a push or another event starts one, and what is seen of it."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.models.jukebox.tables import ID
from scripts.replay import SENDERS, Facts, Kind, build_event, send
from tests.active_model import TABLES
from tests.cluster import build, git_host, node
from tests.cluster import project as projects
from tests.cluster.project import Project

MINUTES = 20  # for a run that installs packages, on a machine that does other things as well
Json = dict[str, Any]
# What runs after the merge of a promotion: nothing is tested, built or trained.
AFTER_A_MERGE = {"checkout", "supersede", "release", "wait-served", "commit-status", "notify"}


@dataclass(frozen=True)
class Run:
    """A PipelineRun that has ended."""

    project: Project
    name: str

    @cached_property
    def resource(self) -> Json:
        return self.project.ci.finished(f"pipelinerun/{self.name}", MINUTES * 60)  # type: ignore[no-any-return]

    @property
    def reason(self) -> str:
        """Tekton's word for how it ended."""
        return str(self.resource["status"]["conditions"][0]["reason"])

    @property
    def results(self) -> dict[str, str]:
        return {each["name"]: each["value"] for each in self.resource["status"].get("results", ())}

    @property
    def tasks(self) -> dict[str, bool]:
        """Whether each task that was begun has succeeded."""
        selector = f"--selector=tekton.dev/pipelineRun={self.name}"
        return {
            each["metadata"]["labels"]["tekton.dev/pipelineTask"]: each["status"]["conditions"][0]["status"] == "True"
            for each in self.project.ci.get("taskruns", selector)["items"]
        }

    @property
    def failed(self) -> set[str]:
        """The tasks that have not succeeded."""
        return {name for name, succeeded in self.tasks.items() if not succeeded}

    def log(self, task: str) -> str:
        """What a task's steps have written; of a task with retries the last."""
        selector = f"--selector=tekton.dev/pipelineRun={self.name},tekton.dev/pipelineTask={task}"
        [taskrun] = self.project.ci.get("taskruns", selector)["items"]
        status = taskrun["status"]
        steps = [step["container"] for step in status["steps"]]
        return "".join(self.project.ci("logs", status["podName"], f"--container={step}") for step in steps)

    @property
    def told(self) -> str:
        """The line with which it ended, for people."""
        return self.log("notify").splitlines()[0]


@dataclass(frozen=True)
class GitHost:
    """The project's repository on the Git host, as who develops it sees it."""

    project: Project

    def api(self, method: str, path: str, body: Json | None = None) -> Any:
        return self.project.git_host.api(method, f"repos/{git_host.REPOSITORY}/{path}", body)

    def status(self, commit: str) -> tuple[str, str]:
        """State and description beside a commit, of the newest status."""
        found = self.api("GET", f"commits/{commit}/status")["statuses"] or []
        newest = max(found, key=lambda each: int(each["id"]), default={"status": "", "description": ""})
        return newest["status"], newest["description"]

    def pulls(self, state: str = "open") -> list[Json]:
        """Pull requests, newest first; ``state`` is open, closed or all."""
        return list(self.api("GET", f"pulls?state={state}"))

    def pull(self, number: int) -> Json:
        return dict(self.api("GET", f"pulls/{number}"))

    def merge(self, number: int) -> str:
        """Merge a pull request as it is now, and bring the fork there; return the commit."""
        # Gitea finds out after each push whether it can.
        node.wait(f"pull request {number}", lambda: self.pull(number)["mergeable"])
        self.api("POST", f"pulls/{number}/merge", {"Do": "merge", "head_commit_id": self.pull(number)["head"]["sha"]})
        self.project.pull()
        return str(self.pull(number)["merge_commit_sha"])

    def redeliver(self, commit: str) -> None:
        """Have a push of this commit delivered again: by this machine, since Gitea's API has no redelivery."""
        parents, message, author = self.project.git("log", "-1", "--format=%P%n%s%n%an", commit).splitlines()
        facts = Facts(self.project.settings["repository"], projects.BRANCH, commit, parents.split()[0], message, author)
        event = build_event(Kind.PUSH_GITEA, facts, self.project.secret("jukebox-senders", "gitea"))
        send(event, f"http://{self.project.address('jukebox-listener-proxy')}")


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def pushed(project: Project, message: str) -> Run:
    """Commit what is changed in the fork, push it, and return its run when it has begun."""
    commit = project.commit(message)
    project.push()
    return begun(project, f"push-{commit[:12]}", lambda: GitHost(project).redeliver(commit))


def sent(project: Project, kind: Kind, now: datetime, name: str) -> Run:
    """The run of an event, which is sent as its sender does."""
    repository = project.settings["repository"]
    facts = Facts(repository=repository, bucket=projects.BUCKET, key=f"{TABLES[0]}/{TABLES[0]}.parquet", now=now)
    event = build_event(kind, facts, project.secret("jukebox-senders", SENDERS[kind]))

    def deliver() -> None:
        send(event, f"http://{project.address('jukebox-listener-proxy')}")

    deliver()
    return begun(project, name, deliver)


def begun(project: Project, name: str, again: Callable[[], None]) -> Run:
    """The run of an event that was sent; it is sent again where Triggers has lost it."""
    for _ in range(10):
        with suppress(TimeoutError):
            node.wait(f"PipelineRun {name}", lambda: project.ci("get", f"pipelinerun/{name}"), 30)
            return Run(project, name)
        build.say(f"sending the event of {name} again")
        again()
    raise AssertionError(f"{name} does not begin")


def merged(project: Project, host: GitHost, pull: Json) -> Run:
    """The run of the merge of a promotion, which has ended; the fork is at the merge."""
    commit = host.merge(pull["number"])
    run = begun(project, f"push-{commit[:12]}", lambda: host.redeliver(commit))
    assert run.reason == "Completed", run.told
    assert run.failed == set()
    assert run.tasks.keys() <= AFTER_A_MERGE
    return run


def promoted(project: Project, model: str = "jukebox") -> Run:
    """Merge the open promotion of a model, and return the run of that when production serves what it pins."""
    host = GitHost(project)
    [pull] = [each for each in host.pulls() if each["head"]["ref"] == f"promote/{model}/prod"]
    run = merged(project, host, pull)
    project.sync()
    return run


def models(project: Project, model: str = "jukebox") -> dict[int, Json]:
    """The lineage of each version in the model's store."""
    files = (project.kubectl.model_store(f"{model}-model-pvc") / model).glob("[0-9]*/lineage.json")
    return {int(file.parent.name): json.loads(file.read_text()) for file in files}


def predicted(project: Project, number: int) -> tuple[str, list[str]]:
    """What `jukebox predict` says of the first table's first row, and the labels of the version that is served."""
    table = projects.FOLDER / "data" / f"{TABLES[0]}.parquet"
    return answered(project, "jukebox", number, table, pl.read_parquet(table)[ID][0])


def answered(project: Project, model: str, number: int, table: Path, row: str) -> tuple[str, list[str]]:
    """What `jukebox predict` says of a row, asked of the model server from outside, and the version's labels."""
    # What the numbers mean lies beside the model.
    store = projects.FOLDER / "served"
    copy = store / model / str(number)
    copy.mkdir(parents=True, exist_ok=True)
    inside = ("exec", f"deployment/{model}-predictor", "--container=kserve-container", "--", "base64")
    for file in ("lineage.json", "labels.json", "golden.json", "model.onnx", "model-card.html"):
        (copy / file).write_bytes(base64.b64decode(project.kubectl(*inside, f"/mnt/models/{number}/{file}")))
    where = (f"--table={table}", f"--endpoint={projects.MODEL_SERVER_URL}", f"--model-store={store}")
    return project.jukebox("predict", row, *where, code=projects.FORK), json.loads((copy / "labels.json").read_text())
