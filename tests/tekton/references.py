"""What no schema sees: a name that is used and not there, or there and not used, on the way from an event to an option.

binding → template → pipeline → task → step → option of the command
"""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from scripts.cli import Commands
from scripts.clients.git_hosts import Host
from tests.tekton.manifests import Resource

COMMANDS = Commands()


def problems(resources: list[Resource]) -> list[str]:
    """All dangling and unused names."""
    kinds: dict[str, dict[str, Resource]] = {}
    for resource in resources:
        kinds.setdefault(resource["kind"], {})[resource["metadata"]["name"]] = resource
    return [*_triggers(kinds), *_templates(kinds), *_pipelines(kinds), *_tasks(kinds), *_accounts(kinds)]


def _differ(where: str, used: set[str], there: set[str], kind: str) -> Iterator[str]:
    for name in sorted(used - there):
        yield f"{where} uses the {kind} {name}, which is not there"
    for name in sorted(there - used):
        yield f"{where} does not use the {kind} {name}"


def _names(entries: list[dict[str, Any]]) -> set[str]:
    return {entry["name"] for entry in entries}


def _used(value: Any, pattern: str) -> set[str]:
    return set(re.findall(pattern, json.dumps(value)))


def _required(params: list[dict[str, Any]]) -> set[str]:
    return {param["name"] for param in params if "default" not in param}


def _overlays(interceptors: list[dict[str, Any]]) -> set[str]:
    return {
        overlay["key"]
        for interceptor in interceptors
        for param in interceptor["params"]
        if param["name"] == "overlays"
        for overlay in param["value"]
    }


def _triggers(kinds: dict[str, dict[str, Resource]]) -> Iterator[str]:
    groups = kinds["EventListener"]["jukebox"]["spec"]["triggerGroups"]
    used_configured: dict[str, set[str]] = {group["name"]: set() for group in groups}
    used_bindings: set[str] = set()
    used_templates: set[str] = set()
    for name, trigger in kinds["Trigger"].items():
        where, spec = f"Trigger {name}", trigger["spec"]
        own = _overlays(spec["interceptors"])
        used_templates.add(spec["template"]["ref"])
        params: dict[str, str] = {}
        for binding in spec["bindings"]:
            if "ref" not in binding:
                params[binding["name"]] = binding["value"]
            elif binding["ref"] in kinds["TriggerBinding"]:
                used_bindings.add(binding["ref"])
                params |= {p["name"]: p["value"] for p in kinds["TriggerBinding"][binding["ref"]]["spec"]["params"]}
            else:
                yield f"{where} uses the TriggerBinding {binding['ref']}, which is not there"
        # Of what an interceptor makes, its followers take some and the bindings the rest.
        between = _overlays(spec["interceptors"][:-1]) & _used(spec["interceptors"][1:], r"\bextensions\.(\w+)")
        yield from _differ(where, _used(params, r"\$\(extensions\.(\w+)\)") | between, own, "overlay")
        template = kinds["TriggerTemplate"].get(spec["template"]["ref"])
        if template:
            declared = template["spec"]["params"]
            for param in sorted(set(params) - _names(declared)):
                yield f"{where} binds {param}, which TriggerTemplate {spec['template']['ref']} does not take"
            for param in sorted(_required(declared) - set(params)):
                yield f"{where} does not bind {param}, which TriggerTemplate {spec['template']['ref']} needs"
        selecting = [group["name"] for group in groups if _selects(group, trigger)]
        if len(selecting) != 1:
            yield f"{where} is in {len(selecting)} groups of the EventListener"
        for group in selecting:
            used_configured[group] |= _used(spec["interceptors"], r"\bextensions\.(\w+)") - between
    for group in groups:
        filters = f"the filters of the group {group['name']}"
        configured = _overlays(group["interceptors"])
        yield from _differ(filters, used_configured[group["name"]], configured, "overlay of the EventListener")
    yield from _differ("Triggers", used_bindings, set(kinds["TriggerBinding"]), "TriggerBinding")
    yield from _differ("Triggers", used_templates, set(kinds["TriggerTemplate"]), "TriggerTemplate")


