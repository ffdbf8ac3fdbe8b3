"""Fixtures of the tests that need a real cluster, and the gathering of logs when one fails."""

import os
import uuid
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from scripts import pins
from tests.cluster import build, node, runs
from tests.cluster import cluster as tier
from tests.cluster import kserve as kserve_tier
from tests.cluster import project as projects
from tests.cluster.kubectl import Kubectl
from tests.cluster.listener import Listener, installed
from tests.cluster.project import Project
from tests.scripts.test_predict import WEIGHTS, publish

FAILED = pytest.StashKey[bool]()
COMING = pytest.StashKey[Future[Project]]()
# The files in their order: what takes the node down comes first, for later tests share one; then what does without a
# project, which comes up meanwhile, the worst last; then the one project's life.
ORDER = (
    *("down", "build", "patience", "node", "network", "failures", "triggers", "hostile", "burst", "kserve"),
    # doctor leaves another token, so no run of a push comes after it.
    *(
        "preflight",
        "bootstrap",
        "kubeflow",
        "whole_way",
        "promotion",
        "images",
        "gitops",
        "access",
        "trust",
        "second_model",
    ),
    *("doctor", "teardown"),
)
collect_ignore = [] if projects.KUBEFLOW else ["test_kubeflow.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "Forge requests and burst at full size: ten times what is sent otherwise, as `make soak` does."
    parser.addoption("--soak", action="store_true", help=words)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.stem.removeprefix("test_")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def failed(request: pytest.FixtureRequest) -> bool:
    """Whether a test has failed that uses the fixture that asks."""
    name = request.fixturename
    return any(item.stash.get(FAILED, False) for item in request.session.items if name in fixtures(item))


def fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def share(request: pytest.FixtureRequest) -> float:
    """How much is sent of what a soak sends."""
    return 1 if request.config.getoption("soak") else 0.1


@pytest.fixture(scope="session")
def own_cluster(request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """The node, with Tekton if a test needs it; one that was up before stays up. Needs no KUBECONFIG."""
    found = node.init() is not None
    needed = {name for item in request.session.items for name in fixtures(item)}
    room = projects.ROOM if "surroundings" in needed else tier.ROOM
    try:
        kubectl = tier.up(with_tekton="tekton" in needed, room=room)
    except build.Unavailable as missing:
        pytest.exit(str(missing), returncode=1)
    with ThreadPoolExecutor(1) as pool:
        if "surroundings" in needed:  # they come up beside the tests that do without
            request.session.stash[COMING] = pool.submit(anew, kubectl)
        yield kubectl
    tier.gather()
    if not found:
        node.down()


def anew(kubectl: Kubectl) -> Project:
    """The surroundings of a project; what is left of an earlier one goes first."""
    projects.down(kubectl)
    return projects.up(kubectl)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Kubectl:
    """The cluster of ``KUBECONFIG`` where it is set, and else the node of this folder."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        try:
            return tier.existing(kubeconfig)
        except build.Unavailable as missing:
            pytest.exit(str(missing), returncode=1)
    kubectl: Kubectl = request.getfixturevalue("own_cluster")
    return kubectl


@pytest.fixture(scope="session")
def tekton(cluster: Kubectl) -> None:
    """Tekton, which comes with the cluster if any test asks for it here."""


@pytest.fixture(scope="session")
def registry(cluster: Kubectl) -> str:
    """The registry that pods push to and the node pulls from, over TLS by ``node.CA``."""
    if cluster.kubeconfig != str(node.KUBECONFIG):
        pytest.skip("KUBECONFIG names a cluster, of which no registry is known")
    return node.REGISTRY


@pytest.fixture(scope="session")
def kserve(cluster: Kubectl, registry: str, request: pytest.FixtureRequest) -> None:
    """KServe's controller, installed for the first test that needs it."""
    if coming := request.session.stash.get(COMING, None):
        coming.result()
    kserve_tier.install(cluster)


@pytest.fixture(scope="session")
def surroundings(cluster: Kubectl, tekton: None, registry: str, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A project whose fork is in Git, and of which nothing is in the cluster."""
    made = request.session.stash[COMING].result()
    yield made
    if failed(request):
        for name, kubectl in {
            "project": made.kubectl,
            "ci": made.ci,
            "surroundings": made.surroundings,
            "argocd": made.argocd,
        }.items():
            build.say(f"logs and events are in {tier.gather(kubectl, name)}")


@pytest.fixture(scope="session")
def project(surroundings: Project) -> Project:
    """The project, which Argo CD has brought up."""
    if not surroundings.argocd("get", "application", projects.APPLICATION, "--ignore-not-found"):
        projects.bootstrap(surroundings)
    return surroundings


@pytest.fixture(scope="session")
def published(project: Project) -> Project:
    """The project with two models at least, one of which is served: if no run has made them, by hand."""
    store = project.kubectl.model_store()
    for index in range(len(runs.models(project)), 2):
        publish(store, f"by hand {index}", (WEIGHTS, WEIGHTS[::-1])[index], golden=None)
    if pins.read_pin(projects.FORK).version is None:
        project.pin(min(runs.models(project)))
    project.push(projects.PRODUCTION)  # what a test has pushed without a training is not there
    project.sync()
    return project


@pytest.fixture
def kubectl(cluster: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """``kubectl`` in a namespace of the test's own; its logs and events are kept if the test fails."""
    bound = cluster.within(f"test-{uuid.uuid4().hex[:8]}")
    bound.create_namespace()
    yield bound
    if request.node.stash.get(FAILED, False):
        folder = tier.gather(bound, request.node.name)
        request.node.add_report_section("teardown", "logs", f"Logs and events of {bound.namespace} are in {folder}")
    cluster("delete", "namespace", bound.namespace, "--wait=false")


@pytest.fixture
def namespace(kubectl: Kubectl) -> str:
    """The name of the test's own namespace."""
    return kubectl.namespace


@pytest.fixture(scope="session")
def listener(
    cluster: Kubectl, tekton: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Listener]:
    """The listener in a namespace of its own; what it creates does not start."""
    bound = cluster.within(f"test-listener-{uuid.uuid4().hex[:8]}-ci")
    bound.create_namespace()
    with installed(bound, tmp_path_factory.mktemp("manifests")) as made:
        yield made
    if failed(request):
        build.say(f"logs and events of the listener are in {tier.gather(bound, 'listener')}")
    cluster("delete", "namespace", bound.namespace, "--wait=false")
    cluster(
        "delete",
        "clusterrole,clusterrolebinding",
        f"jukebox-listener.{bound.namespace.removesuffix('-ci')}",
        "--wait=false",
    )
