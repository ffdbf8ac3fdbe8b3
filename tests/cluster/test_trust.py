"""What is pushed gets no key, whatever it makes of a Task, of a run or of a resource that Argo CD applies.

The policies judge pods as the controllers ask for them. Here an administrator asks in their names, by dry runs; one
TaskRun and one CronJob go the whole way.
"""

import json
from typing import Any

import pytest
import yaml

from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.project import FORK, Project
from tests.tekton.manifests import Resource

TEKTON = "system:serviceaccount:tekton-pipelines:tekton-pipelines-controller"
JOBS = "system:serviceaccount:kube-system:job-controller"
REPLICAS = "system:serviceaccount:kube-system:replicaset-controller"
ARGO_CD = "system:serviceaccount:argocd:argocd-application-controller"
SECRETS = {
    "jukebox-git-host": {"jukebox-source", "jukebox-release", "jukebox-retain", "jukebox-runs"},
    "jukebox-registry": {"jukebox-source", "jukebox-images", "jukebox-retain"},
    "jukebox-senders": {"jukebox-schedule"},
    "jukebox-chat": {"jukebox-runs"},
    "jukebox-data": {"jukebox-release"},
    "jukebox-listener": {"jukebox-listener"},
}
PRODUCT = ("jukebox-images", "jukebox-release", "jukebox-retain", "jukebox-runs", "jukebox-source")
ACCOUNTS = (*PRODUCT, "jukebox-schedule", "jukebox-steps", "jukebox-listener", "jukebox-listener-proxy")


def entrypoint(*program: str) -> dict[str, Any]:
    """A container of Tekton's: what starts a step's program when its turn has come."""
    waiting = ("-post_file", "/tekton/run/0/out", "-termination_path", "/tekton/termination")
    first, *rest = program
    return {"command": ["/tekton/bin/entrypoint"], "args": [*waiting, "-entrypoint", first, "--", *rest]}


def pod(account: str, image: str, container: dict[str, Any], **spec: Any) -> Resource:
    made = {"name": "step-a", "image": image, **container}
    whole = {"serviceAccountName": account, "restartPolicy": "Never", "containers": [made], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "attack"}, "spec": whole}


def refusal(project: Project, document: Resource, user: str, runs: bool = False) -> str:
    """What the API server says of a new resource that a controller asks for; empty if it takes it."""
    words = ("create", "--dry-run=server", "--filename=-", f"--as={user}")
    try:
        (project.kubectl if runs else project.ci)(*words, stdin=json.dumps(document))
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def image(project: Project) -> str:
    return project.settings["ci-image"]


@pytest.fixture(scope="module", autouse=True)
def controllers(project: Project) -> None:
    """Both controllers may create pods, as everywhere."""
    assert refusal(project, pod("jukebox-steps", "any", {}), TEKTON) == ""
    assert refusal(project, pod("jukebox-steps", "any", {}), JOBS) == ""


MOUNTS = ("volume", "projected", "variable", "variables")


