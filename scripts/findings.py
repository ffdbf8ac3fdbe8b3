"""The input of the checks of `jukebox doctor`, their findings, and the table of findings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.core.errors import ClusterAway, ClusterRefuses, JukeboxError
from pipeline.settings import Settings
from scripts.clients.kubernetes_api import Cluster, Kind, Resource
from scripts.output import console

OUR_ACCESS = Kind("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)
THEIR_ACCESS = Kind("authorization.k8s.io", "v1", "localsubjectaccessreviews")


class State(StrEnum):
    """The state of what was checked."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}


@dataclass(frozen=True)
class Finding:
    """What was checked, its state, what was found, and what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


Findings = Iterator[Finding]


@dataclass(frozen=True)
class Project:
    """The input of the checks.

    Attributes:
        cluster: in the namespace of the pipeline's runs.
        ci: in that of Tekton and its Secrets.
        overlay: the resources of the overlay; empty if none was given.
        data: all settings of the file; ``settings`` are those of the pipeline.
    """

    cluster: Cluster
    ci: Cluster
    settings: Settings
    overlay: list[Resource]
    data: Mapping[str, str]


Checks = Mapping[str, Callable[[Project], Findings]]


def examine(project: Project, checks: Checks) -> Findings:
    """Yield what the checks find; raises ClusterAway if the cluster does not answer.

    A terminal shows the current check below.
    """
    with Console(stderr=True).status("") as line:
        for name, check in checks.items():
            line.update(name)
            try:
                yield from check(project)
            except ClusterAway:
                raise
            except ClusterRefuses as error:
                state = State.WARN if error.status == 403 else State.FAIL
                remedy = "Ask somebody with read access to run this."
                yield Finding(name, state, f"cannot be read: {error.reason}", remedy)
            except JukeboxError as error:
                yield Finding(name, State.FAIL, str(error))


def judge(name: str, good: bool, found: str, remedy: str, bad: State = State.FAIL) -> Finding:
    """Return a finding that is ok or, with its remedy, ``bad``."""
    return Finding(name, State.OK, found) if good else Finding(name, bad, found, remedy)


def allowed(cluster: Cluster, right: tuple[str, ...], account: str = "", of: str = "") -> bool:
    """Ask whether an account, or the caller, has a right in the namespace. The account is in it, or in ``of``.

    ``right`` is a verb, a group, a resource and, as far as there are any, a subresource and a name.
    """
    of = of or cluster.namespace
    keys = ("verb", "group", "resource", "subresource", "name")
    spec: dict[str, Any] = {
        "resourceAttributes": dict(zip(keys, right, strict=False)) | {"namespace": cluster.namespace}
    }
    review, word = OUR_ACCESS, "SelfSubjectAccessReview"
    body: Resource = {"apiVersion": "authorization.k8s.io/v1", "spec": spec}
    if account:
        review, word = THEIR_ACCESS, "LocalSubjectAccessReview"
        body["metadata"] = {"namespace": cluster.namespace}
        spec["user"] = f"system:serviceaccount:{of}:{account}"
        spec["groups"] = [
            "system:serviceaccounts",
            f"system:serviceaccounts:{of}",
            "system:authenticated",
        ]
    return bool(cluster.create(review, {**body, "kind": word})["status"].get("allowed"))


def show(findings: list[Finding]) -> None:
    """Print the findings as a table, and below it how many there are of each state."""
    table = Table("", "Check", "Found", "What to do", box=None)
    for each in findings:
        table.add_row(f"[{COLOURS[each.state]}]{each.state}[/]", *map(escape, (each.name, each.found, each.remedy)))
    screen = console()
    screen.print(table)
    counts = {state: sum(each.state is state for each in findings) for state in State}
    screen.print(", ".join(f"{count} {state}" for state, count in counts.items()))
