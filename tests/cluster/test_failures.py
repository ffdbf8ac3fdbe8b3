"""Pods of a run that really fail, or cannot start: what `jukebox wait` makes of the cluster's words for it."""

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes.config import kube_config

from pipeline.core.errors import RequestRefused, RunFailed
from pipeline.settings import read_settings
from scripts.clients.kfp_server import Json
from scripts.clients.kubernetes_api import RUN_LABEL, Cluster
from scripts.outcome import Told, look_up
from scripts.wait import Pace, Watch
from tests.cluster import node, stand_ins
from tests.cluster.images import PYTHON
from tests.cluster.kubectl import Kubectl
from tests.cluster.test_node import pod

PACE = Pace(poll=0.5, settle=0, stuck=2, sure=1)
SECONDS = 120  # until a pod is in the state that its test is about; a wait that hangs is stopped by it
HUNGRY = "print('about to load the rows', flush=True)\nhoard = []\nwhile True: hoard.append(bytes(8 << 20))"
OWN_ERROR = """
print("about to check")
print("2026-11-27 10:00:00,000 ERROR DataInvalid: 3 rows are wrong")
print("2026-11-27 10:00:00,000 INFO step train-model failed after 0.10 s, peak memory 50 MiB")
raise SystemExit(1)
"""
SLEEPS = "import time; time.sleep(600)"
MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}


@dataclass
class Server:
    """A pipeline server that has the run running until one of its pods has failed, and has no logs."""

    cluster: Cluster

    def run(self, run_id: str) -> Json:
        failed = any(each["status"].get("phase") == "Failed" for each in self.cluster.pods(run_id))
        steps = {"state": "FAILED", "display_name": "train-model", "task_id": "1", "child_tasks": [{"pod_name": "x"}]}
        details = {"task_details": [steps] if failed else []}
        return {"run_id": run_id, "state": "FAILED" if failed else "RUNNING", "run_details": details, **SPEC}

    def version(self, *_: str) -> None:
        return None

    def log(self, *_: str) -> str:
        raise RequestRefused(200, "The specified key does not exist")


SPEC = {
    "pipeline_spec": {
        "root": {"dag": {"tasks": {"train-model": {"componentRef": {"name": "comp"}}}}},
        "components": {"comp": {"executorLabel": "exec"}},
    }
}


def step(run: str, script: str = "pass", *, volume: Json | None = None, spec: Json | None = None, **of: Any) -> Json:
    """The pod of a run's step train-model."""
    made = pod(run, script, **of, **(MOUNT if volume else {}))
    node_name = f"prod-train-save-x2v9k.{run}.train-model.executor"
    made["metadata"] |= {"labels": {RUN_LABEL: run}, "annotations": {"workflows.argoproj.io/node-name": node_name}}
    made["spec"] |= {**({"volumes": [{"name": "v", **volume}]} if volume else {}), **(spec or {})}
    return made


def asks(memory: str) -> Json:
    return {"resources": {"requests": {"memory": memory}, "limits": {"memory": memory}}}


def key(secret: str, name: str) -> Json:
    return {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}}]}


def refused(run: str, message: str) -> Json:
    """Argo's Workflow of a run whose pod the API server refuses."""
    name = f"prod-train-save-{run}"
    node_name = {"name": f"{name}.root.train-model.executor", "phase": "Pending", "message": message}
    nodes = {"1": node_name} if message else {}
    metadata = {"name": name, "labels": {RUN_LABEL: run}}
    status = {"phase": "Running", "nodes": nodes}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": metadata,
        "spec": {},
        "status": status,
    }


@dataclass
class Pods:
    """Where the pods are, all begun at once, and what is said of them."""

    kubectl: Kubectl
    cluster: Cluster
    said: list[str] = field(default_factory=list)

    def failure(self, run: str, seconds: float = SECONDS) -> RunFailed:
        with pytest.raises(RunFailed) as failed:
            Watch(Server(self.cluster), self.cluster, PACE, self.said.append).wait(run, seconds)  # type: ignore[arg-type]
        return failed.value


@pytest.fixture(scope="module")
def pods(cluster: Kubectl, registry: str) -> Iterator[Pods]:
    bound = cluster.within(f"test-failures-{uuid.uuid4().hex[:8]}")
    bound.create_namespace()
    stand_ins.install(bound)
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}
    made = [
        step("memory", HUNGRY, **asks("64Mi")),
        step("own-error", OWN_ERROR),
        step("image", image=f"{registry}/nowhere:1"),
        step("credentials", image=f"{node.GUARDED_REGISTRY}/nowhere:1"),
        step("large", **asks("64Ti")),
        step("elsewhere", spec={"nodeSelector": {"gpu": "yes"}}),
        step("secret", volume={"secret": {"secretName": "jukebox-s3"}}),
        step("no-key", **key("there", "nope")),
        step("no-secret", **key("jukebox-s3", "a")),
        step("claim", volume={"persistentVolumeClaim": {"claimName": "jukebox-model-pvc"}}),
        step("class", volume={"persistentVolumeClaim": {"claimName": "nobodys"}}),
        step("root", securityContext={"runAsNonRoot": True}),
        step("command", command=["no-such-program"]),
        step("deadline", SLEEPS, spec={"activeDeadlineSeconds": 2}),
        step("disk", f"open('/v/x', 'wb').write(bytes(8 << 20)); {SLEEPS}", volume={"emptyDir": {"sizeLimit": "1Mi"}}),
    ]
    bound.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "there"}, "stringData": {"a": "b"}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "nobodys"},
            "spec": {**claim, "storageClassName": "nobody"},
        },
        *(refused(each["metadata"]["name"], "") for each in made),
        *made,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", bound.kubeconfig)
        yield Pods(bound, Cluster(bound.namespace))
    cluster("delete", "namespace", bound.namespace, "--wait=false")


