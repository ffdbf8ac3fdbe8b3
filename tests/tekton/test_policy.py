"""What holds for every manifest: known fields only, safe steps, and words for the people who read them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from scripts.checkout import HARMLESS
from tests.manifests.schemas import CRDS, problems
from tests.tekton.manifests import ROOT, Resource

# It hides the packages of its own image, and so has no `jukebox`.
INSTALL = ["python3", "/opt/jukebox/scripts/install_packages.py"]
needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason="the CRDs of Tekton are not here: the cluster tier asks Tekton itself"
)


def of_kind(resources: list[Resource], *kinds: str) -> Iterator[Resource]:
    yield from (resource for resource in resources if resource["kind"] in kinds)


def steps(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each step as its pod has it: what the template of its task says, and what it says itself."""
    for task in of_kind(resources, "Task"):
        for step in task["spec"]["steps"]:
            yield f"{task['metadata']['name']}/{step['name']}", {**task["spec"]["stepTemplate"], **step}


@needs_crds
def test_tekton_resources_are_valid_and_have_no_unknown_field(resources: list[Resource]) -> None:
    found = [resource for resource in resources if resource["apiVersion"] == "tekton.dev/v1"]
    for template in of_kind(resources, "TriggerTemplate"):
        found += template["spec"]["resourcetemplates"]
    assert len(found) == 18
    for resource in found:
        assert problems(resource) == []
    found[0]["spec"]["stepz"] = []
    assert problems(found[0])


@needs_crds
def test_triggers_resources_have_no_unknown_field(resources: list[Resource]) -> None:
    found = [resource for resource in resources if resource["apiVersion"] == "triggers.tekton.dev/v1beta1"]
    assert len(found) == 13
    for resource in found:
        assert problems(resource) == []
    found[-1]["spec"]["resourceTemplates"] = []
    assert problems(found[-1])


def test_each_file_holds_one_resource_and_is_listed() -> None:
    for folder in ("tasks", "pipelines", "triggers"):
        files = {path.name for path in (ROOT / "tekton" / folder).iterdir()} - {"kustomization.yaml"}
        listed = yaml.safe_load((ROOT / "tekton" / folder / "kustomization.yaml").read_text())["resources"]
        assert set(listed) == files
        for name in files:
            text = (ROOT / "tekton" / folder / name).read_text()
            assert text.startswith("---\n")
            assert len(list(yaml.safe_load_all(text))) == 1


def test_all_settings_are_filled_in(resources: list[Resource]) -> None:
    text = json.dumps(resources)
    assert not re.findall(
        r'"(CI_IMAGE|REPOSITORY|BRANCH|GIT_HOST|IMAGE|SCHEDULE|S3_SECRET|NAMESPACE)"(?!,? "value)',
        text.replace('"name": "', ""),
    )
    assert not re.findall(r"'(REPOSITORY|BRANCH|DATA|MODEL)'", text)
    for name, step in steps(resources):
        assert step["image"] in ("registry.example.com/jukebox-ci", "$(params.ci-image)"), name


def test_who_starts_a_run_names_no_address_and_no_image(resources: list[Resource]) -> None:
    """Those are of the settings that an administrator has given to the cluster."""
    [pipeline] = of_kind(resources, "Pipeline")
    names = {param["name"] for param in pipeline["spec"]["params"]}
    of_an_event = {"reason", "commit", "author", "message", "not-before"}
    assert names == of_an_event | {"parameters", "tests", "wait-minutes"}
    for task in of_kind(resources, "Task"):
        told = "JUKEBOX_SETTINGS" in json.dumps(task)
        [mount] = [each["configMap"] for each in task["spec"]["volumes"] if each["name"] == "settings"] or [None]
        assert mount == ({"name": "jukebox-settings"} if told else None), "a task without settings is not to go on"


def test_every_step_is_one_command_and_no_script(resources: list[Resource]) -> None:
    for name, step in steps(resources):
        assert "script" not in step, name
        command = step["command"]
        assert command in (["jukebox", command[-1]], ["python", "-m", "pytest"], INSTALL), name
        assert not any("$(params." in word for word in step["args"]), f"{name}: params come through env"


def test_every_step_is_limited_and_restricted(resources: list[Resource]) -> None:
    for name, step in steps(resources):
        for kind in ("requests", "limits"):
            assert set(step["computeResources"][kind]) == {"cpu", "memory"}, name
        security = step["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"], name
        assert not security.get("privileged"), name
        assert not step["image"].endswith(":latest"), name
        assert "add" not in security["capabilities"], name
        assert security["runAsNonRoot"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_everything_has_a_description_and_a_name_in_kebab_case(resources: list[Resource]) -> None:
    kebab = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
    for resource in of_kind(resources, "Task", "Pipeline", "TriggerTemplate"):
        spec, where = resource["spec"], resource["metadata"]["name"]
        if resource["kind"] != "TriggerTemplate":
            assert spec["description"], where
        for entry in [*spec.get("params", []), *spec.get("results", []), *spec.get("workspaces", [])]:
            assert entry["description"].endswith("."), f"{where}: {entry['name']}"
            assert kebab.fullmatch(entry["name"]), f"{where}: {entry['name']}"


def test_a_rerun_needs_nothing_that_the_dashboard_would_ask_for(resources: list[Resource]) -> None:
    [pipeline] = of_kind(resources, "Pipeline")
    assert all("default" in param for param in pipeline["spec"]["params"])


def test_every_task_of_the_pipeline_has_a_timeout_within_that_of_the_run(resources: list[Resource]) -> None:
    [pipeline] = of_kind(resources, "Pipeline")
    [template] = of_kind(resources, "TriggerTemplate")
    hours = int(template["spec"]["resourcetemplates"][0]["spec"]["timeouts"]["pipeline"].partition("h")[0])
    minutes = 0
    for task in [*pipeline["spec"]["tasks"], *pipeline["spec"]["finally"]]:
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:0s)?", task["timeout"])
        assert found, task["name"]
        minutes += 60 * int(found[1] or 0) + int(found[2] or 0)
    assert minutes <= 60 * hours


