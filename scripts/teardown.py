"""``jukebox teardown``: remove the project from a cluster; keep its data unless --data is set."""

from typing import Annotated

import typer

from scripts.bootstrap import (
    ARGO_CDS,
    POLICIES,
    OnePart,
    Part,
    Yes,
    advising,
    confirm,
    context,
    credential_name,
    kubectl,
    read_all_settings,
)

GONE = ("--ignore-not-found", "--timeout=10m")
OURS = "--selector=app.kubernetes.io/part-of=jukebox"
CHECKS = "--selector=app.kubernetes.io/part-of=jukebox,app.kubernetes.io/name in (verify,check-served)"


def command(
    yes: Yes = False,
    part: OnePart = None,
    data: Annotated[
        bool, typer.Option("--data", help="Delete the data, too: models, run history and Secrets.")
    ] = False,
) -> None:
    """Print what will be deleted from the kubeconfig's cluster, ask for confirmation, and delete it.

    It deletes the Applications with their resources, then Tekton's runs, and the accounts with their rights. It keeps
    the model store, the pipeline server with its history, a bucket, the Secrets, the records of images and commits, the
    namespaces and their admission policies for a later bootstrap. It also keeps the health checks in Argo CD's
    configuration.

    Example: `jukebox teardown`
    """
    settings = read_all_settings()
    project, ci, profile = settings["namespace"], settings["ci-namespace"], settings["platform"] == "kubeflow"
    # A Profile would create its namespace again.
    namespaces = [f"namespace/{each}" for each in (ci, *(() if profile else (project,)))]
    platform, tenant = part is not Part.TENANT, part is not Part.PLATFORM
    print(f"This is deleted from the cluster {context()}:")
    if platform:
        print(f"  ApplicationSet, Applications and AppProject {project}, with all that they created, except the data,")
        print("  and the listener's rights to watch the cluster")
    if tenant:
        print(f"  the PipelineRuns in {ci}, its accounts and their rights")
    if data and tenant:
        print(f"  models and run history in {project}, Secrets there and in {ci}")
    if data and platform:
        print(f"  its admission policies, and {' and '.join(namespaces)} with all that is in it")
    if not data:
        print("Models and Secrets are kept.")
    confirm(yes)
    with advising("forbidden", "The platform's part needs an administrator; a tenant runs `--part tenant`."):
        if platform:
            _stop(project, f"--namespace={ARGO_CDS[settings['argo-cd']]}")
        if tenant:
            _tidy(ci, data, server=False)
            _tidy(project, data, server=not profile)
        if platform and data:
            policies = [f"{name}.{project}" for name in POLICIES]
            _delete("validatingadmissionpolicies,validatingadmissionpolicybindings", *policies)
            _delete(*namespaces)
    if not platform:
        print(f"Argo CD still manages {project}: an administrator ends that with jukebox teardown --part platform.")
    elif not tenant:
        print(f"Runs and accounts are left in {ci}, if it exists: delete them with jukebox teardown --part tenant.")
    print(
        "Gone."
        if data
        else f"Deleted, except the data and Secrets in {project} and {ci}: jukebox teardown --data deletes them."
    )


def _stop(project: str, argocd: str) -> None:
    """Delete the project from Argo CD, and with it all resources that came from Git."""
    # The Applications one by one, for kubectl to wait until each has taken its resources with it.
    _delete(f"applicationset.argoproj.io/{project}", argocd, "--cascade=orphan")
    _delete(*(f"application.argoproj.io/{project}.{environment}" for environment in ("dev", "prod")), argocd)
    _delete(f"appproject.argoproj.io/{project}", argocd)
    _delete(f"secret/{credential_name(project)}", argocd)
    _delete("clusterroles,clusterrolebindings", f"jukebox-listener.{project}")


def _tidy(namespace: str, data: bool, server: bool) -> None:
    """Delete what a tenant may delete in a namespace: runs and rights, and with --data the data."""
    here = f"--namespace={namespace}"
    _delete("pipelineruns.tekton.dev", here, OURS)
    _delete("pods", here, CHECKS)  # of Argo CD's syncs, which leave them, and which mount the model store
    _delete("rolebindings,roles,serviceaccounts", here, OURS)
    if data:
        kinds = ["configmaps", "secrets", *(["datasciencepipelinesapplications"] if server else [])]
        _delete(",".join(kinds), here, OURS)
        # A claim goes with the last pod that mounts it; those of ended runs stay until the pipeline server tidies up.
        _delete("persistentvolumeclaims", here, OURS, "--wait=false")


def _delete(*arguments: str) -> None:
    print(kubectl("delete", *arguments, *GONE), end="")
