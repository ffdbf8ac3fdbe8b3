"""``jukebox bootstrap``: give the project to Argo CD, which brings up the rest and keeps it as Git says."""

import copy
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import yaml

from pipeline.core.documents import to_json
from pipeline.core.errors import JukeboxError, ServerUnavailable, SettingsInvalid
from pipeline.settings import SETTINGS_FILE, read_settings, settings_file

Resource = dict[str, Any]

PLATFORMS = ("kubeflow", "openshift-ai")
# The namespace of each Argo CD that argocd/platform has a folder for.
ARGO_CDS = {"argo-cd": "argocd", "openshift-gitops": "openshift-gitops"}
# The admission policies that come with the project, each with the namespace's name behind its own.
POLICIES = ("jukebox-ci-pods", "jukebox-claims", "jukebox-listener", "jukebox-pipeline-pods", "jukebox-records")
SETTINGS = "jukebox-settings"  # the ConfigMap that the tasks read the settings from
# By this label of a namespace Kubeflow's pipeline server knows who may ask it.
PROFILE = {"app.kubernetes.io/part-of": "kubeflow-profile"}
PARTS = ("argocd", "manifests", "tekton")  # of the repository, which Kustomize reads
OPERATORS_TIMEOUT = 900  # seconds
APPLICATIONS_TIMEOUT = 120  # seconds
APPLICATION_SETS = "applicationsets.argoproj.io"
HEALTH = "resource.customizations.health."  # of a key of argocd-cm, before group and kind


class KubectlMissing(JukeboxError):
    """Nothing builds and applies the manifests."""


class Part(StrEnum):
    """Who applies it: somebody who looks after the cluster, or somebody with the role admin of the two namespaces."""

    PLATFORM = "platform"
    TENANT = "tenant"


Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
OnePart = Annotated[
    Part | None,
    typer.Option(
        "--part",
        help="Only one part: platform, for an administrator (the namespaces, their admission policies, and Argo CD's "
        "AppProject and ApplicationSet), or tenant, for somebody with the role admin in both namespaces (the accounts, "
        "their rights, and the settings that the tasks use).",
    ),
]
MANAGER = "jukebox"
APPLY = ("apply", "--server-side", f"--field-manager={MANAGER}", "--filename=-")


