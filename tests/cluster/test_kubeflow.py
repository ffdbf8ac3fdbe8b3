"""From `git push` to a served model on Kubeflow, as companies have it (``PLATFORM=kubeflow``).

The namespace is a Profile's, and enforces Pod Security's level restricted. The pipeline server is in another one; it
speaks http and takes tokens of its audience alone. Images come from a registry behind a private CA that wants a
password, packages through a forward proxy.
"""

import json

import pytest

from tests.cluster import node
from tests.cluster import project as projects
from tests.cluster.project import FORK, Project
from tests.cluster.runs import Run, predicted, promoted, pushed, replace
from tests.kfp.in_cluster import AUDIENCE

OPTIONS = FORK / "pipeline" / "core" / "contract.py"


@pytest.fixture(scope="module")
def trained(project: Project) -> Run:
    """The run of a push that changes what the network learns."""
    replace(OPTIONS, "learning_rate: float = Field(0.003", "learning_rate: float = Field(0.004")
    run = pushed(project, "Learn a little faster")
    assert run.reason == "Completed", run.told
    promoted(project)
    return run


def test_a_push_becomes_a_served_model(project: Project, trained: Run) -> None:
    assert trained.results["run-state"] == "succeeded"
    answer, labels = predicted(project, 1)
    assert "jukebox version 1" in answer
    assert any(label in answer for label in labels)


def test_every_pod_is_restricted(project: Project, trained: Run) -> None:
    namespace = project.kubectl.get(f"namespace/{projects.NAMESPACE}")["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = [pod for kubectl in (project.kubectl, project.ci) for pod in kubectl.get("pods")["items"]]
    labels = {key for pod in pods for key in pod["metadata"].get("labels", {})}
    sorts = {"tekton.dev/taskRun", "pipeline/runid", "eventlistener", "serving.kserve.io/inferenceservice"}
    assert labels >= sorts
    for sort in ("eventlistener", "serving.kserve.io/inferenceservice"):
        [pod, *_] = [pod for pod in pods if sort in pod["metadata"].get("labels", {})]
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_the_model_store_is_its_steps_and_the_model_server_reads_it_as_somebody_else(
    project: Project, trained: Run
) -> None:
    store = project.kubectl.model_store().stat()
    assert (store.st_uid, store.st_gid, oct(store.st_mode & 0o7777)) == (0, 0, "0o2775")
    server = ("exec", "deployment/jukebox-predictor", "--container=kserve-container", "--", "id", "-u")
    assert project.kubectl(*server).strip() == "5000"


@pytest.mark.parametrize(
    ("account", "audience", "status"),
    [
        ("jukebox-release", AUDIENCE, 200),
        ("jukebox-release", "https://kubernetes.default.svc", 401),
        ("jukebox-steps", AUDIENCE, 403),
    ],
)
def test_the_pipeline_server_takes_a_token_of_its_audience_and_of_who_may(
    project: Project, trained: Run, account: str, audience: str, status: int
) -> None:
    token = project.ci("create", "token", account, f"--audience={audience}").strip()
    with node.session() as http:
        answer = http.get(
            f"http://{projects.PIPELINE_SERVER}:{projects.SERVER.port}/apis/v2beta1/experiments",
            params={"namespace": projects.NAMESPACE},
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )
    assert answer.status_code == status, answer.text


def test_images_come_from_a_registry_that_wants_a_password(project: Project, trained: Run) -> None:
    with node.session() as http:
        assert http.get(f"https://{node.GUARDED_REGISTRY}/v2/", timeout=30).status_code == 401
    pods = [pod for kubectl in (project.kubectl, project.ci) for pod in kubectl.get("pods")["items"]]
    images = {
        container["image"]
        for pod in pods
        for container in pod["spec"]["containers"]
        if "jukebox-" in container["image"] or "model-server" in container["image"]
    }
    assert len(images) >= 3
    assert all(image.startswith(f"{node.GUARDED_REGISTRY}/") for image in images), images
    assert trained.results["image"].startswith(f"{node.GUARDED_REGISTRY}/{projects.TRAINING}@")


def test_packages_come_through_the_proxy(project: Project, trained: Run) -> None:
    assert "packages.example.com" in project.surroundings("logs", "deployment/proxy")
    assert "build-packages" in trained.tasks


def test_the_preflight_finds_nothing_to_mend(project: Project, trained: Run) -> None:
    said = project.jukebox("doctor", "--preflight", "--output=json")
    assert [each for each in json.loads(said) if each["state"] == "fail"] == []
