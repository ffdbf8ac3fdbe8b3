"""Who can open a connection to whom: real ones, by pods with the labels of each kind, under the policies of an overlay.

The pods are there before the policies are, and every one reaches every place: so a refusal later is the policies'. The
places that the settings name are pods, or addresses of the node; so are a stand-in of the internet and the address at
which a cloud gives out the credentials of its nodes.

Not proven here: that the labels are those of the real pods (`test_access.py` asks which of them a policy selects).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import images, node
from tests.cluster.build import run
from tests.cluster.kubectl import Kubectl
from tests.manifests.building import build, copy, of_kind
from tests.tekton.manifests import ROOT, Resource

METADATA, INTERNET = "169.254.169.254", "203.0.113.7"
CI, MODELS = "test-network-ci", "test-network"
PLATFORM, KUBEFLOW, ELSEWHERE = "test-network-platform", "test-network-kubeflow", "test-network-elsewhere"
CLIENT, MONITORING, ROUTER = "test-network-client", "test-network-monitoring", "test-network-router"
NAMESPACES: dict[str, dict[str, str]] = {
    CI: {},
    MODELS: {},
    PLATFORM: {},
    KUBEFLOW: {},
    ELSEWHERE: {},
    CLIENT: {"jukebox.github.io/client": "true"},
    MONITORING: {},
    ROUTER: {"policy-group.network.openshift.io/ingress": ""},
}
SERVE = """
import signal, socket, sys
places = [place.rpartition(":") for place in sys.argv[1:]]
kept = [socket.create_server((host, int(port)), backlog=1000) for host, _, port in places]
signal.pause()
"""
# Prints the names of the places that it reaches. An answer of the DNS is one to a question by UDP.
ASK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
QUESTION = b"\\0\\1\\1\\0\\0\\1" + bytes(6) + b"\\7cluster\\5local\\0" + b"\\0\\1\\0\\1"
def reaches(place):
    host, port = place.split(":")
    try:
        if port == "53":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                asker.settimeout(3)
                asker.sendto(QUESTION, (host, 53))
                return bool(asker.recv(512))
        socket.create_connection((host, int(port)), timeout=3).close()
        return True
    except OSError:
        return False
places = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(places)) as pool:
    print(json.dumps([name for name, there in zip(places, pool.map(reaches, places.values())) if there]))
"""

# Where a connection may lead: the pod and the port, or an address.
PLACES = {
    "names": f"{node.DNS}:53",
    "the cluster's API": f"{node.API}:443",
    "registry": node.REGISTRY,
    "Git host": ("git", 8080),
    "package index": ("index", 8443),
    "data": ("data", 8333),
    "S3": ("s3", 8333),
    "chat": ("chat", 8443),
    "interceptors": ("interceptors", 8443),
    "pipeline server": ("pipeline-server", 8443),
    "pipeline server, without a token": ("pipeline-server", 8888),
    "Kubeflow's pipeline server": ("ml-pipeline", 8888),
    "listener": ("listener", 8080),
    "proxy of the listener": ("listener-proxy", 8080),
    "metrics of the listener": ("listener", 9000),
    "model server": ("model-server", 8443),
    "model server, without a token": ("model-server", 8888),
    "a pod of another namespace": ("other", 8080),
    "the internet": f"{INTERNET}:443",
    "metadata": f"{METADATA}:80",
}
# Where the settings say so; of the chat they say nothing, as they do by default.
BY_SETTING = {"git-cidr": "git", "index-cidr": "index", "data-cidr": "data", "s3-cidr": "s3"}
TASK = "tekton.dev/task"
CLUSTER = {"names", "the cluster's API"}


@dataclass(frozen=True)
class Kind:
    """A kind of pods.

    Attributes:
        reaches: the places that are open to it.
        openshift: those that are so on OpenShift AI alone.
        kubeflow: those that are so on Kubeflow alone.
        listens: at which ports.
    """

    namespace: str
    labels: dict[str, str]
    reaches: set[str]
    openshift: frozenset[str] = frozenset()
    kubeflow: frozenset[str] = frozenset()
    listens: tuple[int, ...] = ()


def task(name: str, *reaches: str, server: bool = False) -> Kind:
    """The pods of a Task."""
    return Kind(CI, {TASK: name}, set(reaches), *(SERVER if server else ()))