def _selects(group: dict[str, Any], trigger: Resource) -> bool:
    """Whether a trigger is in the group, for one of the Git hosts that may be configured."""
    selector = group["triggerSelector"]["labelSelector"]
    asked = [(key, [value]) for key, value in selector["matchLabels"].items()]
    asked += [(one["key"], one["values"]) for one in selector.get("matchExpressions", [])]
    labels, hosts = trigger["metadata"]["labels"], list(Host)
    return all(labels.get(key) in (values if values[0] not in hosts else hosts) for key, values in asked)


def _templates(kinds: dict[str, dict[str, Resource]]) -> Iterator[str]:
    for name, template in kinds["TriggerTemplate"].items():
        where = f"TriggerTemplate {name}"
        [run] = template["spec"]["resourcetemplates"]
        used = _used(run, r"\$\(tt\.params\.([\w-]+)\)")
        yield from _differ(where, used, _names(template["spec"]["params"]), "param")
        pipeline = kinds["Pipeline"].get(run["spec"]["pipelineRef"]["name"])
        if not pipeline:
            yield f"{where} uses the Pipeline {run['spec']['pipelineRef']['name']}, which is not there"
            continue
        spec = pipeline["spec"]
        yield from _given(where, run["spec"]["params"], spec["params"], "Pipeline")
        yield from _differ(where, _names(run["spec"]["workspaces"]), _names(spec["workspaces"]), "workspace")
        tasks = _names(spec["tasks"] + spec["finally"])
        for entry in run["spec"]["taskRunSpecs"]:
            if entry["pipelineTaskName"] not in tasks:
                yield f"{where} has an account for the task {entry['pipelineTaskName']}, which is not there"


def _given(where: str, given: list[dict[str, Any]], declared: list[dict[str, Any]], kind: str) -> Iterator[str]:
    for param in sorted(_names(given) - _names(declared)):
        yield f"{where} gives the param {param}, which the {kind} does not take"
    for param in sorted(_required(declared) - _names(given)):
        yield f"{where} does not give the param {param}, which the {kind} needs"


def _pipelines(kinds: dict[str, dict[str, Resource]]) -> Iterator[str]:
    used_tasks: set[str] = set()
    for name, pipeline in kinds["Pipeline"].items():
        spec = pipeline["spec"]
        entries = spec["tasks"] + spec["finally"]
        own = {"tasks": entries, "results": spec["results"]}
        where = f"Pipeline {name}"
        yield from _differ(where, _used(own, r"\$\(params\.([\w-]+)\)"), _names(spec["params"]), "param")
        used = {each.get("workspace", each["name"]) for entry in entries for each in entry.get("workspaces", [])}
        yield from _differ(where, used, _names(spec["workspaces"]), "workspace")
        results: dict[str, set[str]] = {}
        for entry in entries:
            reference = entry["taskRef"]["name"]
            used_tasks.add(reference)
            task = kinds["Task"].get(reference, {}).get("spec")
            if not task:
                yield f"{where} uses the Task {reference}, which is not there"
                continue
            at = f"{where}, task {entry['name']}"
            results[entry["name"]] = _names(task.get("results", []))
            yield from _given(at, entry.get("params", []), task.get("params", []), "Task")
            yield from _differ(
                at, _names(entry.get("workspaces", [])), _names(task.get("workspaces", [])), "workspace of the Task"
            )
            for earlier in entry.get("runAfter", []):
                if earlier not in _names(spec["tasks"]):
                    yield f"{at} runs after {earlier}, which is not there"
        text = json.dumps(own)
        used_results = set(re.findall(r"\$\(tasks\.([\w-]+)\.results\.([\w-]+)\)", text))
        there = {(task, result) for task, of_task in results.items() for result in of_task}
        yield from _differ(where, {".".join(r) for r in used_results}, {".".join(r) for r in there}, "result")
        for task in sorted(set(re.findall(r"\$\(tasks\.([\w-]+)\.status\)", text)) - _names(spec["tasks"])):
            yield f"{where} uses the status of {task}, which is not there"
    yield from _differ("Pipelines", used_tasks, set(kinds["Task"]), "Task")


