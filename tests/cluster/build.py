"""Builds what the node runs: binaries from the Go modules in ``go/`` and ``gitea/``, and what Debian packages hold.

The first module pins all projects together, so that what they share, Kubernetes' libraries above all, has one version
and is compiled once. Gitea shares little with them and has its own module: neither rebuilds the other when it changes.
A module's ``tool`` lines name the programs. Those of a part are built into
``CACHE/<part>-<hash of the module>/<import path>``; the files that a project keeps in ``config/``, ``manifests/`` or
``options/`` are copied beside its binaries: later nothing else is needed.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

GO = Path(__file__).parent / "go"
GITEA = Path(__file__).parent / "gitea"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jukebox" / "cluster"

# What is needed together: programs and projects, by how their import paths begin. Last is what only some tests need.
PARTS = {
    "pause": ("jukebox.test/pause",),
    "gitea": ("code.gitea.io/gitea", "jukebox.test/gitea"),  # `make test` waits for it
    "node": (
        "k8s.io/kubernetes",
        *(f"jukebox.test/{name}" for name in ("coredns", "etcd", "policies", "provisioner")),
    ),
    "tekton": ("github.com/tektoncd",),
    "argocd": ("github.com/argoproj/argo-cd", "sigs.k8s.io/kustomize/kustomize"),
    "kserve": ("github.com/brancz/kube-rbac-proxy", "github.com/kserve"),
}

# Kubernetes' components say which version they are, and Tekton refuses an API server that does not.
STAMPED = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")

# The file that a Debian package brings, and the package.
DEBIAN = {
    "/usr/bin/containerd": "containerd",
    "/usr/sbin/runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "/usr/sbin/iptables": "iptables",
    "/usr/sbin/conntrack": "conntrack",
    "/usr/sbin/debootstrap": "debootstrap",
    "/usr/bin/buildah": "buildah",
    "/usr/bin/openssl": "openssl",
    "/usr/bin/unshare": "util-linux",
    "/usr/bin/ip": "iproute2",
}
REGISTRY = CACHE / "docker-registry" / "usr" / "bin" / "docker-registry"


class Unavailable(RuntimeError):
    """This machine cannot run the node; the message says what is missing and what to do instead."""


def say(message: str) -> None:
    """Tell a person who waits, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def run(*command: str | Path, **options: object) -> str:
    """The output of a command; what it wrote on stderr is in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        line = " ".join(map(str, command))
        raise RuntimeError(f"{line} ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()[-4000:]}")
    return str(done.stdout)


def kept(folder: Path, fill: Callable[[Path], object]) -> Path:
    """``folder``, which ``fill`` fills unless it is there: wholly or not at all, while other processes wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = folder.with_name(f".{folder.name}")
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed, or the process is killed
        if not folder.exists():
            shutil.rmtree(half, ignore_errors=True)  # of one that was killed
            half.mkdir()
            try:
                fill(half)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return folder


def require() -> None:
    """Install the Debian packages that are missing.

    Raises ``Unavailable`` where this is no Linux, no root, or where Go or a package cannot be had.
    """
    missing = []
    if sys.platform != "linux":
        missing.append(f"Linux (this is {sys.platform})")
    elif os.geteuid() != 0:
        missing.append("root, for namespaces and cgroups")
    if not shutil.which("go") and not all(folder(part).exists() for part in PARTS):
        missing.append("Go, to build Kubernetes and Tekton: https://go.dev/doc/install")
    packages = [
        package for file, package in DEBIAN.items() if not Path(file).exists() and not shutil.which(Path(file).name)
    ]
    if not REGISTRY.exists():
        packages.append("docker-registry")
    if packages and not shutil.which("apt-get"):
        missing.append(f"these programs, as there is no apt-get to install them: {', '.join(packages)}")
    if missing:
        raise Unavailable(
            "The cluster tier runs a Kubernetes node on this machine, and misses\n  - "
            + "\n  - ".join(missing)
            + "\nOr run the same tests on a cluster that has Tekton Pipelines and Triggers, kind for instance:\n"
            "  KUBECONFIG=$HOME/.kube/config make test-cluster"
        )
    if packages:
        install(packages)


