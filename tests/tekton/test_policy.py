"""What holds for every manifest: known fields only, safe steps, and words for the people who read them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.tekton.manifests import ROOT, Resource

CRDS = ROOT.parent / "shared" / "crds"
GO = re.compile(r"(?:.*/)?v1beta1\.(\w+)$")


@pytest.fixture(scope="session")
def crds() -> Path:
    if not CRDS.is_dir():
        pytest.skip("the CRDs of Tekton are not here: the cluster tier asks Tekton itself")
    return CRDS


def of_kind(resources: list[Resource], *kinds: str) -> Iterator[Resource]:
    yield from (resource for resource in resources if resource["kind"] in kinds)


def steps(resources: list[Resource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each step as its pod has it: what the template of its task says, and what it says itself."""
    for task in of_kind(resources, "Task"):
        for step in task["spec"]["steps"]:
            yield f"{task['metadata']['name']}/{step['name']}", {**task["spec"]["stepTemplate"], **step}


def closed(schema: Any) -> Any:
    """The schema of a CRD, which lets unknown fields pass, as one that refuses them."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(inner) for key, inner in schema.items()}
    free = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def tekton_problems(resource: Resource, folder: Path) -> list[str]:
    group, version = resource["apiVersion"].split("/")
    crd = yaml.safe_load((folder / f"{group}_{resource['kind']}_{version}.yaml").read_text())
    [schema] = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
    schema = closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(resource)]


def triggers_problems(value: Any, kind: str, table: dict[str, Any], where: str = "$") -> Iterator[str]:
    """Unknown and missing fields, by the table of the fields of Triggers' types."""
    properties = table[kind]["properties"]
    for key in table[kind]["required"]:
        if key not in value and key not in ("ref", "bindings"):
            yield f"{where}: {key} is missing"
    for key, inner in value.items():
        field = properties.get(key)
        if field is None:
            # The spec of a template's resources is another's, and that of a listener's pod Kubernetes'.
            if kind not in ("TriggerResourceTemplate", "CustomResource") and properties:
                yield f"{where}: {key} is unknown"
            continue
        found = GO.match(field.get("ref") or field.get("items") or "")
        if found and found[1] in table:
            for index, one in enumerate(inner if isinstance(inner, list) else [inner]):
                yield from triggers_problems(one, found[1], table, f"{where}.{key}[{index}]")


def test_tekton_resources_are_valid_and_have_no_unknown_field(resources: list[Resource], crds: Path) -> None:
    found = [resource for resource in resources if resource["apiVersion"] == "tekton.dev/v1"]
    for template in of_kind(resources, "TriggerTemplate"):
        found += template["spec"]["resourcetemplates"]
    assert len(found) == 13
    for resource in found:
        assert tekton_problems(resource, crds) == []
    found[0]["spec"]["stepz"] = []
    assert tekton_problems(found[0], crds)


def test_triggers_resources_have_no_unknown_field(resources: list[Resource], crds: Path) -> None:
    table = json.loads((crds / "triggers.tekton.dev_v1beta1.fields.json").read_text())
    found = [resource for resource in resources if resource["apiVersion"] == "triggers.tekton.dev/v1beta1"]
    assert len(found) == 13
    for resource in found:
        assert list(triggers_problems(resource, resource["kind"], table)) == []
    found[-1]["spec"]["resourceTemplates"] = []
    assert list(triggers_problems(found[-1], found[-1]["kind"], table))


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
    assert not re.findall(r"'(REPOSITORY|BRANCH|SONGS|RANKINGS|MODEL)'", text)
    [pipeline] = of_kind(resources, "Pipeline")
    defaults = {param["name"]: param.get("default") for param in pipeline["spec"]["params"]}
    assert defaults["repository"] == "https://github.com/acme/jukebox"
    assert (defaults["branch"], defaults["image"]) == ("main", "registry.example.com/jukebox-training")


def test_no_script_has_a_param_pasted_into_it(resources: list[Resource]) -> None:
    for name, step in steps(resources):
        script = step.get("script", "")
        assert "$(params." not in script, name
        assert "$(tasks." not in script, name
        assert "$(context." not in script, name
        words = [*step.get("command", []), *step.get("args", [])]
        assert not any("$(params." in word for word in words), f"{name}: params come through env"
        if script:
            assert script.startswith("#!/usr/bin/env bash\nset -euo pipefail\n"), name


def test_every_step_is_limited_and_restricted(resources: list[Resource]) -> None:
    rooted = []
    for name, step in steps(resources):
        for kind in ("requests", "limits"):
            assert set(step["computeResources"][kind]) == {"cpu", "memory"}, name
        security = step["securityContext"]
        assert security["capabilities"]["drop"] == ["ALL"], name
        assert not security.get("privileged"), name
        assert not step["image"].endswith(":latest"), name
        if security.get("runAsNonRoot") is not True:
            rooted.append(name)
        else:
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
    assert rooted == ["build-image/build"], "a build without a daemon is the only one that needs root"


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


def test_every_trigger_authenticates_first_and_fails_where_the_secret_is_empty(resources: list[Resource]) -> None:
    keys = set()
    for trigger in of_kind(resources, "Trigger"):
        first, *others = trigger["spec"]["interceptors"]
        params = {param["name"]: param["value"] for param in first["params"]}
        if first["ref"]["name"] in ("github", "gitlab"):
            reference = params["secretRef"]
            assert reference["secretName"] == "jukebox-senders"
            keys.add(reference["secretKey"])
            guard = {param["name"]: param["value"] for param in others[0]["params"]}
            assert guard == {"filter": f"!''.compareSecret('{reference['secretKey']}', 'jukebox-senders')"}
        else:
            found = re.search(r"substring\(7\)\.compareSecret\('(\w+)', 'jukebox-senders'\)$", params["filter"])
            assert found
            keys.add(found[1])
            assert "matches('^Bearer .{16,}$')" in params["filter"]
        for interceptor in trigger["spec"]["interceptors"]:
            assert re.match(r"[A-Z].* .* ", interceptor["name"]), "a sentence says what an interceptor is for"
    assert keys == {"github", "gitlab", "gitea", "data", "alert", "schedule"}


def test_only_those_who_need_it_have_a_token(resources: list[Resource]) -> None:
    tokens = {r["metadata"]["name"]: r["automountServiceAccountToken"] for r in of_kind(resources, "ServiceAccount")}
    assert {name for name, mounted in tokens.items() if mounted} == {"jukebox-listener", "jukebox-release"}
    rules = [rule for role in of_kind(resources, "Role", "ClusterRole") for rule in role["rules"]]
    assert not any("*" in part for rule in rules for part in (rule["verbs"], rule["resources"], rule["apiGroups"]))
    assert not any("secrets" in rule["resources"] for rule in rules)
