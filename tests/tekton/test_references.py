"""No name dangles between an event and an option of a command; and the check that says so sees when one does."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.tekton.manifests import Resource
from tests.tekton.references import problems

Find = Callable[[str, str], Any]


def test_no_name_dangles_and_none_is_unused(resources: list[Resource]) -> None:
    assert problems(resources) == []


def rename_key(find: Find) -> None:
    find("TriggerBinding", "push")["params"][0]["name"] = "sha"


def misread_overlay(find: Find) -> None:
    find("TriggerBinding", "event")["params"][0]["value"] = "$(extensions.nam)"


def lose_setting(find: Find) -> None:
    del find("EventListener", "jukebox")["triggerGroups"][0]["interceptors"][0]["params"][1]["value"][1]


def lose_trigger(find: Find) -> None:
    selector = find("EventListener", "jukebox")["triggerGroups"][1]["triggerSelector"]["labelSelector"]
    selector["matchExpressions"][0]["values"].remove("alert")


def rename_pipeline_param(find: Find) -> None:
    find("Pipeline", "continuous-training")["params"][1]["name"] = "revision"


def rename_task_param(find: Find) -> None:
    find("Task", "apply")["params"][0]["name"] = "picture"


def rename_result(find: Find) -> None:
    find("Task", "apply")["results"][0]["name"] = "pipeline-version"


def add_result(find: Find) -> None:
    find("Task", "wait")["results"].append({"name": "model"})


def misspell_variable(find: Find) -> None:
    find("Task", "wait")["steps"][0]["args"][0] = "$(RUNID)"


def misspell_option(find: Find) -> None:
    find("Task", "wait")["steps"][0]["args"][1] = "--time-out=$(MINUTES)"


def lose_option(find: Find) -> None:
    find("Task", "notify")["steps"][0]["args"].pop()


def forget_variable(find: Find) -> None:
    find("Task", "notify")["steps"][0]["args"].remove("--superseded-by=$(SUPERSEDED_BY)")


def lose_argument(find: Find) -> None:
    find("Task", "notify")["steps"][0]["args"].remove("$(STATE)")


def misspell_command(find: Find) -> None:
    find("Task", "apply")["steps"][0]["command"][1] = "aply"


def lose_account(find: Find) -> None:
    find("TriggerTemplate", "continuous-training")["resourcetemplates"][0]["spec"]["taskRunSpecs"].clear()


def lose_task(find: Find) -> None:
    find("Pipeline", "continuous-training")["tasks"].pop()


BROKEN: dict[Callable[[Find], None], str] = {
    rename_key: "Trigger github binds sha",
    misread_overlay: "uses the overlay nam",
    lose_setting: "uses the overlay of the EventListener branch",
    lose_trigger: "Trigger alert is in 0 groups",
    rename_pipeline_param: "gives the param commit",
    rename_task_param: "gives the param image",
    rename_result: "uses the result apply.version",
    add_result: "does not use the result model",
    misspell_variable: "uses the variable RUNID",
    misspell_option: "the option --time-out",
    lose_option: "does not give jukebox notify the option --url-file",
    forget_variable: "sets the variable SUPERSEDED_BY and does not use it",
    lose_argument: "gives jukebox notify 1 arguments",
    misspell_command: "jukebox aply",
    lose_account: "does not use the ServiceAccount jukebox-release",
    lose_task: "does not use the Task promote",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
def test_a_broken_name_is_named(spoil: Callable[[Find], None], resources: list[Resource]) -> None:
    def find(kind: str, name: str) -> Any:
        return next(r["spec"] for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name))

    spoil(find)
    assert any(BROKEN[spoil] in problem for problem in problems(resources)), problems(resources)