def command(
    yes: Yes = False,
    part: OnePart = None,
    show: Annotated[
        bool,
        typer.Option("--print", help="Print the resources as YAML and apply nothing. Needs no cluster."),
    ] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="First install the OpenShift operators for pipelines, GitOps and AI.")
    ] = False,
    health_checks: Annotated[
        bool,
        typer.Option(
            "--health-checks",
            help="Add health checks of pipeline servers and listeners to Argo CD, for all who share it. Otherwise it "
            "does not wait for them, and an early event may start a run that fails.",
        ),
    ] = False,
    git_token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that Argo CD reads a private repository with; kept in a Secret of its namespace."
        ),
    ] = None,
) -> None:
    """Print what will be applied to the kubeconfig's cluster, ask for confirmation, and apply it.

    The platform's part is applied first. Argo CD applies the rest from the repository of the settings, so push first.
    Run this again before you push an upgrade of jukebox, or settings that decide where credentials are sent: addresses,
    images, Secrets and claims. The tasks use the settings of the last bootstrap.

    Example: `jukebox bootstrap --part platform --print`
    """
    settings = read_all_settings()
    if part is Part.TENANT and (operators or health_checks or git_token_file):
        raise SettingsInvalid("--operators, --health-checks and --git-token-file belong to --part platform")
    if show and git_token_file:
        raise SettingsInvalid("--print does not print Secrets: leave --git-token-file out")
    with checkout() as folder:
        made = plan(folder, settings, part, operators, health_checks)
        if show:
            print(yaml.safe_dump_all(itertools.chain(*made), sort_keys=False), end="")
            return
        for overlay in environments(settings) if made.platform else ():
            held = build(folder, f"manifests/overlays/{settings['platform']}/{overlay}")
            kinds = Counter(resource["kind"] for resource in held)
            print(f"{overlay}: Argo CD will create {sum(kinds.values())} resources of {settings['repository']}:")
            print("  " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
    if made.platform and "prod" in environments(settings):
        trained, released = settings["branch"], settings["prod-branch"]
        print(f"prod follows the branch {released}; create it once: `git push origin {trained}:{released}`")
    secrets = [credential(settings, git_token_file)] if git_token_file else []
    print(f"This is applied now to the cluster {context()}:")
    for resource in itertools.chain(*made, secrets):
        print(f"  {resource['kind']}/{resource['metadata']['name']}")
    confirm(yes)
    there = {each["metadata"]["name"] for each in made.platform if each["kind"] == "Namespace"}
    for name in (settings["namespace"], settings["ci-namespace"]):
        if name not in there:
            _expect_namespace(settings, name)
    if made.platform:
        with advising("forbidden", "This part needs a platform administrator; a tenant runs `--part tenant`."):
            _apply_platform(settings, made, secrets)
    if made.tenant:
        advice = (
            "You cannot grant a right that you do not have: ask a platform administrator to run `--part tenant`, too."
        )
        with advising("not currently held", advice):
            apply(made.tenant, "--force-conflicts")  # an Argo CD has written them once
    print("Next: `jukebox secrets` makes the Secrets that it needs, and `jukebox doctor` shows what is missing.")


class Plan(NamedTuple):
    """What is applied, in this order; each may be empty."""

    operators: list[Resource]
    health_checks: list[Resource]
    platform: list[Resource]
    tenant: list[Resource]


def plan(folder: Path, settings: dict[str, str], part: Part | None, operators: bool, health_checks: bool) -> Plan:
    """Return what is applied of the manifests in ``folder``: of one part, or of both."""
    argocd = settings["argo-cd"]
    tenant = [] if part is Part.PLATFORM else build(folder, f"argocd/tenant/{settings['platform']}")
    if tenant:
        tenant.append(relied_on(settings["ci-namespace"]))
    if part is Part.TENANT:
        return Plan([], [], [], tenant)
    first = build(folder, "argocd/operators") if operators else []
    checks = build(folder, "argocd/health-checks") if health_checks else []
    if argocd == "openshift-gitops":
        checks = [instance(each, ARGO_CDS[argocd]) for each in checks]
    platform = build(folder, f"argocd/platform/{argocd}")
    if settings["platform"] == "kubeflow":
        # A Profile makes the one of the runs. The other is not a person's, and needs none of what a Profile brings.
        made = ("Namespace", settings["namespace"])
        platform = [each for each in platform if (each["kind"], each["metadata"]["name"]) != made]
        for each in platform:
            if each["kind"] == "Namespace":
                each["metadata"]["labels"] |= PROFILE
    return Plan(first, checks, platform, tenant)


def relied_on(namespace: str) -> Resource:
    """Return the ConfigMap with the settings as they are now, which no push can change."""
    labels = {"name": "settings", "component": "accounts", "part-of": "jukebox"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": SETTINGS,
            "namespace": namespace,
            "labels": {f"app.kubernetes.io/{key}": value for key, value in labels.items()},
        },
        "data": {"settings.yaml": settings_file().read_text("utf-8")},
    }


