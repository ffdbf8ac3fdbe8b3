"""The cluster that the tests use: the node of this folder with Tekton in it, or one that the user brought."""

import re
import shutil
from pathlib import Path

from tests.cluster import build, images, node, tekton
from tests.cluster.build import say
from tests.cluster.kubectl import Kubectl

ROOM = 5  # GB of disk that the node takes with Tekton, besides the caches
LOGS = Path(__file__).parents[2] / "build" / "cluster-logs"


def up(*, with_tekton: bool = True, room: int = ROOM) -> Kubectl:
    """Bring up the node with the images of the tests, and Tekton in it; what is up already stays.

    Raises ``Unavailable`` if the disk has less room than so many GB. If something fails later, or
    is interrupted, its logs are kept, and a node that was not up before is taken down.
    """
    build.require()
    found = node.init() is not None
    if not found:
        build.room(room)
    try:
        say("starting the node")
        node.up()
        kubectl = running()
        images.of_binary("pause:1", build.folder("pause") / "jukebox.test" / "pause")
        shell = images.of_debian(f"library/{images.PYTHON}", *images.PACKAGES)
        if with_tekton:
            say("installing Tekton")
            tekton.install(kubectl, shell)
    except BaseException:
        gather()
        gather(running(), "all")
        say(f"logs are in {LOGS}")
        if not found:
            node.down()
        raise
    say("the cluster is up")
    return kubectl


def running() -> Kubectl:
    """The node, which must be up."""
    return Kubectl(str(node.KUBECTL), str(node.KUBECONFIG))


def existing(kubeconfig: str) -> Kubectl:
    """The cluster that the user brought; raises ``Unavailable`` where it does not answer, or has no Tekton."""
    kubectl = Kubectl(shutil.which("kubectl") or str(node.KUBECTL), kubeconfig)
    try:
        kubectl("get", "crd", "pipelineruns.tekton.dev", "eventlisteners.triggers.tekton.dev")
    except (RuntimeError, OSError) as error:
        raise build.Unavailable(
            f"The cluster of KUBECONFIG={kubeconfig} must run Tekton Pipelines and Triggers, with their interceptors "
            f"(https://tekton.dev/docs/installation/), and kubectl must be on the PATH: {error}"
        ) from error
    return kubectl


def gather(kubectl: Kubectl | None = None, name: str = "node") -> Path:
    """Copy what helps to find a failure to a folder of ``LOGS``.

    With ``kubectl``, what is in its namespace, or in all of them: pods' logs, events, Tekton's objects. Without, what
    the node's own programs logged.
    """
    folder = LOGS / re.sub(r"[^\w.-]+", "-", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kubectl is None:
        if (node.STATE / "log").exists():
            shutil.copytree(node.STATE / "log", folder, dirs_exist_ok=True)
        return folder
    get = [] if kubectl.namespace else ["--all-namespaces"]
    dump = [f"--namespaces={kubectl.namespace}"] if kubectl.namespace else get
    for file, words in {
        "events.txt": ("get", "events", "--sort-by=.metadata.creationTimestamp", *get),
        "runs.yaml": ("get", "pipelineruns,taskruns,eventlisteners", "--output=yaml", *get),
        "dump.txt": ("cluster-info", "dump", *dump, f"--output-directory={folder}", "--output=yaml"),
    }.items():
        try:
            (folder / file).write_text(build.run(*kubectl.words(*words)))  # once: nobody waits for a log
        except RuntimeError as error:  # the cluster may be what is broken
            (folder / file).write_text(str(error))
    return folder
