"""The cluster tier by hand: ``python -m tests.cluster up``, ``down``, ``build``, ``pushes``, ``logs``."""

import sys

import typer

from tests.cluster import build, cluster, node, project
from tests.cluster import pushes as bench

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command("build")
def build_all() -> None:
    """Build what the node runs, unless it is built."""
    build.require()
    for part in build.PARTS:
        print(build.build(part))


@app.command()
def up() -> None:
    """Bring the cluster up with all that a project needs, and leave it running."""
    project.up(cluster.up(room=project.ROOM))
    print(f"Next: source {project.ENVIRONMENT.relative_to(project.ROOT)}; make bootstrap")


@app.command()
def down() -> None:
    """Take the cluster down, and all that belongs to it."""
    node.down()
    for file in (project.ENVIRONMENT, project.KUBECONFIG):
        file.unlink(missing_ok=True)


@app.command()
def pushes() -> None:
    """Measure, on a cluster that is up or is brought up, what a push costs task by task."""
    bench.measure()


@app.command()
def logs() -> None:
    """Gather logs, events and runs of all namespaces."""
    print(cluster.gather(), cluster.gather(cluster.running(), "all"), sep="\n")


if __name__ == "__main__":
    try:
        app()
    except (build.Unavailable, RuntimeError, TimeoutError) as error:
        sys.exit(str(error))
