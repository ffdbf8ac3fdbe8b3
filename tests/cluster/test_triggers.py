"""What comes through the listener, and what does not: each sender's events against the real Triggers."""

import json
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from scripts.replay import SENDERS, Event, Facts, Kind, build_event
from tests.active_model import TABLES
from tests.cluster import node
from tests.cluster.build import GO, run
from tests.cluster.listener import (
    PUSHES,
    REPOSITORY,
    SECRETS,
    Listener,
    changed,
    moment,
    senders,
    signed,
)


def parameters(run: dict[str, Any]) -> dict[str, str]:
    return {param["name"]: param["value"] for param in run["spec"]["params"]}


def label(run: dict[str, Any], name: str) -> str:
    return str(run["metadata"]["labels"][f"jukebox.github.io/{name}"])


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
    secret = SECRETS[SENDERS[kind]]
    good = build_event(kind, listener.facts(), secret)
    with listener.creating(0):
        listener.send(kind, listener.facts(branch="other"))
        listener.send(kind, listener.facts(branch="main2"))
        listener.send(kind, listener.facts(branch="x/refs/heads/main"))
        listener.send(kind, listener.facts(repository="https://github.com/mallory/jukebox"))
        listener.send(kind, listener.facts(commit="0" * 40))
        listener.send(kind, listener.facts(commit="$(id)" + "a" * 35))
        listener.send(kind, listener.facts(commit="../../etc/passwd"))
        listener.post(kind, changed(good, secret, lambda body: body.update(ref="refs/tags/main")))
        listener.post(kind, changed(good, secret, lambda body: body.pop("ref")))
        listener.post(kind, changed(good, secret, lambda body: body.update(after=None, checkout_sha=None)))
        listener.post(kind, changed(good, secret, lambda body: body.update(after=7, checkout_sha=7)))


def test_only_the_git_host_that_is_configured_may_push(listener: Listener) -> None:
    with listener.creating(0):
        for kind in PUSHES:
            for other in set(PUSHES) - {kind}:
                listener.post(other, build_event(kind, listener.facts(), SECRETS[SENDERS[kind]]))


@pytest.mark.parametrize("kind", PUSHES)
def test_what_cannot_change_a_model_trains_nothing(listener: Listener, kind: Kind) -> None:
    with listener.creating(0):
        for path in (
            "README.md",
            "docs/a/b.txt",
            "mkdocs.yml",
            "argocd/app.yaml",
        ):
            listener.send(kind, listener.facts(path=path))
    with listener.creating(4):
        for path in (
            "manifests/settings/settings.yaml",
            "manifests/overlays/kubeflow/prod/kustomization.yaml",
            "pipeline/models/jukebox/network.py",
            "docs.py",
        ):
            listener.send(kind, listener.facts(path=path))


@pytest.mark.parametrize("kind", PUSHES)
def test_one_file_among_texts_trains(listener: Listener, kind: Kind) -> None:
    facts = listener.facts(path="README.md")
    good = build_event(kind, facts, SECRETS[SENDERS[kind]])

    def add(body: Any) -> None:
        first = body["commits"][0]
        body["commits"].insert(
            0, {**first, "id": "3" * 40, "added": None, "modified": [], "removed": ["pipeline/x.py"]}
        )
        body["total_commits_count"] = 2

    with listener.creating(1):
        listener.post(kind, changed(good, SECRETS[SENDERS[kind]], add))


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_is_ours_however_its_sender_writes_the_address(listener: Listener, kind: Kind) -> None:
    addresses = (
        "https://github.com/ACME/jukeBox",
        "http://github.com/acme/jukebox",
        "https://a@github.com/acme/jukebox",
    )
    with listener.creating(len(addresses) + 1):
        for address in addresses:
            listener.send(kind, listener.facts(repository=address))
        bare = build_event(kind, listener.facts(), SECRETS[SENDERS[kind]])
        listener.post(
            kind, signed(Event(bare.headers, bare.body.replace(b'jukebox.git"', b'jukebox/"')), SECRETS[SENDERS[kind]])
        )


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_whose_commits_do_not_tell_all_trains(listener: Listener, kind: Kind) -> None:
    def texts() -> Event:
        return build_event(kind, listener.facts(path="README.md"), SECRETS[SENDERS[kind]])

    changes: list[Callable[[Any], object]] = [lambda body: body.update(before="0" * 40, created=True)]
    if kind is Kind.PUSH:  # the others do not say so
        changes.append(lambda body: body.update(forced=True))
        changes.append(lambda body: body.update(commits=body["commits"] * 2048))
    with listener.creating(len(changes)):
        for change in changes:
            listener.post(kind, changed(texts(), SECRETS[SENDERS[kind]], change))


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_whose_files_are_not_told_trains(listener: Listener, kind: Kind) -> None:
    good = build_event(kind, listener.facts(path="README.md"), SECRETS[SENDERS[kind]])

    def forget(body: Any) -> None:
        for one in body["commits"]:
            one["added"] = one["removed"] = one["modified"] = []

    with listener.creating(1):
        listener.post(kind, changed(good, SECRETS[SENDERS[kind]], forget))