def _tasks(kinds: dict[str, dict[str, Resource]]) -> Iterator[str]:
    for name, task in kinds["Task"].items():
        spec, where = task["spec"], f"Task {name}"
        own = [spec["steps"], spec["stepTemplate"]]
        yield from _differ(where, _used(own, r"\$\(params\.([\w-]+)\)"), _names(spec.get("params", [])), "param")
        spaces = _used(spec["steps"], r"\$\(workspaces\.([\w-]+)\.path\)")
        yield from _differ(where, spaces, _names(spec.get("workspaces", [])), "workspace")
        whole = [*spec["steps"], spec["stepTemplate"]]
        mounted = {mount["name"] for step in whole for mount in step.get("volumeMounts", [])}
        yield from _differ(where, mounted, _names(spec.get("volumes", [])), "volume")
        written: set[str] = set()
        for step in spec["steps"]:
            at = f"{where}, step {step['name']}"
            words = [*step["command"], *step["args"]]
            there = _names(step.get("env", []))
            handed = {one["name"] for one in step.get("env", []) if "valueFrom" in one or "$(params." in one["value"]}
            used = _used(words, r"\$\((\w+)\)")
            for key in sorted(used - there):
                yield f"{at} uses the variable {key}, which is not set"
            for key in sorted(handed - used):
                yield f"{at} sets the variable {key} and does not use it"
            if words[0] != "jukebox":
                continue
            command, options = words[1], words[2:]
            yield from _command(at, command, options)
            if any(option.startswith("--result-dir") for option in options):
                written |= _results_of(command)
        yield from _differ(where, written, _names(spec.get("results", [])), "result")
    for name, job in kinds.get("CronJob", {}).items():
        for container in job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]:
            yield from _command(
                f"CronJob {name}", container["command"][1], container["command"][2:] + container["args"]
            )


def _command(where: str, command: str, words: list[str]) -> Iterator[str]:
    if command not in COMMANDS:
        yield f"{where} calls jukebox {command}, which is no command"
        return
    params = COMMANDS[command].load().params
    options = {option for param in params for option in (*param.opts, *param.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    for option in sorted(given - options):
        yield f"{where} gives jukebox {command} the option {option}, which it does not take"
    arguments = [param for param in params if param.param_type_name == "argument"]
    number = len([word for word in words if not word.startswith("--")])
    if not len([param for param in arguments if param.required]) <= number <= len(arguments):
        yield f"{where} gives jukebox {command} {number} arguments, which it does not take"
    for param in params:
        if param.required and param.param_type_name == "option" and not given & set(param.opts):
            yield f"{where} does not give jukebox {command} the option {param.opts[0]}, which it needs"


def _results_of(command: str) -> set[str]:
    """The files that a command writes with --result-dir, read from its source."""
    if command not in COMMANDS:
        return set()
    module = inspect.getmodule(inspect.unwrap(COMMANDS[command].load().callback))
    assert module
    calls = re.findall(r"write_results\(\s*result_dir,(.*?)\)\n", inspect.getsource(module), re.DOTALL)
    return {key.replace("_", "-") for call in calls for key in re.findall(r"(\w+)=", call)}


def _accounts(kinds: dict[str, dict[str, Resource]]) -> Iterator[str]:
    used = _used(list(kinds.values()), r'"serviceAccountName": "([\w-]+)"') | {"jukebox-secrets"}  # by no pod
    yield from _differ("the manifests", used, set(kinds["ServiceAccount"]), "ServiceAccount")
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for name, binding in kinds[kind].items():
            role = binding["roleRef"]
            if role["name"] not in kinds[role["kind"]]:
                yield f"{kind} {name} binds the {role['kind']} {role['name']}, which is not there"
            for subject in binding["subjects"]:
                if subject["name"] not in kinds["ServiceAccount"]:
                    yield f"{kind} {name} binds the ServiceAccount {subject['name']}, which is not there"
