"""The product's listener in a cluster, and those who send to it."""

import contextlib
import hashlib
import hmac
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from scripts.clients.git_hosts import Host
from scripts.replay import SENDERS, Event, Facts, Kind, build_event
from scripts.secrets import LISTENER
from tests.active_model import TABLES
from tests.cluster import images, node
from tests.cluster.kubectl import Kubectl
from tests.tekton import manifests

SECRETS = {
    sender: f"{sender}-secret-of-the-tests" for sender in ("github", "gitlab", "gitea", "data", "alert", "schedule")
}
PUSHES = (Kind.PUSH, Kind.PUSH_GITLAB, Kind.PUSH_GITEA)
REPOSITORY = "https://github.com/acme/jukebox"
# As somebody has copied it from a browser; the senders spell it as above.
ADDRESS = "https://github.com/Acme/Jukebox/"
COUNTER = itertools.count(1)


def commit() -> str:
    """The hash of a commit that no other event has."""
    return hashlib.sha1(str(next(COUNTER)).encode(), usedforsecurity=False).hexdigest()


def moment() -> datetime:
    """A day that no other event has: names of runs are made of times."""
    return datetime.fromordinal(datetime(2020, 1, 1).toordinal() + next(COUNTER)).replace(hour=7, minute=38, tzinfo=UTC)


@dataclass
class Listener:
    """The listener as a fork on GitHub has it, and that of forks on the other Git hosts.

    Attributes:
        urls: where each kind of event is sent.
        busy: whether something was sent that may not be dealt with yet.
    """

    kubectl: Kubectl
    urls: Mapping[Kind, str]
    http: requests.Session = field(default_factory=requests.Session)
    sent: list[tuple[Kind, Event]] = field(default_factory=list)
    busy: bool = False

    def facts(self, **values: Any) -> Facts:
        """An event of its own: nothing that a run is named by is another's."""
        facts = Facts(repository=REPOSITORY, commit=commit(), key=f"{TABLES[0]}/1.parquet", now=moment())
        return replace(facts, **values)

    def post(self, kind: Kind, event: Event) -> None:
        answer = self.http.post(self.urls[kind], data=event.body, headers=dict(event.headers), timeout=30)
        assert answer.status_code in (202, 400), answer.text
        self.busy = True
        self.sent.append((kind, event))

    def send(self, kind: Kind, facts: Facts, secret: str | None = None) -> None:
        self.post(kind, build_event(kind, facts, SECRETS[SENDERS[kind]] if secret is None else secret))

    def names(self) -> set[str]:
        """Names of the PipelineRuns."""
        return self.kubectl.names("tekton.dev/v1", "pipelineruns")

    def until(self, condition: Callable[[set[str]], object], seconds: float = node.PATIENCE) -> set[str]:
        found: set[str] = set()

        def ready() -> object:
            found.clear()
            found.update(self.names())
            return condition(found)

        node.wait("PipelineRun", ready, seconds)
        return found

    def control(self) -> set[str]:
        """Return when what was sent is dealt with: good events have passed since, one after the other.

        Returns:
            The names of their runs.
        """
        passed = set()
        for _ in range(2):
            facts = self.facts()
            passed.add(name := f"push-{facts.commit[:12]}")
            self.deliver({name: facts})
        self.busy = False
        return passed

    def offer(self, facts: Facts) -> bool:
        """Send a push; whether it is taken. A sender sees no more."""
        try:
            self.send(Kind.PUSH, facts)
        except (requests.RequestException, AssertionError):
            return False
        return True

    def deliver(self, pushes: Mapping[str, Facts], seconds: float = 10) -> Counter[str]:
        """Send pushes until each has its run, by that name; return what became of the deliveries.

        Triggers takes an event with 202 and may still lose it, when its interceptors cannot read a secret in time or
        one of its parts is killed. Then its sender delivers it again, at a person's wish or that of a job that looks
        for the run; here, when no run has come for some seconds.
        """
        became: Counter[str] = Counter()
        missing = dict(pushes)
        for _ in range(10):
            with ThreadPoolExecutor(4) as pool:
                taken = sum(pool.map(self.offer, missing.values()))
            there = self.settled(pushes.keys(), seconds)
            left = {name: facts for name, facts in missing.items() if name not in there}
            became["refused"] += len(missing) - taken
            became["lost"] += max(0, taken - len(missing) + len(left))
            missing = left
            if not missing:
                return became
        raise AssertionError(f"no run for {sorted(missing)}")

    def settled(self, wanted: Set[str], seconds: float) -> set[str]:
        """The names when those that are wanted are there, or when none has come for some seconds."""
        there = self.names()
        with contextlib.suppress(TimeoutError):
            while not wanted <= there:
                known = len(there)
                there = self.until(lambda names, known=known: len(names) > known, seconds)  # type: ignore[misc]
        return there

    @contextlib.contextmanager
    def creating(self, count: int) -> Iterator[list[dict[str, Any]]]:
        """What is sent in this block creates so many runs, which are in the list afterwards, and no more.

        All of it is sent again while one is missing, for Triggers may lose what it has taken.
        """
        if self.busy:
            self.control()
        before = self.names()
        runs: list[dict[str, Any]] = []
        self.sent.clear()
        yield runs
        events = list(self.sent)
        for _ in range(10):
            with contextlib.suppress(TimeoutError):
                self.until(lambda names: len(names - before) >= count, 10)
                break
            for kind, event in events:
                self.post(kind, event)
        between = self.names()
        self.control()
        new = between - before
        assert len(new) == count, new
        assert len(self.names() - between) == 2, "something came late"
        runs += [run for run in self.kubectl.get("pipelineruns")["items"] if run["metadata"]["name"] in new]

    def forget(self) -> None:
        """Delete all runs: long lists are slow."""
        self.kubectl("delete", "--raw", f"/apis/tekton.dev/v1/namespaces/{self.kubectl.namespace}/pipelineruns")


