"""What comes through the listener, and what does not: each sender's events against the real Triggers."""

import contextlib
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from scripts.replay import Event, Facts, Kind, build_event
from tests.cluster import build, node
from tests.cluster import cluster as tier
from tests.cluster.conftest import FAILED
from tests.cluster.kubectl import Kubectl
from tests.tekton import manifests

SECRETS = {
    sender: f"{sender}-secret-of-the-tests" for sender in ("github", "gitlab", "gitea", "data", "alert", "schedule")
}
SENDER = {
    Kind.PUSH: "github",
    Kind.PUSH_GITLAB: "gitlab",
    Kind.PUSH_GITEA: "gitea",
    Kind.DATA: "data",
    Kind.DATA_CLOUDEVENT: "data",
    Kind.ALERT: "alert",
    Kind.SCHEDULE: "schedule",
}
PUSHES = (Kind.PUSH, Kind.PUSH_GITLAB, Kind.PUSH_GITEA)
TOKENS = (Kind.DATA, Kind.DATA_CLOUDEVENT, Kind.ALERT, Kind.SCHEDULE)
COUNTER = itertools.count(1)


def commit() -> str:
    """The hash of a commit that no other event has."""
    return hashlib.sha1(str(next(COUNTER)).encode(), usedforsecurity=False).hexdigest()


def moment() -> datetime:
    """A day that no other event has: names of runs are made of times."""
    return datetime.fromordinal(datetime(2020, 1, 1).toordinal() + next(COUNTER)).replace(hour=7, minute=38, tzinfo=UTC)


@dataclass
class Listener:
    kubectl: Kubectl
    url: str
    http: requests.Session = field(default_factory=requests.Session)

    def facts(self, **values: Any) -> Facts:
        ours = Facts(repository="https://github.com/acme/jukebox", commit=commit(), now=moment())
        return replace(ours, **values)

    def post(self, event: Event) -> None:
        answer = self.http.post(self.url, data=event.body, headers=dict(event.headers), timeout=30)
        assert answer.status_code in (202, 400), answer.text

    def send(self, kind: Kind, facts: Facts, secret: str | None = None) -> None:
        self.post(build_event(kind, facts, SECRETS[SENDER[kind]] if secret is None else secret))

    def names(self) -> set[str]:
        listed: list[str] = []

        def ask() -> bool:
            listed.append(self.kubectl("get", "pipelineruns", "--output=jsonpath={.items[*].metadata.name}"))
            return True

        node.wait("list of PipelineRuns", ask)  # in a burst the API server may be too busy for once
        return set(listed[-1].split())

    def until(self, condition: Callable[[set[str]], object], seconds: float = 60) -> set[str]:
        found: set[str] = set()

        def ready() -> object:
            found.clear()
            found.update(self.names())
            return condition(found)

        node.wait("PipelineRun", ready, seconds)
        return found

    def control(self) -> None:
        """Return when what was sent is dealt with: two good events have passed since, one after the other."""
        for _ in range(2):
            facts = self.facts()
            self.send(Kind.PUSH, facts)
            self.until(lambda names, facts=facts: f"push-{facts.commit[:12]}" in names)  # type: ignore[misc]

    @contextlib.contextmanager
    def creating(self, count: int) -> Iterator[list[dict[str, Any]]]:
        """What is sent in this block creates so many runs, which are in the list afterwards, and no more."""
        self.control()
        before = self.names()
        runs: list[dict[str, Any]] = []
        yield runs
        self.until(lambda names: len(names - before) >= count)
        between = self.names()
        self.control()
        new = between - before
        assert len(new) == count, new
        assert len(self.names() - between) == 2, "something came late"
        runs += [self.kubectl.get(f"pipelinerun/{name}") for name in sorted(new)]


