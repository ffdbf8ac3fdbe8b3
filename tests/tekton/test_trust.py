"""No task both executes what was pushed and holds a Secret, a token or the source; and the check sees when one does."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.tekton.manifests import Resource
from tests.tekton.trust import derive, problems

Find = Callable[[str, str], Any]
GIT, REGISTRY, CHAT = "jukebox-git-host", "jukebox-registry", "jukebox-chat"
SECRETS = {
    "checkout": {GIT, REGISTRY},
    "supersede": {GIT},
    "build-ci-image": {REGISTRY},
    "build-packages": {REGISTRY},
    "build-image": {REGISTRY},
    "tag-images": {REGISTRY},
    "release": {GIT},
    "wait-served": {GIT},
    "promote": {GIT},
    "commit-status": {GIT},
    "notify": {CHAT},
    "jukebox-in-use": {GIT},
    "jukebox-retain": {GIT, REGISTRY},
    "jukebox-schedule": {"jukebox-senders"},
}


def test_no_task_executes_pushed_code_and_holds_anything(resources: list[Resource]) -> None:
    assert problems(resources) == []
    tasks = {task.name: task for task in derive(resources)}
    assert {name for name, task in tasks.items() if task.pushed} == {"test", "compile"}
    held = {
        name: {each.removeprefix("the Secret ") for each in task.holds if each.startswith("the Secret ")}
        for name, task in tasks.items()
    }
    data = held.pop("start")
    assert len(data) == 1, "the keys to read data with"
    assert {name: secrets for name, secrets in held.items() if secrets} == SECRETS


def test_the_source_has_one_writer_and_pushed_code_one_reader(resources: list[Resource]) -> None:
    tasks = derive(resources)
    folders = {str(folder) for task in tasks for folder in task.reads | task.writes}
    assert folders == {"/source", "/compiled"}
    writers = {folder: [task.name for task in tasks if folder in map(str, task.writes)] for folder in folders}
    assert writers == {"/source": ["checkout"], "/compiled": ["compile"]}
    assert [task.name for task in tasks if "/compiled" in map(str, task.reads)] == ["apply"]


def step(find: Find, task: str, number: int = -1) -> Any:
    return find("Task", task)["steps"][number]


def entry(find: Find, name: str) -> Any:
    return next(each for each in find("Pipeline", "continuous-training")["tasks"] if each["name"] == name)


def run_the_commits_image(find: Find) -> None:
    step(find, "start")["image"] = "$(params.ci-image)"


def run_a_script(find: Find) -> None:
    step(find, "apply")["script"] = "true"


def run_another_program(find: Find) -> None:
    step(find, "build-image")["command"] = ["python", "-m", "pytest"]


def import_the_checkout(find: Find) -> None:
    step(find, "checkout")["env"].append({"name": "PYTHONPATH", "value": "/workspace/source"})


def read_other_settings(find: Find) -> None:
    step(find, "supersede")["env"].append({"name": "JUKEBOX_SETTINGS", "value": "/workspace/source/settings.yaml"})


def stand_in_the_checkout(find: Find) -> None:
    step(find, "tag-images")["workingDir"] = "$(workspaces.source.path)"


def hide_the_programs_code(find: Find) -> None:
    find("Task", "build-image")["steps"][0]["volumeMounts"].append({"name": "image", "mountPath": "/opt"})


def mount_a_secret(find: Find) -> None:
    find("Task", "test")["volumes"].append({"name": "git", "secret": {"secretName": GIT}})
    step(find, "test", 0)["volumeMounts"] = [{"name": "git", "mountPath": "/git"}]


def project_a_secret(find: Find) -> None:
    sources = [{"secret": {"name": REGISTRY}}]
    find("Task", "test")["volumes"].append({"name": "all", "projected": {"sources": sources}})
    find("Task", "test")["stepTemplate"]["volumeMounts"].append({"name": "all", "mountPath": "/all"})


def hand_a_secret_over(find: Find) -> None:
    step(find, "compile")["env"].append({"name": "KEY", "valueFrom": {"secretKeyRef": {"name": CHAT, "key": "url"}}})


def hand_all_of_a_secret_over(find: Find) -> None:
    step(find, "compile")["envFrom"] = [{"secretRef": {"name": "jukebox-data"}}]


def run(find: Find) -> Any:
    return find("TriggerTemplate", "continuous-training")["resourcetemplates"][0]["spec"]


def give_a_token(find: Find) -> None:
    podless = {"pipelineTaskName": "test", "serviceAccountName": "jukebox-release"}
    run(find)["taskRunSpecs"].append({**podless, "podTemplate": {"automountServiceAccountToken": True}})


def forget_to_take_the_token(find: Find) -> None:
    del run(find)["taskRunTemplate"]["podTemplate"]["automountServiceAccountToken"]
    run(find)["taskRunTemplate"]["serviceAccountName"] = "jukebox-release"


def project_a_token(find: Find) -> None:
    sources = [{"serviceAccountToken": {"path": "token"}}]
    find("Task", "compile")["volumes"].append({"name": "token", "projected": {"sources": sources}})
    step(find, "compile")["volumeMounts"] = [{"name": "token", "mountPath": "/token"}]


def mount_the_node(find: Find) -> None:
    find("Task", "test")["volumes"][0] = {"name": "copy", "hostPath": {"path": "/"}}


def write_the_source(find: Find) -> None:
    del find("Task", "test")["workspaces"][0]["readOnly"]


def mount_the_whole_volume(find: Find) -> None:
    del entry(find, "compile")["workspaces"][1]["subPath"]


def read_what_was_compiled(find: Find) -> None:
    find("Task", "build-image")["workspaces"].append({"name": "compiled", "readOnly": True})
    entry(find, "build-image")["workspaces"].append({"name": "compiled", "subPath": "compiled"})


BROKEN: dict[Callable[[Find], None], str] = {
    run_the_commits_image: "start executes pushed code (step start: the image $(params.ci-image)) and holds the Secret",
    run_a_script: "apply executes pushed code (step apply: the command jukebox apply) and holds the token",
    run_another_program: "the command python -m pytest) and holds the Secret jukebox-registry",
    import_the_checkout: "the variable PYTHONPATH) and holds the Secret jukebox-registry",
    read_other_settings: "the variable JUKEBOX_SETTINGS) and holds the Secret jukebox-git-host",
    stand_in_the_checkout: "the folder $(workspaces.source.path)) and holds the Secret jukebox-registry",
    hide_the_programs_code: "what is mounted at /opt) and holds the Secret jukebox-registry",
    mount_a_secret: "test executes pushed code (step test: the image $(params.ci-image)) and holds the Secret jukebox",
    project_a_secret: "and holds the Secret jukebox-registry",
    hand_a_secret_over: "and holds the Secret jukebox-chat",
    hand_all_of_a_secret_over: "and holds the Secret jukebox-data",
    give_a_token: "test executes pushed code (step test: the image $(params.ci-image)) and holds the token",
    forget_to_take_the_token: "and holds the token of its account",
    project_a_token: "and holds a token of its account",
    mount_the_node: "and holds the volume copy of the kind hostPath",
    write_the_source: "and writes /source, which checkout reads",
    mount_the_whole_volume: "and writes /, which build-image reads",
    read_what_was_compiled: "and writes /compiled, which build-image reads",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_task_with_both_is_named(spoil: Callable[[Find], None], resources: list[Resource]) -> None:
    def find(kind: str, name: str) -> Any:
        return next(r["spec"] for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))

    spoil(find)
    assert any(BROKEN[spoil] in problem for problem in problems(resources)), problems(resources)
