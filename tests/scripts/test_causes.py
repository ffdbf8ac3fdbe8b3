"""What the cluster says of a pod that does not start, or has failed, made one sentence with what to do.

The texts are those of a real kubelet, scheduler and API server with containerd: ``test_failures.py`` of the cluster's
tests has them say it anew; what needs CRI-O, or a cluster with many nodes, was not seen and is as it is documented.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.causes import Fate, cause_of_node, causes_of_pod, cleaned, has_failed, has_started, step_of_node
from scripts.clients.kubernetes_api import Resource

DIGEST = "sha256:" + "a" * 64
IMAGE = f"r.example.com/jukebox@{DIGEST}"
SETTINGS = "manifests/settings/settings.yaml"


def pod(step: str = "train-model", spec: Resource | None = None, **status: Any) -> Resource:
    annotations = {"workflows.argoproj.io/node-name": f"prod-train-save-x2v9k.root.{step}.executor"}
    return {"metadata": {"name": "p", "annotations": annotations}, "spec": spec or {}, "status": status}


def waiting(reason: str, message: str = "", image: str = IMAGE) -> Resource:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return {"phase": "Pending", "containerStatuses": [{"name": "main", "image": image, "state": state}]}


def ended(code: int, reason: str = "Error", name: str = "main", **status: Any) -> Resource:
    terminated = {"exitCode": code, "reason": reason}
    return {"phase": "Failed", "containerStatuses": [{"name": name, "state": {"terminated": terminated}}], **status}


def event(reason: str, message: str, at: int = 10, kind: str = "Warning", about: str = "pod") -> Resource:
    time = f"2026-11-27T10:00:{at:02}Z"
    return {
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": time,
        "involvedObject": {"uid": about},
    }


def unschedulable(message: str) -> Resource:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def only(pod: Resource, *events: Resource, log: str = "") -> tuple[str, Fate]:
    [cause] = causes_of_pod(pod, events, log)
    return str(cause), cause.fate


LIMITED = {"containers": [{"name": "main", "resources": {"limits": {"memory": "4Gi"}}}]}
CLAIMED = {"volumes": [{"persistentVolumeClaim": {"claimName": "jukebox-model-pvc"}}]}
RESOLVE = f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": '


@pytest.mark.parametrize(
    ("made", "text", "fate"),
    [
        (
            pod(**waiting("ErrImagePull", f"rpc error: code = NotFound desc = {RESOLVE}{IMAGE}: not found")),
            f"ErrImagePull: not found ({IMAGE}). Push the image, or start a version whose image exists.",
            Fate.STAYS,
        ),
        (
            pod(
                **waiting(
                    "ErrImagePull",
                    f"{RESOLVE}pulling from host r failed with status code [manifests 1]: 401 Unauthorized",
                )
            ),
            f"401 Unauthorized ({IMAGE}). Check that the Secret of pull-secret in {SETTINGS} is for this registry.",
            Fate.STAYS,
        ),
        (
            pod(**waiting("ErrImagePull", f"reading manifest {DIGEST} in r.example.com/jukebox: manifest unknown")),
            "manifest unknown",
            Fate.STAYS,
        ),
        (
            pod(**waiting("ErrImagePull", "initializing source docker://r/x: unauthorized: authentication required")),
            "Check that the Secret of pull-secret",
            Fate.STAYS,
        ),
        (
            pod(
                **waiting(
                    "ErrImagePull",
                    f'{RESOLVE}failed to do request: Head "https://r/v2/": dial tcp 10.0.0.1:443: connection refused',
                )
            ),
            "connection refused",
            Fate.LASTS,
        ),
        (
            pod(**waiting("ErrImagePull", f"{RESOLVE}tls: x509: certificate signed by unknown authority")),
            "trusts its certificate.",
            Fate.LASTS,
        ),
        (
            pod(**waiting("ErrImagePull", f"{RESOLVE}unexpected status: 503 Service Unavailable")),
            "503 Service Unavailable",
            Fate.LASTS,
        ),
        (
            pod(**waiting("InvalidImageName", "couldn't parse image name: invalid reference format", "R/x")),
            "invalid reference format (R/x). Name a valid image in",
            Fate.STAYS,
        ),
        (
            pod(**waiting("CreateContainerConfigError", 'secret "jukebox-s3" not found')),
            'CreateContainerConfigError: secret "jukebox-s3" not found. Make the Secret jukebox-s3.',
            Fate.STAYS,
        ),
        (
            pod(**waiting("CreateContainerConfigError", "couldn't find key AWS_KEY in Secret ada/jukebox-s3")),
            "Add the key AWS_KEY to the Secret ada/jukebox-s3.",
            Fate.STAYS,
        ),
        (
            pod(**waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")),
            "Give the image a numeric user other than 0",
            Fate.STAYS,
        ),
        (
            pod(**waiting("CreateContainerConfigError", "failed to sync secret cache: timed out waiting")),
            "failed to sync secret cache",
            Fate.LASTS,
        ),
        (pod(**waiting("CreateContainerError", "context deadline exceeded")), "deadline exceeded", Fate.LASTS),
        # A reason that nobody has heard of is one, too.
        (pod(**waiting("NewlyInvented", "of next year")), "NewlyInvented: of next year", Fate.LASTS),
        (
            pod(
                **unschedulable(
                    "0/3 nodes are available: 3 Insufficient memory. no new claims to deallocate, preemption: 0/3 "
                    "nodes are available: 3 Preemption is not helpful for scheduling."
                )
            ),
            "train-model cannot start: Unschedulable: 0/3 nodes are available: 3 Insufficient memory. Lower "
            f"train-memory in {SETTINGS}, or add such a node.",
            Fate.LASTS,
        ),
        (pod("fetch-data", **unschedulable("1 Insufficient cpu.")), "Lower step-cpu in", Fate.LASTS),
        (pod(**unschedulable("1 Insufficient nvidia.com/gpu.")), "Lower train-gpus in", Fate.LASTS),
        (pod(**unschedulable("1 Insufficient amd.com/gpu.")), "Lower train-gpus in", Fate.LASTS),
        (pod(**unschedulable("1 Insufficient ephemeral-storage.")), "Insufficient ephemeral-storage.", Fate.LASTS),
        (
            pod("publish-model", CLAIMED, **unschedulable("1 node(s) didn't match Pod's node affinity/selector.")),
            "See store-nodes in",
            Fate.LASTS,
        ),
        (pod("fetch-data", **unschedulable("1 node(s) had untolerated taint {a: b}.")), "See taint in", Fate.LASTS),
        (
            pod(
                **unschedulable(
                    '0/1 nodes are available: persistentvolumeclaim "jukebox-model-pvc" not found. not found'
                )
            ),
            'persistentvolumeclaim "jukebox-model-pvc" not found. Make the PersistentVolumeClaim jukebox-model-pvc.',
            Fate.STAYS,
        ),
        (
            pod(**unschedulable("pod has unbound immediate PersistentVolumeClaims. not found")),
            "PersistentVolumeClaims. See storage-class in",
            Fate.LASTS,
        ),
        (
            pod(
                phase="Pending",
                conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "x"}],
            ),
            "train-model waits: it waits in the queue",
            Fate.WAITS,
        ),
    ],
)
def test_why_a_pod_cannot_start(made: Resource, text: str, fate: Fate) -> None:
    said, found = only(made)
    assert text in said
    assert found is fate
    assert not has_started(made)


COMING = pod(**waiting("ContainerCreating"))


@pytest.mark.parametrize(
    ("happened", "text", "fate"),
    [
        (
            event("FailedMount", 'MountVolume.SetUp failed for volume "s3" : secret "jukebox-s3" not found'),
            'FailedMount: MountVolume.SetUp failed for volume "s3" : secret "jukebox-s3" not found. Make the Secret ',
            Fate.STAYS,
        ),
        (
            event("FailedMount", 'MountVolume.SetUp failed for volume "ca" : configmap "kfp-launcher" not found'),
            "Make the ConfigMap kfp-launcher.",
            Fate.STAYS,
        ),
        (
            event("FailedMount", 'MountVolume.SetUp failed for volume "s3" : references non-existent secret key: a'),
            "Add the key a.",
            Fate.STAYS,
        ),
        (
            event("FailedMount", 'MountVolume.MountDevice failed for volume "pvc-1" : rpc error: code = Internal'),
            "MountVolume.MountDevice failed",
            Fate.LASTS,
        ),
        (
            event(
                "FailedAttachVolume",
                'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) jukebox-predictor',
            ),
            "Its volume is bound to one node: set store-nodes in",
            Fate.LASTS,
        ),
        (
            event("ProvisioningFailed", 'storageclass.storage.k8s.io "nobody" not found', about="claim"),
            "See storage-class in",
            Fate.LASTS,
        ),
        (event("FailedCreatePodSandBox", "plugin type=ovn failed (add)"), "FailedCreatePodSandBox: plugin", Fate.LASTS),
    ],
)
def test_what_only_an_event_tells(happened: Resource, text: str, fate: Fate) -> None:
    said, found = only(COMING, happened)
    assert text in said
    assert found is fate
    later = [event("Pulling", "Pulling image", 11, "Normal", about) for about in ("pod", "claim")]
    assert list(causes_of_pod(COMING, [happened, *later])) == []
    assert only(COMING, *later, event("FailedMount", "again", 12))[0].endswith("FailedMount: again")


def test_what_is_on_its_way_is_no_cause() -> None:
    assert list(causes_of_pod(COMING, [event("Scheduled", "Successfully assigned", kind="Normal")])) == []
    assert list(causes_of_pod(pod(**waiting("PodInitializing")))) == []
    assert list(causes_of_pod(pod(phase="Running"), [event("FailedMount", "long ago")])) == []
    assert list(causes_of_pod({"metadata": {"name": "p"}})) == []


def test_while_it_backs_off_the_event_has_what_the_registry_said() -> None:
    backing = pod(**waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"'))
    pulled = event("Failed", f'Failed to pull image "{IMAGE}": rpc error: code = NotFound desc = {RESOLVE}not found')
    said, fate = only(
        backing, event("Pulling", "x", 10, "Normal"), pulled, event("Failed", "Error: ImagePullBackOff", 11)
    )
    assert said.startswith(f"train-model cannot start: ImagePullBackOff: not found ({IMAGE}). Push the image")
    assert fate is Fate.STAYS


@pytest.mark.parametrize(
    ("made", "log", "text"),
    [
        (
            pod(spec=LIMITED, **ended(137, "OOMKilled")),
            "",
            f"train-model: out of memory (exit code 137): its limit is 4Gi. Raise train-memory in {SETTINGS}.",
        ),
        (
            pod("fetch-data", LIMITED, **ended(137, "OOMKilled")),
            "x peak memory 812 MiB\ny peak memory 3999 MiB",
            "its limit is 4Gi, 3999 MiB were used before. Raise step-memory in",
        ),
        (
            pod("train-model-driver", LIMITED, **ended(137, "OOMKilled")),
            "",
            "Raise its limit in the platform's settings.",
        ),
        (
            pod(spec=LIMITED, **ended(137)),
            "",
            "killed, most likely because it ran out of memory (exit code 137): its limit is 4Gi.",
        ),
        (
            pod(spec=LIMITED, **ended(1)),
            "Component failed to execute successfully: signal: killed",
            "killed, most likely because it ran out of memory",
        ),
        (pod(**ended(137, "OOMKilled", "wait")), "", "the platform's container wait was killed"),
        (pod(**ended(128, "StartError")), "", "StartError: "),
        (
            pod(reason="Evicted", message="The node was low on resource: memory. main was using 3Gi", **ended(137)),
            "",
            "train-model: Evicted: The node was low on resource: memory. main was using 3Gi. Start the run again.",
        ),
        (
            pod(phase="Failed", reason="Evicted", message='Usage of EmptyDir volume "v" exceeds the limit "1Mi".'),
            "",
            'Evicted: Usage of EmptyDir volume "v" exceeds the limit "1Mi".',
        ),
        (
            pod(spec={"activeDeadlineSeconds": 21600}, reason="DeadlineExceeded", **ended(137)),
            "",
            "DeadlineExceeded: stopped at its time limit of 360 minutes.",
        ),
        (
            pod(
                phase="Failed",
                reason="OutOfmemory",
                message="Pod was rejected: Node didn't have enough resource: memory",
            ),
            "",
            "OutOfmemory: Pod was rejected: Node didn't have enough resource: memory. Start the run again.",
        ),
        (
            pod(
                phase="Failed",
                conditions=[
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByTaintManager",
                        "message": "Taint manager: deleting due to NoExecute taint",
                    }
                ],
            ),
            "",
            "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint. Start the run again.",
        ),
    ],
)
def test_why_a_pod_has_failed(made: Resource, log: str, text: str) -> None:
    said, fate = only(made, log=log)
    assert text in said
    assert fate is Fate.FAILED
    assert has_failed(made)


def test_a_step_that_says_itself_why_it_failed_is_left_to_its_log() -> None:
    assert list(causes_of_pod(pod(**ended(1)), log="ValueError: too many")) == []


FULL = 'pods "p" is forbidden: exceeded quota: {}, requested: {}, used: {}, limited: {}'


@pytest.mark.parametrize(
    ("message", "text", "fate"),
    [
        (
            FULL.format("jukebox", "requests.memory=4Gi", "requests.memory=62Gi", "requests.memory=64Gi"),
            "train-model waits: the quota jukebox is used up: requests.memory: 4Gi more than 62Gi of 64Gi. Wait for "
            f"other pods, or raise quota-memory in {SETTINGS}.",
            Fate.WAITS,
        ),
        (
            FULL.format("jukebox", "requests.cpu=20,requests.memory=4Gi", "requests.cpu=1", "requests.cpu=16"),
            f"Raise quota-cpu and quota-memory in {SETTINGS}: it exceeds the whole quota.",
            Fate.STAYS,
        ),
        (
            FULL.format("theirs", "pods=1", "pods=50", "pods=50"),
            "Wait for other pods, or ask for a larger quota.",
            Fate.WAITS,
        ),
        (
            'pods "p" is forbidden: error looking up service account ada/nope: serviceaccount "nope" not found',
            "Make the ServiceAccount nope.",
            Fate.STAYS,
        ),
        (
            'pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            "violates PodSecurity",
            Fate.STAYS,
        ),
        (
            'pods "p" is forbidden: maximum memory usage per Container is 2Gi, but limit is 4Gi',
            "maximum memory usage per Container is 2Gi",
            Fate.STAYS,
        ),
    ],
)
def test_why_there_is_no_pod(message: str, text: str, fate: Fate) -> None:
    name = "prod-train-save-x2v9k.root.train-model.executor"
    cause = cause_of_node({"name": name, "phase": "Pending", "message": message})
    assert text in str(cause)
    assert cause.fate is fate


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            "main: OOMKilled (exit code 137)",
            "train-model: out of memory (exit code 137). Raise train-memory in",
        ),
        (
            "Error (exit code 137)",
            "train-model: killed, most likely because it ran out of memory (exit code 137). Raise ",
        ),
        ("pod deleted", "train-model: pod deleted"),
    ],
)
def test_what_argo_says_of_a_pod_that_is_gone(message: str, text: str) -> None:
    name = "prod-train-save-x2v9k.root.train-model.executor(0)"
    assert text in str(cause_of_node({"name": name, "phase": "Failed", "message": message}))


def test_what_a_url_keeps_secret_is_not_shown() -> None:
    message = 'failed to do request: Get "https://ada:pass@r/v2/?X-Amz-Signature=abc": EOF'
    said, _ = only(pod(**waiting("ErrImagePull", message)))
    assert "https://r/v2/?…" in said
    assert "pass" not in said
    assert "abc" not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer eyJhbGciOi.J9-x_y", "Authorization: Bearer …"),
        ("AWS_SECRET_ACCESS_KEY=abcd/efgh+1 and more", "AWS_SECRET_ACCESS_KEY=… and more"),
        ('{"password": "hunter22", "rows": 3}', '{"password": "…", "rows": 3}'),
        ("db_password='hunter22'", "db_password='…'"),
        # What is no secret is left as it is.
        ('secret "jukebox-s3" not found', 'secret "jukebox-s3" not found'),
        ("requests.memory=4Gi", "requests.memory=4Gi"),
        ("the token has expired", "the token has expired"),
        ("SettingsInvalid: token: expected a file", "SettingsInvalid: token: expected a file"),
    ],
)
def test_a_secret_in_a_log_is_not_shown(text: str, shown: str) -> None:
    assert cleaned(text) == shown


def test_a_text_that_does_not_end_is_cut_and_one_line() -> None:
    said, _ = only(pod(**waiting("CreateContainerError", "a\nb " * 1000)))
    assert "\n" not in said
    assert len(said) < 500


words = st.text(max_size=20) | st.sampled_from(
    ["", "ErrImagePull", "Evicted", "OOMKilled", "not found", "exceeded quota: "]
)
states = st.one_of(
    st.builds(lambda reason, message: {"waiting": {"reason": reason, "message": message}}, words, words),
    st.builds(lambda code, reason: {"terminated": {"exitCode": code, "reason": reason}}, st.integers(0, 255), words),
    st.just({"running": {}}),
    st.just({}),
)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.sampled_from(["Pending", "Running", "Failed", "Succeeded", "Unknown"]),
    st.lists(st.builds(lambda state: {"name": "main", "state": state}, states), max_size=2),
    st.lists(st.builds(event, words, words, st.integers(0, 59)), max_size=3),
    words,
)
def test_whatever_a_cluster_says_is_a_line(phase: str, containers: list[Any], events: list[Any], message: str) -> None:
    made = pod(phase=phase, containerStatuses=containers, message=message)
    for cause in causes_of_pod(made, events, message):
        assert "\n" not in str(cause)
        assert str(cause).startswith("train-model")
    cause_of_node({"name": "x", "phase": "Pending", "message": message})


def test_the_step_in_a_nodes_name() -> None:
    assert step_of_node("prod-train-save-x2v9k.root.train-model.executor(0)") == "train-model"
    assert step_of_node("prod-train-save-x2v9k.root.fetch-data-driver") == "fetch-data-driver"
    assert step_of_node("prod-train-save-x2v9k") == ""