@pytest.fixture(scope="module")
def listener(
    cluster: Kubectl, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Listener]:
    """The listener in a namespace of its own; what it creates does not start."""
    kubectl = cluster.within("test-triggers")
    cluster("delete", "namespace", kubectl.namespace, "--ignore-not-found", "--wait=true")
    cluster("create", "namespace", kubectl.namespace)
    node.wait("service account", lambda: kubectl("get", "serviceaccount", "default"))
    resources = manifests.build(kubectl.program, tmp_path_factory.mktemp("manifests"), kubectl.namespace)
    for resource in resources:
        if resource["kind"] == "TriggerTemplate":
            resource["spec"]["resourcetemplates"][0]["spec"]["status"] = "PipelineRunPending"
    kubectl.apply(*resources)
    senders(kubectl, SECRETS)
    node.wait("listener", lambda: kubectl("get", "deployment", "el-jukebox"))
    kubectl("wait", "--for=condition=Available", "deployment/el-jukebox", "--timeout=120s")
    with kubectl.forward("service/el-jukebox", 8080) as url:
        made = Listener(kubectl, url)
        made.http.trust_env = False
        yield made
    if any(item.stash.get(FAILED, False) for item in request.session.items if item.path == request.path):
        build.say(f"logs and events of the listener are in {tier.gather(kubectl, 'triggers')}")
    cluster("delete", "namespace", kubectl.namespace, "--wait=false")
    cluster("delete", "clusterrolebinding", f"jukebox-listener.{kubectl.namespace}", "--wait=false")


def senders(kubectl: Kubectl, secrets: dict[str, str]) -> None:
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "jukebox-senders"}, "stringData": secrets}
    )


def parameters(run: dict[str, Any]) -> dict[str, str]:
    return {param["name"]: param["value"] for param in run["spec"]["params"]}


def label(run: dict[str, Any], name: str) -> str:
    return str(run["metadata"]["labels"][f"jukebox.github.io/{name}"])


def changed(event: Event, secret: str, change: Callable[[Any], object]) -> Event:
    """The event with another body, signed anew where its sender signs."""
    body = json.loads(event.body)
    change(body)
    content = json.dumps(body).encode()
    headers = dict(event.headers)
    digest = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
    if "X-Hub-Signature-256" in headers:
        headers["X-Hub-Signature-256"] = f"sha256={digest}"
    return Event(headers, content)


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_creates_one_run_of_its_commit_and_a_redelivery_none(listener: Listener, kind: Kind) -> None:
    facts = listener.facts(message='Say "hi" \\ $(params.reason) `id` ; ♥\n\nMore', author="Ada 'x' \"y\"")
    with listener.creating(1) as runs:
        listener.send(kind, facts)
        listener.send(kind, facts)
    [run] = runs
    assert run["metadata"]["name"] == f"push-{facts.commit[:12]}"
    assert parameters(run) == {
        "reason": "push",
        "commit": facts.commit,
        "author": "Ada 'x' \"y\"",
        "message": 'Say "hi" \\ (params.reason) `id` ; ♥',
        "not-before": "",
    }
    assert (label(run, "reason"), label(run, "commit"), label(run, "event")) == ("push", facts.commit, facts.delivery)


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_that_is_none_of_ours_creates_nothing(listener: Listener, kind: Kind) -> None:
    secret = SECRETS[SENDER[kind]]
    good = build_event(kind, listener.facts(), secret)
    with listener.creating(0):
        listener.send(kind, listener.facts(branch="other"))
        listener.send(kind, listener.facts(branch="main2"))
        listener.send(kind, listener.facts(branch="x/refs/heads/main"))
        listener.send(kind, listener.facts(repository="https://github.com/mallory/jukebox"))
        listener.send(kind, listener.facts(commit="0" * 40))
        listener.send(kind, listener.facts(commit="$(id)" + "a" * 35))
        listener.send(kind, listener.facts(commit="../../etc/passwd"))
        listener.post(changed(good, secret, lambda body: body.update(ref="refs/tags/main")))
        listener.post(changed(good, secret, lambda body: body.pop("ref")))
        listener.post(changed(good, secret, lambda body: body.update(after=None, checkout_sha=None)))
        listener.post(changed(good, secret, lambda body: body.update(after=7, checkout_sha=7)))