def signed(event: Event, secret: str) -> Event:
    """The event with the signature of its body, where its sender signs."""
    headers = dict(event.headers)
    if "X-Hub-Signature-256" in headers:
        headers["X-Hub-Signature-256"] = f"sha256={hmac.new(secret.encode(), event.body, hashlib.sha256).hexdigest()}"
    return Event(headers, event.body)


def changed(event: Event, secret: str, change: Callable[[Any], object]) -> Event:
    """The event with another body, signed anew."""
    body = json.loads(event.body)
    change(body)
    return signed(Event(event.headers, json.dumps(body).encode()), secret)


def senders(kubectl: Kubectl, secrets: dict[str, str]) -> None:
    """Give the listener the secrets of its senders."""
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "jukebox-senders"}, "stringData": secrets}
    )


@contextlib.contextmanager
def installed(kubectl: Kubectl, folder: Path) -> Iterator[Listener]:
    """The manifests in the namespace of a CI, which is there; the runs that the listener creates do not start."""
    project = kubectl.namespace.removesuffix("-ci")

    def build(host: str) -> list[manifests.Resource]:
        # The limits of one client are those of all here; that they hold is tested beside the manifests.
        limits = {"event_rate": "9999r/s", "event_burst": "9999"}
        built = manifests.build(kubectl.program, folder / host, project, host, repository=ADDRESS, **limits)
        # What is in the other namespace has nothing to do here.
        return [each for each in built if each["metadata"].get("namespace") in (None, kubectl.namespace)]

    resources = build("github")
    for resource in resources:
        if resource["kind"] == "TriggerTemplate":
            resource["spec"]["resourcetemplates"][0]["spec"]["status"] = "PipelineRunPending"
        if resource["kind"] == "Deployment":
            # As the image of the CI has it.
            nginx = images.of_debian("nginx", "nginx-light", User="1001")
            resource["spec"]["template"]["spec"]["containers"][0]["image"] = nginx
    for host in (Host.GITLAB, Host.GITEA):
        for resource in build(host):
            if resource["kind"] == "EventListener":
                resource["metadata"]["name"] = f"jukebox-{host}"
                resources.append(resource)
    metadata = {"name": "jukebox-listener"}
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": LISTENER}, *resources)
    senders(kubectl, SECRETS)
    # Those that are not of a fork as it is have no proxy.
    names = {Kind.PUSH_GITLAB: "el-jukebox-gitlab", Kind.PUSH_GITEA: "el-jukebox-gitea"}
    urls = {}
    with contextlib.ExitStack() as stack:
        kubectl.wait("condition=Available", "deployment/jukebox-listener-proxy")
        node.wait("el-jukebox", lambda: kubectl("get", "deployment/el-jukebox"))
        kubectl.wait("condition=Available", "deployment/el-jukebox")
        for name in ("jukebox-listener-proxy", *names.values()):
            node.wait(name, lambda name=name: kubectl("get", f"deployment/{name}", f"service/{name}"))  # type: ignore[misc]
            kubectl.wait("condition=Available", f"deployment/{name}")
            urls[name] = stack.enter_context(kubectl.forward(name, 8080))
        made = Listener(kubectl, {kind: urls[names.get(kind, "jukebox-listener-proxy")] for kind in Kind})
        made.http.trust_env = False
        yield made