@pytest.mark.parametrize("kind", SENDERS)
def test_without_its_senders_secret_an_event_creates_nothing(listener: Listener, kind: Kind) -> None:
    def stripped(event: Event, *words: str) -> Event:
        return Event({key: value for key, value in event.headers.items() if not key.startswith(words)}, event.body)

    secret = SECRETS[SENDERS[kind]]
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
        listener.post(kind, stripped(good, "X-Hub", "X-Gitlab-Token", "X-Gitea-Signature", "Authorization"))
        if kind in (Kind.PUSH, Kind.PUSH_GITEA):
            listener.post(kind, Event(good.headers, good.body + b" "))
            listener.post(kind, stripped(good, "X-Hub"))
        if kind in PUSHES:
            listener.post(kind, stripped(good, "X-GitHub-Event", "X-Gitlab-Event", "X-Gitea-Event", "X-Gogs-Event"))
        else:
            listener.post(kind, Event({**good.headers, "Authorization": f"Basic {secret}"}, good.body))
            listener.post(kind, Event({**good.headers, "Authorization": secret}, good.body))


def test_an_upload_of_many_objects_is_one_run_that_waits_for_its_end(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        for minute in (30, 34, 39):
            facts = listener.facts(key=f"{TABLES[0]}/ä b+{minute}.parquet", now=now.replace(minute=minute))
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
        listener.send(Kind.DATA, listener.facts(key=f"{TABLES[-1]}/1.parquet", now=now.replace(minute=40)))


@pytest.mark.parametrize("time", ["{}T09:38:48+02:00", "{}T07:38:48.578623+00:00", "{}T03:08:48.1-04:30"])
@pytest.mark.parametrize("kind", [Kind.DATA, Kind.DATA_CLOUDEVENT])
def test_news_of_data_may_tell_the_time_in_any_zone(listener: Listener, kind: Kind, time: str) -> None:
    now = moment()
    told = time.format(f"{now:%Y-%m-%d}")
    event = build_event(kind, listener.facts(now=now), SECRETS["data"])
    headers = {**event.headers, **({"Ce-Time": told} if kind is Kind.DATA_CLOUDEVENT else {})}
    with listener.creating(1) as runs:
        listener.post(kind, Event(headers, event.body.replace(f"{now:%Y-%m-%dT%H:%M:%SZ}".encode(), told.encode())))
    assert runs[0]["metadata"]["name"] == f"data-{now:%Y%m%d}0730"
    assert parameters(runs[0])["not-before"] == f"{now:%Y-%m-%d}T07:40:00Z"


def test_a_cloudevent_may_be_structured_and_tell_no_time(listener: Listener) -> None:
    def structured(event: Event, *without: str) -> Event:
        told = {key.removeprefix("Ce-").lower(): value for key, value in event.headers.items() if key[:3] == "Ce-"}
        body = {key: value for key, value in told.items() if key not in without} | {"data": json.loads(event.body)}
        headers = {key: value for key, value in event.headers.items() if key[:3] != "Ce-"}
        return Event({**headers, "Content-Type": "application/cloudevents+json"}, json.dumps(body).encode())

    now = moment()
    facts = [listener.facts(now=now), listener.facts(), listener.facts()]
    events = [build_event(Kind.DATA_CLOUDEVENT, each, SECRETS["data"]) for each in facts]
    untimed = {key: value for key, value in events[2].headers.items() if key != "Ce-Time"}
    with listener.creating(3) as runs:
        for event in (structured(events[0]), structured(events[1], "time"), Event(untimed, events[2].body)):
            listener.post(Kind.DATA_CLOUDEVENT, event)
            listener.post(Kind.DATA_CLOUDEVENT, event)
    assert {run["metadata"]["name"]: parameters(run)["not-before"] for run in runs} == {
        f"data-{now:%Y%m%d}0730": f"{now:%Y-%m-%d}T07:40:00Z",
        f"data-{facts[1].delivery}": "",
        f"data-{facts[2].delivery}": "",
    }


def test_a_store_may_leave_out_the_etag_and_tell_of_other_objects_first(listener: Listener) -> None:
    now = moment()
    event = build_event(Kind.DATA, listener.facts(now=now), SECRETS["data"])

    def change(body: Any) -> None:
        [record] = body["Records"]
        del record["s3"]["object"]["eTag"]
        removed = {**record, "eventName": "s3:ObjectRemoved:Delete", "eventTime": "2019-01-01T00:00:00Z"}
        elsewhere = json.loads(json.dumps(removed | {"eventName": "ObjectCreated:Put"}))
        elsewhere["s3"]["bucket"]["name"] = "other"
        body["Records"] = [removed, elsewhere, record]

    with listener.creating(1) as runs:
        listener.post(Kind.DATA, changed(event, "", change))
    assert runs[0]["metadata"]["name"] == f"data-{now:%Y%m%d}0730"
    assert label(runs[0], "event") == ""


@pytest.mark.parametrize("kind", [Kind.DATA, Kind.DATA_CLOUDEVENT])
def test_objects_elsewhere_train_nothing(listener: Listener, kind: Kind) -> None:
    good = build_event(kind, listener.facts(), SECRETS["data"])
    with listener.creating(0):
        for values in (
            {"bucket": "data2"},
            {"bucket": "other"},
            {"key": f"{TABLES[0][:-1]}/1.parquet"},
            {"key": f"x/{TABLES[0]}/1.parquet"},
        ):
            listener.send(kind, listener.facts(**values))
        for key in ("$(id)", "`id`", f"../{TABLES[0]}/x", "ä", "x" * 5000):
            listener.send(kind, listener.facts(key=key))
        listener.post(
            kind, Event({**good.headers, "Ce-Type": "other", "Ce-Time": "now"}, good.body.replace(b"Created", b"Gone"))
        )
        listener.post(kind, changed(good, "", lambda body: body.update(Records=[], bucket=None)))


def test_an_alert_creates_one_run_a_group_and_day(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        for minute in (1, 2):
            listener.send(Kind.ALERT, listener.facts(now=now.replace(minute=minute)))
    [run] = runs
    assert run["metadata"]["name"].startswith("alert-")
    assert run["metadata"]["name"].endswith(f"-{now:%Y%m%d}")
    assert (parameters(run)["reason"], parameters(run)["commit"]) == ("alert", "")
    assert parameters(run)["message"].startswith("What the model is asked about differs")
    other = build_event(Kind.ALERT, listener.facts(now=now), SECRETS["alert"])
    with listener.creating(1):
        listener.post(Kind.ALERT, changed(other, "", lambda body: body.update(groupKey='{}:{region="DE"}')))


def test_an_alerts_day_is_that_of_utc(listener: Listener) -> None:
    now = moment()
    event = build_event(Kind.ALERT, listener.facts(), SECRETS["alert"])
    with listener.creating(1) as runs:
        began = f"{now:%Y-%m-%d}T23:30:00.5-02:00"
        listener.post(Kind.ALERT, changed(event, "", lambda body: body["alerts"][0].update(startsAt=began)))
    assert runs[0]["metadata"]["name"].endswith(f"-{now + timedelta(days=1):%Y%m%d}")


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
        listener.post(Kind.ALERT, changed(good, "", unasked))
        listener.post(Kind.ALERT, changed(good, "", partly))
        listener.post(Kind.ALERT, changed(good, "", lambda body: body.update(version="5")))


def test_the_schedule_trains_once_an_hour(listener: Listener) -> None:
    now = moment()
    with listener.creating(1) as runs:
        listener.send(Kind.SCHEDULE, listener.facts(now=now))
        listener.send(Kind.SCHEDULE, listener.facts(now=now.replace(minute=59)))
    assert runs[0]["metadata"]["name"] == f"schedule-{now:%Y%m%d}07"
    assert parameters(runs[0])["reason"] == "schedule"


NAMES = ("", "-", "----", "a" * 300, "A_b.c/d:e", "-x-", "a" * 59 + "-b", "é♥", "$(id)", "null", "7", "..", "' or ''='")


def odd(seed: int) -> list[str]:
    """What a sender may call an event, to be made a label of."""
    chance = random.Random(seed)
    alphabet = "aZ0-_./:; $(){}\"'\\éß♥漢\u202e"
    return [*NAMES, *("".join(chance.choices(alphabet, k=chance.randint(1, 90))) for _ in range(12))]


def renamed(event: Event, name: str) -> Event:
    """The event with another name than DELIVERY in its headers: in UTF-8, for ``requests``, which writes Latin-1."""
    headers = {key: value.replace("DELIVERY", name).strip() for key, value in event.headers.items()}
    return Event({key: value.encode().decode("latin-1") for key, value in headers.items()}, event.body)


def valid(run: dict[str, Any]) -> bool:
    """Whether the label says what can be said of the event. Kubernetes refuses a run with a label that is none."""
    return bool(re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9-]{0,58}[A-Za-z0-9])?)?", label(run, "event")))


