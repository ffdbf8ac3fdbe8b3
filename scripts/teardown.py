"""``jukebox teardown``: take the project out of a cluster; its data stays unless told."""

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


def command(
    yes: Yes = False,
    part: OnePart = None,
    data: Annotated[bool, typer.Option("--data", help="The data, too: models, run history and Secrets.")] = False,
) -> None:
    """Print what will be deleted from the cluster of the kubeconfig, ask, and delete it.

    The Applications go with all that they brought up, then the runs of Tekton and the accounts with their rights. The
    model store, the pipeline server with its history, a bucket and the Secrets stay, so that a later bootstrap finds
    them, and so do the namespace and its admission policy. What Argo CD's own configuration was given stays as well: it
    harms nobody.

    Example: `jukebox teardown`
    """
    settings = read_all_settings()
    project, profile = settings["namespace"], settings["platform"] == "kubeflow"
    namespace = "" if profile else f"namespace/{project}"  # which a Profile would make anew
    platform, tenant = part is not Part.TENANT, part is not Part.PLATFORM
    print(f"This is deleted from the cluster {context()}:")
    if platform:
        print(f"  ApplicationSet, Applications and AppProject {project}, with all that they brought up but data,")
        print("  and what lets the listener watch the cluster")
    if tenant:
        print(f"  the PipelineRuns in {project}, its accounts and their rights")
    if data and tenant:
        print(f"  models, run history and Secrets in {project}")
    if data and platform:
        print(f"  its admission policy{namespace and f', and {namespace} with all that is in it'}")
    if not data:
        print("Models and Secrets stay.")
    confirm(yes)
    with advising("forbidden", "The platform's part is an administrator's; a tenant's is `--part tenant`."):
        if platform:
            _stop(project, f"--namespace={ARGO_CDS[settings['argo-cd']]}")
        if tenant:
            _tidy(project, data, server=not profile)
        if platform and data:
            policies = [f"{name}.{project}" for name in POLICIES]
            _delete("validatingadmissionpolicies,validatingadmissionpolicybindings", *policies)
            if namespace:
                _delete(namespace)
    if not platform:
        print(f"Argo CD still looks after {project}: jukebox teardown --part platform ends that, for who may.")
    elif not tenant:
        print(f"Runs and accounts are left in {project}, if it is there: jukebox teardown --part tenant.")
    print(
        "Gone." if data else f"Gone, but for the data in the namespace {project}: jukebox teardown --data deletes it."
    )


def _stop(project: str, argocd: str) -> None:
    """Take from Argo CD what it looks after, and with it all that came from Git."""
    # The Applications one by one, for kubectl to wait until each has taken its resources with it.
    _delete(f"applicationset.argoproj.io/{project}", argocd, "--cascade=orphan")
    _delete(*(f"application.argoproj.io/{project}.{environment}" for environment in ("dev", "prod")), argocd)
    _delete(f"appproject.argoproj.io/{project}", argocd)
    _delete(f"secret/{credential_name(project)}", argocd)
    _delete("clusterroles,clusterrolebindings", f"jukebox-listener.{project}")


def _tidy(project: str, data: bool, server: bool) -> None:
    """Take out of the namespace what its tenant may: runs and rights, and the data if told."""
    here = f"--namespace={project}"
    _delete("pipelineruns.tekton.dev", here, OURS)
    _delete("rolebindings,roles,serviceaccounts", here, OURS)
    if data:
        kinds = ["secrets", *(["datasciencepipelinesapplications"] if server else [])]
        _delete(",".join(kinds), here, OURS)
        # A claim goes with the last pod that mounts it; those of ended runs stay until the pipeline server tidies up.
        _delete("persistentvolumeclaims", here, OURS, "--wait=false")


def _delete(*arguments: str) -> None:
    print(kubectl("delete", *arguments, *GONE), end="")