def test_nothing_has_the_label_that_argo_cd_prunes_by(resources: list[Resource]) -> None:
    assert "app.kubernetes.io/instance" not in json.dumps(resources)
    for resource in resources:
        labels = resource["metadata"]["labels"]
        assert {"name", "component", "part-of"} <= {key.partition("/")[2] for key in labels}


def ored(expression: str) -> bool:
    """Whether an expression of CEL has an alternative to its whole: an || outside of all brackets and quotes."""
    while (shorter := re.sub(r"'[^']*'|\([^()']*\)|\[[^\[\]']*\]", "", expression)) != expression:
        expression = shorter
    return "||" in expression


def test_every_trigger_authenticates_first_and_fails_where_the_secret_is_empty(resources: list[Resource]) -> None:
    keys = set()
    [listener] = of_kind(resources, "EventListener")
    [before] = listener["spec"]["triggerGroups"][0]["interceptors"]
    text = {param["name"]: param["value"] for param in before["params"]}["filter"]
    assert text.startswith("!''.compareSecret('github', 'jukebox-senders') && ")
    assert not ored(text)
    for trigger in of_kind(resources, "Trigger"):
        first, *_ = trigger["spec"]["interceptors"]
        params = {param["name"]: param["value"] for param in first["params"]}
        if first["ref"]["name"] in ("github", "gitlab"):
            reference = params["secretRef"]
            assert reference["secretName"] == "jukebox-senders"
            keys.add(reference["secretKey"])
            if first["ref"]["name"] == "github":  # which anybody can sign for with an empty secret
                [_, guarded] = trigger["spec"]["interceptors"]
                text = {param["name"]: param["value"] for param in guarded["params"]}["filter"]
                guard, _, rest = text.partition(" && ")
                assert guard == f"!''.compareSecret('{reference['secretKey']}', 'jukebox-senders')"
                assert not ored(rest)
        else:
            found = re.search(r"substring\(7\)\.compareSecret\('(\w+)', 'jukebox-senders'\)$", params["filter"])
            assert found
            keys.add(found[1])
            assert " && header.canonical('Authorization').matches('^Bearer .{16,}$') && " in params["filter"]
            assert not ored(params["filter"])
        for interceptor in trigger["spec"]["interceptors"]:
            assert re.match(r"[A-Z].* .* ", interceptor["name"]), "a sentence says what an interceptor is for"
    assert keys == {"github", "gitlab", "gitea", "data", "alert", "schedule"}


def test_a_push_of_texts_alone_does_not_train(resources: list[Resource]) -> None:
    """In Python; tests/cluster/test_triggers.py sends pushes to the real listener, whose RE2 searches the same way."""
    [listener] = of_kind(resources, "EventListener")
    params = {
        param["name"]: param["value"] for param in listener["spec"]["triggerGroups"][0]["interceptors"][0]["params"]
    }
    [pattern] = [overlay["expression"] for overlay in params["overlays"] if overlay["key"] == "harmless"]
    harmless = re.compile(pattern.removeprefix("r'").removesuffix("'"))
    assert harmless == HARMLESS  # what is not run is not waited for, either
    texts = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "mkdocs.yml", "docs/index.md")
    assert [path for path in (*texts, "docs/images/way.svg") if not harmless.search(path)] == []
    train = (
        *("Containerfile", "Makefile", "requirements.lock", "pyproject.toml", "manifests/settings/settings.yaml"),
        *("pipeline/mkdocs.yml", "pipeline/docs/step.py", "mkdocs.yml.py", "mkdocs-yml", "tekton/tasks/test.yaml"),
        # Only a run releases them.
        *("manifests/pins/prod/kustomization.yaml", "manifests/base/serving/inferenceservice.yaml"),
    )
    assert [path for path in train if harmless.search(path)] == []


def test_only_those_who_need_it_have_a_token(resources: list[Resource]) -> None:
    tokens = {r["metadata"]["name"]: r["automountServiceAccountToken"] for r in of_kind(resources, "ServiceAccount")}
    assert {name for name, mounted in tokens.items() if mounted} == {
        "jukebox-images",
        "jukebox-listener",
        "jukebox-release",
        "jukebox-retain",
        "jukebox-runs",
        "jukebox-source",
    }
    rules = [rule for role in of_kind(resources, "Role", "ClusterRole") for rule in role["rules"]]
    assert not any("*" in part for rule in rules for part in (rule["verbs"], rule["resources"], rule["apiGroups"]))
    assert not any("secrets" in rule["resources"] for rule in rules)
