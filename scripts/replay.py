"""``jukebox replay``: send an event to the listener as its genuine sender does, with its signature."""

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import requests
import typer

from pipeline.checkout import DIRTY, head, page
from pipeline.core.documents import to_json
from pipeline.core.errors import ListenerRefuses, SettingsInvalid
from pipeline.core.sources import redact
from pipeline.settings import Settings, read_settings, settings_file
from scripts.clients.kubernetes_api import SECRETS, ci_cluster
from scripts.clients.pipeline_server import TIMEOUT

NOBODY = "0" * 40
# An alert asks for a new training by this label, whose value is the model's name.
RETRAIN = "retrain"
# The types of the CloudEvents that the listener takes.
DATA_EVENT, SCHEDULE_EVENT = "jukebox.data.updated", "jukebox.schedule"


class Kind(StrEnum):
    """The kind of event and its sender."""

    PUSH = "push"
    PUSH_GITLAB = "push-gitlab"
    PUSH_GITEA = "push-gitea"
    DATA = "data"
    DATA_CLOUDEVENT = "data-cloudevent"
    ALERT = "alert"
    SCHEDULE = "schedule"


# The Secret with what the listener shares with its senders, and the key of each.
SECRET = "jukebox-senders"  # noqa: S105 its name
SENDERS = {
    Kind.PUSH: "github",
    Kind.PUSH_GITLAB: "gitlab",
    Kind.PUSH_GITEA: "gitea",
    Kind.DATA: "data",
    Kind.DATA_CLOUDEVENT: "data",
    Kind.ALERT: "alert",
    Kind.SCHEDULE: "schedule",
}


@dataclass(frozen=True)
class Facts:
    """What an event tells. ``delivery`` is its identity: a redelivery has the same."""

    repository: str = "https://github.com/example/jukebox"
    branch: str = "main"
    commit: str = "1" * 40
    before: str = "2" * 40
    message: str = "Try another learning rate"
    author: str = "Ada"
    path: str = "pipeline/core/options.py"
    bucket: str = "data"
    key: str = "table/2026-05.parquet"
    model: str = "jukebox"
    firing: bool = True
    delivery: str = field(default_factory=lambda: str(uuid4()))
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def full_name(self) -> str:
        """Organisation and name of the repository."""
        return urlsplit(page(self.repository)).path.strip("/")

    @property
    def name(self) -> str:
        """Name of the repository."""
        return self.full_name.rpartition("/")[2]

    @property
    def clone_url(self) -> str:
        """Where it is cloned from."""
        return f"{page(self.repository)}.git"

    @property
    def time(self) -> str:
        """RFC 3339."""
        return self.now.isoformat().replace("+00:00", "Z")

    @property
    def commits(self) -> list[dict[str, Any]]:
        """The pushed commits, as all three Git hosts list them."""
        author = {"name": self.author, "email": "ada@example.com"}
        return [
            {
                "id": self.commit,
                "message": self.message,
                "timestamp": self.time,
                "url": f"{self.repository}/commit/{self.commit}",
                "author": author,
                "added": [],
                "removed": [],
                "modified": [self.path],
            }
        ]


@dataclass(frozen=True)
class Event:
    """What the listener is sent."""

    headers: Mapping[str, str]
    body: bytes


def command(
    kind: Annotated[Kind, typer.Argument(help="Kind of event to send.")],
    secret_file: Annotated[
        Path | None, typer.Option(help="File with the secret that sender and listener share; default: the cluster's.")
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            help="The listener; `kubectl port-forward svc/jukebox-listener-proxy 8080`.", envvar="JUKEBOX_LISTENER"
        ),
    ] = "http://localhost:8080",
    commit: Annotated[str, typer.Option(help="Pushed commit; default: HEAD of the checkout with the settings.")] = "",
    branch: Annotated[str, typer.Option(help="Pushed branch.")] = Facts.branch,
    path: Annotated[str, typer.Option(help="File that the push changes.")] = Facts.path,
    repository: Annotated[str, typer.Option(help="Web address of the repository; default: that of the settings.")] = "",
    data: Annotated[
        str, typer.Option(help="New object, s3://bucket/key; default: one beside the settings' first table.")
    ] = "",
    delivery: Annotated[str, typer.Option(help="The event's identity. Use the same one again for a redelivery.")] = "",
) -> None:
    """Send an event to the listener.

    The listener answers 202 before it evaluates the event. Check that a PipelineRun is created.

    Example: `jukebox replay push`
    """
    settings = read_settings()
    secret = _secret(kind, secret_file, settings)
    bucket, _, key = (data or next(iter(settings.data.values()))).removeprefix("s3://").partition("/")
    facts = Facts(
        repository=page(repository or settings.repository),
        branch=branch,
        commit=commit or head(settings_file().parent).removesuffix(DIRTY) or Facts.commit,
        path=path,
        bucket=bucket,
        key=key.replace("*", "replayed"),
        model=settings.model_name,
        delivery=delivery or str(uuid4()),
    )
    answer = send(build_event(kind, facts, secret), url)
    print(f"{kind} {facts.delivery}: the listener answers {answer}")


