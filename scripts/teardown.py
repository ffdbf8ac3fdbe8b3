"""``jukebox teardown``: take the project out of a cluster; its data stays unless told."""

from typing import Annotated

import typer

from scripts.bootstrap import ARGO_CDS, POLICIES, Yes, confirm, context, kubectl, read_all_settings

TIMEOUT = "10m"


def command(
    yes: Yes = False,
    data: Annotated[bool, typer.Option("--data", help="The namespace, too: models, run history and Secrets.")] = False,
) -> None:
    """Print what will be deleted from the cluster of the kubeconfig, ask, and delete it.

    The Applications go with all that they brought up, then the runs of Tekton. The model store, the pipeline server
    with its history, a bucket and the Secrets stay, so that a later bootstrap finds them, and so do the namespace and
    its admission policies. What Argo CD's own configuration was given stays as well: it harms nobody.

    Example: `jukebox teardown`
    """
    settings = read_all_settings()
    project = settings["namespace"]
    argocd = ARGO_CDS[settings["argo-cd"]]
    applications = [f"application.argoproj.io/{project}.{environment}" for environment in ("dev", "prod")]
    print(f"This is deleted from the cluster {context()}:")
    print(f"  ApplicationSet, Applications and AppProject {project}, with all that they brought up but data")
    print(f"  the PipelineRuns in {project}")
    whole = f"  the namespace {project}, with models, run history and Secrets, and its admission policies"
    print(whole if data else "Models and Secrets stay.")
    confirm(yes)
    gone = ("--ignore-not-found", f"--timeout={TIMEOUT}")
    # The Applications one by one, for kubectl to wait until each has taken its resources with it.
    here = f"--namespace={argocd}"
    _delete(f"applicationset.argoproj.io/{project}", here, "--cascade=orphan", *gone)
    _delete(*applications, here, *gone)
    _delete(f"appproject.argoproj.io/{project}", here, *gone)
    _delete("pipelineruns.tekton.dev", f"--namespace={project}", "--selector=app.kubernetes.io/part-of=jukebox", *gone)
    if data:
        _delete(f"namespace/{project}", *gone)
        policies = [f"{name}.{project}" for name in POLICIES]
        _delete("validatingadmissionpolicies,validatingadmissionpolicybindings", *policies, *gone)
    print(
        "Gone." if data else f"Gone, but for the data in the namespace {project}: jukebox teardown --data deletes it."
    )


def _delete(*arguments: str) -> None:
    print(kubectl("delete", *arguments), end="")
