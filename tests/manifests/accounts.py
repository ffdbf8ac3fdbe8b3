"""The tables of docs/accounts.md, generated from the manifests: each account's rights, and what each pod reaches.

``python -m tests.manifests.accounts`` writes them into the page.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from pipeline.settings import read_settings
from scripts.pods import Planned, containers, plan
from tests.manifests import building
from tests.manifests.building import of_kind, walk, with_rights
from tests.tekton.manifests import ROOT, Resource, kubectl

PAGE = ROOT / "docs" / "accounts.md"
BEGIN, END = "<!-- made by python -m tests.manifests.accounts -->\n", "<!-- until here -->\n"
RUNS, CI = "ada-jukebox", "ada-jukebox-ci"
PLACES = {RUNS: "namespace", CI: "ci-namespace"}  # as the settings name them


def tables(program: str) -> str:
    """Return the tables in Markdown, of each platform with the settings as they come, built by ``program``."""
    made = []
    for platform, argo_cd in building.PLATFORMS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = building.copy(Path(name), {"platform": platform, "argo-cd": argo_cd})
            overlay = f"{platform}/prod"
            built = {
                overlay: building.build(program, folder / "manifests/overlays" / overlay),
                **{each: building.build(program, folder / each) for each in building.BOOTSTRAP},
            }
            spec = spec_of(build_pipeline(read_settings(folder / "manifests/settings/settings.yaml")))
        pods = planned(built[overlay], spec)
        policies = of_kind(built[f"argocd/platform/{argo_cd}"], "ValidatingAdmissionPolicy")
        rights = accounts(with_rights(built, overlay), allowed(policies))
        reach = [*reached(pods, of_kind(built[overlay], "NetworkPolicy"))]
        made += [f"## {platform}\n", _table(("Account", "In", "Rights", "Secrets"), rights)]
        made += [_table(("Pod", "Account", "Secrets", "Claims", "Reaches", "Is reached by"), reach)]
    return "\n".join(made)


def planned(overlay: list[Resource], spec: Resource) -> list[Planned]:
    """The pods of an overlay and of the pipeline, those of the CI first, in an order that does not change."""
    pods = plan(overlay, spec, image="helper", restricted=True)
    return sorted(pods, key=lambda each: (not each.ci, each.name))


def allowed(policies: list[Resource]) -> dict[str, set[str]]:
    """The Secrets that the pods of each account of the CI may mount, by the admission policy that says so."""
    [policy] = [each for each in policies if each["metadata"]["name"].startswith("jukebox-ci-pods.")]
    variables = {each["name"]: each["expression"] for each in policy["spec"]["variables"]}
    of_data = variables["dataSecret"]
    found = re.findall(r"'([\w-]+)': \[([^]]*)\]", variables["secrets"].replace("variables.dataSecret", of_data))
    return {account: set(re.findall(r"'([^']+)'", names)) for account, names in found}


def accounts(resources: list[Resource], secrets: Mapping[str, set[str]]) -> Iterator[tuple[str, ...]]:
    """A row for each account: its namespace, its rights, and the Secrets that its pods may mount."""
    roles = {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each["rules"]
        for each in of_kind(resources, "Role", "ClusterRole")
    }
    for account in of_kind(resources, "ServiceAccount"):
        name, namespace = account["metadata"]["name"], account["metadata"]["namespace"]
        rights = []
        for binding in of_kind(resources, "RoleBinding", "ClusterRoleBinding"):
            if (namespace, name) in [(each["namespace"], each["name"]) for each in binding["subjects"]]:
                where = binding["metadata"].get("namespace", "")
                kind, role = binding["roleRef"]["kind"], binding["roleRef"]["name"]
                for rule in roles[kind, where if kind == "Role" else "", role]:
                    what = ", ".join(
                        [*rule["resources"], *(f"only `{each}`" for each in rule.get("resourceNames", ()))]
                    )
                    rights.append(f"{', '.join(rule['verbs'])}: {what} ({PLACES.get(where, 'all namespaces')})")
        mine = secrets.get(name, set()) if namespace == CI else set()
        yield f"`{name}`", PLACES[namespace], _lines(rights), _lines(f"`{each}`" for each in sorted(mine))


def mounted(pod: Resource) -> set[str]:
    """The Secrets that the pod reads, in whatever way."""
    names = {each["secretName"] for each in walk(pod["spec"]) if "secretName" in each}
    references = [each.get(key) for each in walk(pod["spec"]) for key in ("secretKeyRef", "secretRef")]
    projected = [each["secret"] for each in walk(pod["spec"]) if isinstance(each.get("secret"), dict)]
    return names | {each["name"] for each in (*references, *projected) if each and "name" in each}


def reached(pods: list[Planned], policies: list[Resource]) -> Iterator[tuple[str, ...]]:
    """A row for each pod: its account, what it mounts, and whom the network policies let it talk to."""
    for each in pods:
        namespace, spec = CI if each.ci else "", each.pod["spec"]
        mine = [
            policy["spec"]
            for policy in policies
            if policy["metadata"].get("namespace", "") == namespace
            and selects(policy["spec"]["podSelector"], each.pod["metadata"]["labels"])
        ]
        rules = {way: [rule for one in mine for rule in one.get(way, ())] for way in ("egress", "ingress")}
        yield (
            each.name,
            f"`{spec.get('serviceAccountName', 'default')}`",
            _lines(f"`{name}`" for name in sorted(mounted(each.pod))),
            _lines(_claims(each.pod)),
            _lines(peers(rule, "to") for rule in rules["egress"]),
            _lines(peers(rule, "from") for rule in rules["ingress"]),
        )


def _claims(pod: Resource) -> Iterator[str]:
    mounts = [mount for one in containers(pod) for mount in one.get("volumeMounts", ())]
    for volume in pod["spec"].get("volumes", ()):
        if claim := volume.get("persistentVolumeClaim"):
            mine = [mount for mount in mounts if mount["name"] == volume["name"]]
            read_only = claim.get("readOnly") or (mine and all(mount.get("readOnly") for mount in mine))
            # A run's own are named after their workspaces.
            name = f"`{claim['claimName'].removeprefix('pvc-')}`"
            of_run = " of the PipelineRun" if claim["claimName"].startswith("pvc-") else ""
            yield f"{name}{of_run}{', read-only' if read_only else ''}"


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector finds what has these labels."""
    one_of = {
        "In": lambda key, values: labels.get(key) in values,
        "NotIn": lambda key, values: labels.get(key) not in values,
        "Exists": lambda key, values: key in labels,
        "DoesNotExist": lambda key, values: key not in labels,
    }
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        one_of[each["operator"]](each["key"], each.get("values", ())) for each in selector.get("matchExpressions", ())
    )


