"""Documents against their real schemas: of Kubernetes' own kinds, and of the CRDs; unknown fields are refused."""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.tekton.manifests import ROOT, Resource

CRDS = ROOT.parent / "shared" / "crds"
# The oldest that the manifests are for: a pod that sleeps before it stops is of this version.
KUBERNETES = "1.30"
# Of these there is no schema to be had here.
UNKNOWN = {
    "LocalQueue": "the CRD of Kueue is in no package",
    "ObjectBucketClaim": "the CRD of the buckets' operator is in no package",
}


class _Loader(yaml.CSafeLoader):
    """Reads a lone ``=``, which the CRDs hold, as the text that it is."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: node.value)


@dataclass
class Report:
    """What a set of documents came to; ``skipped`` has the reason of each."""

    valid: int = 0
    invalid: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.valid} valid, {len(self.invalid)} invalid, {len(self.skipped)} skipped"


def check(resources: list[Resource]) -> Report:
    report = Report()
    for resource in resources:
        where = f"{resource['kind']}/{resource['metadata']['name']}"
        found = problems(resource)
        if isinstance(found, str):
            report.skipped.append(f"{where}: {found}")
        elif found:
            report.invalid += [f"{where} {problem}" for problem in found]
        else:
            report.valid += 1
    return report


def problems(resource: Resource) -> list[str] | str:
    """What is wrong with a document, or why it cannot be said."""
    group, _, version = resource["apiVersion"].rpartition("/")
    kind = resource["kind"]
    if not group or "." not in group or (group.endswith(".k8s.io") and group != "gateway.networking.k8s.io"):
        return _core_problems(resource)
    if kind in UNKNOWN:
        return UNKNOWN[kind]
    if not CRDS.is_dir():
        return "the CRDs are not here: the cluster tier asks the real API"
    if group == "triggers.tekton.dev":
        return list(_fields(resource, kind, json.loads((CRDS / f"{group}_{version}.fields.json").read_text())))
    errors = _validator(CRDS / f"{group}_{kind}_{version}.yaml", version).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in errors]


def _core_problems(resource: Resource) -> list[str]:
    return _problems_of_text(json.dumps(resource))


@functools.cache  # most overlays have the same, and kubernetes_validate reads its schemas anew each time
def _problems_of_text(resource: str) -> list[str]:
    try:
        kubernetes_validate.validate(json.loads(resource), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


@functools.cache
def _validator(path: Path, version: str) -> Draft202012Validator:
    crd = yaml.load(path.read_text(), Loader=_Loader)
    [schema] = [v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version]
    schema = _closed(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(schema)


def _closed(schema: Any) -> Any:
    """The schema of a CRD, which lets unknown fields pass, as one that refuses them."""
    if isinstance(schema, list):
        return [_closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(inner) for key, inner in schema.items() if inner is not None}
    free = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not free:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def _fields(value: Any, kind: str, table: dict[str, Any], where: str = "$") -> Iterator[str]:
    """Unknown and missing fields, by the table of the fields of Triggers' types: their CRDs have no schema."""
    known = table[kind]["properties"]
    for key in table[kind]["required"]:
        if key not in value and key not in ("ref", "bindings"):
            yield f"{where}: {key} is missing"
    for key, inner in value.items():
        if key not in known:
            # The spec of a template's resources is another's, and that of a listener's pod Kubernetes'.
            if kind not in ("TriggerResourceTemplate", "CustomResource") and known:
                yield f"{where}: {key} is unknown"
            continue
        found = re.search(r"(?:^|/)v1beta1\.(\w+)$", known[key].get("ref") or known[key].get("items") or "")
        if found and found[1] in table:
            for index, one in enumerate(inner if isinstance(inner, list) else [inner]):
                yield from _fields(one, found[1], table, f"{where}.{key}[{index}]")