@pytest.mark.parametrize("kind", PUSHES)
def test_a_push_with_an_odd_name_is_one(listener: Listener, kind: Kind) -> None:
    deliveries = odd(1)
    secret = SECRETS[SENDERS[kind]]
    events = []
    for delivery in deliveries:
        facts = listener.facts(author=f"{delivery}x", message=delivery * 3, delivery="DELIVERY")
        events.append((kind, renamed(build_event(kind, facts, secret), delivery)))
    event = build_event(kind, listener.facts(), secret)
    unnamed = {key: value for key, value in event.headers.items() if not re.search("Delivery|UUID", key)}
    events.append((kind, Event(unnamed, event.body)))
    with listener.creating(len(events)) as runs:
        for one in events:
            listener.post(*one)
    assert all(valid(run) for run in runs)
    assert {"", "a" * 60, "A-b-c-d-e", "x", "id", "7"} <= {label(run, "event") for run in runs}


def test_events_with_odd_names_are_ones(listener: Listener) -> None:
    def event(kind: Kind) -> Event:
        return build_event(kind, listener.facts(delivery="DELIVERY"), SECRETS[SENDERS[kind]])

    events = []
    for name in (*odd(2), "JukeboxDataDrift-" * 9):

        def rename(body: Any, name: str = name) -> None:
            if "Records" in body:
                body["Records"][0]["s3"]["object"]["eTag"] = name
            else:
                body["groupKey"] = name

        events += [(kind, renamed(event(kind), name)) for kind in (Kind.DATA_CLOUDEVENT, Kind.SCHEDULE)]
        events += [(kind, changed(event(kind), "", rename)) for kind in (Kind.DATA, Kind.ALERT)]
    with listener.creating(len(events)) as runs:
        for one in events:
            listener.post(*one)
    assert all(valid(run) for run in runs)
    assert max(len(run["metadata"]["name"]) for run in runs) == 51


