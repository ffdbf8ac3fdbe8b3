"""A git repository in the cluster, for Argo CD to read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import run
from tests.cluster.images import PYTHON
from tests.cluster.kubectl import Kubectl

NAME = "git"
PORT = 9418
SERVE = f"""
git init --quiet --bare --initial-branch=main /tmp/project
exec git daemon --port={PORT} --export-all --enable=receive-pack --base-path=/tmp /tmp
"""


@dataclass(frozen=True)
class Repository:
    """The repository, and a clone of it on this machine."""

    url: str  # in the cluster
    clone: Path

    def git(self, *arguments: str) -> str:
        return run(
            "git", "-C", self.clone, "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *arguments
        ).strip()

    def commit(self, message: str, files: Mapping[str, str | None]) -> str:
        """Write files, or remove those that are None, and push that; returns the commit."""
        for name, content in files.items():
            path = self.clone / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return self.push(message)

    def push(self, message: str) -> str:
        """Commit what is in the clone, and push it; returns the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message={message}")
        self.git("push", "--quiet", "origin", "main")
        return self.git("rev-parse", "HEAD")


def serve(kubectl: Kubectl, clone: Path) -> Repository:
    """Start an empty repository in the namespace of ``kubectl``, and clone it to a folder."""
    labels = {"app": NAME}
    container = {
        "name": "main",
        "image": PYTHON,
        "command": ["sh", "-euc", SERVE],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME, "labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": NAME},
            "spec": {"selector": labels, "ports": [{"port": PORT}]},
        },
    )
    kubectl.wait("condition=Ready", f"pod/{NAME}")
    run("git", "init", "--quiet", "--initial-branch=main", clone)
    run("git", "-C", clone, "remote", "add", "origin", f"git://{kubectl.reach(NAME)}/project")
    return Repository(f"git://{NAME}.{kubectl.namespace}.svc:{PORT}/project", clone)