@pytest.mark.parametrize("kind", PUSHES)
def test_what_cannot_change_a_model_trains_nothing(listener: Listener, kind: Kind) -> None:
    with listener.creating(0):
        for path in ("README.md", "docs/a/b.txt", "manifests/overlays/kubeflow/prod/version.yaml", "argocd/app.yaml"):
            listener.send(kind, listener.facts(path=path))
    with listener.creating(3):
        for path in ("manifests/settings.yaml", "pipeline/network.py", "docs.py"):
            listener.send(kind, listener.facts(path=path))


@pytest.mark.parametrize("kind", PUSHES)
def test_one_file_among_texts_trains(listener: Listener, kind: Kind) -> None:
    facts = listener.facts(path="README.md")
    good = build_event(kind, facts, SECRETS[SENDER[kind]])

    def add(body: Any) -> None:
        first = body["commits"][0]
        body["commits"].insert(
            0, {**first, "id": "3" * 40, "added": None, "modified": [], "removed": ["pipeline/x.py"]}
        )
        body["total_commits_count"] = 2

    with listener.creating(1):
        listener.post(changed(good, SECRETS[SENDER[kind]], add))


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_whose_files_are_not_told_trains(listener: Listener, kind: Kind) -> None:
    good = build_event(kind, listener.facts(path="README.md"), SECRETS[SENDER[kind]])

    def forget(body: Any) -> None:
        for one in body["commits"]:
            one["added"] = one["removed"] = one["modified"] = []

    with listener.creating(1):
        listener.post(changed(good, SECRETS[SENDER[kind]], forget))


@pytest.mark.parametrize("kind", SENDER)
def test_without_its_senders_secret_an_event_creates_nothing(listener: Listener, kind: Kind) -> None:
    def stripped(event: Event, *words: str) -> Event:
        return Event({key: value for key, value in event.headers.items() if not key.startswith(words)}, event.body)

    secret = SECRETS[SENDER[kind]]
    good = build_event(kind, listener.facts(), secret)
    with listener.creating(0):
        for wrong in (
            "wrong",
            secret[:-1],
            secret + "x",
            "",
            "Bearer ",
            SECRETS["alert" if kind != Kind.ALERT else "data"],
        ):
            listener.send(kind, listener.facts(), wrong)
        listener.post(stripped(good, "X-Hub", "X-Gitlab-Token", "X-Gitea-Signature", "Authorization"))
        if kind in (Kind.PUSH, Kind.PUSH_GITEA):
            listener.post(Event(good.headers, good.body + b" "))
            listener.post(stripped(good, "X-Hub"))
        if kind in PUSHES:
            listener.post(stripped(good, "X-GitHub-Event", "X-Gitlab-Event", "X-Gitea-Event", "X-Gogs-Event"))
        else:
            listener.post(Event({**good.headers, "Authorization": f"Basic {secret}"}, good.body))
            listener.post(Event({**good.headers, "Authorization": secret}, good.body))


def test_an_upload_of_many_objects_is_one_run_that_waits_for_its_end(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        for minute in (30, 34, 39):
            facts = listener.facts(key=f"songs/ä b+{minute}.parquet", now=now.replace(minute=minute))
            listener.send(Kind.DATA, facts)
            listener.send(Kind.DATA_CLOUDEVENT, facts)
    [run] = runs
    assert run["metadata"]["name"] == f"data-{now:%Y%m%d}0730"
    assert parameters(run) == {
        "reason": "data",
        "commit": "",
        "author": "",
        "message": "",
        "not-before": f"{now:%Y-%m-%d}T07:40:00Z",
    }
    with listener.creating(1):
        listener.send(Kind.DATA, listener.facts(key="rankings/1.parquet", now=now.replace(minute=40)))


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.DATA_CLOUDEVENT])
def test_objects_elsewhere_train_nothing(listener: Listener, kind: Kind) -> None:
    good = build_event(kind, listener.facts(), SECRETS["data"])
    with listener.creating(0):
        for values in (
            {"bucket": "data2"},
            {"bucket": "other"},
            {"key": "song/1.parquet"},
            {"key": "x/songs/1.parquet"},
        ):
            listener.send(kind, listener.facts(**values))
        for key in ("$(id)", "`id`", "../songs/x", "ä", "x" * 5000):
            listener.send(kind, listener.facts(key=key))
        listener.post(
            Event({**good.headers, "Ce-Type": "other", "Ce-Time": "now"}, good.body.replace(b"Created", b"Gone"))
        )
        listener.post(changed(good, "", lambda body: body.update(Records=[], bucket=None)))