def _secret(kind: Kind, file: Path | None, settings: Settings) -> str:
    """The secret that sender and listener share; raises SettingsInvalid if there is none."""
    if file:
        where, secret = str(file), file.read_text().strip() if file.is_file() else ""
    else:
        cluster = ci_cluster(settings)
        where = f"key {SENDERS[kind]} of Secret {SECRET} in {cluster.namespace}"
        data = (cluster.read(SECRETS, SECRET) or {}).get("data", {})
        secret = base64.b64decode(data.get(SENDERS[kind], "")).decode().strip()
    if not secret:
        raise SettingsInvalid(f"{where} contains no secret, but the listener accepts only senders with one")
    return secret


def build_event(kind: Kind, facts: Facts, secret: str) -> Event:
    """Return the event, authenticated with ``secret`` in the way of its sender."""
    event_headers, body = BUILDERS[kind](facts)
    content = to_json(body, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", **event_headers, **_authentication(kind, content, secret)}
    return Event(headers, content)


def send(event: Event, url: str) -> str:
    """Send the event; return the status and the answer. Raises ListenerRefuses if it is not accepted."""
    try:
        answer = requests.post(url, data=event.body, headers=event.headers, timeout=TIMEOUT, allow_redirects=False)
    except (OSError, ValueError) as error:
        raise ListenerRefuses(
            f"{url} does not answer ({type(error).__name__}): check that the listener is reachable there"
        ) from None
    if not answer.ok or answer.is_redirect:
        raise ListenerRefuses(f"{redact(url)} answers {answer.status_code}: {answer.text[:300]}")
    return f"{answer.status_code} {answer.text.strip()[:300]}"


def _authentication(kind: Kind, body: bytes, secret: str) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if kind is Kind.PUSH:
        return {"X-Hub-Signature-256": f"sha256={digest}"}
    if kind is Kind.PUSH_GITLAB:
        return {"X-Gitlab-Token": secret}
    if kind is Kind.PUSH_GITEA:
        return {"X-Gitea-Signature": digest, "X-Hub-Signature-256": f"sha256={digest}"}
    # A Secret of the listener may hold the word, since it compares whole headers.
    return {"Authorization": f"Bearer {secret.removeprefix('Bearer ')}"}


Built = tuple[dict[str, str], dict[str, Any]]


def _github(facts: Facts) -> Built:
    owner = facts.full_name.partition("/")[0]
    [commit] = facts.commits
    headers = {"User-Agent": "GitHub-Hookshot/0000000", "X-GitHub-Event": "push", "X-GitHub-Delivery": facts.delivery}
    return headers, {
        "ref": f"refs/heads/{facts.branch}",
        "before": facts.before,
        "after": facts.commit,
        "created": False,
        "deleted": facts.commit == NOBODY,
        "forced": False,
        "base_ref": None,
        "compare": f"{facts.repository}/compare/{facts.before[:12]}...{facts.commit[:12]}",
        "commits": facts.commits,
        "head_commit": None if facts.commit == NOBODY else commit,
        "repository": {
            "name": facts.name,
            "full_name": facts.full_name,
            "private": False,
            "owner": {"name": owner, "login": owner},
            "html_url": facts.repository,
            "clone_url": facts.clone_url,
            "default_branch": "main",
        },
        "pusher": {"name": facts.author, "email": "ada@example.com"},
        "sender": {"login": facts.author},
    }


def _gitlab(facts: Facts) -> Built:
    headers = {"X-Gitlab-Event": "Push Hook", "X-Gitlab-Event-UUID": facts.delivery, "Idempotency-Key": facts.delivery}
    return headers, {
        "object_kind": "push",
        "event_name": "push",
        "before": facts.before,
        "after": facts.commit,
        "ref": f"refs/heads/{facts.branch}",
        "checkout_sha": None if facts.commit == NOBODY else facts.commit,
        "message": None,
        "user_name": facts.author,
        "user_username": facts.author.lower(),
        "user_email": "ada@example.com",
        "project_id": 1,
        "project": {
            "id": 1,
            "name": facts.name,
            "web_url": facts.repository,
            "git_http_url": facts.clone_url,
            "path_with_namespace": facts.full_name,
            "default_branch": "main",
        },
        "commits": facts.commits,
        "total_commits_count": 1,
        "repository": {"name": facts.name, "homepage": facts.repository, "git_http_url": facts.clone_url},
    }


def _gitea(facts: Facts) -> Built:
    names = ("X-Gitea", "X-Gogs", "X-GitHub")
    headers = {f"{name}-{key}": value for name in names for key, value in _delivered(facts).items()}
    return headers, {
        "ref": f"refs/heads/{facts.branch}",
        "before": facts.before,
        "after": facts.commit,
        "compare_url": f"{facts.repository}/compare/{facts.before}...{facts.commit}",
        "commits": facts.commits,
        "head_commit": None if facts.commit == NOBODY else facts.commits[0],
        "repository": {
            "id": 1,
            "name": facts.name,
            "full_name": facts.full_name,
            "private": False,
            "html_url": facts.repository,
            "clone_url": facts.clone_url,
            "default_branch": "main",
        },
        "pusher": {"login": facts.author, "email": "ada@example.com"},
        "sender": {"login": facts.author, "email": "ada@example.com"},
    }


def _delivered(facts: Facts) -> dict[str, str]:
    return {"Event": "push", "Event-Type": "push", "Delivery": facts.delivery}


def _s3(facts: Facts) -> Built:
    # A version and an ETag that belong to the delivery, as they belong to an upload.
    etag = hashlib.md5(facts.delivery.encode(), usedforsecurity=False).hexdigest()
    record = {
        "eventVersion": "2.0",
        "eventSource": "minio:s3",
        "awsRegion": "",
        "eventTime": facts.time,
        "eventName": "s3:ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": {"name": facts.bucket, "arn": f"arn:aws:s3:::{facts.bucket}"},
            "object": {
                "key": quote(facts.key, safe=""),
                "size": 1_048_576,
                "eTag": etag,
                "versionId": facts.delivery,
                "sequencer": f"{int(facts.now.timestamp() * 1e9):X}",
            },
        },
    }
    return {}, {"EventName": record["eventName"], "Key": f"{facts.bucket}/{facts.key}", "Records": [record]}


