"""The node leaves nothing on the machine, however it ends. These bring up a node without Tekton, and run first."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import build, images, node
from tests.cluster.cluster import running

PROGRAMS = (
    "containerd",
    "kube",
    "etcd",
    "coredns",
    "docker-registry",
    "guarded-registry",
    "init",
    "pause",
    "policies",
    "nsenter",
    "provisioner",
)
FOLDERS = (
    *(
        "/var/log/containers",
        "/var/log/pods",
        "/run/netns",
        "/run/containerd",
        "/usr/libexec/kubernetes",
    ),
    *(f"/var/lib/{name}" for name in ("cni", "containerd", "etcd", "kubelet", "registry", "volumes")),
)


def traces() -> dict[str, object]:
    """All on this machine that a node changes."""
    program = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            program[process.name] = (process / "exe").readlink().name
        except OSError:  # ended, or a thread of the kernel
            continue
    return {
        "processes": {pid: name for pid, name in program.items() if name.startswith(PROGRAMS)},
        "mounts": sorted(line for line in Path("/proc/mounts").read_text().splitlines()),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": build.run("ip", "route"),
        "rules": [build.run("iptables", "--table", table, "--list-rules") for table in ("filter", "nat", "mangle")],
        "settings": {name: Path("/proc/sys", name).read_text() for name in (*node.KERNEL, "net/ipv4/ip_forward")},
        "cgroups": sorted(path for path, _, _ in os.walk("/sys/fs/cgroup") if "kube" in path or node.NAME in path),
        "folders": {folder: sorted(Path(folder).iterdir()) if Path(folder).exists() else None for folder in FOLDERS},
        "state": node.STATE.exists(),
    }


@pytest.fixture
def before() -> Iterator[dict[str, object]]:
    """The machine's traces before the test, which may then bring up a node."""
    if os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names a cluster, which is not ours to take down")
    if node.init():
        pytest.skip("a node is up already, and may be in use: `make cluster-down` ends it")
    try:
        build.require()
    except build.Unavailable as missing:
        pytest.exit(str(missing), returncode=1)
    for part in ("pause", "node", "tekton"):  # so that none is built between the looks at the machine
        build.build(part)
    yield traces()
    node.down()


def begin(*arguments: str) -> subprocess.Popen[bytes]:
    """Python in a process group of its own, which has come so far that some of the node runs."""
    harness = subprocess.Popen([sys.executable, *arguments], start_new_session=True)
    node.wait("containerd", lambda: "containerd" in node.processes())
    return harness


def test_a_node_with_a_pod_and_a_volume_in_use_leaves_nothing(before: dict[str, object]) -> None:
    node.up()
    images.of_binary("pause:1", build.folder("pause") / "jukebox.test" / "pause")
    kubectl = running()
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "used"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "user"},
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "image": f"{node.REGISTRY}/pause:1",
                        "imagePullPolicy": "IfNotPresent",
                        "volumeMounts": [{"name": "used", "mountPath": "/used"}],
                    }
                ],
                "volumes": [{"name": "used", "persistentVolumeClaim": {"claimName": "used"}}],
            },
        },
    )
    kubectl.wait("condition=Ready", "pod/user")

    node.down()

    assert traces() == before


def test_ctrl_c_takes_down_what_was_started(before: dict[str, object]) -> None:
    harness = begin("-m", "tests.cluster", "up")
    os.killpg(harness.pid, signal.SIGINT)
    assert harness.wait() != 0
    assert traces() == before


def test_a_harness_that_was_killed_leaves_a_node_that_down_ends(before: dict[str, object]) -> None:
    harness = subprocess.Popen(
        [sys.executable, "-c", "from tests.cluster import node; node.up()"], start_new_session=True
    )
    node.wait("containerd", lambda: "containerd" in node.processes())
    os.killpg(harness.pid, signal.SIGKILL)
    assert harness.wait() == -signal.SIGKILL
    assert "containerd" in node.processes()

    node.down()
    node.down()

    assert traces() == before


def test_up_mends_a_node_of_which_something_died(before: dict[str, object]) -> None:
    node.up()
    first = node.processes()
    for name in ("kube-apiserver", "etcd", "kubelet"):
        os.kill(first[name], signal.SIGKILL)
        # Until then it holds its port.
        node.wait(f"end of {name}", lambda name=name: not Path(f"/proc/{first[name]}").exists())  # type: ignore[misc]

    node.up()

    second = node.processes()
    assert {name for name in first if first[name] != second[name]} >= {"kube-apiserver", "etcd", "kubelet"}
    assert first["init"] == second["init"]
    assert json.loads(node.kubectl("get", "nodes", "--output=json"))["items"][0]["metadata"]["name"] == node.NAME