# The pipeline server's operator lets everybody in who shows a token.
UNGUARDED = {*CLUSTER, "registry", "Git host", "package index", "data", "S3", "chat", "interceptors", "metadata"}
UNGUARDED |= {"Kubeflow's pipeline server", "pipeline server", "a pod of another namespace", "the internet"}
# The model server's, which asks for a token on OpenShift AI.
DOOR = frozenset({"model server"}), frozenset({"model server, without a token"})
SERVER = frozenset({"pipeline server"}), frozenset({"Kubeflow's pipeline server"})
KINDS = {
    "test": task("test"),
    "compile": task("compile"),
    "settle": task("settle"),
    "checkout": task("checkout", *CLUSTER, "Git host", "registry"),
    "supersede": task("supersede", *CLUSTER, "Git host"),
    "release": task("release", *CLUSTER, "Git host"),
    "wait-served": task("wait-served", *CLUSTER, "Git host"),
    "commit-status": task("commit-status", *CLUSTER, "Git host"),
    "build-packages": task("build-packages", *CLUSTER, "registry", "package index"),
    "build-image": task("build-image", *CLUSTER, "registry"),
    "tag-images": task("tag-images", *CLUSTER, "registry"),
    "apply": task("apply", *CLUSTER, server=True),
    "start": task("start", *CLUSTER, "data", server=True),
    "wait": task("wait", *CLUSTER, server=True),
    "promote": task("promote", *CLUSTER, "Git host", server=True),
    "notify": task("notify", *UNGUARDED - {"metadata"}),
    "affinity-assistant": Kind(CI, {"app.kubernetes.io/component": "affinity-assistant"}, set()),
    "in-use": Kind(CI, {"app.kubernetes.io/name": "in-use"}, {*CLUSTER, "Git host", "registry"}, *SERVER),
    "retain-tasks": Kind(CI, {"app.kubernetes.io/name": "retain-tasks"}, CLUSTER),
    "retain": Kind(CI, {"app.kubernetes.io/name": "retain"}, {*CLUSTER, "Git host", "registry"}, *SERVER),
    "schedule": Kind(CI, {"app.kubernetes.io/name": "schedule"}, {*CLUSTER, "proxy of the listener"}),
    "listener": Kind(CI, {"eventlistener": "jukebox"}, {*CLUSTER, "interceptors"}, listens=(8080, 9000)),
    "listener-proxy": Kind(CI, {"app.kubernetes.io/name": "listener-proxy"}, {"names", "listener"}, listens=(8080,)),
    "step": Kind(
        MODELS,
        {"workflows.argoproj.io/workflow": "run", "pipelines.kubeflow.org/v2_component": "true"},
        {*CLUSTER, "data", "S3"},
        frozenset({"pipeline server", "pipeline server, without a token"}),
        frozenset({"Kubeflow's pipeline server"}),
    ),
    "retention": Kind(MODELS, {"app.kubernetes.io/name": "retention"}, set()),
    "verify": Kind(MODELS, {"app.kubernetes.io/name": "verify"}, set()),
    "check-served": Kind(
        MODELS, {"app.kubernetes.io/name": "check-served"}, {"names", "model server, without a token"}
    ),
    "pipeline-server": Kind(MODELS, {"component": "data-science-pipelines"}, {*CLUSTER, "S3"}, listens=(8443, 8888)),
    "model-server": Kind(
        MODELS,
        {"serving.kserve.io/inferenceservice": "jukebox"},
        set(),
        frozenset({"the cluster's API"}),
        listens=(8443, 8888),
    ),
    "other": Kind(ELSEWHERE, {}, UNGUARDED, listens=(8080,)),
    "client": Kind(CLIENT, {}, UNGUARDED, *DOOR),
    "monitoring": Kind(
        MONITORING,
        {},
        {*UNGUARDED, "proxy of the listener", "metrics of the listener", "model server, without a token"},
    ),
    "router": Kind(ROUTER, {}, {*UNGUARDED, "proxy of the listener"}, *DOOR),
    "interceptors": Kind(PLATFORM, {"app.kubernetes.io/part-of": "tekton-triggers"}, set(), listens=(8443,)),
    "ml-pipeline": Kind(KUBEFLOW, {}, set(), listens=(8888,)),
    "git": Kind(PLATFORM, {}, set(), listens=(8080,)),
    "index": Kind(PLATFORM, {}, set(), listens=(8443,)),
    "data": Kind(PLATFORM, {}, set(), listens=(8333,)),
    "s3": Kind(PLATFORM, {}, set(), listens=(8333,)),
    "chat": Kind(PLATFORM, {}, set(), listens=(8443,)),
}
# Those that are in the project, and those that knock at its doors.
ASKERS = [name for name, kind in KINDS.items() if kind.namespace not in (PLATFORM, KUBEFLOW)]
# What the operator of the pipeline server brings: its door for all, and those for the components that it knows.
OPERATOR: Resource = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "ds-pipelines-dspa"},
    "spec": {
        "podSelector": {"matchLabels": {"component": "data-science-pipelines"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": 8443}]},
            {
                "from": [{"podSelector": {"matchLabels": {"pipelines.kubeflow.org/v2_component": "true"}}}],
                "ports": [{"port": 8888}, {"port": 8887}],
            },
        ],
    },
}


@dataclass(frozen=True)
class Network:
    """The pods, with their addresses and those of the places."""

    kubectl: Kubectl
    addresses: dict[str, str]
    places: dict[str, str]

    def reached(self, name: str) -> set[str]:
        """The places that a pod reaches."""
        places = {place: self.places[place] for place in others(name)}
        words = ("exec", name, "--", "python3", "-c", ASK, json.dumps(places))
        return set(json.loads(self.kubectl.within(KINDS[name].namespace)(*words)))

    def all_reached(self) -> dict[str, set[str]]:
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(ASKERS, pool.map(self.reached, ASKERS), strict=True))