def _cloudevent(facts: Facts, kind: str, subject: str) -> dict[str, str]:
    """The headers of a CloudEvent in binary mode, version 1.0."""
    return {
        "Ce-Specversion": "1.0",
        "Ce-Id": facts.delivery,
        "Ce-Type": kind,
        "Ce-Source": f"/{facts.model}/replay",
        "Ce-Subject": quote(subject, safe="/"),
        "Ce-Time": facts.time,
    }


def _data_cloudevent(facts: Facts) -> Built:
    etag = hashlib.md5(facts.delivery.encode(), usedforsecurity=False).hexdigest()
    body = {"bucket": facts.bucket, "key": facts.key, "etag": etag, "version": facts.delivery}
    return _cloudevent(facts, DATA_EVENT, f"{facts.bucket}/{facts.key}"), body


def _alert(facts: Facts) -> Built:
    labels = {"alertname": "JukeboxDataDrift", "severity": "warning", "model": facts.model, RETRAIN: facts.model}
    annotations = {"summary": "What the model is asked about differs from what it has learnt from"}
    status = "firing" if facts.firing else "resolved"
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": facts.time,
        "endsAt": "0001-01-01T00:00:00Z" if facts.firing else facts.time,
        "generatorURL": "http://prometheus.example.com/graph",
        "fingerprint": hashlib.sha256(to_json(labels).encode()).hexdigest()[:16],
    }
    group = {"alertname": labels["alertname"], "model": facts.model}
    return {"User-Agent": "Alertmanager/0.28"}, {
        "version": "4",
        "groupKey": '{}:{alertname="JukeboxDataDrift", model="' + facts.model + '"}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "jukebox",
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "http://alertmanager.example.com",
        "alerts": [alert],
    }


def _schedule(facts: Facts) -> Built:
    return _cloudevent(facts, SCHEDULE_EVENT, facts.model), {"model": facts.model, "time": facts.time}


BUILDERS: Mapping[Kind, Callable[[Facts], Built]] = {
    Kind.PUSH: _github,
    Kind.PUSH_GITLAB: _gitlab,
    Kind.PUSH_GITEA: _gitea,
    Kind.DATA: _s3,
    Kind.DATA_CLOUDEVENT: _data_cloudevent,
    Kind.ALERT: _alert,
    Kind.SCHEDULE: _schedule,
}