def peers(rule: Mapping[str, Any], way: str) -> str:
    """Whom a rule of a network policy lets through, and at which ports."""
    ports = sorted({str(each["port"]) for each in rule.get("ports", ())}, key=int)
    who = " or ".join(_peer(each) for each in rule.get(way, ())) or "anybody"
    return f"{who} at {', '.join(ports)}" if ports else who


def _peer(peer: Mapping[str, Any]) -> str:
    if block := peer.get("ipBlock"):
        beyond = f" but {', '.join(block['except'])}" if "except" in block else ""
        return f"{block['cidr']}{beyond}"
    pods, namespaces = (_selector(peer[key]) if key in peer else None for key in ("podSelector", "namespaceSelector"))
    if namespaces is None:
        return f"{pods or 'all'} in its namespace"
    return f"{pods or 'all'} in {namespaces.removeprefix('metadata.name=') or 'all namespaces'}"


def _selector(selector: Mapping[str, Any]) -> str:
    words = [f"{key.rpartition('/')[2]}={value}" for key, value in selector.get("matchLabels", {}).items()]
    for each in selector.get("matchExpressions", ()):
        values = f" {', '.join(each['values'])}" if each.get("values") else ""
        words.append(f"{each['key'].rpartition('/')[2]} {each['operator']}{values}")
    return " ".join(words)


def _lines(texts: Iterable[str]) -> str:
    return "<br>".join(dict.fromkeys(texts)) or "none"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def with_tables(page: str, text: str) -> str:
    """The page with these tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    found = kubectl()
    assert found, "kubectl is not installed: nothing builds the manifests"
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), tables(found)), "utf-8")
