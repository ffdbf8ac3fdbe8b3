"""What each task executes, and what it can reach while it does; for no task both pushed code and something of worth.

All of it is derived from the manifests: a step's image, command, variables and folders, the volumes of its pod, and
what the TriggerTemplate and the accounts say of its token.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from tests.tekton.manifests import Resource

CI_IMAGE = "registry.example.com/jukebox-ci"
# What the image of the settings has: its command line, what fills its folder of packages anew by the base's Python, and
# nginx.
PROXY = ["nginx", "-e", "stderr", "-p", "/run/nginx/", "-c", "/config/nginx.conf"]
PROGRAMS = (["jukebox"], ["python3", "/opt/jukebox/scripts/install_packages.py"], PROXY)
CODE = tuple(map(PurePosixPath, ("/opt/jukebox", "/opt/venv", "/opt/uv", "/usr", "/bin", "/lib", "/etc/jukebox")))
# Variables that have a program run other code, or read other settings.
STEERING = re.compile(r"(PATH|PYTHON.*|LD_.*|GIT_.*|UV_.*|PIP_.*|VIRTUAL_ENV|BASH_ENV|ENV|JUKEBOX_.*|HOME)")
ALLOWED = {"HOME": "/tmp", "JUKEBOX_SETTINGS": "/etc/jukebox/settings/settings.yaml"}
# Its command takes nothing of what it reads unseen.
JUDGE = "apply"


@dataclass
class Task:
    """A task of the Pipeline, a CronJob or a Deployment.

    Attributes:
        pushed: why it executes what was pushed, a reason each.
        holds: Secrets, tokens and folders of the node that its pod has.
        writes: folders of the run's volume that it may write to.
        reads: those that it sees and may not write to.
    """

    name: str
    pushed: list[str] = field(default_factory=list)
    holds: set[str] = field(default_factory=set)
    writes: set[PurePosixPath] = field(default_factory=set)
    reads: set[PurePosixPath] = field(default_factory=set)


def problems(resources: list[Resource]) -> list[str]:
    """Every task that both executes pushed code and holds something, or changes what others take for the source."""
    tasks = derive(resources)
    found = []
    for task in tasks:
        if not task.pushed:
            continue
        why = f"{task.name} executes pushed code ({task.pushed[0]})"
        found += [f"{why} and holds {each}" for each in sorted(task.holds)]
        for folder in sorted(task.writes):
            readers = [
                other.name
                for other in tasks
                if other.name not in (task.name, JUDGE)
                and any(map(folder_overlaps(folder), other.reads | other.writes))
            ]
            found += [f"{why} and writes {folder}, which {reader} reads" for reader in readers]
    return found


def folder_overlaps(one: PurePosixPath) -> Any:
    """Return what tells whether another folder lies in this one, or this one in it."""
    return lambda other: one.is_relative_to(other) or other.is_relative_to(one)


def derive(resources: list[Resource]) -> list[Task]:
    """All tasks of the Pipeline, the CronJobs and the Deployments, as their pods would be."""
    named = {(each["kind"], each["metadata"]["name"]): each for each in resources}
    pipeline = named["Pipeline", "continuous-training"]["spec"]
    [run] = named["TriggerTemplate", "continuous-training"]["spec"]["resourcetemplates"]
    own = {each["pipelineTaskName"]: each for each in run["spec"]["taskRunSpecs"]}
    found = []
    for entry in [*pipeline["tasks"], *pipeline["finally"]]:
        given = {**run["spec"]["taskRunTemplate"], **own.get(entry["name"], {})}
        account = named.get(("ServiceAccount", given["serviceAccountName"]), {})
        pod = {**run["spec"]["taskRunTemplate"].get("podTemplate", {}), **given.get("podTemplate", {})}
        automount = pod.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        spec = named["Task", entry["taskRef"]["name"]]["spec"]
        template = spec.get("stepTemplate", {})
        steps = [
            {
                **template,
                **step,
                **{key: [*template.get(key, ()), *step.get(key, ())] for key in ("env", "volumeMounts")},
            }
            for step in spec["steps"]
        ]
        volumes = [*spec.get("volumes", ()), *pod.get("volumes", ())]
        task = _task(entry["name"], steps, volumes, token=bool(automount))
        readonly = {each["name"] for each in spec.get("workspaces", ()) if each.get("readOnly")}
        for each in entry.get("workspaces", ()):
            folder = PurePosixPath("/", each.get("subPath", ""))
            (task.reads if each["name"] in readonly else task.writes).add(folder)
        found.append(task)
    for name, each in ((name, each) for (kind, name), each in named.items() if kind in ("CronJob", "Deployment")):
        spec = each["spec"].get("jobTemplate", each)["spec"]["template"]["spec"]
        account = named.get(("ServiceAccount", spec.get("serviceAccountName", "")), {})
        automount = spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True))
        found.append(_task(name, spec["containers"], spec.get("volumes", []), token=bool(automount)))
    return found


def _task(name: str, steps: list[Resource], volumes: list[Resource], *, token: bool) -> Task:
    task = Task(name)
    for step in steps:
        task.pushed += [f"step {step['name']}: {reason}" for reason in _pushed(step)]
        task.holds |= set(_secrets_of_variables(step))
    mounted = {mount["name"] for step in steps for mount in step.get("volumeMounts", ())}
    for volume in volumes:
        if volume["name"] in mounted:
            task.holds |= set(_worth(volume))
    if token:
        task.holds.add("the token of its account")
    return task


def _pushed(step: Resource) -> Iterator[str]:
    """Why a step executes something else than what its image, that of the settings, has."""
    if step["image"] != CI_IMAGE:
        yield f"the image {step['image']}"
    command = step.get("command", [])
    if "script" in step or not any(command[: len(program)] == program for program in PROGRAMS):
        yield f"the command {' '.join(command) or 'of a script'}"
    for variable in step.get("env", ()):
        if STEERING.fullmatch(variable["name"]) and variable.get("value") != ALLOWED.get(variable["name"], ""):
            yield f"the variable {variable['name']}"
    if "$(workspaces." in step.get("workingDir", ""):
        yield f"the folder {step['workingDir']}"
    for mount in step.get("volumeMounts", ()):
        path = PurePosixPath(mount["mountPath"])
        if command[:1] == ["jukebox"] and mount["name"] != "settings" and any(map(folder_overlaps(path), CODE)):
            yield f"what is mounted at {path}"


def _secrets_of_variables(step: Resource) -> Iterator[str]:
    for variable in step.get("env", ()):
        if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
            yield f"the Secret {reference['name']}"
    for source in step.get("envFrom", ()):
        if "secretRef" in source:
            yield f"the Secret {source['secretRef']['name']}"


def _worth(volume: Resource) -> Iterator[str]:
    if "secret" in volume:
        yield f"the Secret {volume['secret']['secretName']}"
    for source in volume.get("projected", {}).get("sources", ()):
        if "secret" in source:
            yield f"the Secret {source['secret']['name']}"
        if "serviceAccountToken" in source:
            yield "a token of its account"
    for kind in ("hostPath", "persistentVolumeClaim", "csi", "nfs"):
        if kind in volume:
            yield f"the volume {volume['name']} of the kind {kind}"