def others(name: str) -> set[str]:
    """The places that are not the pod itself, which is beyond all policies."""
    return {place for place, target in PLACES.items() if target[0] != name}


def pod(name: str, kind: Kind) -> Resource:
    listening = [f":{port}" for port in kind.listens]
    container = {
        "name": "main",
        "image": f"{node.REGISTRY}/library/{images.PYTHON}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", SERVE, *listening],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": kind.namespace, "labels": kind.labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }


@pytest.fixture(scope="module")
def network(cluster: Kubectl, registry: str) -> Iterator[Network]:
    """The pods of all kinds, which no policy is about yet."""
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        for name, labels in NAMESPACES.items()
    ]
    outside = (f"{INTERNET}:443", f"{METADATA}:80")
    for address in (INTERNET, METADATA):
        run(*node.inside("net"), "ip", "address", "add", f"{address}/32", "dev", "lo")
    server = subprocess.Popen([*node.inside("net"), sys.executable, "-c", SERVE, *outside])
    try:
        cluster.apply(*spaces)
        for name in NAMESPACES:
            node.wait("service account", partial(cluster.within(name), "get", "serviceaccount", "default"))
        cluster.apply(*(pod(name, kind) for name, kind in KINDS.items()))
        for name in NAMESPACES:
            cluster.within(name).wait("condition=Ready", "pod", "--all")
        addresses = {
            item["metadata"]["name"]: item["status"]["podIP"]
            for name in NAMESPACES
            for item in cluster.within(name).get("pods")["items"]
        }
        places = {
            name: place if isinstance(place, str) else f"{addresses[place[0]]}:{place[1]}"
            for name, place in PLACES.items()
        }
        yield Network(cluster, addresses, places)
    finally:
        server.kill()
        server.wait()
        for address in (INTERNET, METADATA):
            run(*node.inside("net"), "ip", "address", "delete", f"{address}/32", "dev", "lo")
        cluster("delete", "namespace", *NAMESPACES, "--wait=false")


@pytest.fixture(scope="module")
def unguarded(network: Network) -> dict[str, set[str]]:
    """What each pod reaches before there are policies."""
    node.wait("all places", lambda: network.reached("other") == others("other"))
    return network.all_reached()


def policies(network: Network, folder: Path, platform: str) -> list[Resource]:
    """The policies of an overlay whose settings name the places here."""
    settings = {setting: f"{network.addresses[name]}/32" for setting, name in BY_SETTING.items()}
    settings |= {"api-cidr": f"{node.ADDRESS}/32", "registry-cidr": f"{node.ADDRESS}/32"}
    settings |= {"namespace": MODELS, "ci-namespace": CI, "monitoring-namespace": MONITORING}
    settings |= {"gateway-namespace": ROUTER, "kfp-namespace": KUBEFLOW, "platform": platform}
    overlay = copy(folder, settings) / "manifests" / "overlays" / platform / "prod"
    made = of_kind(build(network.kubectl.program, overlay), "NetworkPolicy")
    for policy in made:
        policy["metadata"].setdefault("namespace", MODELS)
    return [*made, {**OPERATOR, "metadata": {**OPERATOR["metadata"], "namespace": MODELS}}]


@pytest.fixture(scope="module", params=["openshift-ai", "kubeflow"])
def guarded(
    request: pytest.FixtureRequest,
    network: Network,
    unguarded: dict[str, set[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, dict[str, set[str]]]]:
    """The platform, and what each pod reaches under its policies."""
    network.kubectl.apply(*policies(network, tmp_path_factory.mktemp("network") / "fork", request.param))
    node.wait("policies", lambda: not network.reached("test"))
    yield request.param, network.all_reached()
    for name in (CI, MODELS):
        network.kubectl.within(name)("delete", "networkpolicies", "--all")


@pytest.mark.parametrize("name", ASKERS)
def test_without_policies_every_pod_reaches_every_place(unguarded: dict[str, set[str]], name: str) -> None:
    assert others(name) - unguarded[name] == set(), f"{name} does not reach what is open to all"


@pytest.mark.parametrize("name", ASKERS)
def test_a_pod_reaches_what_it_needs_and_nothing_else(guarded: tuple[str, dict[str, set[str]]], name: str) -> None:
    platform, reached = guarded
    kind = KINDS[name]
    expected = others(name) & (kind.reaches | (kind.openshift if platform == "openshift-ai" else kind.kubeflow))
    assert sorted(reached[name] - expected) == [], f"on {platform}, {name} reaches what it must not"
    assert sorted(expected - reached[name]) == [], f"on {platform}, {name} does not reach what it needs"


def test_every_task_is_among_the_kinds() -> None:
    tasks = {path.stem for path in (ROOT / "tekton" / "tasks").glob("*.yaml")} - {"kustomization"}
    assert tasks == {kind.labels[TASK] for kind in KINDS.values() if TASK in kind.labels}