def test_nonsense_leaves_the_listener_alive(listener: Listener) -> None:
    good = build_event(Kind.PUSH, listener.facts(), SECRETS["github"])
    with listener.creating(0):
        for body in (b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"a":' * 2000, b"<xml/>", b" " * 4_000_000):
            listener.post(Kind.PUSH, replace(good, body=body))
        listener.post(Kind.PUSH, replace(good, body=b'{"commits": "' + b"x" * 4_000_000 + b'"}'))
    assert restarts(listener) == 0


def restarts(listener: Listener) -> int:
    """How often the listener's pods have begun anew."""
    pods = listener.kubectl.get("pods", "--selector=eventlistener=jukebox")["items"]
    assert pods
    return sum(status["restartCount"] for pod in pods for status in pod["status"]["containerStatuses"])


def test_an_event_that_is_too_large_is_refused_before_the_listener(listener: Listener) -> None:
    large = b'{"commits": "' + b"x" * 6_000_000 + b'"}'
    good = build_event(Kind.PUSH, listener.facts(), SECRETS["github"])
    event = signed(replace(good, body=large), SECRETS["github"])
    with listener.creating(0):
        for body in (large, iter([large[:1_000_000]] * 6)):
            answer = listener.http.post(listener.urls[Kind.PUSH], data=body, headers=dict(event.headers), timeout=60)
            assert answer.status_code == 413
            assert answer.text == "The event is larger than 5m bytes, the setting event-max-size.\n"
    assert restarts(listener) == 0


def test_without_a_secret_nobody_is_let_in(listener: Listener) -> None:
    """There is no Secret, its values are empty, or it lacks the keys. Triggers' cache lives for 5 s."""
    kubectl = listener.kubectl
    facts = {kind: listener.facts() for kind in SENDERS}
    with listener.creating(0):
        pass
    before = listener.names()
    try:
        for held in (None, dict.fromkeys(SECRETS, ""), {"other": "x"}):
            kubectl("delete", "secret", "jukebox-senders", "--ignore-not-found")
            if held:
                senders(kubectl, held)
            time.sleep(6)  # what is in the cache of Triggers' interceptors has no event to be waited for
            for kind in SENDERS:
                for secret in ("", SECRETS[SENDERS[kind]]):
                    listener.send(kind, facts[kind], secret)
                event = build_event(kind, facts[kind], "")
                listener.post(kind, Event({**event.headers, "Authorization": ""}, event.body))
                listener.post(kind, Event({**event.headers, "X-Gitlab-Token": ""}, event.body))
    finally:
        # Others than before: what the listener is still busy with is not let in later.
        SECRETS.update({sender: f"{value}-again" for sender, value in SECRETS.items()})
        senders(kubectl, SECRETS)
    good = listener.facts()
    node.wait("new secrets", lambda: listener.offer(good) and f"push-{good.commit[:12]}" in listener.names())
    controls = listener.control()
    assert listener.names() - before - controls == {f"push-{good.commit[:12]}"}


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

    assert may("steps") == may("nobody")
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
    # What they may do there is nothing; `test_access.py` has what they may where the pipeline runs.
    for account in ("release", "schedule"):
        assert may(account) == may("nobody")
    for account, verbs in {"source": {"get"}, "images": {"get", "patch"}}.items():
        assert may(account) - may("nobody") == {"configmaps"}
        for verb in ("get", "patch", "delete"):
            assert allowed(account, verb, "configmaps/jukebox-images") == (verb in verbs)
            assert not allowed(account, verb, "configmaps/jukebox-settings")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, dict[str, bytes]]:
    """Bodies that the Git hosts have sent, by their files' names: of a Go module that Tekton depends on, and others."""
    if not shutil.which("go"):
        pytest.skip("Go is not here: it fetches the module with genuine payloads")
    folder = shutil.copytree(GO, tmp_path_factory.mktemp("go") / "go")  # Go writes to its go.sum
    module = json.loads(run("go", "mod", "download", "-json", "github.com/jenkins-x/go-scm", cwd=folder))["Dir"]
    drivers = {Kind.PUSH: "github", Kind.PUSH_GITLAB: "gitlab", Kind.PUSH_GITEA: "gitea"}
    found = {
        kind: {
            file.name: file.read_bytes()
            for file in (Path(module, f"scm/driver/{driver}/testdata/webhooks").glob("*.json"))
        }
        for kind, driver in drivers.items()
    }
    shared = Path(__file__).parents[3] / "shared" / "payloads"
    found[Kind.PUSH] |= {file.name: file.read_bytes() for file in shared.glob("github-push-*.json")}
    return found