@contextmanager
def checkout() -> Iterator[Path]:
    """Yield a copy of the manifests that this code comes with, with the settings that are in force.

    Kustomize reads the settings from their path in the repository, even if the settings file is elsewhere. Raises
    SettingsInvalid if this code is not in a checkout.
    """
    root = SETTINGS_FILE.parents[2]
    if missing := [part for part in PARTS if not (root / part).is_dir()]:
        raise SettingsInvalid(
            f"{root} has no {', '.join(missing)}, which are applied: install the command line from a checkout of the "
            "repository, as `make .venv/ready` does there"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            shutil.copytree(root / part, folder / part)
        shutil.copyfile(settings_file(), folder / SETTINGS_FILE.relative_to(root))
        yield folder


def build(root: Path, folder: str) -> list[Resource]:
    """Return what Kustomize makes of a folder of a checkout.

    Raises SettingsInvalid if a placeholder is left in it.
    """
    text = kubectl("kustomize", str(root / folder))
    if left := placeholders(text):
        where = "what kubeseal writes there" if left == ["<SEALED>"] else f"values in {settings_file()}"
        raise SettingsInvalid(f"{folder} holds {', '.join(left)}; put {where}, and try again")
    return [resource for resource in yaml.safe_load_all(text) if resource]


def instance(configuration: Resource, namespace: str) -> Resource:
    """Return the health checks of argocd-cm in the words of OpenShift GitOps, whose operator writes that ConfigMap."""
    checks = []
    for key, text in configuration["data"].items():
        group, _, kind = key.removeprefix(HEALTH).rpartition("_")
        checks.append({"group": group, "kind": kind, "check": text})
    metadata = {"name": namespace, "namespace": namespace}
    spec = {"resourceHealthChecks": checks}
    return {"apiVersion": "argoproj.io/v1beta1", "kind": "ArgoCD", "metadata": metadata, "spec": spec}


def merged(ours: list[Resource], theirs: list[Resource]) -> list[Resource]:
    """Return a list of health checks with ours in it, each in the place of one of its kind; all others stay."""
    known = {(each["group"], each["kind"]): each for each in [*theirs, *ours]}
    return list(known.values())


def credential(settings: dict[str, str], file: Path) -> Resource:
    """Return the Secret by which Argo CD reads the repository, for the project's Applications alone.

    Raises SettingsInvalid if the file does not hold a token.
    """
    try:
        token = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsInvalid(f"--git-token-file {file} cannot be read: {error}") from None
    if not re.fullmatch(r"\S+", token):
        raise SettingsInvalid(f"--git-token-file {file} holds {len(token.split())} words: expected the token alone")
    project = settings["namespace"]
    labels = {
        "app.kubernetes.io/name": "git-host",
        "app.kubernetes.io/component": "gitops",
        "app.kubernetes.io/part-of": "jukebox",
        "argocd.argoproj.io/secret-type": "repository",
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": credential_name(project), "namespace": ARGO_CDS[settings["argo-cd"]], "labels": labels},
        # Git hosts take any user's name with a token.
        "stringData": {
            "type": "git",
            "url": settings["repository"],
            "username": "git",
            "password": token,
            "project": project,
        },
    }


def credential_name(project: str) -> str:
    """The name of the Secret by which Argo CD reads a project's repository."""
    return f"{project}-git-host"


def fitted(ours: Resource, live: Resource | None) -> Resource:
    """Return the namespace without the labels that another manager has set, to keep those."""
    theirs = {
        key.removeprefix("f:")
        for each in (live or {"metadata": {}})["metadata"].get("managedFields", [])
        if each["manager"] != MANAGER
        for key in each["fieldsV1"].get("f:metadata", {}).get("f:labels", {})
    }
    labels = {key: value for key, value in ours["metadata"]["labels"].items() if key not in theirs}
    return {**ours, "metadata": {**ours["metadata"], "labels": labels}}


def suited(resources: list[Resource], definition: Resource | None) -> list[Resource]:
    """Return what of the platform's part the Argo CD of a cluster knows, given its definition of an ApplicationSet.

    Without one, the Argo CD of another cluster looks after this cluster, and what is for Argo CD belongs there.
    """
    if not definition:
        print("Left out: AppProject and ApplicationSet. This cluster has no Argo CD; apply them where Argo CD runs.")
        return [each for each in resources if not each["apiVersion"].startswith("argoproj.io/")]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for key in ("spec", "template", "spec", "syncPolicy", "retry"):
        schema = schema["properties"][key]
    found = copy.deepcopy(resources)
    for each in found:
        if each["kind"] == "ApplicationSet":
            retry = each["spec"]["template"]["spec"]["syncPolicy"]["retry"]
            for key in retry.keys() - schema["properties"].keys():
                del retry[key]
    return found


def apply(resources: list[Resource], *options: str) -> None:
    """Apply under a name of our own: what others have put into the same resource, by kubectl too, stays theirs."""
    fit = [
        fitted(each, _read("namespace", each["metadata"]["name"], "--show-managed-fields"))
        if each["kind"] == "Namespace"
        else each
        for each in resources
    ]
    print(kubectl(*APPLY, *options, stdin=yaml.safe_dump_all(fit)).strip())


@contextmanager
def advising(words: str, advice: str) -> Iterator[None]:
    """Add advice to the message of a ServerUnavailable that holds these words."""
    try:
        yield
    except ServerUnavailable as error:
        if words not in str(error):
            raise
        raise ServerUnavailable(f"{error}\n{advice}") from None


def _apply_platform(settings: dict[str, str], made: Plan, secrets: list[Resource]) -> None:
    """Apply the platform's part, and wait until Argo CD looks after the project."""
    argocd = ARGO_CDS[settings["argo-cd"]]
    if made.operators:
        apply(made.operators)
        _wait_for_operators(argocd)
    for each in made.health_checks:
        _teach(each)
    definition = _read("customresourcedefinition", APPLICATION_SETS)
    # All of it is ours alone; an earlier bootstrap may have written it under another name.
    apply([*secrets, *suited(made.platform, definition)], "--force-conflicts")
    if definition:
        for environment in environments(settings):
            _await_application(settings["namespace"], environment, argocd)
        print(f"Watch it with: kubectl get applications --namespace {argocd} --watch")


def _teach(checks: Resource) -> None:
    """Add health checks to the configuration of Argo CD, which others share."""
    name, namespace = checks["metadata"]["name"], checks["metadata"]["namespace"]
    if checks["kind"] == "ConfigMap":
        apply([checks])
        return
    # A list without keys has one owner under server-side apply: who adds to it reads and writes all of it.
    live = _read("argocds.argoproj.io", name, f"--namespace={namespace}")
    if not live:
        raise ServerUnavailable(f"There is no ArgoCD {name} in {namespace}: check that OpenShift GitOps is installed.")
    found = merged(checks["spec"]["resourceHealthChecks"], live["spec"].get("resourceHealthChecks", []))
    version = {"resourceVersion": live["metadata"]["resourceVersion"]}  # a change that comes between is not lost
    patch = to_json({"metadata": version, "spec": {"resourceHealthChecks": found}})
    where = (f"--namespace={namespace}", f"--field-manager={MANAGER}", "--type=merge")
    print(kubectl("patch", "argocds.argoproj.io", name, *where, f"--patch={patch}").strip())


def _expect_namespace(settings: dict[str, str], name: str) -> None:
    """Raise ServerUnavailable if a namespace is not there, and say who makes it."""
    with advising("forbidden", f"Check that the settings name your namespace, and that {name} exists."):
        if _read("namespace", name):
            return
    maker = "its Profile creates it: create the Profile of that name"
    if settings["platform"] != "kubeflow" or name == settings["ci-namespace"]:
        maker = "ask a platform administrator to run `jukebox bootstrap --part platform`, which creates it"
    raise ServerUnavailable(f"The namespace {name} does not exist: {maker}. Then run this again.")


def _read(kind: str, name: str, *options: str) -> Resource | None:
    """Return a resource, or None."""
    text = kubectl("get", kind, name, "--ignore-not-found", "--output=json", *options)
    return json.loads(text) if text.strip() else None


def read_all_settings() -> dict[str, str]:
    """Return all settings; raises SettingsInvalid if Argo CD could not do with them."""
    file = settings_file()
    read_settings(file)
    settings: dict[str, str] = yaml.safe_load(file.read_text("utf-8"))["data"]
    missing = [key for key in ("platform", "argo-cd", "dev-cluster", "prod-cluster") if key not in settings]
    if missing:
        raise SettingsInvalid(f"{file}: {', '.join(missing)} is missing")
    for key, expected in {"platform": PLATFORMS, "argo-cd": ARGO_CDS}.items():
        if settings[key] not in expected:
            raise SettingsInvalid(f"{file}: {key} is {settings[key]!r}, expected {' or '.join(expected)}")
    if settings["namespace"] == settings["ci-namespace"]:
        raise SettingsInvalid(
            f"{file}: namespace and ci-namespace are both {settings['namespace']}: pushed code could "
            "read the CI's Secrets; name two"
        )
    found = environments(settings)
    if not found:
        raise SettingsInvalid(f"{file}: dev-cluster and prod-cluster are both empty; name a cluster in one of them")
    if len(found) > len({settings[f"{environment}-cluster"] for environment in found}):
        raise SettingsInvalid(
            f"{file}: dev-cluster and prod-cluster are both {settings['dev-cluster']}: both would "
            f"own the namespace {settings['namespace']}; empty one of them"
        )
    return settings


def environments(settings: dict[str, str]) -> list[str]:
    """Return the environments that have a cluster."""
    return [environment for environment in ("dev", "prod") if settings[f"{environment}-cluster"]]


def placeholders(text: str) -> list[str]:
    """Return the placeholders without a value, such as ``<CLUSTER_DOMAIN>``."""
    return sorted(set(re.findall(r"<[A-Z][A-Z_0-9]*>", text)))


def context() -> str:
    """Return the name and the address of the kubeconfig's cluster; raises ServerUnavailable if there is none."""
    config = json.loads(kubectl("config", "view", "--minify", "--output=json"))
    if not config.get("clusters"):
        raise ServerUnavailable("No cluster is configured.\nLog in (oc login), or set KUBECONFIG.")
    [cluster] = config["clusters"]
    return f"{config['current-context']} at {cluster['cluster']['server']}"


def confirm(yes: bool) -> None:
    """Ask for confirmation unless it was given; ends the command with 1 if the answer is no."""
    if not yes and not typer.confirm("Go on?"):
        print("Nothing was done.")
        raise typer.Exit(1)


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return its output; raises ServerUnavailable with its message if it fails."""
    program = shutil.which("kubectl") or shutil.which("oc")
    if not program:
        raise KubectlMissing("Neither kubectl nor oc is installed; `make .venv/ready` installs kubectl into .venv/bin.")
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerUnavailable(f"kubectl {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _wait_for_operators(namespace: str) -> None:
    """Wait for what the operators bring: the CRD of Argo CD, and the namespace of its instance."""
    print("Waiting for the operators; this takes some minutes")

    _wait(
        lambda: kubectl("get", f"crd/{APPLICATION_SETS}", f"namespace/{namespace}"),
        OPERATORS_TIMEOUT,
        "The operators are not ready",
        "See `kubectl get subscriptions,installplans --all-namespaces`, and run this again.",
    )


def _await_application(project: str, environment: str, namespace: str) -> None:
    """Wait until Argo CD has made an environment's Application.

    Its controller may see the ApplicationSet before the AppProject, and would look again after three minutes; any new
    annotation makes it look at once. Not its own for that, which it takes away by writing the whole ApplicationSet:
    then the generators are its own, and whoever applies them again meets a conflict.
    """
    here, name = f"--namespace={namespace}", f"applicationset.argoproj.io/{project}"

    def look() -> None:
        kubectl("annotate", name, here, f"jukebox.github.io/awaited-at={time.time():.0f}", "--overwrite")
        kubectl("get", f"application.argoproj.io/{project}.{environment}", here)

    _wait(
        look,
        APPLICATIONS_TIMEOUT,
        f"Argo CD has not created the Application {project}.{environment}",
        f"See `kubectl describe {name} {here}`; its conditions show why.",
    )
    print(f"application.argoproj.io/{project}.{environment} exists")


def _wait(look: Callable[[], object], seconds: float, what: str, remedy: str) -> None:
    """Return once ``look`` does not raise ServerUnavailable; raise that with its last words when time is up."""
    end = time.monotonic() + seconds
    while True:
        try:
            look()
        except ServerUnavailable as error:
            if time.monotonic() > end:
                raise ServerUnavailable(f"{what} after {seconds / 60:g} minutes: {error}\n{remedy}") from None
            time.sleep(2)
        else:
            return