def test_an_alert_creates_one_run_a_group_and_day(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        for minute in (1, 2):
            listener.send(Kind.ALERT, listener.facts(now=now.replace(minute=minute)))
    [run] = runs
    assert run["metadata"]["name"].startswith("alert-")
    assert run["metadata"]["name"].endswith(f"-{now:%Y%m%d}")
    assert (parameters(run)["reason"], parameters(run)["commit"]) == ("alert", "")
    assert parameters(run)["message"].startswith("The songs that are asked for differ")
    other = build_event(Kind.ALERT, listener.facts(now=now), SECRETS["alert"])
    with listener.creating(1):
        listener.post(changed(other, "", lambda body: body.update(groupKey='{}:{country="DE"}')))


def test_an_alert_that_does_not_ask_for_training_creates_nothing(listener: Listener) -> None:
    good = build_event(Kind.ALERT, listener.facts(), SECRETS["alert"])

    def unasked(body: Any) -> None:
        body["alerts"][0]["labels"].pop("retrain")

    def partly(body: Any) -> None:
        body["alerts"].append({**body["alerts"][0], "labels": {"alertname": "Other"}})
        body["alerts"][0]["status"] = "resolved"

    with listener.creating(0):
        listener.send(Kind.ALERT, listener.facts(firing=False))
        listener.send(Kind.ALERT, listener.facts(model="other"))
        listener.post(changed(good, "", unasked))
        listener.post(changed(good, "", partly))
        listener.post(changed(good, "", lambda body: body.update(version="5")))


def test_the_schedule_trains_once_an_hour(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        listener.send(Kind.SCHEDULE, listener.facts(now=now))
        listener.send(Kind.SCHEDULE, listener.facts(now=now.replace(minute=59)))
    assert runs[0]["metadata"]["name"] == f"schedule-{now:%Y%m%d}07"
    assert parameters(runs[0])["reason"] == "schedule"


def test_nonsense_leaves_the_listener_alive(listener: Listener) -> None:
    good = build_event(Kind.PUSH, listener.facts(), SECRETS["github"])
    with listener.creating(0):
        for body in (b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"a":' * 2000, b"<xml/>", b" " * 8_000_000):
            listener.post(replace(good, body=body))
        listener.post(replace(good, body=b'{"commits": "' + b"x" * 8_000_000 + b'"}'))
    pods = listener.kubectl.get("pods", "--selector=eventlistener=jukebox")["items"]
    assert sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"]) == 0


@pytest.mark.parametrize("broken", ["missing", "empty", "absent"])
def test_without_a_secret_nobody_is_let_in(listener: Listener, broken: str) -> None:
    """Missing: no Secret; empty: its values are; absent: it lacks the keys. Triggers' cache lives for 5 s."""
    kubectl = listener.kubectl
    facts = {kind: listener.facts() for kind in SENDER}
    try:
        with listener.creating(0):
            pass
        before = listener.names()
        kubectl("delete", "secret", "jukebox-senders")
        if broken != "missing":
            senders(kubectl, dict.fromkeys(SECRETS, "") if broken == "empty" else {"other": "x"})
        time.sleep(6)  # what is in the cache of Triggers' interceptors has no event to be waited for
        for kind in SENDER:
            for secret in ("", SECRETS[SENDER[kind]]):
                listener.send(kind, facts[kind], secret)
            event = build_event(kind, facts[kind], "")
            listener.post(Event({**event.headers, "Authorization": ""}, event.body))
            listener.post(Event({**event.headers, "X-Gitlab-Token": ""}, event.body))
    finally:
        # Others than before: what the listener is still busy with is not let in later.
        SECRETS.update({sender: f"{value}-again" for sender, value in SECRETS.items()})
        senders(kubectl, SECRETS)
    time.sleep(6)
    listener.control()
    assert len(listener.names() - before) == 2


def test_a_burst_of_pushes_becomes_one_run_each_with_what_its_sender_delivers_again(listener: Listener) -> None:
    """Triggers answers 202 and may still drop an event, where its interceptors are too busy to read a secret in time.

    No run comes twice, and a redelivery, as a person or a job of the Git host asks for it, brings what is missing.
    """
    pushes = {f"push-{facts.commit[:12]}": facts for facts in (listener.facts() for _ in range(100))}
    with listener.creating(len(pushes)):
        missing = [*pushes.values(), *list(pushes.values())[::3]]
        for _ in range(5):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda facts: listener.send(Kind.PUSH, facts), missing))
            with contextlib.suppress(TimeoutError):
                listener.until(lambda names: pushes.keys() <= names, 30)
            missing = [facts for name, facts in pushes.items() if name not in listener.names()]
            if not missing:
                break


def test_the_accounts_may_do_what_they_need_and_nothing_else(listener: Listener) -> None:
    def may(account: str) -> set[str]:
        user = f"--as=system:serviceaccount:{listener.kubectl.namespace}:jukebox-{account}"
        lines = listener.kubectl("auth", "can-i", "--list", "--no-headers", user).splitlines()
        rows = [line.split() for line in lines]
        return {row[0] for row in rows if ".io" in row[0] or ".dev" in row[0] or "/" not in row[0]} - {
            "selfsubjectreviews.authentication.k8s.io",
            "selfsubjectaccessreviews.authorization.k8s.io",
            "selfsubjectrulesreviews.authorization.k8s.io",
            "[/",
        }

    def allowed(account: str, *words: str) -> bool:
        user = f"--as=system:serviceaccount:{listener.kubectl.namespace}:jukebox-{account}"
        try:
            return listener.kubectl("auth", "can-i", *words, user).strip() == "yes"
        except RuntimeError:
            return False

    assert may("steps") == may("build") == may("nobody")
    triggers = "triggers.tekton.dev"
    assert may("listener") - may("nobody") == {
        "pipelineruns.tekton.dev",
        *(
            f"{kind}.{triggers}"
            for kind in (
                "eventlisteners triggerbindings triggertemplates triggers interceptors "
                "clustertriggerbindings clusterinterceptors"
            ).split()
        ),
    }
    assert allowed("listener", "create", "pipelineruns")
    for words in (
        ("delete", "pipelineruns"),
        ("list", "pipelineruns"),
        ("get", "secrets"),
        ("create", "taskruns"),
        ("create", "pods"),
        ("impersonate", "serviceaccounts"),
        ("create", "pipelineruns", "--namespace=default"),
    ):
        assert not allowed("listener", *words), words
    assert may("release") - may("nobody") == {
        "pipelines.pipelines.kubeflow.org",
        "pipelineversions.pipelines.kubeflow.org",
        "workflows.argoproj.io",
        "pods",
    }
    for words in (("get", "secrets"), ("create", "pods"), ("get", "pods/log"), ("create", "pipelineruns")):
        assert not allowed("release", *words), words


@pytest.mark.skipif(not Path.home().joinpath("go/pkg/mod/github.com/jenkins-x").exists(), reason="no Go module cache")
def test_genuine_payloads_of_others_are_taken_for_none_of_ours(listener: Listener) -> None:
    folder = max(Path.home().glob("go/pkg/mod/github.com/jenkins-x/go-scm@*/scm/driver"))
    with listener.creating(0):
        for kind, driver in {Kind.PUSH: "github", Kind.PUSH_GITLAB: "gitlab", Kind.PUSH_GITEA: "gitea"}.items():
            secret = SECRETS[SENDER[kind]]
            files = sorted((folder / driver / "testdata" / "webhooks").glob("*.json"))
            assert files
            for file in files:
                digest = hmac.new(secret.encode(), file.read_bytes(), hashlib.sha256).hexdigest()
                headers = dict(build_event(kind, listener.facts(), secret).headers)
                if "X-Hub-Signature-256" in headers:
                    headers["X-Hub-Signature-256"] = f"sha256={digest}"
                listener.post(Event(headers, file.read_bytes()))