def delivered(kind: Kind, body: bytes) -> Event:
    """A body as the Git host delivers a push."""
    secret = SECRETS[SENDERS[kind]]
    return signed(Event(build_event(kind, Facts(), secret).headers, body), secret)


@pytest.mark.parametrize("kind", PUSHES)
def test_genuine_payloads_of_others_are_taken_for_none_of_ours(
    listener: Listener, genuine: dict[Kind, dict[str, bytes]], kind: Kind
) -> None:
    assert len(genuine[kind]) > 20
    with listener.creating(0):
        for body in genuine[kind].values():
            listener.post(kind, delivered(kind, body))


@pytest.mark.parametrize("kind", PUSHES)
def test_genuine_pushes_to_our_repository_create_one_run_each(
    listener: Listener, genuine: dict[Kind, dict[str, bytes]], kind: Kind
) -> None:
    """Nothing else of them is replaced, but that they change code. No tag, deleted branch or issue is a push."""
    bodies = {
        name: re.sub(
            rb'("(?:clone_url|git_http_url)": *")[^"]*',
            rb"\g<1>" + REPOSITORY.encode() + b".git",
            re.sub(rb'("ref": *"refs/heads/)[^"]*', rb"\1main", body),
        ).replace(b'"README.md"', b'"pipeline/models/jukebox/network.py"')
        for name, body in genuine[kind].items()
    }
    trained = re.compile(r"(push(2|_merge)?|(push_)?branch_create|github-push-with-new-branch)\.json")
    pushes = {json.loads(body).get("after") for name, body in bodies.items() if trained.fullmatch(name)} - {None}
    with listener.creating(len(pushes)) as runs:
        for body in bodies.values():
            listener.post(kind, delivered(kind, body))
    assert {label(run, "commit") for run in runs} == pushes