CANNOT = "train-model cannot start: "
TRAIN_MEMORY = "train-memory in manifests/settings/settings.yaml"


@pytest.mark.parametrize(
    ("run", "state", "why"),
    [
        ("memory", "failed", f"train-model: out of memory (exit code 137): its limit is 64Mi. Raise {TRAIN_MEMORY}."),
        ("own-error", "failed", "train-model: DataInvalid: 3 rows are wrong"),
        ("image", "stuck", f"{CANNOT}.*: not found (REGISTRY/nowhere:1). Push the image, or start a version"),
        ("credentials", "stuck", "401 Unauthorized (GUARDED/nowhere:1). Check that the Secret of pull-secret in"),
        ("large", "stuck", f"Unschedulable: 0/1 nodes are available: 1 Insufficient memory. Lower {TRAIN_MEMORY}, or"),
        ("elsewhere", "stuck", "1 node(s) didn't match Pod's node affinity/selector. See train-nodes in manifests/"),
        ("secret", "stuck", f'{CANNOT}FailedMount: MountVolume.SetUp failed for volume "v" : secret "jukebox-s3" not '),
        ("no-key", "stuck", f"{CANNOT}CreateContainerConfigError: couldn't find key nope in Secret "),
        ("no-secret", "stuck", 'ConfigError: secret "jukebox-s3" not found. Make the Secret jukebox-s3.'),
        ("claim", "stuck", 'claim "jukebox-model-pvc" not found. Make the PersistentVolumeClaim jukebox-model-pvc.'),
        ("class", "stuck", "pod has unbound immediate PersistentVolumeClaims. See storage-class in manifests/"),
        ("root", "stuck", "container has runAsNonRoot and image will run as root"),
        ("command", "failed", 'train-model: StartError: failed to create containerd task: .*exec: "no-such-program"'),
        ("deadline", "failed", "train-model: DeadlineExceeded: stopped at its time limit"),
        ("disk", "failed", 'train-model: Evicted: Usage of EmptyDir volume "v" exceeds the limit "1Mi".'),
    ],
)
def test_the_wait_says_why(pods: Pods, run: str, state: str, why: str) -> None:
    found = pods.failure(run)
    assert found.state == state, found
    text = why.replace("REGISTRY", node.REGISTRY).replace("GUARDED", node.GUARDED_REGISTRY)
    pattern = ".*".join(re.escape(part) for part in text.split(".*"))
    assert re.search(pattern, found.why), found.why


def test_the_log_of_a_pod_that_is_gone_was_kept(pods: Pods) -> None:
    """It is read when the pod fails; the server says of the run that it has failed when the pod is gone."""
    server = Server(pods.cluster)
    watching = Watch(server, pods.cluster, PACE, pods.said.append)  # type: ignore[arg-type]
    node.wait("the step's end", lambda: server.run("own-error")["state"] == "FAILED")
    run = server.run("own-error")
    watching._show(run)
    watching._check_cluster("own-error")
    pods.kubectl("delete", "pod", "own-error", "--grace-period=0", "--force")
    with pytest.raises(RunFailed, match=r"train-model:\n  about to check\n  .*DataInvalid: 3 rows are wrong"):
        watching._conclude(run)


@pytest.mark.parametrize(
    ("run", "hard", "state", "why"),
    [
        ("waits", {"pods": "1"}, "timeout", "train-model waits: the quota full is used up: pods: 1 more than "),
        (
            "never",
            {"requests.memory": "1Mi"},
            "stuck",
            " of 1Mi. Ask for a larger quota: it exceeds the whole quota.",
        ),
    ],
)
def test_a_pod_that_a_quota_refuses(pods: Pods, run: str, hard: Json, state: str, why: str) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full"}, "spec": {"hard": hard}}
    pods.kubectl.apply(quota)
    try:
        pods.kubectl.wait("jsonpath={.status.used}", "resourcequota/full")
        with pytest.raises(RuntimeError) as forbidden:
            pods.kubectl("create", "--filename=-", stdin=json.dumps(step("one-more", **asks("2Mi"))))
        pods.kubectl.apply(refused(run, str(forbidden.value)))
        found = pods.failure(run, 1 if state == "timeout" else SECONDS)
    finally:
        pods.kubectl("delete", "resourcequota", "full")
    assert found.state == state
    assert why in str(found)


@pytest.mark.usefixtures("tekton")
def test_what_the_tasks_of_a_run_say_is_found(
    kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task that has failed at its second attempt has results, too."""

    def task(name: str, script: str, *results: str, **more: Any) -> Json:
        steps = [{"name": name, "image": PYTHON, "script": script}]
        return {"name": name, "taskSpec": {"results": [{"name": each} for each in results], "steps": steps}, **more}

    start = task("start", "printf 6f1c3c2e > $(results.run-id.path)", "run-id")
    fails = "printf 'train-model: out of memory' > $(results.why.path); exit 1"
    wait = task("wait", fails, "why", runAfter=["start"], retries=1)
    spec = {"pipelineSpec": {"tasks": [start, wait, task("promote", "true", runAfter=["wait"])]}}
    kubectl.apply({"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "metadata": {"name": "push-1"}, "spec": spec})
    kubectl.finished("pipelinerun/push-1")
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", kubectl.kubeconfig)
    monkeypatch.setenv("JUKEBOX_CI_NAMESPACE", kubectl.namespace)
    assert look_up("push-1", read_settings()) == Told("train-model: out of memory", "6f1c3c2e"), capsys.readouterr().out