def mounting(secret: str, way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a container and of its pod that read a Secret."""
    reference = {"secretRef": {"name": secret}}
    variable = {"name": "STOLEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "token"}}}
    projected = {"projected": {"sources": [{"secret": {"name": secret}}]}}
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "volume": ({}, {"volumes": [{"name": "a", "secret": {"secretName": secret}}]}),
        "projected": ({}, {"volumes": [{"name": "a", **projected}]}),
        "variable": ({"env": [variable]}, {}),
        "variables": ({"envFrom": [reference]}, {}),
    }
    return ways[way]


@pytest.mark.parametrize("way", MOUNTS)
@pytest.mark.parametrize("account", ACCOUNTS)
def test_each_account_mounts_its_own_secrets_alone(project: Project, image: str, account: str, way: str) -> None:
    for secret, owners in SECRETS.items():
        container, spec = mounting(secret, way)
        said = refusal(project, pod(account, image, entrypoint("jukebox", "checkout") | container, **spec), TEKTON)
        if account in owners and way not in ("projected",) and account != "jukebox-schedule":
            assert said == "", (account, secret)
        else:
            assert "ValidatingAdmissionPolicy" in said, (account, secret)


@pytest.mark.parametrize("account", ["default", "pipeline", "builder"])
def test_no_other_account_runs_pods_beside_the_secrets(project: Project, image: str, account: str) -> None:
    if account != "default":
        project.ci.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}})
    said = refusal(project, pod(account, image, entrypoint("jukebox")), JOBS)
    assert "pods of this namespace must run as one of the accounts" in said


WORKSPACE = {"name": "ws", "persistentVolumeClaim": {"claimName": "pvc-0123456789"}}
EMPTY = {"name": "ws", "emptyDir": {}}
ATTACKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another image": ({"image": "registry.example.com/evil@sha256:" + "0" * 64}, {}, "run only the image"),
    "another program": (entrypoint("sh", "-c", "cat /etc/git-host/token"), {}, "run only the command jukebox"),
    "python of the push": (entrypoint("python3", "/workspace/source/x.py"), {}, "run only the command jukebox"),
    "no entrypoint": ({"command": ["jukebox"], "args": ["status"]}, {}, "run only the command jukebox"),
    "a path": ({"env": [{"name": "PATH", "value": "/workspace/bin"}]}, {}, "not set a variable"),
    "the push's code": ({"env": [{"name": "PYTHONPATH", "value": "/workspace/source"}]}, {}, "not set a variable"),
    "a library": ({"env": [{"name": "LD_PRELOAD", "value": "/workspace/x.so"}]}, {}, "not set a variable"),
    "git's own": ({"env": [{"name": "GIT_SSH_COMMAND", "value": "sh"}]}, {}, "not set a variable"),
    "a home of the push": ({"env": [{"name": "HOME", "value": "/workspace/source"}]}, {}, "not set a variable"),
    "other settings": ({"env": [{"name": "JUKEBOX_SETTINGS", "value": "/workspace/s.yaml"}]}, {}, "not set a variable"),
    "another CA": ({"env": [{"name": "REQUESTS_CA_BUNDLE", "value": "/workspace/ca"}]}, {}, "not set a variable"),
    "variables from Git": ({"envFrom": [{"configMapRef": {"name": "mine"}}]}, {}, "not set a variable"),
    "a volume over the code": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/opt/jukebox"}]},
        {"volumes": [WORKSPACE]},
        "not mount anything over the code",
    ),
    "a volume over the packages": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/opt/venv"}]},
        {"volumes": [EMPTY]},
        "not mount anything over the code",
    ),
    "a volume over the programs": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/usr/bin/git", "subPath": "git"}]},
        {"volumes": [WORKSPACE]},
        "not mount anything over the code",
    ),
    "a volume over the home": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/tmp"}]},
        {"volumes": [WORKSPACE]},
        "not mount anything over the code",
    ),
    "settings of the push": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/etc/jukebox/settings"}]},
        {"volumes": [WORKSPACE]},
        "not mount anything over the code or the settings",
    ),
    "settings from Git": (
        {"volumeMounts": [{"name": "ws", "mountPath": "/etc/jukebox/settings"}]},
        {"volumes": [{"name": "ws", "configMap": {"name": "mine"}}]},
        "not mount anything over the code or the settings",
    ),
    "a foreign claim": ({}, {"volumes": [{"name": "ws", "persistentVolumeClaim": {"claimName": "models"}}]}, "volumes"),
    "a second container": (
        {},
        {"initContainers": [{"name": "sidecar-a", "image": "evil", "restartPolicy": "Always"}]},
        "run only the image",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("account", PRODUCT)
def test_what_has_keys_runs_the_products_own_code_alone(
    project: Project, image: str, account: str, attack: str
) -> None:
    container, spec, message = ATTACKS[attack]
    good = entrypoint("jukebox", "checkout")
    assert refusal(project, pod(account, image, good), TEKTON) == ""
    assert message in refusal(project, pod(account, image, good | container, **spec), TEKTON)


def test_a_job_of_git_runs_the_products_own_code_alone(project: Project, image: str) -> None:
    good = {"command": ["jukebox", "retain"], "args": ["--part=tasks"]}
    assert refusal(project, pod("jukebox-retain", image, good), JOBS) == ""
    for bad in ({"command": ["sh", "-c", "env"]}, {"args": ["jukebox"]}):
        assert "run only the command jukebox" in refusal(project, pod("jukebox-retain", image, bad), JOBS)
    # A name of one of Tekton's own containers is nobody else's.
    first = [{"name": "prepare", "image": "evil"}]
    assert "run only the image" in refusal(project, pod("jukebox-retain", image, good, initContainers=first), JOBS)
    sends = {
        "command": ["jukebox", "replay", "schedule"],
        "args": ["--secret-file=/etc/sender/token", "--url=http://el"],
    }
    said = refusal(project, pod("jukebox-schedule", image, sends), JOBS)
    assert "the schedule may send its token only to the listener" in said


def test_the_proxy_before_the_listener_runs_nginx_of_the_ci_image_alone(project: Project, image: str) -> None:
    deployment = project.ci.get("deployment/jukebox-listener-proxy")
    spec = {**deployment["spec"]["template"]["spec"], "restartPolicy": "Always"}
    [container] = spec.pop("containers")
    account = "jukebox-listener-proxy"
    assert refusal(project, pod(account, image, container, **spec), REPLICAS) == ""
    for bad, message in (
        ({"image": "evil"}, "run only the image"),
        ({"command": ["sh", "-c", "env"]}, "may run only nginx"),
        ({"args": ["-g", "load_module /config/evil.so;"]}, "may run only nginx"),
        ({"command": [*container["command"][:-1], "/config/other.conf"]}, "may run only nginx"),
        ({"env": [{"name": "LD_PRELOAD", "value": "/config/evil.so"}]}, "not set a variable"),
    ):
        assert message in refusal(project, pod(account, image, {**container, **bad}, **spec), REPLICAS), bad
    # Nor does a Task have that account.
    said = refusal(project, pod(account, image, entrypoint("nginx", *container["command"][1:])), TEKTON)
    assert "may run only nginx" in said


@pytest.mark.parametrize("way", MOUNTS)
def test_the_steps_of_the_pipeline_mount_no_secret_but_their_own(project: Project, way: str) -> None:
    runner = "default-editor" if projects.KUBEFLOW else "pipeline-runner-dspa"
    for account, secrets in {
        runner: {"jukebox-data": "", "jukebox-store": "", "jukebox-alert": "only", "a-token": "only"},
        "default": {"jukebox-data": "only", "jukebox-s3": "only", "jukebox-store": "", "others": ""},
    }.items():
        for secret, refused in secrets.items():
            container, spec = mounting(secret, way)
            said = refusal(project, pod(account, "any", container, **spec), JOBS, runs=True)
            assert (refused in said) if refused else said == "", (account, secret, said)


def test_the_steps_of_the_pipeline_mount_no_claim_but_the_store(project: Project) -> None:
    def claim(name: str) -> Resource:
        volume = {"name": "a", "persistentVolumeClaim": {"claimName": name}}
        runner = "default-editor" if projects.KUBEFLOW else "pipeline-runner-dspa"
        return pod(runner, "any", {}, volumes=[volume])

    assert refusal(project, claim("jukebox-model-pvc"), JOBS, runs=True) == ""
    assert "may mount only the claim jukebox-model-pvc" in refusal(project, claim("mariadb-dspa"), JOBS, runs=True)


def test_git_changes_nothing_that_the_product_relies_on(project: Project) -> None:
    for name in ("jukebox-settings", "jukebox-images", "jukebox-commits", "jukebox-trusted-ca"):
        words = ("patch", f"configmap/{name}", "--type=merge", "--dry-run=server", f"--as={ARGO_CD}")
        with pytest.raises(RuntimeError, match=rf"ConfigMap {name} is written by bootstrap, by people"):
            project.ci(*words, '--patch={"data": {"a": "b"}}')
        with pytest.raises(RuntimeError, match=rf"ConfigMap {name} is written by bootstrap, by people"):
            project.ci("delete", f"configmap/{name}", "--dry-run=server", f"--as={ARGO_CD}")


def test_a_task_of_the_push_that_would_read_a_key_does_not_run(project: Project, image: str) -> None:
    """The whole way: Tekton asks for the pod, and says why there is none."""
    step = {"name": "steal", "image": image, "command": ["cat"], "args": ["/etc/git-host/token"]}
    volume = {"name": "git-host", "secret": {"secretName": "jukebox-git-host"}}
    spec = {"serviceAccountName": "jukebox-source", "taskSpec": {"steps": [step], "volumes": [volume]}}
    document = {"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "metadata": {"name": "steal"}, "spec": spec}
    project.ci.apply(document)
    try:
        ended = project.ci.finished("taskrun/steal")
        [condition] = ended["status"]["conditions"]
        assert condition["status"] == "False"
        assert "run only the command jukebox" in condition["message"], condition
    finally:
        project.ci("delete", "taskrun/steal")


def test_an_overlay_that_is_pushed_with_a_thief_changes_nothing(project: Project, image: str) -> None:
    """Argo CD applies a CronJob of the push, and its Job gets no pod."""
    cronjob = yaml.safe_load((FORK / "tekton/triggers/cronjob-retain-tasks.yaml").read_text())
    cronjob["metadata"] |= {"name": "thief", "namespace": projects.CI_NAMESPACE}
    template = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    template["containers"][0] |= {"image": image, "command": ["sh"], "args": ["-c", "cat /secret/*"]}
    project.ci.apply(cronjob)
    try:
        project.ci("create", "job", "thief", "--from=cronjob/thief")
        node.wait("refusal", lambda: "run only the command jukebox" in project.ci("describe", "job/thief"))
        assert not project.ci("get", "pods", "--selector=job-name=thief", "--output=name")
    finally:
        project.ci("delete", "cronjob/thief", "job/thief", "--ignore-not-found")


def test_the_account_of_a_run_sees_no_key_of_the_ci(project: Project) -> None:
    """It may read every Secret of its own namespace, as the platform has it; so those are not there."""
    runner = "default-editor" if projects.KUBEFLOW else "pipeline-runner-dspa"
    asked = f"--as=system:serviceaccount:{projects.NAMESPACE}:{runner}"
    with pytest.raises(RuntimeError, match="cannot list resource"):
        project.ci("get", "secrets", asked)
    held = set(project.kubectl("get", "secrets", "--output=jsonpath={.items[*].metadata.name}").split())
    assert not held & {"jukebox-git-host", "jukebox-registry", "jukebox-senders", "jukebox-chat", "jukebox-listener"}