def room(gigabytes: int) -> None:
    """Raise ``Unavailable`` where the cache's disk has less to spare: Kubernetes would evict what needs it, later."""
    free = shutil.disk_usage(CACHE).free / 1e9
    if free < gigabytes:
        raise Unavailable(
            f"A project on the node, with its images, takes some {gigabytes} GB below {CACHE}, where {free:.0f} GB are "
            "free. Make room, or name another disk's folder in XDG_CACHE_HOME."
        )


def install(packages: list[str]) -> None:
    say(f"installing {' '.join(packages)}")
    run("apt-get", "update", "-qq")
    if "docker-registry" in packages:
        packages.remove("docker-registry")
        kept(CACHE / "docker-registry", _registry)
    if packages:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=quiet)


def _registry(target: Path) -> None:
    # Unpacked only: installing it would start a service. As root: apt's own user may not write below a home folder.
    run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", "docker-registry", cwd=target)
    run("dpkg", "-x", *target.glob("*.deb"), target)


def module(part: str) -> Path:
    """The Go module that a part is built from."""
    return GITEA if part == "gitea" else GO


def folder(part: str) -> Path:
    """Where the binaries of a part are, or will be."""
    digest, source = hashlib.sha256(), module(part)
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(source)}\0".encode() + file.read_bytes())
    return CACHE / f"{part}-{digest.hexdigest()[:12]}"


def build(part: str) -> Path:
    """Build a part unless it is built already; where another process is at it, wait for that.

    Returns:
        The folder that holds each binary under its import path, and each project's manifests in ``config/<project>``.
    """
    return kept(folder(part), partial(_build, part))


def _build(part: str, target: Path) -> None:
    # The versions are what go.sum says, whatever the user's workspace or flags are.
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOWORK": "off",
        # A fifth less time for more memory: the compiler seldom collects its garbage.
        "GOGC": "400",
        "GOMEMLIMIT": "4GiB",
    }

    def go(*command: str) -> str:
        return run("go", *command, cwd=module(part), env=environment)

    described = json.loads(go("mod", "edit", "-json"))
    programs = sorted(tool["Path"] for tool in described["Tool"] if tool["Path"].startswith(PARTS[part]))
    say(f"building {part}: downloading")
    # Unlike `go mod download`, it leaves out modules of which no package is built.
    listed = go("list", "-deps", "-f", "{{with .Module}}{{.Path}} {{.Dir}}{{end}}", *programs)
    flags = " ".join(f"-X {name}={value}" for name, value in stamps(described["Require"]).items())
    # Together, so that one is linked while the next is compiled; two projects may have programs of one name.
    for parent, together in groupby(programs, os.path.dirname):
        names = list(together)
        say(f"building {part}: {', '.join(names)}")
        # Nobody debugs them: a tenth of the time is spared.
        go("build", "-gcflags=all=-dwarf=false", "-ldflags", f"-s -w {flags}", "-o", f"{target / parent}/", *names)
    for project, directory in {tuple(line.split(" ")) for line in listed.splitlines()}:
        for config in (Path(directory) / name for name in ("config", "manifests", "options")):
            if project.startswith(PARTS[part]) and config.is_dir():
                shutil.copytree(config, target / "config" / project, copy_function=shutil.copyfile)
                run("chmod", "-R", "u+w", target / "config")


def stamps(required: list[dict[str, str]]) -> dict[str, str]:
    """The versions that a module's programs are stamped with, by the variable."""
    versions = {each["Path"]: each["Version"] for each in required}
    if gitea := versions.get("code.gitea.io/gitea"):
        return {"main.version": gitea.removeprefix("v")}
    version = versions["k8s.io/kubernetes"]
    major, minor = version.removeprefix("v").split(".")[:2]
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    return {f"{stamped}.{key}": value for stamped in STAMPED for key, value in values.items()}
